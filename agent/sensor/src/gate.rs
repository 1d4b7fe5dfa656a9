//! Which frames are worth a look: the first of each flow, and what devices tell everybody.
//!
//! A gateway asks for every frame of a port, so this is a look at fixed places of the header and at one line of a
//! table. Each direction of a flow is let through for its first [`FIRST`] frames, and again after [`AGAIN`]: connections that stay
//! for weeks are looked at now and then. Each port has a part of the table of its own, and each of its two ways a number of frames in
//! a second, of which no sender gets all: whoever floods is passed over, not its neighbours.

use crate::cdp;
use crate::frame::LONGEST;

/// Frames of one direction of a flow that are let through.
const FIRST: u8 = 16;
/// After so long they are let through again, in milliseconds.
const AGAIN: u32 = 10 * 60 * 1000;
/// Most frames in one second that come from a port, and that go there; and most of one sender among them.
const A_SECOND: u16 = 500;
const A_SENDER: u16 = 200;
/// Ports that are told apart; those beyond share with others.
const PORTS: usize = 8;
/// Sets of a port's part of the table, a power of two, and places in each.
const SETS: usize = 512;
const PLACES: usize = 4;
/// Senders of one way of a port that are told apart, by their addresses' hash.
const SENDERS: usize = 64;

/// Where a frame is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Number of the port.
    pub port: usize,
    /// Whether it came from there; else it goes there.
    pub arrived: bool,
}

/// The frames of one second.
#[derive(Debug, Clone)]
struct Second {
    /// Which one.
    number: u32,
    through: u16,
    /// Those of each sender.
    of: [u16; SENDERS],
}

impl Second {
    /// Whether one more of a sender may pass.
    fn pass(&mut self, number: u32, sender: usize) -> bool {
        if self.number != number {
            *self = Self { number, ..Self::default() };
        }
        let of = &mut self.of[sender % SENDERS];
        if self.through >= A_SECOND || *of >= A_SENDER {
            return false;
        }
        self.through += 1;
        *of += 1;
        true
    }
}

impl Default for Second {
    fn default() -> Self {
        Self { number: 0, through: 0, of: [0; SENDERS] }
    }
}

/// What a frame is to the sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The first one of a flow for a while: whatever was known of its direction is over.
    Anew,
    /// One that follows.
    Further,
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    tag: u32,
    /// When its first frame came.
    begun: u32,
    frames: u8,
}

/// Decides which frames are looked at. 200 KiB, of which one line is touched for a frame.
#[derive(Debug)]
pub struct Gate {
    places: Vec<[Place; PLACES]>,
    seed: u64,
    /// Of each port both ways.
    seconds: Vec<[Second; 2]>,
    passed_over: u64,
}

impl Gate {
    /// One that has let nothing through yet. `seed` is nobody else's to know, so that nobody can push others' flows out.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            places: vec![[Place::default(); PLACES]; SETS * PORTS],
            seed: seed | 1,
            seconds: vec![<[Second; 2]>::default(); PORTS],
            passed_over: 0,
        }
    }

    /// Frames that would have been let through, had there not been so many in their second.
    #[must_use]
    pub const fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// Whether a frame is worth a look. `at`: milliseconds by a clock that only goes forward, which may run over.
    #[inline]
    pub fn look(&mut self, frame: &[u8], way: Way, at: u32) -> Option<Look> {
        let key = key(frame, self.seed)?;
        let port = way.port % PORTS;
        let set = usize::try_from(key).unwrap_or(0) % SETS + port * SETS;
        let set = self.places.get_mut(set)?;
        // Never 0, which marks a place that is free.
        let tag = u32::try_from(key >> 32).unwrap_or(0) | 1;
        let known = set.iter_mut().find(|place| place.tag == tag);
        let is_fresh = |place: &Place| at.wrapping_sub(place.begun) < AGAIN;
        if known.as_ref().is_some_and(|place| is_fresh(place) && place.frames >= FIRST) {
            return None;
        }
        let second = &mut self.seconds.get_mut(port)?[usize::from(way.arrived)];
        let sender = mix(
            self.seed,
            frame.get(4..)?.first_chunk::<8>().map(|eight| u64::from_le_bytes(*eight))? >> 16,
        );
        // Before a place is taken: a flow that begins in a busy second is looked at once there is time for it.
        if !second.pass(at / 1000, usize::try_from(sender >> 32).unwrap_or(0)) {
            self.passed_over += 1;
            return None;
        }
        if let Some(place) = known {
            if is_fresh(place) {
                place.frames += 1;
                return Some(Look::Further);
            }
            *place = Place { tag, begun: at, frames: 1 };
            return Some(Look::Anew);
        }
        let oldest = set.iter_mut().max_by_key(|place| {
            if place.tag == 0 { u32::MAX } else { at.wrapping_sub(place.begun) }
        })?;
        *oldest = Place { tag, begun: at, frames: 1 };
        Some(Look::Anew)
    }
}

