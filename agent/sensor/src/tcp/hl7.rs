//! HL7 version 2 over MLLP: of each message the header alone (MSH), of which the applications and the kind of message. What
//! comes after the first segment is never looked at.

use anteroom_proto::inventory::HintKind;

use crate::sight::Sights;
use crate::stream::Talk;

/// Before a message, and behind it.
const START: u8 = 0x0b;
const END: u8 = 0x1c;
/// Most messages of one direction that are looked at.
const MOST_MESSAGES: usize = 16;
/// Longest header that is believed.
const LONGEST_HEADER: usize = 1024;

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    for (sender, receiver, bytes) in
        [(talk.client, talk.server, talk.asked), (talk.server, talk.client, talk.answered)]
    {
        for header in headers(bytes) {
            // MSH-1 is the separator itself, so the third field stands third.
            let fields: Vec<&[u8]> = header.split(|byte| *byte == header[3]).take(10).collect();
            let field = |n: usize| fields.get(n - 1).copied().unwrap_or_default();
            if fields.len() < 9 || !is_delimiters(field(2)) || !is_kind(field(9), field(2)[0]) {
                continue;
            }
            sights.tell(sender, HintKind::Hl7Sender, field(3));
            sights.tell(sender, HintKind::Hl7Message, field(9));
            // Whoever never answered in kind has not been named by anybody who knows.
            if talk.answered.first() == Some(&START) {
                sights.tell(receiver, HintKind::Hl7Receiver, field(5));
            }
        }
    }
    false
}

/// Whether MSH-2 is what it has to be: the other separators.
fn is_delimiters(field: &[u8]) -> bool {
    (2..=5).contains(&field.len()) && field.iter().all(u8::is_ascii_punctuation)
}

/// Whether MSH-9 is a kind of message, and no text that slid there: `ORU^R01^ORU_R01`.
fn is_kind(field: &[u8], separator: u8) -> bool {
    let mut parts = field.split(|byte| *byte == separator);
    let is_code = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
    parts.next().is_some_and(|kind| kind.len() == 3 && kind.iter().all(is_code))
        && parts
            .all(|part| part.len() <= 7 && part.iter().all(|byte| is_code(byte) || *byte == b'_'))
}

/// The headers of the messages that begin in these bytes: those that are whole.
fn headers(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|byte| *byte == END)
        .take(MOST_MESSAGES)
        .filter_map(|message| {
            let at = message.iter().position(|byte| *byte == START)?;
            // Behind another message's end there is a carriage return alone.
            if !message[..at].iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
                return None;
            }
            let message = &message[at + 1..];
            if !message.starts_with(b"MSH") || message.len() < 8 {
                return None;
            }
            let end = message
                .iter()
                .take(LONGEST_HEADER)
                .position(|byte| matches!(byte, b'\r' | b'\n'))?;
            Some(&message[..end])
        })
        .filter(|header| header.len() > 4 && header[3].is_ascii_punctuation())
}
