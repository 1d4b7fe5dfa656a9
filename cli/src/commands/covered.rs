//! How much was seen of a device, in lists.

use anteroom_controller_core::coverage::Coverage;
use serde::Serialize;

/// How much was seen of what is expected of a device.
#[derive(Debug, Serialize)]
pub(super) struct CoverageRow {
    percent: u8,
    /// Whether that is enough for enforce.
    enough: bool,
    watched_days: u32,
    active_days: u32,
    /// What wasn't seen.
    missing: Vec<String>,
    /// What is likely still to come, and would be dropped.
    unforeseen: Vec<String>,
}

impl CoverageRow {
    pub(super) fn new(found: &Coverage) -> Self {
        Self {
            percent: found.percent(),
            enough: found.enough,
            watched_days: found.watched_days,
            active_days: found.active_days,
            missing: found.missing.iter().map(ToString::to_string).collect(),
            unforeseen: found.unforeseen.iter().map(ToString::to_string).collect(),
        }
    }

    pub(super) fn short(&self) -> String {
        format!("{} %{}", self.percent, if self.enough { "" } else { ", too little" })
    }

    pub(super) fn long(&self) -> String {
        let mut text = format!("{} % of what is expected of it was seen", self.percent);
        if !self.missing.is_empty() {
            text.push_str(&format!(": {}", self.missing.join(", ")));
        }
        if !self.enough {
            text.push_str(". Too little for enforce");
        }
        if !self.unforeseen.is_empty() {
            text.push_str(&format!(
                ". Not covered, more like it may come: {}",
                self.unforeseen.join("; ")
            ));
        }
        text
    }
}
