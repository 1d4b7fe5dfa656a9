//! NetBIOS over UDP (RFC 1002): the name that a machine registers or sends by, and the version of Windows by which it announces itself
//! to its neighbours (MS-BRWS 2.2). Names of users (suffix 3) and of groups are passed by, and so is what people wrote about a machine.

use std::net::IpAddr;

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::frame::Datagram;
use crate::sight::Sights;
use crate::text;

/// A name in its encoding: 32 letters, two for each byte.
const ENCODED: usize = 32;
/// Kinds of questions, as the header's second number has them: registration (of one with several addresses, too), and
/// refreshing it.
const REGISTRATION: [u16; 2] = [5, 15];
const REFRESH: [u16; 2] = [8, 9];
/// Announcements, of a machine and of the one that keeps the list.
const HOST: u8 = 1;
const LOCAL_MASTER: u8 = 15;
/// Of the kinds of machines: one with Unix.
const IS_UNIX: u32 = 0x800;
/// A machine, and its file server.
const MACHINE: [u8; 2] = [0x00, 0x20];

/// Reads what a machine tells the name service.
pub(super) fn read_name(datagram: &Datagram<'_>, sights: &mut Sights) {
    let _ = registered(datagram, sights);
}

fn registered(datagram: &Datagram<'_>, sights: &mut Sights) -> Option<()> {
    let mut message = Cursor(datagram.payload);
    message.be16()?;
    let flags = message.be16()?;
    let order = flags >> 11 & 0x0f;
    if flags & 0x8000 != 0 || !(REGISTRATION.contains(&order) || REFRESH.contains(&order)) {
        return None;
    }
    message.take(8)?;
    let name = name(&mut message)?;
    // Type and class of the question; a pointer to its name, type, class, life and length of the record.
    message.take(4 + 2 + 2 + 2 + 4 + 2)?;
    let is_group = message.be16()? & 0x8000 != 0;
    if !is_group {
        sights.tell(datagram.from, HintKind::NetbiosName, name?);
    }
    Some(())
}

/// Reads a datagram of the datagram service: from whom it is, and what it announces.
pub(super) fn read_datagram(datagram: &Datagram<'_>, sights: &mut Sights) {
    let _ = sent(datagram, sights);
}

fn sent(datagram: &Datagram<'_>, sights: &mut Sights) -> Option<()> {
    let mut message = Cursor(datagram.payload);
    // Addressed to one, to a group, to all.
    if !matches!(message.u8()?, 0x10..=0x12) {
        return None;
    }
    message.take(1 + 2)?;
    let source = message.take(4)?;
    // Port, length, offset.
    message.take(2 + 2 + 2)?;
    // Some carry on what was sent elsewhere.
    if !matches!(datagram.ips.0, IpAddr::V4(ip) if ip.octets() == source) {
        return None;
    }
    if let Some(name) = name(&mut message)? {
        sights.tell(datagram.from, HintKind::NetbiosName, name);
    }
    name(&mut message)?;
    let version = announced(message.0)?;
    sights.tell(datagram.from, HintKind::NetbiosVersion, version);
    Some(())
}

/// The version in a machine's announcement. Samba, which passes for many, says that it is none of them.
fn announced(message: &[u8]) -> Option<String> {
    let mut words = Cursor(message.strip_prefix(b"\xffSMB\x25")?);
    words.take(27)?;
    let count = words.u8()?;
    let words = words.take(usize::from(count) * 2)?;
    // Data's length, and where it stands in the message.
    let mut place = Cursor(words.get(22..)?);
    let (length, at) = (usize::from(place.le16()?), usize::from(place.le16()?));
    let slot = message.get(33 + words.len() + 2..)?;
    if !text::until_zero(slot).eq_ignore_ascii_case(b"\\MAILSLOT\\BROWSE") {
        return None;
    }
    let mut data = Cursor(message.get(at..)?);
    let mut data = Cursor(data.take_most(length));
    if !matches!(data.u8()?, HOST | LOCAL_MASTER) {
        return None;
    }
    // How often, and the machine's name.
    data.take(1 + 4 + 16)?;
    let (major, minor, kind) = (data.u8()?, data.u8()?, data.le32()?);
    (kind & IS_UNIX == 0).then(|| format!("{major}.{minor}"))
}

