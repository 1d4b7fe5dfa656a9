//! The first line that an FTP, SSH or SMTP server says, of connections whose opening was seen. What a client says there, names and
//! passwords among it, isn't looked at. Nor is Telnet: servers echo there what people type.

use anteroom_proto::inventory::HintKind;

use crate::sight::Sights;
use crate::stream::Talk;
use crate::text;

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
    if !talk.answered_from_start && matches!(talk.port, 21 | 2121 | 25 | 587) {
        return true;
    }
    let (word, line) = match talk.port {
        21 | 2121 => ("ftp: ", greeting(talk.answered)),
        25 | 587 => ("smtp: ", greeting(talk.answered)),
        // Whatever is said there is a person's.
        23 => return true,
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
