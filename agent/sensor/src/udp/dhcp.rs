//! DHCP and DHCPv6: what clients say of themselves. The server's side isn't looked at, and nothing is believed of anybody but the
//! frame's own sender: whoever writes another's address into a message could speak for it. What relays carry further is passed by
//! for the same reason; the gateway of a client sees the message before any relay does.

use anteroom_proto::inventory::{HintKind, MAX_VALUE};

use crate::cursor::Cursor;
use crate::frame::Datagram;
use crate::sight::{Sights, Station};
use crate::text;

/// Fields before the options (RFC 2131).
const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const REQUEST: u8 = 1;
const ETHERNET: [u8; 2] = [1, 6];
/// Most options of a message that are looked at.
const MOST_OPTIONS: usize = 128;

/// Reads a client's DHCP message, as the client itself sent it.
pub(super) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
    let _ = client(datagram, sights);
}

fn client(datagram: &Datagram<'_>, sights: &mut Sights) -> Option<()> {
    let mut message = Cursor(datagram.payload);
    let fixed = message.take(FIXED)?;
    if fixed[0] != REQUEST || fixed[1..3] != ETHERNET || message.take(4)? != COOKIE {
        return None;
    }
    let who = datagram.from;
    // A relay writes its own address into the second of these (giaddr).
    if fixed.get(28..34)? != who.mac.0.as_slice() || fixed.get(24..28)? != [0; 4] {
        return None;
    }
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
                sights.tell(who, HintKind::DhcpParameters, list(value));
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
            // The maker's number, and a class with its length before it (RFC 3925).
            124 => {
                let mut class = Cursor(value);
                let enterprise = class.be32()?;
                let class = class.short().and_then(|held| Cursor(held).short().or(Some(held)));
                let text = String::from_utf8_lossy(class.unwrap_or_default());
                sights.tell(who, HintKind::DhcpVendorClass, format!("{enterprise}:{text}"));
            }
            161 => sights.tell(who, HintKind::DhcpMudUrl, value),
            _ => {}
        }
    }
    None
}

/// Numbers with commas between them: as many whole ones as fit.
fn list(numbers: &[u8]) -> String {
    let mut text = String::new();
    for number in numbers {
        let number = number.to_string();
        if text.len() + 1 + number.len() > MAX_VALUE {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&number);
    }
    text
}

/// Reads a client's DHCPv6 message, as the client itself sent it.
pub(super) fn read_v6(datagram: &Datagram<'_>, sights: &mut Sights) {
    // What clients send (RFC 8415, 7.3).
    if let Some(1 | 3..=6 | 8 | 9 | 11) = datagram.payload.first() {
        let _ = client_v6(datagram.from, datagram.payload, sights);
    }
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

#[cfg(test)]
mod tests {
    use anteroom_proto::mac::MacAddr;

    use super::*;

    const CLIENT: Station = Station { mac: MacAddr([2, 0, 0, 0, 0, 1]), vlan: Some(7) };

    fn told(payload: &[u8], version: u8) -> Vec<(Station, HintKind, String)> {
        let datagram = Datagram {
            from: CLIENT,
            to: Station { mac: MacAddr([2, 0, 0, 0, 0, 9]), vlan: Some(7) },
            ips: ([0, 0, 0, 0].into(), [10, 0, 0, 1].into()),
            ports: (68, 67),
            forwarded: false,
            payload,
        };
        let mut sights = Sights::default();
        sights.begin();
        if version == 4 {
            read(&datagram, &mut sights);
        } else {
            read_v6(&datagram, &mut sights);
        }
        sights.drain().map(|sight| (sight.who, sight.kind, sight.value)).collect()
    }

    fn request(client: [u8; 6], relay: [u8; 4]) -> Vec<u8> {
        let mut message = vec![0; FIXED];
        message[..3].copy_from_slice(&[REQUEST, 1, 6]);
        message[24..28].copy_from_slice(&relay);
        message[28..34].copy_from_slice(&client);
        message.extend(COOKIE);
        message.extend(b"\x0c\x04ct-1\xa1\x0bhttps://mud\xff");
        message
    }

    #[test]
    fn a_client_speaks_for_itself_and_for_nobody_else() {
        let wanted = [
            (CLIENT, HintKind::DhcpHostname, "ct-1".to_owned()),
            (CLIENT, HintKind::DhcpMudUrl, "https://mud".to_owned()),
        ];
        assert_eq!(told(&request(CLIENT.mac.0, [0; 4]), 4), wanted);
        assert_eq!(told(&request([2, 0, 0, 0, 0, 5], [0; 4]), 4), [], "another's address");
        assert_eq!(told(&request(CLIENT.mac.0, [10, 0, 0, 1]), 4), [], "a relay's");
    }

    #[test]
    fn long_lists_end_at_a_number_and_makers_name_their_class() {
        let asked = [b"\x37\x40".as_slice(), &[121; 64]].concat();
        let class = b"\x7c\x09\0\0\x11\x8b\x04PUMP";
        let mut message = request(CLIENT.mac.0, [0; 4]);
        message.truncate(FIXED + COOKIE.len());
        message.extend([&asked[..], &class[..], b"\xff"].concat());
        let told = told(&message, 4);
        assert_eq!(told[0].2, vec!["121"; 40].join(","));
        assert_eq!(told[1], (CLIENT, HintKind::DhcpVendorClass, "4491:PUMP".to_owned()));
    }

    #[test]
    fn what_a_relay_of_dhcpv6_carries_is_passed_by() {
        let direct = b"\x01\0\0\x01\0\x70\0\x0bhttps://mud";
        assert_eq!(told(direct, 6), [(CLIENT, HintKind::DhcpMudUrl, "https://mud".to_owned())]);
        let carried = [&[12; 1][..], &[0; 33], &[0, 9, 0, 19], direct].concat();
        assert_eq!(told(&carried, 6), []);
    }
}
