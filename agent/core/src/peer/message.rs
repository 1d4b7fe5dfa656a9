//! What gateways say to each other inside the tunnel: UDP between their overlay addresses, one reserved port, a
//! version byte, then CBOR.

use std::net::{Ipv4Addr, Ipv6Addr};

use anteroom_proto::cbor::{self, Blob};
use anteroom_proto::claim::AddressClaim;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{BootId, MemberId};
use anteroom_proto::overlay::GATEWAY_PORT;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::DropReason;
use serde::{Deserialize, Serialize};

use super::knock::Knocker;
use super::outside::Outside;
use crate::checksum::Sum;
use crate::wire::{ipv4, ipv6, put, udp};

/// Version of the messages here: their first byte.
pub const VERSION: u8 = 1;
/// Longest message in bytes, the version byte left out.
pub const MAX_LEN: usize = 1024;
/// Most capabilities of one gateway.
pub const MAX_CAPABILITIES: usize = 16;
/// Longest capability in bytes.
pub const MAX_CAPABILITY_LEN: usize = 32;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// Sent when a session comes up, when something in it changes, and as a probe.
    Hello(Hello),
    /// The answer, at once and with the same nonce: what measures the round trip.
    HelloReply(Hello),
    /// What a device of the sender holds of its dynamic addresses. Repeated until it is answered.
    Claim(Signed<AddressClaim>),
    /// The answer.
    ClaimAnswer(ClaimAnswer),
    /// The key of the sender's lanes. Sent only to whom says that it can use lanes.
    Lanes(LaneOffer),
    /// A part of a ciphertext that a pre-shared key follows from. Sent only to whom says that it agrees on such keys.
    SecretPart(SecretPart),
    /// The answer to a whole one.
    SecretHeld(SecretHeld),
}

/// A part of a ciphertext: of a length that passes any path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretPart {
    /// For which pair of tunnel keys: the beginnings of the digests of both bindings, the sender's first.
    pub pair: Blob,
    /// The beginning of the ciphertext's digest.
    pub of: Blob,
    /// Which part it is, from 0 on.
    pub number: u8,
    /// The part.
    pub bytes: Blob,
}

/// What became of a ciphertext.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHeld {
    /// For which pair of tunnel keys, as it came.
    pub pair: Blob,
    /// The beginning of the ciphertext's digest, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Blob>,
    /// What only somebody with the same pre-shared key knows.
    pub proof: Blob,
}

/// What a gateway says about its lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneOffer {
    /// Its run, which the key belongs to.
    pub boot: BootId,
    /// Its lane key.
    pub key: LaneKey,
    /// How many lanes it has.
    pub lanes: u8,
    /// The lane key that it holds of the gateway that this is said to. Nobody uses a lane before the other end has said
    /// that it knows whose it is.
    pub holds: Option<LaneKey>,
    /// Whether an answer is wanted: an offer, too.
    pub ask: bool,
    /// Whether this is one.
    #[serde(default)]
    pub answer: bool,
    /// Counts up with each that a run says, to whomever: one that was overtaken on the way counts for nothing. 0 where none is
    /// counted.
    #[serde(default)]
    pub number: u64,
}

/// The bytes of a lane key, not looked at yet: whether it is a good one takes long to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaneKey(pub [u8; 32]);

/// What became of a claim at a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimAnswer {
    /// The device.
    pub member: MemberId,
    /// The claim's number.
    pub number: u64,
    /// What became of it.
    pub outcome: ClaimOutcome,
}

/// What became of a claim at a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimOutcome {
    /// It counts there.
    Held,
    /// Somebody else has this address.
    Conflict(Ipv4Addr),
    /// The peer has this newer one of the same gateway.
    Stale(Signed<AddressClaim>),
    /// The peer's view doesn't let the gateway claim that.
    Refused,
}

/// What a gateway says about itself. Fields that a newer version adds are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest and highest version of these messages that the sender speaks.
    pub versions: (u8, u8),
    /// What it can do beyond the basics.
    pub capabilities: Vec<String>,
    /// Its run: counters below begin again with another one.
    pub boot: BootId,
    /// Counts what this run said, so that a message that was overtaken changes nothing.
    pub sequence: u64,
    /// The revision of the intent that it has in force.
    pub revision: u64,
    /// A digest of what its view holds in common with the gateway that this is said to: the members that share a
    /// rule, and those rules.
    pub relation: Option<u64>,
    /// The newest authority document that it holds.
    pub authority: u64,
    /// Its time, if a controller or a peer confirmed it.
    pub time: Option<UnixMillis>,
    /// Chosen by who asks, given back by who answers.
    pub nonce: u64,
    /// What the other end may find out with whether datagrams get through to the sender directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knocker: Option<Knocker>,
    /// How the sender looks from outside, where relays said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
}

