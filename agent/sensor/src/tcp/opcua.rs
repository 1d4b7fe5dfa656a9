//! OPC UA's binary protocol (IEC 62541-6): the hello, and, where nothing is encrypted, what applications call themselves. Who
//! signs in is passed by.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::sight::{Sights, Station};
use crate::stream::Talk;

/// Most messages of one direction that are looked at.
const MOST_MESSAGES: usize = 16;
/// Kinds of messages, by the numbers of their encodings.
const GET_ENDPOINTS_RESPONSE: u16 = 431;
const CREATE_SESSION_REQUEST: u16 = 461;

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    if talk.asked.starts_with(b"HELF") {
        sights.tell(talk.client, HintKind::OpcuaRole, "client");
        // A client's word alone names nobody.
        if talk.answered.starts_with(b"ACKF")
            && let Some(endpoint) = endpoint(talk.asked)
        {
            sights.tell(talk.server, HintKind::OpcuaEndpoint, endpoint);
        }
    }
    if talk.answered.starts_with(b"ACKF") {
        sights.tell(talk.server, HintKind::OpcuaRole, "server");
    }
    let [asked, answered] = [(talk.asked, talk.ended[0]), (talk.answered, talk.ended[1])];
    for (who, (bytes, ended)) in [(talk.client, asked), (talk.server, answered)] {
        for message in messages(bytes, ended) {
            application(who, message, sights);
        }
    }
    false
}

/// Bodies of the service messages; the last as far as it came, where nothing more comes.
fn messages(bytes: &[u8], ended: bool) -> impl Iterator<Item = &[u8]> {
    let mut rest = Cursor(bytes);
    std::iter::from_fn(move || {
        let kind = rest.take(4)?;
        if !matches!(kind, b"HELF" | b"ACKF" | b"OPNF" | b"MSGF" | b"CLOF") {
            return None;
        }
        let length = usize::try_from(rest.le32()?).ok()?.checked_sub(8)?;
        let body = if ended { rest.take_most(length) } else { rest.take(length)? };
        Some(if kind == b"MSGF" { body } else { &[] })
    })
    .take(MOST_MESSAGES)
}

/// Where the hello wants to go.
fn endpoint(hello: &[u8]) -> Option<&[u8]> {
    let mut hello = Cursor(hello);
    // Message header; version, sizes of buffers, of messages and number of chunks.
    hello.take(8 + 20)?;
    string(&mut hello)
}

fn application(who: Option<Station>, body: &[u8], sights: &mut Sights) -> Option<()> {
    let mut body = Cursor(body);
    // Channel, token, sequence and request.
    body.take(16)?;
    match body.take(4)? {
        [1, 0, low, high] => match u16::from_le_bytes([*low, *high]) {
            CREATE_SESSION_REQUEST => {
                node(&mut body)?;
                body.take(8 + 4 + 4)?;
                string(&mut body);
                body.take(4)?;
                extension(&mut body)?;
                described(who, &mut body, sights)
            }
            GET_ENDPOINTS_RESPONSE => {
                body.take(8 + 4 + 4)?;
                // Without diagnostics and texts for them, or not at all.
                if body.u8()? != 0 || body.le32()?.wrapping_add(1) > 1 {
                    return None;
                }
                extension(&mut body)?;
                if body.le32()? == 0 {
                    return None;
                }
                let endpoint = string(&mut body)?;
                sights.tell(who, HintKind::OpcuaEndpoint, endpoint);
                described(who, &mut body, sights)
            }
            _ => None,
        },
        _ => None,
    }
}

/// An ApplicationDescription: its URI, its product's, its name.
fn described(who: Option<Station>, body: &mut Cursor<'_>, sights: &mut Sights) -> Option<()> {
    let uri = string(body).unwrap_or_default();
    let product = string(body).unwrap_or_default();
    sights.tell(who, HintKind::OpcuaApplication, uri);
    sights.tell(who, HintKind::OpcuaApplication, product);
    let mask = body.u8()?;
    if mask & 1 != 0 {
        string(body)?;
    }
    if mask & 2 != 0 {
        sights.tell(who, HintKind::OpcuaApplication, string(body)?);
    }
    Some(())
}

/// A text behind its length; a length of -1 says that there is none.
fn string<'a>(body: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let length = body.le32()?;
    if length == u32::MAX {
        return None;
    }
    body.take(usize::try_from(length).ok()?)
}

/// Passes a node's id by.
fn node(body: &mut Cursor<'_>) -> Option<()> {
    match body.u8()? {
        0 => body.take(1)?,
        1 => body.take(3)?,
        2 => body.take(6)?,
        3 | 5 => {
            body.take(2)?;
            string(body)?
        }
        4 => body.take(18)?,
        _ => return None,
    };
    Some(())
}

/// Passes an extension object without a body by.
fn extension(body: &mut Cursor<'_>) -> Option<()> {
    node(body)?;
    (body.u8()? == 0).then_some(())
}
