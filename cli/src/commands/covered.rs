//! How much was seen of a device, in lists.

use std::collections::BTreeMap;

use anteroom_controller_core::coverage::{Coverage, Wanted, coverage};
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::id::MemberId;
use serde::Serialize;

use crate::error::Error;
use crate::output::time::now;
use crate::recognised::Recognised;
use crate::recorded::Reader;
use crate::remote::Remote;

/// How much was seen of what is expected of a device.
#[derive(Debug, Serialize)]
pub(super) struct CoverageRow {
    percent: u8,
    /// Whether that is enough for enforce.
    enough: bool,
    /// Days on which its own gateway watched it, and those since the first of them on which that told nothing.
    watched_days: u32,
    silent_days: u32,
    active_days: u32,
    /// Days on which somebody looked after it from elsewhere.
    maintained_days: u32,
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
            silent_days: found.silent_days,
            active_days: found.active_days,
            maintained_days: found.maintained_days,
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
        if self.maintained_days == 0 {
            text.push_str(". Nobody was seen to maintain it over the network");
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

/// The coverage of every device, and what each is taken for. Nothing of the coverage where the policy has problems (`resolved` is none)
/// or the controller is too old; flows then say nothing of what devices are, either.
pub(super) fn judged(
    resolved: Option<&Resolved>,
    remote: &mut Remote,
) -> Result<(BTreeMap<MemberId, Coverage>, Recognised), Error> {
    let Some(resolved) = resolved else {
        return Ok((BTreeMap::new(), Recognised::load(remote, None)?));
    };
    let mut reader = Reader::new(resolved);
    if reader.read(remote, &mut |_| ())?.is_none() {
        return Ok((BTreeMap::new(), Recognised::load(remote, None)?));
    }
    let coverages = coverage(resolved, &reader.history, &Wanted::default(), now());
    Ok((coverages, Recognised::load(remote, Some(&reader.history))?))
}
