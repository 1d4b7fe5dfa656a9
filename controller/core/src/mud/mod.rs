//! MUD files (RFC 8520): what a maker says that its devices need, in and out.
//!
//! In: a file from disk, never one that is fetched because a device says so. What it permits is read as [`Allow`]s, and [`draft()`] makes rules of them, each with what
//! was seen of it. Out: [`of_class()`] says what the policy permits the devices of a class.
//!
//! Access lists (RFC 8519) speak of packets in either direction, rules of who opens. An entry whose port stands at the device's side is about a service of the
//! device, one whose port stands at the other side about the peer's; TCP may say it outright (`direction-initiated`).

use std::net::Ipv4Addr;

use anteroom_proto::service::PortMatch;
use ipnet::Ipv4Net;

mod draft;
mod json;
mod of_class;
#[cfg(test)]
mod tests;

pub use draft::{Draft, draft};
pub use of_class::{SEGMENT_URN, of_class};

/// Longest file that is read, in bytes.
pub const MAX_LEN: usize = 1024 * 1024;
/// Most access list entries of a file.
pub const MAX_ENTRIES: usize = 2_000;
/// Longest text that is kept of a file, in characters.
const MAX_TEXT: usize = 253;

/// What a MUD file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mud {
    /// Where its maker serves it.
    pub url: String,
    /// When it was last changed, as it says (RFC 3339).
    pub last_update: String,
    /// For how many hours it may be kept, 1 to 168.
    pub cache_validity: u32,
    /// Whether the maker still supports the device.
    pub is_supported: bool,
    /// What the device is, at most 60 letters.
    pub systeminfo: Option<String>,
    /// Who makes it.
    pub manufacturer: Option<String>,
    /// What it is called.
    pub model: Option<String>,
    /// What it permits, sorted, each once.
    pub allows: Vec<Allow>,
    /// What it says and can't be said in rules here, for people.
    pub unread: Vec<String>,
}

/// Something that a MUD file permits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allow {
    /// Who opens.
    pub opens: Opens,
    /// The other end.
    pub peer: Peer,
    /// The service, at whoever doesn't open. All ports of a protocol are 1 to 65535.
    pub service: PortMatch,
}

/// Who opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Opens {
    /// The device.
    Device,
    /// The other end.
    Peer,
}

/// Who a MUD file means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Addresses.
    Network(Ipv4Net),
    /// A name in DNS.
    Dns(String),
    /// A class of machines by its URI, such as `urn:ietf:params:mud:ntp`.
    Controller(String),
    /// Whoever controls this kind of device: local people know who that is.
    MyController,
    /// Devices of the same maker.
    SameManufacturer,
    /// Devices of a maker, by its domain name.
    Manufacturer(String),
    /// Devices of a model, by its MUD URL.
    Model(String),
    /// Everything in the local networks.
    LocalNetworks,
    /// Anybody.
    Anybody,
}

impl Peer {
    /// The word by which people say who is meant: `--peer my-controller=central-1`.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            Self::Network(net) if net.prefix_len() == 32 => net.addr().to_string(),
            Self::Network(net) => net.to_string(),
            Self::Dns(name) => name.clone(),
            Self::Controller(uri) | Self::Model(uri) => uri.clone(),
            Self::MyController => "my-controller".to_owned(),
            Self::SameManufacturer => "same-manufacturer".to_owned(),
            Self::Manufacturer(name) => format!("manufacturer {name}"),
            Self::LocalNetworks => "local-networks".to_owned(),
            Self::Anybody => "anybody".to_owned(),
        }
    }
}

/// Why a file isn't read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct MudError {
    /// The file, and where in it.
    pub place: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl Mud {
    /// Reads a file; `file` is what problems call it.
    ///
    /// # Errors
    /// When it is too long, isn't a MUD file, names lists that it doesn't hold, or has too many entries.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, MudError> {
        json::parse(file, bytes)
    }

    /// The file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        json::write(self)
    }
}

/// Whether an address can stand in a rule: MUD files name whole networks as often as hosts.
pub(crate) fn is_everywhere(net: Ipv4Net) -> bool {
    net.prefix_len() == 0 || net.addr() == Ipv4Addr::UNSPECIFIED
}
