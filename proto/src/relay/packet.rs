//! What a gateway and a relay send beside their messages: sealed packets and probes, each behind two bytes.
//!
//! ```text
//!  15  14 ............ 0
//! +---+----------------+------------------------------------
//! | B |  peer's number | sealed WireGuard packet
//! +---+----------------+------------------------------------
//! |     0xffff         | eight bytes: a probe
//! |     0xfffe         | eight bytes: the answer to it
//! +--------------------+------------------------------------
//! ```
//!
//! The number is the one that [`super::PeerState`] gave to the peer on this connection: from the gateway it says to
//! whom, from the relay it says from whom. `B` says that the packet is part of a bulk transfer: it waits behind
//! what the same sender sends to the same receiver without it.

use serde::{Deserialize, Deserializer, Serialize};

/// Length of what stands in front of a packet.
pub const HEADER_LEN: usize = 2;
/// Length of what a probe carries.
pub const PROBE_LEN: usize = 8;
/// Shortest and longest sealed packet. WireGuard's shortest is a keepalive.
pub const SEALED_LEN: std::ops::RangeInclusive<usize> = 32..=2048;
/// Longest datagram, header included.
pub const MAX_LEN: usize = HEADER_LEN + *SEALED_LEN.end();

const BULK: u16 = 0x8000;
const PROBE: u16 = 0xffff;
const ANSWER: u16 = 0xfffe;

/// What a peer is called in packets, on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PeerNumber(u16);

impl PeerNumber {
    /// How many numbers a connection has. The few above are kept for probes and what is yet to come.
    pub const COUNT: u16 = 0x7f00;
    /// The first.
    pub const FIRST: Self = Self(0);

    /// The number, if it is one.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl<'de> Deserialize<'de> for PeerNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u16::deserialize(deserializer)?;
        Self::new(number).ok_or_else(|| serde::de::Error::custom("not a peer's number"))
    }
}

/// A datagram that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// A sealed packet, to or from a peer.
    Packet {
        /// The peer.
        peer: PeerNumber,
        /// Whether it may wait.
        bulk: bool,
        /// What WireGuard made.
        sealed: &'a [u8],
    },
    /// To be answered with the same bytes.
    Probe([u8; PROBE_LEN]),
    /// The answer to a probe.
    Answer([u8; PROBE_LEN]),
}

/// Reads a datagram; none where it is none of these.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Datagram<'_>> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
    match u16::from_be_bytes(*header) {
        PROBE => Some(Datagram::Probe(rest.try_into().ok()?)),
        ANSWER => Some(Datagram::Answer(rest.try_into().ok()?)),
        header => {
            let peer = PeerNumber::new(header & !BULK)?;
            let sealed = rest;
            is_sealed(sealed).then_some(Datagram::Packet { peer, bulk: header & BULK != 0, sealed })
        }
    }
}

/// Whether `bytes` look like what WireGuard sends: a type from 1 to 4, three zeros, and a fitting length. It is no
/// proof of anything; it keeps a relay from carrying what no gateway could mean.
#[must_use]
pub fn is_sealed(bytes: &[u8]) -> bool {
    matches!(bytes.first_chunk(), Some([1..=4, 0, 0, 0])) && SEALED_LEN.contains(&bytes.len())
}

/// What stands in front of a packet.
#[must_use]
pub const fn header(peer: PeerNumber, bulk: bool) -> [u8; HEADER_LEN] {
    (peer.0 | if bulk { BULK } else { 0 }).to_be_bytes()
}

/// A probe.
#[must_use]
pub fn probe(nonce: [u8; PROBE_LEN]) -> Vec<u8> {
    [&PROBE.to_be_bytes()[..], &nonce].concat()
}

/// The answer to a probe.
#[must_use]
pub fn answer(nonce: [u8; PROBE_LEN]) -> Vec<u8> {
    [&ANSWER.to_be_bytes()[..], &nonce].concat()
}
