//! BACnet/IP (ASHRAE 135, annex J): I-Am, and names that were read. What a router or a BBMD carries for others is passed by,
//! since it isn't the sender's own.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::frame::Datagram;
use crate::sight::{Sights, Station};

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
const READ_PROPERTIES: u8 = 14;
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
            match message.u8()? {
                READ_PROPERTY => {
                    let (object, instance) = object(&mut message, 0x0c)?;
                    if object != DEVICE || message.u8()? != 0x19 {
                        return None;
                    }
                    let property = u32::from(message.u8()?);
                    sights.tell(datagram.from, HintKind::BacnetInstance, instance.to_string());
                    if element(&mut message)? == Element::Opening(3)
                        && let Element::Value { tag, bytes } = element(&mut message)?
                    {
                        tell(property, tag, bytes, datagram.from, sights);
                    }
                }
                READ_PROPERTIES => properties(&mut message, datagram.from, sights)?,
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

/// What stands in a message: a value, or the beginning or end of something put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element<'a> {
    Opening(u8),
    Closing(u8),
    /// Of the context's own tag where it has one; of the standard's, plus 16, otherwise.
    Value {
        tag: u8,
        bytes: &'a [u8],
    },
}

/// Added to tags of the standard's own types.
const APPLICATION: u8 = 16;
const BOOLEAN: u8 = 1;
const UNSIGNED: u8 = APPLICATION + 2;
const TEXT: u8 = APPLICATION + 7;

/// The next element (clause 20.2.1).
fn element<'a>(message: &mut Cursor<'a>) -> Option<Element<'a>> {
    let head = message.u8()?;
    let (number, of_context) = (head >> 4, head & 8 != 0);
    // Numbers above 14 stand in a byte of their own; nothing that is read here has one.
    if number == 15 {
        return None;
    }
    let length = match (head & 7, of_context) {
        (6, true) => return Some(Element::Opening(number)),
        (7, true) => return Some(Element::Closing(number)),
        (_, false) if number == BOOLEAN => 0,
        (5, _) => match message.u8()? {
            254 => usize::from(message.be16()?),
            255 => usize::try_from(message.be32()?).ok()?,
            short => usize::from(short),
        },
        (short, _) => usize::from(short),
    };
    let tag = if of_context { number } else { number + APPLICATION };
    Some(Element::Value { tag, bytes: message.take(length)? })
}

fn number(bytes: &[u8]) -> Option<u32> {
    let fits = (1..=4).contains(&bytes.len());
    fits.then(|| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

/// Tells a property of a device.
fn tell(property: u32, tag: u8, bytes: &[u8], who: Station, sights: &mut Sights) {
    let kind = match property {
        77 => HintKind::BacnetName,
        70 => HintKind::BacnetModel,
        121 => HintKind::BacnetMaker,
        120 => {
            if let Some(vendor) = number(bytes).filter(|_| tag == UNSIGNED) {
                sights.tell(who, HintKind::BacnetVendor, vendor.to_string());
            }
            return;
        }
        _ => return,
    };
    // UTF-8 is what nearly all write.
    if let Some(text) = bytes.strip_prefix(&[0]).filter(|_| tag == TEXT) {
        sights.tell(who, kind, text);
    }
}

/// Several properties of several objects, which is how management systems read (ReadPropertyMultiple, clause 15.7): of devices what
/// they say of themselves.
fn properties(message: &mut Cursor<'_>, who: Station, sights: &mut Sights) -> Option<()> {
    while !message.is_empty() {
        let Element::Value { tag: 0, bytes } = element(message)? else { return None };
        let id = number(bytes).filter(|_| bytes.len() == 4)?;
        let is_device = id >> 22 == DEVICE;
        if is_device {
            sights.tell(who, HintKind::BacnetInstance, (id & 0x003f_ffff).to_string());
        }
        if element(message)? != Element::Opening(1) {
            return None;
        }
        let mut property = None;
        let mut depth = 0_usize;
        loop {
            match element(message)? {
                Element::Value { tag: 2, bytes } if depth == 0 => property = number(bytes),
                Element::Value { tag, bytes } if depth == 1 && is_device => {
                    // Of a list only the first.
                    if let Some(property) = property.take() {
                        tell(property, tag, bytes, who, sights);
                    }
                }
                Element::Value { .. } => {}
                Element::Opening(_) => depth += 1,
                Element::Closing(1) if depth == 0 => break,
                Element::Closing(_) => depth = depth.checked_sub(1)?,
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use anteroom_proto::mac::MacAddr;

    use super::*;

    fn told(payload: &[u8]) -> Vec<(HintKind, String)> {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let ip = |n| IpAddr::from([10, 0, 0, n]);
        let mut sights = Sights::default();
        let datagram = Datagram {
            from: station(1),
            to: station(2),
            ips: (ip(1), ip(2)),
            ports: (47808, 47808),
            forwarded: false,
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

    #[test]
    fn several_properties_are_read_of_the_device_and_of_nothing_else() {
        let text = |text: &[u8]| {
            let length = u8::try_from(text.len() + 1).unwrap();
            [&[0x4e, 0x75, length, 0][..], text, &[0x4f]].concat()
        };
        let answer = [
            &[0x81, 0x0a, 0, 0, 1, 0, 0x30, 1, 14][..],
            // The device: its name, a list of numbers, its model, an error, its maker, its maker's number.
            &[0x0c, 2, 0, 0, 77, 0x1e],
            &[0x29, 77],
            &text(b"AHU1"),
            &[0x29, 152, 0x4e, 0x21, 5, 0x21, 6, 0x4f],
            &[0x29, 70],
            &text(b"PXC4"),
            &[0x29, 28, 0x5e, 0x91, 2, 0x91, 32, 0x5f],
            &[0x29, 121],
            &text(b"Siemens"),
            &[0x29, 120, 0x4e, 0x21, 7, 0x4f],
            &[0x1f],
            // A value of its own, whose name is a room's.
            &[0x0c, 0, 0, 0, 3, 0x1e, 0x29, 77],
            &text(b"Room of Erika"),
            &[0x1f],
        ]
        .concat();
        let wanted = [
            (HintKind::BacnetInstance, "77"),
            (HintKind::BacnetName, "AHU1"),
            (HintKind::BacnetModel, "PXC4"),
            (HintKind::BacnetMaker, "Siemens"),
            (HintKind::BacnetVendor, "7"),
        ];
        assert_eq!(told(&answer), wanted.map(|(kind, value)| (kind, value.to_owned())));
        for end in 0..answer.len() {
            told(&answer[..end]);
        }
    }
}