/// A name; none inside where it isn't a machine's.
fn name(message: &mut Cursor<'_>) -> Option<Option<Vec<u8>>> {
    let encoded = message.short()?;
    if encoded.len() != ENCODED || !encoded.iter().all(|byte| (b'A'..=b'P').contains(byte)) {
        return None;
    }
    // The scope's labels, up to an empty one.
    while !message.short()?.is_empty() {}
    let mut name: Vec<u8> =
        encoded.chunks_exact(2).map(|pair| (pair[0] - b'A') << 4 | (pair[1] - b'A')).collect();
    let suffix = name.pop()?;
    Some(MACHINE.contains(&suffix).then_some(name))
}

#[cfg(test)]
mod tests {
    use anteroom_proto::mac::MacAddr;

    use super::*;
    use crate::sight::Station;

    fn told(ip: [u8; 4], payload: &[u8]) -> Vec<(HintKind, String)> {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let datagram = Datagram {
            from: station(1),
            to: station(2),
            ips: (ip.into(), [10, 0, 0, 255].into()),
            ports: (138, 138),
            forwarded: false,
            payload,
        };
        let mut sights = Sights::default();
        sights.begin();
        read_datagram(&datagram, &mut sights);
        sights.drain().map(|sight| (sight.kind, sight.value)).collect()
    }

    fn encoded(name: &str, suffix: u8) -> Vec<u8> {
        let mut padded = name.as_bytes().to_vec();
        padded.resize(15, b' ');
        padded.push(suffix);
        let letters = padded.iter().flat_map(|byte| [b'A' + (byte >> 4), b'A' + (byte & 15)]);
        [32].into_iter().chain(letters).chain([0]).collect()
    }

    /// A machine's announcement to its group, as MS-BRWS 2.2.1 has it.
    fn announcement(order: u8, version: [u8; 2], kind: u32) -> Vec<u8> {
        let mut data = vec![order, 0, 0x80, 0xfc, 0x0a, 0];
        data.extend(b"CT-1\0\0\0\0\0\0\0\0\0\0\0\0");
        data.extend(version);
        data.extend(kind.to_le_bytes());
        data.extend([15, 1, 0x55, 0xaa]);
        data.extend(b"Dr. Mustermann's\0");
        let slot = b"\\MAILSLOT\\BROWSE\0";
        let at = 33 + 34 + 2 + slot.len();
        let mut words = vec![0; 22];
        for word in [data.len(), at, 3, 1, 1, 2] {
            words.extend(u16::try_from(word).unwrap().to_le_bytes());
        }
        let length = u16::try_from(slot.len() + data.len()).unwrap().to_le_bytes();
        let smb =
            [b"\xffSMB\x25".as_slice(), &[0; 27], &[17], &words, &length, slot, &data].concat();
        let head = [0x11, 2, 0, 1, 10, 0, 0, 1, 0, 138, 0, 0, 0, 0];
        [&head[..], &encoded("CT-1", 0), &encoded("WARD", 0x1d), &smb].concat()
    }

    #[test]
    fn a_machine_announces_its_name_and_its_version_and_nobodys_name() {
        let name = (HintKind::NetbiosName, "CT-1".to_owned());
        let version = (HintKind::NetbiosVersion, "5.1".to_owned());
        let ip = [10, 0, 0, 1];
        for order in [HOST, LOCAL_MASTER] {
            let all = [name.clone(), version.clone()];
            assert_eq!(told(ip, &announcement(order, [5, 1], 0x1003)), all);
        }
        let whole = announcement(HOST, [6, 1], 0x1003 | IS_UNIX);
        assert_eq!(told(ip, &whole), std::slice::from_ref(&name), "Samba says so of itself");
        assert_eq!(told(ip, &announcement(12, [5, 1], 0)), [name], "a group's");
        assert_eq!(told([10, 0, 0, 9], &whole), [], "carried on from elsewhere");
        for end in 0..whole.len() {
            assert!(told(ip, &whole[..end]).len() <= 1);
        }
    }
}
