//! Alarms: what a gateway sees on its cables that a person should look at.

use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::MemberId;
use crate::mac::MacAddr;
use crate::name::Name;
use crate::time::UnixMillis;
use crate::verdict::words;

words! {
    /// Kinds of alarms.
    AlarmKind {
        Moved = "moved", "A confirmed device's Ethernet address speaks from where that device isn't: a cable was moved, two were swapped, or somebody forges it.";
        Loop = "loop", "What this gateway sent out comes back in: a cable joins two of its ports, or a port and the uplink.";
        Conflict = "conflict", "Somebody uses an IP address that belongs to another device, to its router or to this gateway.";
    }
}

impl Serialize for AlarmKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for AlarmKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_word(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not an alarm")))
    }
}

/// Something on a gateway's cables that a person should look at. It stands until it wasn't seen for ten minutes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alarm {
    /// What it is.
    pub kind: AlarmKind,
    /// The port where it was seen. None: the uplink.
    pub port: Option<Name>,
    /// The Ethernet address that it was seen from.
    pub mac: MacAddr,
    /// The IP address that is claimed, where it is about one.
    pub address: Option<Ipv4Addr>,
    /// The member whose Ethernet or IP address it is, where it is a member's.
    pub member: Option<MemberId>,
    /// How many frames showed it.
    pub count: u64,
    /// When it was first seen.
    pub first: UnixMillis,
    /// When it was last seen.
    pub last: UnixMillis,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_written() {
        for kind in AlarmKind::ALL {
            assert_eq!(AlarmKind::from_word(kind.as_str()), Some(*kind));
            assert!(kind.explanation().ends_with('.'), "{kind}");
        }
        assert_eq!(AlarmKind::from_word("fire"), None);
    }
}
