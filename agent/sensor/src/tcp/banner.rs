//! The first line that an FTP, SSH, SMTP or Telnet server says. What a client says there, names and passwords among it, isn't
//! looked at.

use anteroom_proto::inventory::HintKind;

use crate::sight::Sights;
use crate::stream::Talk;
use crate::text;

/// Begins an order of Telnet (RFC 854).
const IAC: u8 = 255;

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    for (who, bytes) in [(talk.client, talk.asked), (talk.server, talk.answered)] {
        if let Some(version) = bytes.strip_prefix(b"SSH-")
            && let Some(line) = text::first_line(version)
        {
            // `2.0-OpenSSH_7.4`: which protocol, and behind it which program.
            let program = line.splitn(2, |byte| *byte == b'-').nth(1).unwrap_or(line);
            sights.tell(who, HintKind::Banner, [b"ssh: ", program].concat());
        }
    }
    if talk.asked.starts_with(b"SSH-") && talk.answered.starts_with(b"SSH-") {
        return true;
    }
    let (word, line) = match talk.port {
        21 | 2121 => ("ftp: ", greeting(talk.answered)),
        25 | 587 => ("smtp: ", greeting(talk.answered)),
        23 => ("telnet: ", telnet(talk.answered)),
        _ => return false,
    };
    if let Some(line) = line {
        sights.tell(talk.server, HintKind::Banner, [word.as_bytes(), &line].concat());
        return true;
    }
    false
}

/// What stands behind 220, which both protocols greet with.
fn greeting(bytes: &[u8]) -> Option<Vec<u8>> {
    let line = text::first_line(bytes)?.strip_prefix(b"220")?;
    Some(line.get(1..)?.to_vec())
}

/// The first line with something in it, without Telnet's orders. A prompt has no end of line, so what came last counts only once
/// something follows.
fn telnet(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut rest = bytes.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != IAC {
            plain.push(byte);
            continue;
        }
        match rest.next() {
            // A negotiation up to its end.
            Some(250) => while rest.next().is_some_and(|byte| byte != 240) {},
            Some(251..=254) => {
                rest.next();
            }
            _ => {}
        }
    }
    let mut lines = plain.split_inclusive(|byte| matches!(byte, b'\r' | b'\n'));
    lines
        .find(|line| {
            line.ends_with(b"\n") | line.ends_with(b"\r")
                && line.iter().any(u8::is_ascii_alphanumeric)
        })
        .map(<[u8]>::to_vec)
}
