//! SMB 1 to 3 over TCP 445 or NetBIOS' session service: dialects, operating system, the machine's name. Users, domains that
//! they sign in to, shares and files are passed by.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::sight::{Sights, Station};
use crate::stream::Talk;
use crate::text;

/// Most messages of one direction that are looked at.
const MOST_MESSAGES: usize = 16;
/// Orders.
const NEGOTIATE_1: u8 = 0x72;
const SESSION_SETUP_1: u8 = 0x73;
const NEGOTIATE_2: u16 = 0;
/// That texts are UTF-16 (flags of SMB 1).
const UNICODE: u16 = 0x8000;
/// That a version is given (flags of NTLM).
const VERSION: u32 = 0x0200_0000;
/// Names in what an NTLM challenge says of the server.
const COMPUTER_NAME: u16 = 1;
const DNS_COMPUTER_NAME: u16 = 3;

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    let [asked, answered] = [(talk.asked, talk.ended[0]), (talk.answered, talk.ended[1])];
    for (who, is_server, (bytes, ended)) in
        [(talk.client, false, asked), (talk.server, true, answered)]
    {
        for message in messages(bytes, ended) {
            if let Some(message) = message.strip_prefix(b"\xffSMB") {
                first(who, is_server, message, sights);
            } else if let Some(message) = message.strip_prefix(b"\xfeSMB") {
                second(who, is_server, message, sights);
            }
            if is_server {
                challenge(who, message, sights);
            }
        }
    }
    false
}

/// Messages behind their lengths (RFC 1002, session messages); the last as far as it came, where nothing more comes.
fn messages(bytes: &[u8], ended: bool) -> impl Iterator<Item = &[u8]> {
    let mut rest = Cursor(bytes);
    std::iter::from_fn(move || {
        let kind = rest.u8()?;
        let length = rest.be24()?;
        match kind {
            0 if ended => Some(rest.take_most(length)),
            0 => rest.take(length),
            // A session is asked for, or granted.
            0x81 | 0x82 => {
                rest.take(length)?;
                Some(&[][..])
            }
            _ => None,
        }
    })
    .take(MOST_MESSAGES)
}

fn first(who: Option<Station>, is_server: bool, message: &[u8], sights: &mut Sights) -> Option<()> {
    let mut message = Cursor(message);
    let order = message.u8()?;
    // Status, one byte of flags.
    message.take(5)?;
    let unicode = message.le16()? & UNICODE != 0;
    message.take(20)?;
    let words = usize::from(message.u8()?) * 2;
    let words = message.take(words)?;
    let length = usize::from(message.le16()?);
    let bytes = message.take_most(length);
    match order {
        NEGOTIATE_1 if !is_server => {
            for dialect in bytes.split(|byte| *byte == 0) {
                if let Some(dialect) = dialect.strip_prefix(&[2]) {
                    sights.tell(who, HintKind::SmbDialect, dialect);
                }
            }
        }
        SESSION_SETUP_1 => {
            // The answer begins with the texts or a blob before them; the request has passwords and a user before them.
            let length = |at: usize| Cursor(words.get(at..)?).le16().map(usize::from);
            let (at, passed_by) = match (is_server, words.len() / 2) {
                (true, 3) => (0, 0),
                (true, 4) => (length(6)?, 0),
                (false, 12) => (length(14)?, 0),
                (false, 13) => (length(14)? + length(16)?, 2),
                _ => return None,
            };
            // UTF-16 begins at an even place of the message, and these bytes at an odd one.
            let at = if unicode && at % 2 == 0 { at + 1 } else { at };
            let mut texts = texts(bytes.get(at..)?, unicode).skip(passed_by);
            sights.tell(who, HintKind::SmbOs, texts.next()?);
            sights.tell(who, HintKind::SmbDialect, texts.next()?);
        }
        _ => {}
    }
    Some(())
}

/// Texts one behind the other, each with a zero at its end.
fn texts(mut bytes: &[u8], unicode: bool) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        if unicode {
            let length = bytes.chunks_exact(2).position(|unit| unit == [0, 0])? * 2;
            let text = text::utf16(&bytes[..length]);
            bytes = &bytes[length + 2..];
            Some(text)
        } else {
            let text = text::until_zero(bytes);
            // One that doesn't end isn't there in whole.
            bytes = bytes.get(text.len() + 1..)?;
            Some(String::from_utf8_lossy(text).into_owned())
        }
    })
}

fn second(
    who: Option<Station>,
    is_server: bool,
    message: &[u8],
    sights: &mut Sights,
) -> Option<()> {
    let mut message = Cursor(message);
    // Structure's size, credits, status.
    message.take(8)?;
    let order = message.le16()?;
    message.take(50)?;
    match (order, is_server) {
        (NEGOTIATE_2, true) => {
            message.take(4)?;
            let dialect = message.le16()?;
            // 2FF only says that there is something above SMB 1.
            if dialect != 0x02ff {
                sights.tell(who, HintKind::SmbDialect, dialect_name(dialect));
            }
        }
        (NEGOTIATE_2, false) => {
            message.take(2)?;
            let count = usize::from(message.le16()?).min(16);
            message.take(32)?;
            let highest = (0..count).filter_map(|_| message.le16()).max()?;
            sights.tell(who, HintKind::SmbDialect, dialect_name(highest));
        }
        _ => {}
    }
    Some(())
}

/// `SMB 3.1.1` for 0x0311.
fn dialect_name(dialect: u16) -> String {
    match dialect & 0x0f {
        0 => format!("SMB {}.{}", dialect >> 8, dialect >> 4 & 0x0f),
        patch => format!("SMB {}.{}.{patch}", dialect >> 8, dialect >> 4 & 0x0f),
    }
}

/// What a server says of itself as it challenges by NTLM (MS-NLMP 2.2.1.2). The client's answer, with the user, isn't read.
fn challenge(who: Option<Station>, message: &[u8], sights: &mut Sights) -> Option<()> {
    const MARK: &[u8] = b"NTLMSSP\0\x02\0\0\0";
    let at = message.windows(MARK.len()).position(|part| part == MARK)?;
    let challenge = &message[at..];
    // Flags stand behind mark and target's name.
    let has_version = Cursor(challenge.get(20..)?).le32()? & VERSION != 0;
    let mut fields = Cursor(challenge.get(40..)?);
    let length = usize::from(fields.le16()?);
    fields.take(2)?;
    let offset = usize::try_from(fields.le32()?).ok()?;
    // Others than Windows leave the build out, whatever they pass for.
    if let [major @ 1..=20, minor, low, high] = fields.take(4)?
        && has_version
        && (*low, *high) != (0, 0)
    {
        let build = u16::from_le_bytes([*low, *high]);
        sights.tell(who, HintKind::SmbOs, format!("Windows {major}.{minor}.{build}"));
    }
    let mut pairs = Cursor(challenge.get(offset..)?);
    let mut pairs = Cursor(pairs.take_most(length));
    while let Some(kind) = pairs.le16() {
        let length = pairs.le16()?;
        let value = pairs.take(length.into())?;
        if matches!(kind, COMPUTER_NAME | DNS_COMPUTER_NAME) {
            sights.tell(who, HintKind::NetbiosName, text::utf16(value));
        }
        if kind == 0 {
            break;
        }
    }
    Some(())
}
