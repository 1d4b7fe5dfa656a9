//! BACnet/IP (ASHRAE 135, annex J): I-Am, and names that were read. What a router or a BBMD carries for others is passed by,
//! since it isn't the sender's own.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::frame::Datagram;
use crate::sight::Sights;

/// Functions of the link layer.
const UNICAST: u8 = 0x0a;
const BROADCAST: u8 = 0x0b;
const DISTRIBUTE: u8 = 0x09;
/// Control bits of the network layer.
const IS_OF_NETWORK: u8 = 0x80;
const HAS_DESTINATION: u8 = 0x20;
const HAS_SOURCE: u8 = 0x08;
/// Kinds of application messages, and services.
const UNCONFIRMED: u8 = 1;
const COMPLEX_ANSWER: u8 = 3;
const I_AM: u8 = 0;
const READ_PROPERTY: u8 = 12;
/// An object's type.
const DEVICE: u32 = 8;

pub(super) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
    let _ = message(datagram, sights);
}

fn message(datagram: &Datagram<'_>, sights: &mut Sights) -> Option<()> {
    let mut message = Cursor(datagram.payload);
    if message.u8()? != 0x81 || !matches!(message.u8()?, UNICAST | BROADCAST | DISTRIBUTE) {
        return None;
    }
    message.take(2)?;
    if message.u8()? != 1 {
        return None;
    }
    let control = message.u8()?;
    if control & (IS_OF_NETWORK | HAS_SOURCE) != 0 {
        return None;
    }
    if control & HAS_DESTINATION != 0 {
        message.take(2)?;
        message.short()?;
        // How far it may still go.
        message.u8()?;
    }
    let kind = message.u8()?;
    match kind >> 4 {
        UNCONFIRMED if message.u8()? == I_AM => {
            let (object, instance) = object(&mut message, 0xc4)?;
            if object != DEVICE {
                return None;
            }
            unsigned(&mut message)?;
            unsigned(&mut message)?;
            let vendor = unsigned(&mut message)?;
            sights.tell(datagram.from, HintKind::BacnetInstance, instance.to_string());
            sights.tell(datagram.from, HintKind::BacnetVendor, vendor.to_string());
        }
        // Unsegmented.
        COMPLEX_ANSWER if kind & 0x08 == 0 => {
            message.u8()?;
            if message.u8()? != READ_PROPERTY {
                return None;
            }
            let (object, instance) = object(&mut message, 0x0c)?;
            if object != DEVICE || message.u8()? != 0x19 {
                return None;
            }
            let property = message.u8()?;
            if message.u8()? != 0x3e {
                return None;
            }
            sights.tell(datagram.from, HintKind::BacnetInstance, instance.to_string());
            match property {
                // Its own name, its model's, its vendor's.
                77 | 70 | 121 => {
                    sights.tell(datagram.from, HintKind::BacnetName, text(&mut message)?);
                }
                // Its vendor's number.
                120 => {
                    let vendor = unsigned(&mut message)?;
                    sights.tell(datagram.from, HintKind::BacnetVendor, vendor.to_string());
                }
                _ => {}
            }
        }
        _ => {}
    }
    Some(())
}

/// An object's type and instance behind a tag.
fn object(message: &mut Cursor<'_>, tag: u8) -> Option<(u32, u32)> {
    if message.u8()? != tag {
        return None;
    }
    let id = message.be32()?;
    Some((id >> 22, id & 0x003f_ffff))
}

/// A number (unsigned or enumerated) of up to four bytes.
fn unsigned(message: &mut Cursor<'_>) -> Option<u32> {
    let tag = message.u8()?;
    let length = usize::from(tag & 7);
    if !matches!(tag >> 4, 2 | 9) || tag & 8 != 0 || !(1..=4).contains(&length) {
        return None;
    }
    Some(message.take(length)?.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

/// A text in UTF-8, which is what nearly all write.
fn text<'a>(message: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let tag = message.u8()?;
    if tag >> 4 != 7 || tag & 8 != 0 {
        return None;
    }
    let length = match tag & 7 {
        5 => usize::from(message.u8()?),
        length => usize::from(length),
    };
    message.take(length)?.strip_prefix(&[0])
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use anteroom_proto::mac::MacAddr;

    use super::*;
    use crate::sight::Station;

    fn told(payload: &[u8]) -> Vec<(HintKind, String)> {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let ip = |n| IpAddr::from([10, 0, 0, n]);
        let mut sights = Sights::default();
        let datagram = Datagram {
            from: station(1),
            to: station(2),
            ips: (ip(1), ip(2)),
            ports: (47808, 47808),
            payload,
        };
        read(&datagram, &mut sights);
        sights.drain().map(|sight| (sight.kind, sight.value)).collect()
    }

    const I_AM_77: &[u8] = &[
        0x81, 0x0b, 0, 24, 1, 0x20, 0xff, 0xff, 0, 0xff, 0x10, 0, 0xc4, 2, 0, 0, 77, 0x22, 1, 0xe0,
        0x91, 0, 0x21, 15,
    ];

    #[test]
    fn an_announcement_names_instance_and_vendor() {
        assert_eq!(
            told(I_AM_77),
            [
                (HintKind::BacnetInstance, "77".to_owned()),
                (HintKind::BacnetVendor, "15".to_owned())
            ]
        );
        for end in 0..I_AM_77.len() {
            assert_eq!(told(&I_AM_77[..end]), [], "cut at {end}");
        }
    }

    #[test]
    fn what_a_router_carries_for_others_is_passed_by() {
        let routed = [&[0x81, 0x0b, 0, 24, 1, 0x08, 0, 5, 1, 9][..], &I_AM_77[10..]].concat();
        assert_eq!(told(&routed), []);
    }

    #[test]
    fn a_name_that_was_read_is_told() {
        let mut answer = vec![
            0x81, 0x0a, 0, 0, 1, 0, 0x30, 1, 0x0c, 0x0c, 2, 0, 0, 77, 0x19, 77, 0x3e, 0x75, 5, 0,
        ];
        answer.extend(b"AHU1\x3f");
        assert_eq!(told(&answer)[1], (HintKind::BacnetName, "AHU1".to_owned()));
    }
}
