//! Conversations over TCP as the sensor reads them: however they are cut into segments, sent twice or come in another order, the same is
//! told of them.

use std::collections::BTreeSet;

use anteroom_proto::inventory::HintKind;
use anteroom_proto::mac::MacAddr;
use anteroom_sensor::{Look, Sensor, Sights};

/// Ports of servers, the first byte of an input says which.
const PORTS: [u16; 12] = [104, 2575, 80, 443, 445, 139, 4840, 502, 21, 22, 25, 11_112];
/// Most that is said in one go, and how often either says something. More of it ends what is read of a direction.
const LONGEST: usize = 3_000;
const MOST_TURNS: usize = 4;
/// Into so many segments a turn is cut at most.
const PIECES: u64 = 4;

/// Numbers that are different each time and the same for the same input.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most.max(1)
    }
}

/// A turn: whether the server says it, and what.
type Turn<'a> = (bool, &'a [u8]);

/// Takes `data` as a server's port, eight bytes that say how to cut, and turns behind their speaker and length.
///
/// # Panics
/// If an invariant doesn't hold.
pub fn run(data: &[u8]) {
    let Some(((port, seed), mut rest)) = data
        .split_first()
        .and_then(|(port, rest)| Some((port, rest.split_first_chunk::<8>()?)))
        .map(|(port, (seed, rest))| ((port, seed), rest))
    else {
        return;
    };
    let port = PORTS[usize::from(*port) % PORTS.len()];
    let mut turns: Vec<Turn<'_>> = Vec::new();
    while let Some((head, after)) = rest.split_first_chunk::<3>() {
        let length =
            usize::from(u16::from_be_bytes([head[1], head[2]])).min(after.len()).min(LONGEST);
        let (said, after) = after.split_at(length);
        rest = after;
        let answers = head[0] & 1 != 0;
        if turns.iter().filter(|(of, _)| *of == answers).count() < MOST_TURNS {
            turns.push((answers, said));
        }
    }
    let whole = told(port, &turns.iter().map(|turn| vec![*turn]).collect::<Vec<_>>(), None);
    let mut random = Random(u64::from_be_bytes(*seed));
    let cut: Vec<Vec<Turn<'_>>> = turns.iter().map(|turn| pieces(*turn, &mut random)).collect();
    let cut = told(port, &cut, Some(&mut random));
    // So many messages are read at a time, however many there are.
    if said_more_than(&turns, b"HTTP/1.", 8) {
        return;
    }
    assert_eq!(whole, cut, "port {port}");
}

fn said_more_than(turns: &[Turn<'_>], wanted: &[u8], most: usize) -> bool {
    let count = |said: &[u8]| said.windows(wanted.len()).filter(|part| *part == wanted).count();
    turns.iter().map(|(_, said)| count(said)).sum::<usize>() > most
}

fn pieces<'a>((answers, mut said): Turn<'a>, random: &mut Random) -> Vec<Turn<'a>> {
    let mut pieces = Vec::new();
    for _ in 1..PIECES {
        let at = usize::try_from(random.below(said.len() as u64 + 1)).unwrap_or(0);
        let (piece, rest) = said.split_at(at);
        pieces.push((answers, piece));
        said = rest;
    }
    pieces.push((answers, said));
    pieces
}

/// What is told of a conversation. With `random`, neighbours of a turn change places, and one is sent again.
fn told(
    port: u16,
    turns: &[Vec<Turn<'_>>],
    mut random: Option<&mut Random>,
) -> BTreeSet<(MacAddr, HintKind, String)> {
    let (mut sensor, mut sights) = (Sensor::new(), Sights::default());
    let mut seen = BTreeSet::new();
    let mut send = |answers: bool, flags: u8, sequence: u32, payload: &[u8]| {
        let frame = frame(port, answers, flags, sequence, payload);
        sensor.frame(&frame, None, Look::Further, &mut sights);
        seen.extend(sights.drain().map(|sight| (sight.who.mac, sight.kind, sight.value)));
    };
    send(false, 0x02, 0, b"");
    send(true, 0x12, 0, b"");
    let mut next = [1_u32, 1];
    for turn in turns {
        let mut segments: Vec<(bool, u32, &[u8])> = Vec::new();
        for (answers, said) in turn {
            let next = &mut next[usize::from(*answers)];
            segments.push((*answers, *next, said));
            *next = next.wrapping_add(u32::try_from(said.len()).unwrap_or(0));
        }
        if let Some(random) = &mut random
            && segments.len() > 1
        {
            let at = usize::try_from(random.below(segments.len() as u64 - 1)).unwrap_or(0);
            if random.below(2) == 0 {
                segments.swap(at, at + 1);
            }
            segments.insert(at + 1, segments[at]);
        }
        for (answers, sequence, said) in segments {
            send(answers, 0x18, sequence, said);
        }
    }
    // Both end.
    for answers in [false, true] {
        send(answers, 0x11, next[usize::from(answers)], b"");
    }
    seen
}

fn frame(port: u16, answers: bool, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let (to, from) = if answers { (1, 2) } else { (2, 1) };
    let ports = if answers { [port, 40_000] } else { [40_000, port] };
    let length = u16::try_from(40 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0];
    frame.extend([0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend([10, 0, 0, from, 10, 0, 0, to]);
    frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}
