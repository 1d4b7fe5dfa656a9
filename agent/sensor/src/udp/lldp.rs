//! LLDP (IEEE 802.1AB): name and description, and a MUD URL (RFC 8520).

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::sight::{Sights, Station};

/// Most units of a frame that are looked at.
const MOST_UNITS: usize = 64;
/// Types of units.
const NAME: u16 = 5;
const DESCRIPTION: u16 = 6;
const OF_AN_ORGANISATION: u16 = 127;

pub(crate) fn read(from: Station, units: &[u8], sights: &mut Sights) {
    let mut units = Cursor(units);
    for _ in 0..MOST_UNITS {
        let Some(head) = units.be16() else { return };
        let Some(value) = units.take(usize::from(head & 0x1ff)) else { return };
        match head >> 9 {
            0 => return,
            NAME => sights.tell(from, HintKind::LldpName, value),
            DESCRIPTION => sights.tell(from, HintKind::LldpDescription, value),
            OF_AN_ORGANISATION => {
                if let Some(url) = value.strip_prefix(&[0x00, 0x00, 0x5e, 0x01]) {
                    sights.tell(from, HintKind::LldpMudUrl, url);
                }
            }
            _ => {}
        }
    }
}
