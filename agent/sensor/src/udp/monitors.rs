//! Patient monitors' own protocols, and one of household things, told by port and shape. Nothing that they carry is read.

use std::net::IpAddr;

use crate::frame::Datagram;

/// Philips IntelliVue: connect indications to all, and data (Data Export Interface).
const INTELLIVUE_CONNECT: u16 = 24005;
const INTELLIVUE_DATA: u16 = 24105;
/// GE CARESCAPE: every node tells all that it is there.
const CARESCAPE_DISCOVERY: u16 = 7000;
/// Dräger Infinity: waveforms and alarms to groups.
const INFINITY: [u16; 2] = [2050, 2150];
/// Tuya's announcements, in the clear and encrypted.
const TUYA: [u16; 2] = [6666, 6667];

/// The protocol that only one family of devices speaks.
pub(super) fn named(datagram: &Datagram<'_>) -> Option<&'static str> {
    let (source, destination) = datagram.ports;
    let payload = datagram.payload;
    let to_all = datagram.to.mac.is_group();
    match destination {
        // Its nomenclature's version comes first.
        INTELLIVUE_CONNECT if payload.starts_with(&[0, 1, 0, 0]) => Some("intellivue"),
        CARESCAPE_DISCOVERY if to_all && !payload.is_empty() && is_broadcast(datagram) => {
            Some("carescape")
        }
        port if INFINITY.contains(&port) && is_infinitys_group(datagram.ips.1) => Some("infinity"),
        port if TUYA.contains(&port) && to_all && payload.starts_with(&[0, 0, 0x55, 0xaa]) => {
            Some("tuya")
        }
        // The monitor's side of its associations and data.
        _ if source == INTELLIVUE_DATA && is_intellivue(payload) => Some("intellivue"),
        _ => None,
    }
}

/// Whether it begins as a session's control or as data does (ISO 8327 accept, or session 0xe100).
fn is_intellivue(payload: &[u8]) -> bool {
    matches!(payload, [0xe1, 0, ..] | [0x0e | 0x0c | 0x0a | 0x19, _, ..])
}

fn is_broadcast(datagram: &Datagram<'_>) -> bool {
    datagram.to.mac == anteroom_proto::mac::MacAddr::BROADCAST
}

fn is_infinitys_group(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets()[..2] == [224, 127])
}
