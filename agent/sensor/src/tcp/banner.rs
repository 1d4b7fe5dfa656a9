//! The first line that an FTP, SSH or SMTP server says, of connections whose opening was seen. What a client says there, names and
//! passwords among it, isn't looked at. Nor is Telnet: servers echo there what people type.

use anteroom_proto::inventory::HintKind;

use crate::sight::Sights;
use crate::stream::Talk;
use crate::text;

/// Most lines of a greeting that are looked at: some draw frames of stars.
const MOST_LINES: usize = 8;

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    let mut programs = 0;
    for (who, bytes) in [(talk.client, talk.asked), (talk.server, talk.answered)] {
        if let Some(version) = bytes.strip_prefix(b"SSH-")
            && let Some(line) = text::first_line(version)
        {
            programs += 1;
            // `2.0-OpenSSH_7.4`: which protocol, and behind it which program.
            let program = line.splitn(2, |byte| *byte == b'-').nth(1).unwrap_or(line);
            sights.tell(who, HintKind::Banner, [b"ssh: ", program].concat());
        }
    }
    if programs == 2 {
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

/// What stands behind 220, which both protocols greet with: the first line that says something.
fn greeting(mut bytes: &[u8]) -> Option<Vec<u8>> {
    for _ in 0..MOST_LINES {
        let line = text::first_line(bytes)?;
        let said = line.strip_prefix(b"220")?.get(1..)?;
        if said.iter().any(u8::is_ascii_alphanumeric) {
            return Some(said.to_vec());
        }
        let after = &bytes[line.len()..];
        let end = after.iter().take(2).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        bytes = &after[end..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_the_first_line_that_says_something() {
        let said =
            |text: &str| greeting(text.as_bytes()).map(|said| String::from_utf8(said).unwrap());
        assert_eq!(
            said("220 NET+OS 6.3 FTP server ready.\r\n").as_deref(),
            Some("NET+OS 6.3 FTP server ready.")
        );
        assert_eq!(
            said("220-\r\n220-*****\r\n220-ProFTPD\r\n220 ok\r\n").as_deref(),
            Some("ProFTPD")
        );
        assert_eq!(said("220-\r\n"), None, "more may come");
        assert_eq!(said("220-\r\n331 Password for Erika\r\n"), None);
        assert_eq!(said(&"220-\r\n".repeat(100)), None);
        assert_eq!(said("220"), None);
    }
}
