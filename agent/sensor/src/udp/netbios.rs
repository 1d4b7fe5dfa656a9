//! NetBIOS over UDP (RFC 1002): the name that a machine registers or sends by. Names of users (suffix 3) and of groups are
//! passed by.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::frame::Datagram;
use crate::sight::Sights;

/// A name in its encoding: 32 letters, two for each byte.
const ENCODED: usize = 32;
/// Kinds of questions, as the header's second number has them: registration (of one with several addresses, too), and
/// refreshing it.
const REGISTRATION: [u16; 2] = [5, 15];
const REFRESH: [u16; 2] = [8, 9];
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

/// Reads a datagram of the datagram service: only from whom it is.
pub(super) fn read_datagram(datagram: &Datagram<'_>, sights: &mut Sights) {
    let mut message = Cursor(datagram.payload);
    // Addressed to one, to a group, to all.
    if !matches!(message.u8(), Some(0x10..=0x12)) {
        return;
    }
    // Flags, id, source address and port, length, offset.
    if message.take(13).is_none() {
        return;
    }
    if let Some(Some(name)) = name(&mut message) {
        sights.tell(datagram.from, HintKind::NetbiosName, name);
    }
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
