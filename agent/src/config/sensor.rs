//! Whether what devices let be seen of themselves is read.

use serde::Deserialize;

/// The sensor: an inventory by listening only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table [sensor]")]
pub struct Sensor {
    /// Whether first packets of flows are looked at for names, versions and habits.
    pub enabled: bool,
}

impl Default for Sensor {
    fn default() -> Self {
        Self { enabled: true }
    }
}