impl Message {
    /// The message as it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(cbor::encode(self));
        bytes
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when it has another version, is too long, or isn't strict CBOR of this shape.
    pub fn decode(bytes: &[u8]) -> Result<Self, DropReason> {
        let (&version, rest) = bytes.split_first().ok_or(DropReason::Malformed)?;
        if version != VERSION {
            return Err(DropReason::Malformed);
        }
        let message: Self = cbor::decode(rest, MAX_LEN).map_err(|error| {
            tracing::trace!(%error, "a gateway's message can't be read");
            DropReason::Malformed
        })?;
        let (Self::Hello(hello) | Self::HelloReply(hello)) = &message else {
            return Ok(message);
        };
        let too_long = hello.capabilities.iter().any(|one| one.len() > MAX_CAPABILITY_LEN);
        if too_long || hello.capabilities.len() > MAX_CAPABILITIES {
            return Err(DropReason::Malformed);
        }
        Ok(message)
    }
}

/// Packs a message into an IPv6 packet between two gateways.
pub(super) fn pack(source: Ipv6Addr, destination: Ipv6Addr, message: &Message) -> Vec<u8> {
    let body = message.encode();
    let len = udp::HEADER_LEN + body.len();
    let mut packet = vec![0; ipv6::HEADER_LEN + len];
    // Messages are bounded far below the largest length.
    let field = (len as u16).to_be_bytes();
    put(&mut packet, 0, &[0x60]);
    put(&mut packet, 4, &field);
    put(&mut packet, 6, &[ipv4::UDP, 64]);
    put(&mut packet, 8, &source.octets());
    put(&mut packet, 24, &destination.octets());
    let transport = &mut packet[ipv6::HEADER_LEN..];
    put(transport, 0, &GATEWAY_PORT.to_be_bytes());
    put(transport, 2, &GATEWAY_PORT.to_be_bytes());
    put(transport, 4, &field);
    put(transport, udp::HEADER_LEN, &body);
    let sum = Sum::pseudo_ipv6(source, destination, ipv4::UDP, len as u16).bytes(transport);
    put(transport, 6, &sum.transport_checksum().to_be_bytes());
    packet
}

