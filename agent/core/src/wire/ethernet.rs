//! Ethernet II and 802.3 headers, with VLAN tags in the frame or beside it.

use anteroom_proto::mac::MacAddr;
use anteroom_proto::verdict::DropReason;

use super::{array, be16, put};
use crate::batch::VlanTag;

/// Length of a header without tags.
pub const HEADER_LEN: usize = 14;
/// IPv4.
pub const IPV4: u16 = 0x0800;
/// ARP.
pub const ARP: u16 = 0x0806;
/// IPv6.
pub const IPV6: u16 = 0x86dd;
/// An 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// An 802.1ad service tag.
pub const QINQ: u16 = 0x88a8;
/// 802.1X.
pub const EAPOL: u16 = 0x888e;
/// LLDP.
pub const LLDP: u16 = 0x88cc;

/// Most tags that name a VLAN and are looked through in a frame; what has more keeps a tag's number as its ethertype.
const MAX_TAGS: usize = 2;

/// A frame, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthernetFrame<'a> {
    /// To whom.
    pub destination: MacAddr,
    /// From whom.
    pub source: MacAddr,
    /// The outermost tag that names a VLAN, or else the innermost, whether it stood in the frame or beside it.
    pub tag: Option<VlanTag>,
    /// How many tags there are, the one beside the frame included.
    pub tags: u8,
    /// The ethertype behind all tags. Below 0x0600 it is the length of an 802.3 frame.
    pub ethertype: u16,
    /// Where the payload begins in the bytes that were parsed.
    pub payload_offset: usize,
    /// What follows the header, padding included.
    pub payload: &'a [u8],
}

impl EthernetFrame<'_> {
    /// Whether the frame belongs to a VLAN. A tag with id 0 carries a priority only.
    #[must_use]
    pub fn vlan(&self) -> Option<u16> {
        self.tag.map(VlanTag::id).filter(|id| *id != 0)
    }

    /// Whether this is an 802.3 frame with a length in place of an ethertype, as spanning tree uses it.
    #[must_use]
    pub const fn is_802_3(&self) -> bool {
        self.ethertype < 0x0600
    }
}

/// Takes a frame apart. `beside` is the tag that the kernel took off, if it did.
///
/// # Errors
/// [`DropReason::Malformed`] when the frame ends within its header.
#[inline]
pub fn parse_ethernet(
    bytes: &[u8],
    beside: Option<VlanTag>,
) -> Result<EthernetFrame<'_>, DropReason> {
    let malformed = DropReason::Malformed;
    let destination = MacAddr(array(bytes, 0).ok_or(malformed)?);
    let source = MacAddr(array(bytes, 6).ok_or(malformed)?);
    let mut ethertype = be16(bytes, 12).ok_or(malformed)?;
    let mut payload_offset = HEADER_LEN;
    let mut tag = beside;
    let mut tags = u8::from(beside.is_some());
    let mut named = 0;
    while matches!(ethertype, VLAN | QINQ) && named < MAX_TAGS {
        let control = be16(bytes, payload_offset).ok_or(malformed)?;
        let inner = VlanTag { protocol: ethertype, control };
        // One that names no VLAN is looked through, as hosts do, however many there are.
        named += usize::from(inner.id() != 0);
        tag = tag.filter(|tag| tag.id() != 0).or(Some(inner));
        tags = tags.saturating_add(1);
        ethertype = be16(bytes, payload_offset + 2).ok_or(malformed)?;
        payload_offset += 4;
    }
    let payload = bytes.get(payload_offset..).ok_or(malformed)?;
    Ok(EthernetFrame { destination, source, tag, tags, ethertype, payload_offset, payload })
}

/// An untagged header.
#[must_use]
pub fn header(destination: MacAddr, source: MacAddr, ethertype: u16) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..6].copy_from_slice(&destination.0);
    bytes[6..12].copy_from_slice(&source.0);
    bytes[12..].copy_from_slice(&ethertype.to_be_bytes());
    bytes
}

/// Changes to whom and from whom a frame goes. Says whether the frame was long enough.
pub fn readdress(bytes: &mut [u8], destination: MacAddr, source: MacAddr) -> bool {
    put(bytes, 6, &source.0) && put(bytes, 0, &destination.0)
}
