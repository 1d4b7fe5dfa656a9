//! How a station's TCP opens and answers: the habits of its operating system.

use anteroom_proto::inventory::HintKind;

use crate::frame::Segment;
use crate::sight::Sights;

/// Most options that are written down. 40 bytes hold no more that mean something.
const MOST_OPTIONS: usize = 16;

/// From here on ports are given out for a while only, as for FTP's data: they say nothing of a station.
pub(crate) const PASSING: u16 = 32768;

/// Reads a SYN or a SYN-ACK.
pub(crate) fn opening(segment: &Segment<'_>, sights: &mut Sights) {
    // Behind a router there may be anybody.
    if segment.forwarded {
        return;
    }
    let kind = if segment.ack { HintKind::TcpSynAck } else { HintKind::TcpSyn };
    let habit = format!(
        "{}:{}:{}",
        initial_ttl(segment.ttl),
        segment.window,
        options(segment.options).join(",")
    );
    sights.tell(segment.from, kind, habit);
    if segment.ack && segment.ports.0 < PASSING {
        sights.tell(segment.from, HintKind::Listens, format!("tcp/{}", segment.ports.0));
    }
}

/// What a packet set out with, by what is left of it.
const fn initial_ttl(ttl: u8) -> u8 {
    match ttl {
        0..=32 => 32,
        33..=64 => 64,
        65..=128 => 128,
        129..=255 => 255,
    }
}

/// Options in their order, by short names; others by their numbers.
fn options(mut bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((kind, rest)) = bytes.split_first()
        && names.len() < MOST_OPTIONS
    {
        names.push(match kind {
            0 => "eol".to_owned(),
            1 => "nop".to_owned(),
            2 => "mss".to_owned(),
            3 => "ws".to_owned(),
            4 => "sack".to_owned(),
            8 => "ts".to_owned(),
            other => other.to_string(),
        });
        bytes = match kind {
            0 => break,
            1 => rest,
            _ => match rest.first().and_then(|length| bytes.get(usize::from(*length).max(2)..)) {
                Some(rest) => rest,
                None => break,
            },
        };
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_named_in_order_and_broken_ones_end() {
        let linux = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        assert_eq!(options(&linux), ["mss", "sack", "ts", "nop", "ws"]);
        assert_eq!(options(&[2, 0, 1, 1]), ["mss", "nop", "nop"], "a length of nothing goes on");
        assert_eq!(options(&[8, 200]), ["ts"]);
        assert_eq!(options(&[99]), ["99"]);
        assert_eq!(options(&[1; 40]).len(), MOST_OPTIONS);
    }

    #[test]
    fn ttls_are_rounded_up_to_what_systems_begin_with() {
        assert_eq!([1, 33, 64, 65, 128, 200].map(initial_ttl), [32, 64, 64, 128, 128, 255]);
    }
}
