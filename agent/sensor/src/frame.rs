//! A frame taken apart, as far as it was captured.

use std::net::{IpAddr, Ipv4Addr};

use anteroom_proto::mac::MacAddr;
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

use crate::cdp;
use crate::sight::Station;

/// The EtherType of LLDP (IEEE 802.1AB).
const LLDP: u16 = 0x88cc;
/// The first two numbers of 802.1Q and 802.1ad tags.
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// The longest frame that has its length where others have a type.
pub(crate) const LONGEST: usize = 1500;

/// A TCP header without its options.
const TCP_FIXED: usize = 20;

/// What a frame carries that somebody here reads.
#[derive(Debug)]
pub(crate) enum Frame<'a> {
    Lldp { from: Station, units: &'a [u8] },
    Cdp { from: Station, message: &'a [u8] },
    Udp(Datagram<'a>),
    Tcp(Segment<'a>),
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram<'a> {
    pub(crate) from: Station,
    pub(crate) to: Station,
    pub(crate) ips: (IpAddr, IpAddr),
    pub(crate) ports: (u16, u16),
    /// Whether somebody on the way here has passed it on.
    pub(crate) forwarded: bool,
    pub(crate) payload: &'a [u8],
}

/// A TCP segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) from: Station,
    pub(crate) to: Station,
    pub(crate) ips: (IpAddr, IpAddr),
    pub(crate) ports: (u16, u16),
    pub(crate) ttl: u8,
    /// Whether somebody on the way here has passed it on.
    pub(crate) forwarded: bool,
    pub(crate) syn: bool,
    pub(crate) ack: bool,
    pub(crate) rst: bool,
    pub(crate) fin: bool,
    /// Whether bytes of it are missing at its end.
    pub(crate) cut: bool,
    pub(crate) window: u16,
    pub(crate) sequence: u32,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// Who sent a frame. `vlan` is a tag that was taken out of it before.
#[must_use]
pub fn sender(bytes: &[u8], vlan: Option<u16>) -> Option<Station> {
    let mac = bytes.get(6..)?.first_chunk::<6>().map(|mac| MacAddr(*mac))?;
    let be16 = |at: usize| bytes.get(at..)?.first_chunk::<2>().map(|two| u16::from_be_bytes(*two));
    let vlan = match (vlan, be16(12)) {
        (None, Some(kind)) if TAGS.contains(&kind) => be16(14).map(|tag| tag & 0x0fff),
        (vlan, _) => vlan,
    };
    (!mac.is_group()).then_some(Station { mac, vlan: vlan.filter(|vlan| *vlan != 0) })
}

/// Whether a packet was sent out with more than this: systems begin with 64, 128 or 255, and each router takes one off. Farther ones
/// are told apart from nothing: some begin with 60, 100 or 200.
const fn was_forwarded(ttl: u8) -> bool {
    matches!(ttl, 61..=63 | 125..=127 | 252..=254)
}

/// By which address of IPv4 the sender speaks. None where it has none yet, and for everything else: of IPv6 each machine has
/// several.
#[must_use]
pub fn source(bytes: &[u8]) -> Option<Ipv4Addr> {
    let be16 = |at: usize| bytes.get(at..)?.first_chunk::<2>().map(|two| u16::from_be_bytes(*two));
    let mut at = 12;
    if TAGS.contains(&be16(at)?) {
        at += 4;
    }
    match be16(at)? {
        0x0800 => {
            let octets: [u8; 4] = *bytes.get(at + 2 + 12..)?.first_chunk()?;
            let ip = Ipv4Addr::from(octets);
            (!ip.is_unspecified() && !ip.is_link_local()).then_some(ip)
        }
        _ => None,
    }
}

/// Takes an Ethernet frame apart. `vlan` is a tag that was taken out of it before. None where nobody here reads what it
/// carries.
pub(crate) fn parse(bytes: &[u8], vlan: Option<u16>) -> Option<Frame<'_>> {
    let mac = |at: usize| bytes.get(at..)?.first_chunk::<6>().map(|mac| MacAddr(*mac));
    let be16 = |at: usize| bytes.get(at..)?.first_chunk::<2>().map(|two| u16::from_be_bytes(*two));
    let (to, from) = (mac(0)?, mac(6)?);
    if from.is_group() {
        return None;
    }
    let mut at = 12;
    let mut kind = be16(at)?;
    let mut vlan = vlan;
    if TAGS.contains(&kind) {
        // Tag 0 only carries a priority.
        let tag = be16(at + 2)? & 0x0fff;
        vlan = vlan.or((tag != 0).then_some(tag));
        at += 4;
        kind = be16(at)?;
    }
    let (from, to) = (Station { mac: from, vlan }, Station { mac: to, vlan });
    let rest = bytes.get(at + 2..)?;
    if kind == LLDP {
        return Some(Frame::Lldp { from, units: rest });
    }
    // What is no type is a length (IEEE 802.3).
    if usize::from(kind) <= LONGEST {
        let length = usize::from(kind).min(rest.len());
        return rest[..length].strip_prefix(&cdp::LLC).map(|message| Frame::Cdp { from, message });
    }
    let packet = LaxSlicedPacket::from_ether_type(etherparse::EtherType(kind), rest);
    let (ips, ttl, is_first, cut) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let ips = (header.source_addr().into(), header.destination_addr().into());
            let cut = ip.payload().incomplete;
            (ips, header.ttl(), header.fragments_offset().value() == 0, cut)
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let ips = (header.source_addr().into(), header.destination_addr().into());
            (ips, header.hop_limit(), true, ip.payload().incomplete)
        }
        LaxNetSlice::Arp(_) => return None,
    };
    if !is_first {
        return None;
    }
    match packet.transport? {
        TransportSlice::Udp(udp) => Some(Frame::Udp(Datagram {
            from,
            to,
            ips,
            ports: (udp.source_port(), udp.destination_port()),
            forwarded: was_forwarded(ttl),
            payload: udp.payload(),
        })),
        TransportSlice::Tcp(tcp) => Some(Frame::Tcp(Segment {
            from,
            to,
            ips,
            ports: (tcp.source_port(), tcp.destination_port()),
            ttl,
            forwarded: was_forwarded(ttl),
            syn: tcp.syn(),
            ack: tcp.ack(),
            rst: tcp.rst(),
            fin: tcp.fin(),
            cut,
            window: tcp.window_size(),
            sequence: tcp.sequence_number(),
            options: tcp
                .slice()
                .get(TCP_FIXED..usize::from(tcp.data_offset()) * 4)
                .unwrap_or_default(),
            payload: tcp.payload(),
        })),
        TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => None,
    }
}
