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
            let fields: Vec<&[u8]> = header.split(|byte| *byte == header[3]).take(9).collect();
            let field = |n: usize| fields.get(n - 1).copied().unwrap_or_default();
            sights.tell(sender, HintKind::Hl7Sender, field(3));
            sights.tell(receiver, HintKind::Hl7Receiver, field(5));
            sights.tell(sender, HintKind::Hl7Message, field(9));
        }
    }
    false
}

/// The headers of the messages that begin in these bytes: those that are whole.
fn headers(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|byte| *byte == END)
        .take(MOST_MESSAGES)
        .filter_map(|message| {
            let at = message.iter().position(|byte| *byte == START)?;
            // Behind another message's end there is a carriage return alone.
            if !message[..at].iter().all(|byte| *byte == b'\r') {
                return None;
            }
            let message = &message[at + 1..];
            if !message.starts_with(b"MSH") || message.len() < 8 {
                return None;
            }
            let end = message.iter().take(LONGEST_HEADER).position(|byte| *byte == b'\r')?;
            Some(&message[..end])
        })
        .filter(|header| header.len() > 4 && header[3].is_ascii_punctuation())
}
