//! Ports of the bridge: the uplink and the device ports.

use std::fmt;

/// One interface that the engine hears and speaks on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(u16);

impl PortId {
    /// The uplink: the devices' clear traffic.
    pub const UPLINK: Self = Self(0);

    /// The device port with this place in the configuration, counted from 0.
    #[must_use]
    pub const fn device(index: u16) -> Self {
        Self(index + 1)
    }

    /// Place among all ports: 0 for the uplink, then the device ports in their order.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Whether this is the uplink.
    #[must_use]
    pub const fn is_uplink(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_uplink() { f.write_str("uplink") } else { write!(f, "port {}", self.0) }
    }
}
