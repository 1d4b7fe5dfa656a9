//! Modbus over TCP: who asks and who answers, and what answers to "read device identification" (43/14) say.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::sight::Sights;
use crate::stream::Talk;

/// The port.
const MODBUS: u16 = 502;
/// Most messages of one direction that are looked at.
const MOST_MESSAGES: usize = 64;
/// Vendor, product, revision; vendor's address, product's name, model's name, application's name.
const MOST_OBJECTS: usize = 7;

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    if talk.port != MODBUS {
        return false;
    }
    if messages(talk.asked).next().is_some() {
        sights.tell(talk.client, HintKind::ModbusRole, "client");
    }
    for message in messages(talk.answered) {
        sights.tell(talk.server, HintKind::ModbusRole, "server");
        if let Some(identity) = identity(message) {
            sights.tell(talk.server, HintKind::ModbusIdentity, identity);
        }
    }
    false
}

/// The messages that are there in whole, from their function's number on.
fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Cursor(bytes);
    std::iter::from_fn(move || {
        rest.be16()?;
        let (protocol, length) = (rest.be16()?, rest.be16()?);
        if protocol != 0 || !(2..=254).contains(&length) {
            return None;
        }
        rest.u8()?;
        rest.take(usize::from(length) - 1)
    })
    .take(MOST_MESSAGES)
}

/// The objects of an identification, one behind the other.
fn identity(message: &[u8]) -> Option<Vec<u8>> {
    let mut message = Cursor(message.strip_prefix(&[0x2b, 0x0e])?);
    // Which code, conformity, whether more follows, where it goes on.
    message.take(4)?;
    let count = message.u8()?;
    let mut objects: Vec<&[u8]> = Vec::new();
    for _ in 0..usize::from(count).min(MOST_OBJECTS) {
        message.u8()?;
        objects.push(message.short()?);
    }
    Some(objects.join(&b' '))
}
