//! HTTP/1: who asks and who answers, by User-Agent, Host and Server. Paths, queries, cookies and credentials are passed by. Of
//! bodies those are read that describe the device itself: web services' discovery and metadata, and UPnP's descriptions.

use std::borrow::Cow;
use std::net::IpAddr;

use anteroom_proto::inventory::HintKind;

use crate::sight::{Sights, Station};
use crate::soap;
use crate::stream::Talk;
use crate::text;

/// Most header lines of a message that is believed.
const MOST_LINES: usize = 64;
/// Most messages of one direction that are looked at at a time.
const MOST_MESSAGES: usize = 8;

/// A message: its lines, and what is known of its body.
struct Message<'b> {
    agent: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    server: Option<Vec<u8>>,
    encoding: soap::Encoding,
    is_xml: bool,
    body: Cow<'b, [u8]>,
    is_whole: bool,
}

pub(super) fn read(talk: &mut Talk<'_>, sights: &mut Sights) -> bool {
    let [asked, answered] = &mut talk.done;
    let mut side = Side { who: talk.client, ip: talk.ips.0, inflate: talk.inflate, sights };
    side.read(talk.asked, asked, false, talk.ended[0]);
    (side.who, side.ip) = (talk.server, talk.ips.1);
    side.read(talk.answered, answered, true, talk.ended[1]);
    false
}

/// One that asks or answers.
struct Side<'a> {
    who: Option<Station>,
    ip: IpAddr,
    inflate: &'a mut u64,
    sights: &'a mut Sights,
}

impl Side<'_> {
    /// Reads what comes behind the `done` first bytes: each message once, when it is whole or nothing more comes of it.
    fn read(&mut self, bytes: &[u8], done: &mut usize, answers: bool, ended: bool) {
        for _ in 0..MOST_MESSAGES {
            let rest = bytes.get(*done..).unwrap_or_default();
            let Some((message, after)) = message(rest, answers) else { return };
            self.head(&message, answers);
            if !message.is_whole && !ended {
                return;
            }
            *done = bytes.len() - after.len();
            if message.is_xml {
                let body = soap::Body {
                    who: self.who,
                    ip: self.ip,
                    bytes: &message.body,
                    encoding: message.encoding,
                    answers,
                    repeats: false,
                };
                soap::read(body, self.inflate, self.sights);
            }
        }
    }

    fn head(&mut self, message: &Message<'_>, answers: bool) {
        let mut tell = |kind, value: &[u8]| self.sights.tell(self.who, kind, value);
        if answers {
            tell(HintKind::HttpServer, message.server.as_deref().unwrap_or_default());
            return;
        }
        tell(HintKind::HttpAgent, message.agent.as_deref().unwrap_or_default());
        tell(
            HintKind::HttpHost,
            message.host.as_deref().and_then(name_of_host).unwrap_or_default(),
        );
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
    text::host_name(name).filter(|_| !is_address)
}

/// The message that these bytes begin with, perhaps in part, and what follows it.
fn message(bytes: &[u8], is_answer: bool) -> Option<(Message<'_>, &[u8])> {
    let mut lines = [httparse::EMPTY_HEADER; MOST_LINES];
    let mut has_body = true;
    let (read, lines) = if is_answer {
        let mut head = httparse::Response::new(&mut lines);
        let status = head.parse(bytes).ok()?;
        has_body = !matches!(head.code, Some(100..=199 | 204 | 304));
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
    let length = line("content-length")
        .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
    // RFC 9112, 6.3.
    let (body, after, is_whole) = if !has_body {
        (Cow::Borrowed(&[][..]), rest, true)
    } else if is_chunked {
        unchunked(rest)
    } else if length.is_none() && is_answer {
        // Up to the connection's end.
        (Cow::Borrowed(rest), &[][..], false)
    } else {
        let length: usize = length.unwrap_or(0);
        let (body, after) = rest.split_at(length.min(rest.len()));
        (Cow::Borrowed(body), after, body.len() == length)
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
        is_whole,
    };
    Some((message, after))
}

fn holds(value: &[u8], word: &[u8]) -> bool {
    value.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// A body's chunks put together, as far as they came, what follows them, and whether all came.
fn unchunked(bytes: &[u8]) -> (Cow<'_, [u8]>, &[u8], bool) {
    let mut body = Vec::new();
    let mut rest = bytes;
    while let Ok(httparse::Status::Complete((at, length))) = httparse::parse_chunk_size(rest) {
        let Some(chunk) = rest.get(at..) else { break };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length == 0 {
            // Lines may follow, up to an empty one.
            let ends = match chunk {
                [b'\r', b'\n', ..] => Some(2),
                lines => lines.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4),
            };
            return match ends.and_then(|end| chunk.get(end..)) {
                Some(rest) => (Cow::Owned(body), rest, true),
                None => (Cow::Owned(body), &[], false),
            };
        }
        body.extend_from_slice(&chunk[..length.min(chunk.len())]);
        rest = chunk.get(length.saturating_add(2)..).unwrap_or_default();
    }
    (Cow::Owned(body), &[], false)
}
