//! Cisco's discovery protocol, which telephones, access points and switches speak: name, platform and software. Addresses, ports and
//! what is asked of power are passed by. No standard defines it; this follows what Cisco published of version 2.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::sight::{Sights, Station};
use crate::text;

/// What stands behind the length of a frame that carries it: a group's service points, and Cisco's number with the protocol's.
pub(crate) const LLC: [u8; 8] = [0xaa, 0xaa, 0x03, 0x00, 0x00, 0x0c, 0x20, 0x00];

/// Most units of a frame that are looked at.
const MOST_UNITS: usize = 64;
/// Types of units.
const NAME: u16 = 1;
const SOFTWARE: u16 = 5;
const PLATFORM: u16 = 6;

/// Reads what comes behind [`LLC`].
pub(crate) fn read(from: Station, message: &[u8], sights: &mut Sights) {
    let _ = units(from, message, sights);
}

fn units(from: Station, message: &[u8], sights: &mut Sights) -> Option<()> {
    let mut message = Cursor(message);
    if !matches!(message.u8()?, 1 | 2) {
        return None;
    }
    // How long it holds, and a checksum.
    message.take(3)?;
    for _ in 0..MOST_UNITS {
        let kind = message.be16()?;
        // Counted with its type and itself.
        let length = usize::from(message.be16()?).checked_sub(4)?;
        let value = text::until_zero(message.take(length)?);
        match kind {
            NAME => sights.tell(from, HintKind::CdpName, value),
            SOFTWARE => {
                let line = value.split(|byte| matches!(byte, b'\r' | b'\n')).next();
                sights.tell(from, HintKind::CdpSoftware, line.unwrap_or_default());
            }
            PLATFORM => sights.tell(from, HintKind::CdpPlatform, value),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, parse};

    fn unit(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        [&kind.to_be_bytes()[..], &length.to_be_bytes(), value].concat()
    }

    /// A frame as a telephone sends it, all of it.
    fn frame() -> Vec<u8> {
        let message = [
            &[2, 180, 0x12, 0x34][..],
            &unit(1, b"SEP0004F2E3A1B2"),
            // Its address, its port, what it can do.
            &unit(2, &[0, 0, 0, 1, 1, 1, 0xcc, 0, 4, 10, 0, 0, 1]),
            &unit(3, b"Port 1"),
            &unit(4, &[0, 0, 0, 0x90]),
            &unit(5, b"SCCP41.9-4-2SR3-1S\nCopyright Mustermann"),
            &unit(6, b"Cisco IP Phone 7941"),
        ]
        .concat();
        let length = u16::try_from(LLC.len() + message.len()).unwrap().to_be_bytes();
        let to_all = [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc];
        [&to_all[..], &[0, 4, 0xf2, 0xe3, 0xa1, 0xb2], &length, &LLC, &message].concat()
    }

    fn told(frame: &[u8], vlan: Option<u16>) -> Vec<(HintKind, String)> {
        let mut sights = Sights::default();
        sights.begin();
        if let Some(Frame::Cdp { from, message }) = parse(frame, vlan) {
            read(from, message, &mut sights);
        }
        sights.drain().map(|sight| (sight.kind, sight.value)).collect()
    }

    #[test]
    fn a_telephone_says_what_it_is() {
        let wanted = [
            (HintKind::CdpName, "SEP0004F2E3A1B2"),
            (HintKind::CdpSoftware, "SCCP41.9-4-2SR3-1S"),
            (HintKind::CdpPlatform, "Cisco IP Phone 7941"),
        ];
        let wanted = wanted.map(|(kind, value)| (kind, value.to_owned()));
        let frame = frame();
        assert_eq!(told(&frame, None), wanted);
        let tagged = [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
        assert_eq!(told(&tagged, None), wanted);
        for end in 0..frame.len() {
            assert!(told(&frame[..end], None).len() <= 3);
        }
        // Spanning tree's frames look alike.
        let mut other = frame.clone();
        other[14..17].copy_from_slice(&[0x42, 0x42, 3]);
        assert_eq!(told(&other, None), []);
    }
}
