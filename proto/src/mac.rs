//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use crate::id::GatewayId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A 48-bit Ethernet address (IEEE 802).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All ones.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address that a host has as a member: a TUN device has none, and members are told apart by them. Locally
    /// assigned, and its own alone, since it follows from the host's id.
    #[must_use]
    pub const fn of_host(host: GatewayId) -> Self {
        let [a, b, c, d, e, ..] = *host.as_bytes();
        Self([0x06, a, b, c, d, e])
    }

    /// Whether the address names a group: broadcast or multicast.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether the address was assigned locally rather than by a maker.
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0[0] & 2 != 0
    }

    /// Whether machines share the address by a protocol, one of them having it at a time: VRRP and CARP
    /// (00:00:5e:00:01:xx), HSRP (00:00:0c:07:ac:xx, 00:00:0c:9f:fx:xx).
    #[must_use]
    pub const fn is_shared(self) -> bool {
        matches!(
            self.0,
            [0, 0, 0x5e, 0, 1, _]
                | [0, 0, 0x0c, 0x07, 0xac, _]
                | [0, 0, 0x0c, 0x9f, 0xf0..=0xff, _]
        )
    }
}

/// Text that isn't an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an Ethernet address: write it as 00:1b:21:aa:bb:cc")]
pub struct ParseMacError {
    /// What was read, cut to a length that fits a message.
    pub text: String,
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacError { text: text.chars().take(40).collect() };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            crate::cbor::deserialize_array(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let mac = "00:1b:21:AA:bb:cc".parse::<MacAddr>().unwrap();
        assert_eq!(mac.to_string(), "00:1b:21:aa:bb:cc");
        for bad in
            ["", "00:1b:21:aa:bb", "00:1b:21:aa:bb:cc:dd", "0:1b:21:aa:bb:cc", "+0:1b:21:aa:bb:cc"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?} was taken");
        }
    }
}
