//! DHCP and DHCPv6: what clients say of themselves. The server's side isn't looked at.

use anteroom_proto::inventory::HintKind;
use anteroom_proto::mac::MacAddr;

use crate::cursor::Cursor;
use crate::frame::Datagram;
use crate::sight::{Sights, Station};
use crate::text;

/// Fields before the options (RFC 2131).
const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const REQUEST: u8 = 1;
const ETHERNET: [u8; 2] = [1, 6];
/// A relay's message (RFC 8415, 9), what it has before its options, and how many of them may be within one another.
const RELAYED: u8 = 12;
const RELAY_FIXED: usize = 34;
const MOST_RELAYS: usize = 8;
/// Most options of a message that are looked at.
const MOST_OPTIONS: usize = 128;

/// Reads a client's DHCP message. A relay carries it further with the client's address inside.
pub(super) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
    let _ = client(datagram, sights);
}

fn client(datagram: &Datagram<'_>, sights: &mut Sights) -> Option<()> {
    let mut message = Cursor(datagram.payload);
    let fixed = message.take(FIXED)?;
    if fixed[0] != REQUEST || fixed[1..3] != ETHERNET || message.take(4)? != COOKIE {
        return None;
    }
    let mac = MacAddr(*fixed.get(28..)?.first_chunk::<6>()?);
    let who = Station { mac, vlan: datagram.from.vlan };
    for _ in 0..MOST_OPTIONS {
        let kind = match message.u8()? {
            0 => continue,
            255 => return None,
            kind => kind,
        };
        let value = message.short()?;
        match kind {
            12 => sights.tell(who, HintKind::DhcpHostname, value),
            55 => {
                let asked: Vec<String> = value.iter().map(u8::to_string).collect();
                sights.tell(who, HintKind::DhcpParameters, asked.join(","));
            }
            60 => sights.tell(who, HintKind::DhcpVendorClass, value),
            // Flags and two numbers that mean nothing any more; then a name as text or, by a flag, as DNS has it.
            81 => {
                let name = value.get(3..).unwrap_or_default();
                if value.first().is_some_and(|flags| flags & 4 != 0) {
                    let name = text::wire_name(name).unwrap_or_default();
                    sights.tell(who, HintKind::DhcpFqdn, name);
                } else {
                    sights.tell(who, HintKind::DhcpFqdn, name);
                }
            }
            161 => sights.tell(who, HintKind::DhcpMudUrl, value),
            _ => {}
        }
    }
    None
}

/// Reads a client's DHCPv6 message, or one that a relay carries, where that says whose it is.
pub(super) fn read_v6(datagram: &Datagram<'_>, sights: &mut Sights) {
    let (mut message, mut who) = (datagram.payload, Some(datagram.from));
    for _ in 0..=MOST_RELAYS {
        match message.first() {
            Some(&RELAYED) => {
                let Some(carried) = option_v6(message.get(RELAY_FIXED..), 9) else { return };
                message = carried;
                who = None;
            }
            // What clients send (RFC 8415, 7.3).
            Some(1 | 3..=6 | 8 | 9 | 11) => {
                let client = || client_id(message).map(|mac| Station { mac, ..datagram.from });
                if let Some(who) = who.or_else(client) {
                    let _ = client_v6(who, message, sights);
                }
                return;
            }
            _ => return,
        }
    }
}

/// The first option of a kind.
fn option_v6(options: Option<&[u8]>, wanted: u16) -> Option<&[u8]> {
    let mut options = Cursor(options?);
    for _ in 0..MOST_OPTIONS {
        let kind = options.be16()?;
        let value = options.long()?;
        if kind == wanted {
            return Some(value);
        }
    }
    None
}

/// The Ethernet address in a client's identifier (DUID-LLT, DUID-LL), where there is one.
fn client_id(message: &[u8]) -> Option<MacAddr> {
    let ([0, 1, 0, 1, _, _, _, _, address @ ..] | [0, 3, 0, 1, address @ ..]) =
        option_v6(message.get(4..), 1)?
    else {
        return None;
    };
    Some(MacAddr(address.try_into().ok()?))
}

fn client_v6(who: Station, message: &[u8], sights: &mut Sights) -> Option<()> {
    let mut message = Cursor(message);
    message.take(4)?;
    for _ in 0..MOST_OPTIONS {
        let kind = message.be16()?;
        let value = message.long()?;
        match kind {
            16 => {
                let mut class = Cursor(value);
                let enterprise = class.be32()?;
                let text = String::from_utf8_lossy(class.long().unwrap_or_default());
                sights.tell(who, HintKind::Dhcp6VendorClass, format!("{enterprise}:{text}"));
            }
            39 => {
                let name = value.get(1..).and_then(text::wire_name).unwrap_or_default();
                sights.tell(who, HintKind::Dhcp6Fqdn, name);
            }
            112 => sights.tell(who, HintKind::DhcpMudUrl, value),
            _ => {}
        }
    }
    None
}
