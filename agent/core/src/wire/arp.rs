//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::verdict::DropReason;

use super::{array, be16, ethernet};

/// Length of a packet.
pub const PACKET_LEN: usize = 28;
/// Length of a packet with its Ethernet header, without padding.
pub const FRAME_LEN: usize = ethernet::HEADER_LEN + PACKET_LEN;

const ETHERNET: u16 = 1;
const IEEE_802: u16 = 6;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What an ARP packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Asks who has the target address.
    Request,
    /// Says who has the sender address.
    Reply,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArpPacket {
    /// What it does.
    pub operation: Operation,
    /// The sender's Ethernet address, as the packet has it.
    pub sender_mac: MacAddr,
    /// The sender's IP address; unspecified in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// The target's Ethernet address; zeros in a request.
    pub target_mac: MacAddr,
    /// The target's IP address.
    pub target: Ipv4Addr,
}

impl ArpPacket {
    /// Whether it asks if anyone uses an address before using it (RFC 5227).
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender.is_unspecified()
    }

    /// Whether it announces the sender's own address.
    #[must_use]
    pub fn is_announcement(&self) -> bool {
        self.sender == self.target && !self.sender.is_unspecified()
    }

    /// The packet as a frame from `source` to `destination`.
    #[must_use]
    pub fn to_frame(&self, destination: MacAddr, source: MacAddr) -> [u8; FRAME_LEN] {
        let mut frame = [0; FRAME_LEN];
        frame[..14].copy_from_slice(&ethernet::header(destination, source, ethernet::ARP));
        let operation = match self.operation {
            Operation::Request => REQUEST,
            Operation::Reply => REPLY,
        };
        frame[14..16].copy_from_slice(&ETHERNET.to_be_bytes());
        frame[16..18].copy_from_slice(&ethernet::IPV4.to_be_bytes());
        frame[18] = 6;
        frame[19] = 4;
        frame[20..22].copy_from_slice(&operation.to_be_bytes());
        frame[22..28].copy_from_slice(&self.sender_mac.0);
        frame[28..32].copy_from_slice(&self.sender.octets());
        frame[32..38].copy_from_slice(&self.target_mac.0);
        frame[38..42].copy_from_slice(&self.target.octets());
        frame
    }
}

/// Reads an ARP packet, what an Ethernet header is followed by.
///
/// # Errors
/// [`DropReason::Malformed`] when it is cut short, not for IPv4 over Ethernet, or neither request nor reply.
pub fn parse_arp(bytes: &[u8]) -> Result<ArpPacket, DropReason> {
    let malformed = DropReason::Malformed;
    let fixed: [u8; PACKET_LEN] = array(bytes, 0).ok_or(malformed)?;
    let kinds = (be16(&fixed, 0), be16(&fixed, 2), fixed[4], fixed[5]);
    // Linux, among others, takes 802's type for Ethernet's.
    if !matches!(kinds, (Some(ETHERNET | IEEE_802), Some(ethernet::IPV4), 6, 4)) {
        return Err(malformed);
    }
    let operation = match be16(&fixed, 6) {
        Some(REQUEST) => Operation::Request,
        Some(REPLY) => Operation::Reply,
        _ => return Err(malformed),
    };
    Ok(ArpPacket {
        operation,
        sender_mac: MacAddr(array(&fixed, 8).ok_or(malformed)?),
        sender: Ipv4Addr::from(array::<4>(&fixed, 14).ok_or(malformed)?),
        target_mac: MacAddr(array(&fixed, 18).ok_or(malformed)?),
        target: Ipv4Addr::from(array::<4>(&fixed, 24).ok_or(malformed)?),
    })
}

/// Who an ARP packet says that it is from, whatever type of hardware and operation it names: some stacks learn from
/// what others throw away. None where there is no room for that.
#[must_use]
pub fn arp_sender(bytes: &[u8]) -> Option<(MacAddr, Ipv4Addr)> {
    let fixed: [u8; PACKET_LEN] = array(bytes, 0)?;
    let sender = (MacAddr(array(&fixed, 8)?), Ipv4Addr::from(array::<4>(&fixed, 14)?));
    ((fixed[4], fixed[5]) == (6, 4)).then_some(sender)
}

/// A frame in which `asker` asks everyone who has `target`.
#[must_use]
pub fn request(asker_mac: MacAddr, asker: Ipv4Addr, target: Ipv4Addr) -> [u8; FRAME_LEN] {
    ArpPacket {
        operation: Operation::Request,
        sender_mac: asker_mac,
        sender: asker,
        target_mac: MacAddr([0; 6]),
        target,
    }
    .to_frame(MacAddr::BROADCAST, asker_mac)
}

/// A frame in which `owner_mac` tells the asker of `request` that the address is its own.
#[must_use]
pub fn reply(request: &ArpPacket, owner_mac: MacAddr) -> [u8; FRAME_LEN] {
    ArpPacket {
        operation: Operation::Reply,
        sender_mac: owner_mac,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
    }
    .to_frame(request.sender_mac, owner_mac)
}
