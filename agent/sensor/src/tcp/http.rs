//! HTTP/1: who asks and who answers, by User-Agent, Host and Server. Paths, queries, cookies and credentials are passed by. Of
//! bodies those are read that describe the device itself: web services' discovery and metadata, and UPnP's descriptions.

use std::borrow::Cow;

use anteroom_proto::inventory::HintKind;

use crate::sight::{Sights, Station};
use crate::soap;
use crate::stream::Talk;

/// Most header lines of a message that is believed.
const MOST_LINES: usize = 64;
/// Most messages of one direction that are looked at.
const MOST_MESSAGES: usize = 8;

/// A message: its lines, and what is known of its body.
struct Message<'b> {
    agent: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    server: Option<Vec<u8>>,
    encoding: soap::Encoding,
    is_xml: bool,
    body: Cow<'b, [u8]>,
}

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    for message in messages(talk.asked, false) {
        sights.tell(talk.client, HintKind::HttpAgent, message.agent.as_deref().unwrap_or_default());
        if let Some(host) = message.host.as_deref().and_then(name_of_host) {
            sights.tell(talk.client, HintKind::HttpHost, host);
        }
        body(talk.client, &message, sights);
    }
    for message in messages(talk.answered, true) {
        let server = message.server.as_deref().unwrap_or_default();
        sights.tell(talk.server, HintKind::HttpServer, server);
        body(talk.server, &message, sights);
    }
    false
}

fn body(who: Station, message: &Message<'_>, sights: &mut Sights) {
    if message.is_xml {
        soap::read(who, &message.body, message.encoding, sights);
    }
}

/// A host without its port; nothing where it is an address.
pub(crate) fn name_of_host(host: &[u8]) -> Option<&[u8]> {
    if host.starts_with(b"[") {
        return None;
    }
    let name = host.split(|byte| *byte == b':').next()?;
    let is_address =
        std::str::from_utf8(name).is_ok_and(|text| text.parse::<std::net::IpAddr>().is_ok());
    (!is_address && !name.is_empty()).then_some(name)
}

/// The messages that stand in these bytes, the last perhaps in part.
fn messages(bytes: &[u8], answers: bool) -> impl Iterator<Item = Message<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (message, after) = message(rest, answers)?;
        rest = after;
        Some(message)
    })
    .take(MOST_MESSAGES)
}

fn message(bytes: &[u8], is_answer: bool) -> Option<(Message<'_>, &[u8])> {
    let mut lines = [httparse::EMPTY_HEADER; MOST_LINES];
    let (read, lines) = if is_answer {
        let mut head = httparse::Response::new(&mut lines);
        let status = head.parse(bytes).ok()?;
        (status, &*head.headers)
    } else {
        let mut head = httparse::Request::new(&mut lines);
        let status = head.parse(bytes).ok()?;
        (status, &*head.headers)
    };
    let httparse::Status::Complete(read) = read else { return None };
    let line = |name: &str| {
        lines.iter().find(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value)
    };
    let owned = |name: &str| line(name).map(<[u8]>::to_vec);
    let rest = bytes.get(read..)?;
    let is_chunked = line("transfer-encoding").is_some_and(|value| holds(value, b"chunked"));
    let (body, after) = if is_chunked {
        unchunked(rest)
    } else {
        let length = line("content-length")
            .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse::<usize>().ok())
            .unwrap_or(0);
        let (body, after) = rest.split_at(length.min(rest.len()));
        (Cow::Borrowed(body), after)
    };
    let message = Message {
        agent: owned("user-agent"),
        host: owned("host"),
        server: owned("server"),
        encoding: match line("content-encoding") {
            Some(value) if holds(value, b"gzip") => soap::Encoding::Gzip,
            Some(value) if holds(value, b"deflate") => soap::Encoding::Deflate,
            _ => soap::Encoding::Plain,
        },
        is_xml: line("content-type").is_some_and(|value| holds(value, b"xml")),
        body,
    };
    Some((message, after))
}

fn holds(value: &[u8], word: &[u8]) -> bool {
    value.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// A body's chunks put together, as far as they came, and what follows them.
fn unchunked(bytes: &[u8]) -> (Cow<'_, [u8]>, &[u8]) {
    let mut body = Vec::new();
    let mut rest = bytes;
    while let Ok(httparse::Status::Complete((at, length))) = httparse::parse_chunk_size(rest) {
        let Some(chunk) = rest.get(at..) else { break };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length == 0 {
            rest = chunk.get(2..).unwrap_or_default();
            return (Cow::Owned(body), rest);
        }
        body.extend_from_slice(&chunk[..length.min(chunk.len())]);
        rest = chunk.get(length.saturating_add(2)..).unwrap_or_default();
    }
    (Cow::Owned(body), &[])
}
