//! Protocols and ports that a rule opens.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A transport protocol that a rule can open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
    /// ICMP echo and its reply (RFC 792).
    IcmpEcho,
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::IcmpEcho => 1,
        }
    }

    /// How people write it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::IcmpEcho => "icmp",
        }
    }
}

/// One protocol and an inclusive range of the responder's ports. For ICMP echo the range is 0 to 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMatch {
    /// The protocol.
    pub protocol: Protocol,
    /// First port of the range.
    pub first: u16,
    /// Last port of the range, at least `first`.
    pub last: u16,
}

impl PortMatch {
    /// Whether a flow to `port` matches. The port of an ICMP echo doesn't matter.
    #[must_use]
    pub const fn matches(&self, protocol: Protocol, port: u16) -> bool {
        match (self.protocol, protocol) {
            (Protocol::IcmpEcho, Protocol::IcmpEcho) => true,
            (Protocol::Tcp, Protocol::Tcp) | (Protocol::Udp, Protocol::Udp) => {
                self.first <= port && port <= self.last
            }
            _ => false,
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.protocol.word();
        if self.protocol == Protocol::IcmpEcho {
            write!(f, "{word}/echo")
        } else if self.first == self.last {
            write!(f, "{word}/{}", self.first)
        } else {
            write!(f, "{word}/{}-{}", self.first, self.last)
        }
    }
}

/// Text that isn't a protocol with ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a protocol with ports: write tcp/104, udp/5000-5010 or icmp/echo")]
pub struct ParsePortMatchError {
    /// What was read, cut to a length that fits a message.
    pub text: String,
}

impl FromStr for PortMatch {
    type Err = ParsePortMatchError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParsePortMatchError { text: text.chars().take(40).collect() };
        let (word, ports) = text.split_once('/').ok_or_else(error)?;
        let protocol = match (word, ports) {
            ("icmp", "echo") => {
                return Ok(Self { protocol: Protocol::IcmpEcho, first: 0, last: 0 });
            }
            ("tcp", _) => Protocol::Tcp,
            ("udp", _) => Protocol::Udp,
            _ => return Err(error()),
        };
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u16>().ok().filter(|port| digits && *port != 0).ok_or_else(error)
        };
        let (first, last) = match ports.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(ports)?, port(ports)?),
        };
        if first > last { Err(error()) } else { Ok(Self { protocol, first, last }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for good in ["tcp/104", "udp/5000-5010", "icmp/echo", "tcp/1-65535"] {
            assert_eq!(good.parse::<PortMatch>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "tcp",
            "tcp/",
            "tcp/0",
            "tcp/70000",
            "tcp/9-8",
            "sctp/1",
            "icmp/8",
            "tcp/+1",
            "tcp/1-",
        ] {
            assert!(bad.parse::<PortMatch>().is_err(), "{bad:?} was taken");
        }
    }
}