/// What tells one direction of a flow from others, mixed. None for frames that nobody here reads.
#[inline]
fn key(frame: &[u8], seed: u64) -> Option<u64> {
    const LLDP: u16 = 0x88cc;
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let be16 = |at: usize| frame.get(at..)?.first_chunk::<2>().map(|two| u16::from_be_bytes(*two));
    let word =
        |at: usize| frame.get(at..)?.first_chunk::<8>().map(|eight| u64::from_le_bytes(*eight));
    let (mut at, mut kind) = (14, be16(12)?);
    if matches!(kind, 0x8100 | 0x88a8) {
        at = 18;
        kind = be16(16)?;
    }
    // Both Ethernet addresses are in it: what an address' flows are must not be another machine's to use up.
    let mut key = mix(seed, word(0)? ^ u64::from(*frame.get(8)?));
    key = mix(key, word(6)?);
    let ports = match kind {
        LLDP => return Some(key),
        IPV4 => {
            let (first, protocol) = (*frame.get(at)?, *frame.get(at + 9)?);
            // Fragments that aren't the first have no ports.
            if !matches!(protocol, TCP | UDP) || be16(at + 6)? & 0x1fff != 0 {
                return None;
            }
            key = mix(key, word(at + 12)? ^ u64::from(protocol));
            at + usize::from(first & 0x0f) * 4
        }
        IPV6 => {
            let protocol = *frame.get(at + 6)?;
            if !matches!(protocol, TCP | UDP) {
                return None;
            }
            for n in 0..4 {
                key = mix(key, word(at + 8 + n * 8)? ^ u64::from(protocol));
            }
            at + 40
        }
        length if usize::from(length) <= LONGEST => {
            return frame.get(at..)?.starts_with(&cdp::LLC).then_some(key);
        }
        _ => return None,
    };
    let both = u32::from(be16(ports)?) << 16 | u32::from(be16(ports + 2)?);
    Some(mix(key, both.into()))
}

/// Folds a word into a hash: both halves of a product.
#[inline]
fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    let folded = product as u64 ^ (product >> 64) as u64;
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(port: u16) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45];
        frame.resize(14 + 40, 0);
        frame[14 + 9] = 6;
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame
    }

    /// The device's own.
    const FROM: Way = Way { port: 0, arrived: true };

    #[test]
    fn only_the_first_frames_of_a_flow_pass_and_again_after_a_while() {
        let mut gate = Gate::new(7);
        let mut passed = |at: u32| {
            (0..100).filter_map(|_| gate.look(&frame(5000), FROM, at)).collect::<Vec<_>>()
        };
        let first = passed(u32::MAX - 5);
        assert_eq!((first.len(), first[0], first[1]), (FIRST.into(), Look::Anew, Look::Further));
        assert_eq!(passed(1000).len(), 0, "though the clock ran over");
        assert_eq!(passed(AGAIN).len(), usize::from(FIRST));
    }

    #[test]
    fn a_sender_that_floods_leaves_others_and_other_ports_their_share() {
        let mut gate = Gate::new(7);
        let mut flood =
            |way| (0..10_000).filter(|port| gate.look(&frame(*port), way, 10).is_some()).count();
        assert_eq!(flood(FROM), usize::from(A_SENDER));
        assert_eq!(flood(Way { arrived: false, ..FROM }), usize::from(A_SENDER));
        assert_eq!(gate.passed_over(), 2 * (10_000 - u64::from(A_SENDER)));
        // A neighbour at the same port.
        let mut other = frame(1);
        other[11] = 9;
        assert_eq!(gate.look(&other, FROM, 10), Some(Look::Anew));
        // Made-up addresses without end use up the port's share, and no other's.
        for n in 0..10_000_u16 {
            other[9..11].copy_from_slice(&n.to_be_bytes());
            gate.look(&other, FROM, 10);
        }
        other[9..11].copy_from_slice(&[1, 1]);
        other[34] = 99;
        assert_eq!(gate.look(&other, FROM, 10), None);
        let elsewhere = Way { port: 1, ..FROM };
        assert_eq!(gate.look(&other, elsewhere, 10), Some(Look::Anew));
        assert_eq!(gate.look(&other, FROM, 1010), Some(Look::Anew), "from its first frame on");
    }

    #[test]
    fn what_nobody_reads_and_what_is_cut_short_is_passed_over() {
        let mut gate = Gate::new(7);
        let mut arp = frame(1);
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(gate.look(&arp, FROM, 0), None);
        let whole = frame(1);
        // Spanning tree's, and Cisco's discovery.
        let of_length = |llc: [u8; 8]| [&arp[..12], &[0, 60], &llc[..], &[0; 52]].concat();
        let llc = [0x42, 0x42, 3, 0, 0, 0, 0, 0];
        assert_eq!(gate.look(&of_length(llc), FROM, 0), None);
        assert_eq!(gate.look(&of_length(cdp::LLC), FROM, 0), Some(Look::Anew));
        for end in 0..38 {
            assert_eq!(gate.look(&whole[..end], FROM, 0), None, "cut at {end}");
        }
        assert_eq!(gate.look(&whole, FROM, 0), Some(Look::Anew));
    }
}
