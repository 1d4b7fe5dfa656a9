//! Which frames are worth a look: the first of each flow, and what devices tell everybody.
//!
//! A gateway asks for every frame of a port, so this is a look at fixed places of the header and at one line of a small
//! table. Each direction of a flow is let through for its first [`FIRST`] frames, and again after [`AGAIN`]: connections that stay
//! for weeks are looked at now and then. In all at most [`A_SECOND`] frames are let through in a second.

/// Frames of one direction of a flow that are let through.
const FIRST: u8 = 16;
/// After so long they are let through again, in milliseconds.
const AGAIN: u32 = 10 * 60 * 1000;
/// Most frames in one second.
const A_SECOND: u32 = 2000;
/// Sets of the table, a power of two, and places in each.
const SETS: usize = 1024;
const PLACES: usize = 4;

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

/// Decides which frames are looked at. 48 KiB.
#[derive(Debug)]
pub struct Gate {
    places: Vec<[Place; PLACES]>,
    seed: u64,
    /// The second that is counted, and the frames let through in it.
    second: u32,
    through: u32,
    passed_over: u64,
}

impl Gate {
    /// One that has let nothing through yet. `seed` is nobody else's to know, so that nobody can push others' flows out.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            places: vec![[Place::default(); PLACES]; SETS],
            seed: seed | 1,
            second: 0,
            through: 0,
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
    pub fn look(&mut self, frame: &[u8], at: u32) -> Option<Look> {
        let key = key(frame, self.seed)?;
        let set = &mut self.places[usize::try_from(key).unwrap_or(0) % SETS];
        // Never 0, which marks a place that is free.
        let tag = u32::try_from(key >> 32).unwrap_or(0) | 1;
        let known = set.iter_mut().find(|place| place.tag == tag);
        let look = match known {
            Some(place) if at.wrapping_sub(place.begun) < AGAIN => {
                if place.frames >= FIRST {
                    return None;
                }
                place.frames += 1;
                Look::Further
            }
            Some(place) => {
                *place = Place { tag, begun: at, frames: 1 };
                Look::Anew
            }
            None => {
                let oldest = set.iter_mut().max_by_key(|place| {
                    if place.tag == 0 { u32::MAX } else { at.wrapping_sub(place.begun) }
                })?;
                *oldest = Place { tag, begun: at, frames: 1 };
                Look::Anew
            }
        };
        let second = at / 1000;
        if std::mem::replace(&mut self.second, second) != second {
            self.through = 0;
        }
        if self.through >= A_SECOND {
            self.passed_over += 1;
            return None;
        }
        self.through += 1;
        Some(look)
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

    #[test]
    fn only_the_first_frames_of_a_flow_pass_and_again_after_a_while() {
        let mut gate = Gate::new(7);
        let mut passed =
            |at: u32| (0..100).filter_map(|_| gate.look(&frame(5000), at)).collect::<Vec<_>>();
        let first = passed(u32::MAX - 5);
        assert_eq!((first.len(), first[0], first[1]), (FIRST.into(), Look::Anew, Look::Further));
        assert_eq!(passed(1000).len(), 0, "though the clock ran over");
        assert_eq!(passed(AGAIN).len(), usize::from(FIRST));
    }

    #[test]
    fn a_second_is_bounded() {
        let mut gate = Gate::new(7);
        let passed = (0..10_000).filter(|port| gate.look(&frame(*port), 10).is_some()).count();
        assert_eq!(passed, usize::try_from(A_SECOND).unwrap());
        assert_eq!(gate.passed_over(), 10_000 - u64::from(A_SECOND));
        assert!(gate.look(&frame(10_001), 1010).is_some());
    }

    #[test]
    fn what_nobody_reads_and_what_is_cut_short_is_passed_over() {
        let mut gate = Gate::new(7);
        let mut arp = frame(1);
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(gate.look(&arp, 0), None);
        let whole = frame(1);
        for end in 0..38 {
            assert_eq!(gate.look(&whole[..end], 0), None, "cut at {end}");
        }
        assert_eq!(gate.look(&whole, 0), Some(Look::Anew));
    }
}