/// Takes a message out of an IPv6 packet that came from the gateway with the overlay address `source`.
pub(super) fn unpack(
    packet: &[u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> Result<Message, DropReason> {
    let packet = ipv6::parse_ipv6(packet)?;
    if packet.source != source {
        return Err(DropReason::PeerSource);
    }
    if packet.destination != destination {
        return Err(DropReason::PeerDestination);
    }
    if packet.next_header != ipv4::UDP {
        return Err(DropReason::Ipv6);
    }
    let header = udp::parse_udp(packet.payload)?;
    if (header.source_port, header.destination_port) != (GATEWAY_PORT, GATEWAY_PORT) {
        return Err(DropReason::Ipv6);
    }
    let sum = Sum::pseudo_ipv6(source, destination, ipv4::UDP, header.len).bytes(packet.payload);
    let sound = usize::from(header.len) == packet.payload.len() && sum.checksum() == 0;
    match packet.payload.get(udp::HEADER_LEN..) {
        Some(body) if sound => Message::decode(body),
        _ => Err(DropReason::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::claim::MAX_ADDRESSES;
    use anteroom_proto::id::{GatewayId, OrganisationId};
    use anteroom_proto::key::IdentityKey;
    use proptest::prelude::*;

    use std::net::SocketAddr;

    use super::super::knock::KnockKey;
    use super::super::outside::MAX_PLACES;
    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2);

    fn hello() -> Hello {
        Hello {
            versions: (1, 1),
            capabilities: vec!["x".repeat(MAX_CAPABILITY_LEN); MAX_CAPABILITIES],
            boot: BootId::from_bytes([9; 16]),
            sequence: u64::MAX,
            revision: u64::MAX,
            relation: Some(u64::MAX),
            authority: u64::MAX,
            time: Some(UnixMillis(u64::MAX)),
            nonce: u64::MAX,
            knocker: Some(Knocker {
                number: u32::MAX,
                key: KnockKey::of(&[0xff; 32], &[0xff; 16], 0),
            }),
            outside: Some(Outside {
                places: vec![SocketAddr::from((Ipv6Addr::from([0xff; 16]), u16::MAX)); MAX_PLACES],
                varies: Some(true),
            }),
        }
    }

    #[test]
    fn the_longest_message_round_trips() {
        for message in [Message::Hello(hello()), Message::HelloReply(hello())] {
            let packet = pack(A, B, &message);
            assert_eq!(unpack(&packet, A, B), Ok(message));
            assert!(packet.len() <= 1280, "{} bytes don't fit everywhere", packet.len());
        }
    }

    #[test]
    fn the_longest_offer_fits_everywhere_and_has_keys_of_one_length_only() {
        let offer = LaneOffer {
            boot: BootId::from_bytes([0xff; 16]),
            key: LaneKey([0xff; 32]),
            lanes: u8::MAX,
            holds: Some(LaneKey([0xfe; 32])),
            ask: true,
            answer: true,
            number: u64::MAX,
        };
        let packet = pack(A, B, &Message::Lanes(offer));
        assert_eq!(unpack(&packet, A, B), Ok(Message::Lanes(offer)));
        assert!(packet.len() <= 1280, "{} bytes don't fit everywhere", packet.len());
        let bytes = Message::Lanes(offer).encode();
        for at in 0..bytes.len() {
            let _ = Message::decode(&bytes[..at]);
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let _ = Message::decode(&changed);
        }
    }

    #[test]
    fn a_part_of_a_ciphertext_fits_where_relays_carry_least() {
        let pair = Blob(vec![0xff; 16]);
        let (of, bytes) = (Blob(vec![0xff; 8]), Blob(vec![0xff; 272]));
        let part = SecretPart { pair: pair.clone(), of: of.clone(), number: u8::MAX, bytes };
        let held = SecretHeld { pair, of: Some(of.clone()), proof: of };
        for message in [Message::SecretPart(part), Message::SecretHeld(held)] {
            let packet = pack(A, B, &message);
            assert_eq!(unpack(&packet, A, B), Ok(message));
            assert!(packet.len() <= 450, "{} bytes", packet.len());
        }
    }

    #[test]
    fn the_longest_claim_and_its_answer_fit_everywhere() {
        let claim = AddressClaim {
            organisation: OrganisationId::from_bytes([0xff; 16]),
            gateway: GatewayId::from_bytes([0xff; 16]),
            member: MemberId::from_bytes([0xff; 16]),
            number: u64::MAX,
            addresses: vec![Ipv4Addr::BROADCAST; MAX_ADDRESSES],
            lease_seconds: Some(u32::MAX),
        };
        let signed = Signed::sign(&claim, &IdentityKey::from_seed(&[1; 32]));
        let answer = ClaimAnswer {
            member: claim.member,
            number: claim.number,
            outcome: ClaimOutcome::Stale(signed.clone()),
        };
        for message in [Message::Claim(signed), Message::ClaimAnswer(answer)] {
            let packet = pack(A, B, &message);
            assert_eq!(unpack(&packet, A, B), Ok(message));
            assert!(packet.len() <= 1280, "{} bytes don't fit everywhere", packet.len());
        }
    }

    #[test]
    fn what_is_not_between_the_two_gateways_is_refused() {
        let packet = pack(A, B, &Message::Hello(hello()));
        assert_eq!(unpack(&packet, B, B), Err(DropReason::PeerSource));
        assert_eq!(unpack(&packet, A, A), Err(DropReason::PeerDestination));
        let changed = |at: usize, value: u8| {
            let mut packet = packet.clone();
            packet[at] = value;
            unpack(&packet, A, B)
        };
        assert_eq!(changed(6, 6), Err(DropReason::Ipv6), "not UDP");
        assert_eq!(changed(41, 2), Err(DropReason::Ipv6), "another port");
        assert_eq!(changed(45, 9), Err(DropReason::Malformed), "another length");
        assert_eq!(changed(80, 0), Err(DropReason::Malformed), "a bad checksum");
    }

    #[test]
    fn messages_are_bounded_and_strict() {
        let decoded = |message: &Message| Message::decode(&message.encode());
        let malformed = Err(DropReason::Malformed);
        let many = Hello { capabilities: vec![String::new(); MAX_CAPABILITIES + 1], ..hello() };
        assert_eq!(decoded(&Message::Hello(many)), malformed);
        let long = Hello { capabilities: vec!["x".repeat(MAX_CAPABILITY_LEN + 1)], ..hello() };
        assert_eq!(decoded(&Message::Hello(long)), malformed);
        let mut other = Message::Hello(hello()).encode();
        other.push(0);
        assert_eq!(Message::decode(&other), malformed, "trailing bytes");
        other.pop();
        other[0] = 2;
        assert_eq!(Message::decode(&other), malformed, "another version");
        assert_eq!(Message::decode(&[]), malformed);
    }

    proptest! {
        #[test]
        fn anything_at_all_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Message::decode(&bytes), unpack(&bytes, A, B));
            let _ = Message::decode(&[&[VERSION], bytes.as_slice()].concat());
        }
    }
}
