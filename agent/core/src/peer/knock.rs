//! Knocks: what tells whether datagrams get through to a peer directly, and back.
//!
//! They carry nothing and stand outside the tunnels, because WireGuard forgets packets that others overtake by more
//! than a thousand: a sealed probe that runs ahead on a short path would cost those that are still on a long one. Each
//! gateway gives each peer, inside the tunnel, what to knock with ([`Knocker`]). Whoever wasn't given it gets no answer.
//!
//! ```text
//! knock:  5 0 0 0 | number (4) | number for the answer (4) | token (8) | nonce (8) | code (16) | zeros
//! answer: 6 0 0 0 | number (4) | nonce (8) | sealed long datagrams that came (4) | full-size ones (4) | code (16)
//! ```
//!
//! Number and token find the peer and turn others away before anything is computed; the code is HMAC-SHA-256 over all
//! before it, and in a *full* knock, which has zeros, over the length of the whole (4), cut to 16 bytes, by the key of
//! whoever is knocked at. What says that a datagram as long as a packet gets through is that a full one is answered. How many long
//! datagrams came is told to whom understands it, and left out otherwise: see [`doubt`](super::doubt).

use std::fmt;

use anteroom_proto::keyed::hmac;
use serde::{Deserialize, Serialize};

use super::doubt::Came;
use crate::wire::{array, put};

/// Length of a knock.
pub(super) const KNOCK_LEN: usize = 44;
/// Longest full knock: what an Ethernet frame carries, over IPv4.
pub(super) const MAX_KNOCK_LEN: usize = 1_472;
/// Length of an answer, and of one that says how many long datagrams came.
pub(super) const ANSWER_LEN: usize = 32;
pub(super) const COUNTING_LEN: usize = ANSWER_LEN + 8;
const CODE_LEN: usize = 16;
const KNOCK: u32 = 5;
const ANSWER: u32 = 6;

/// The key of knocks at one gateway by one peer.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KnockKey([u8; 16]);

impl fmt::Debug for KnockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnockKey(..)")
    }
}

/// What a gateway gives a peer to knock with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knocker {
    /// What the peer is called in knocks at the gateway.
    pub number: u32,
    /// The key.
    pub key: KnockKey,
}

impl KnockKey {
    /// The key for one run of one peer of a gateway that has this secret.
    pub(super) fn of(secret: &[u8; 32], peer: &[u8; 16], run: u32) -> Self {
        Self(cut(hmac(secret, &[b"knock key", peer, &run.to_le_bytes()])))
    }

    /// What shows that a knock may be worth checking.
    pub(super) fn token(self) -> u64 {
        u64::from_le_bytes(cut(hmac(&self.0, &[b"token"])))
    }

    /// `full` is the length of the whole where zeros follow.
    fn code(self, message: &[u8], full: Option<usize>) -> [u8; CODE_LEN] {
        let len = full.map(|len| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        cut(hmac(&self.0, &[message, len.as_ref().map_or(&[], |len| len.as_slice())]))
    }
}

/// Either of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Knock {
        number: u32,
        /// What the answer is to be sent to.
        back: u32,
        token: u64,
        nonce: u64,
    },
    Answer {
        number: u32,
        nonce: u64,
        /// How many long datagrams came.
        came: Option<Came>,
    },
}

/// Reads a datagram; its code is still to be [checked](is_good).
pub(super) fn parse(datagram: &[u8]) -> Option<Heard> {
    let word = |at| array(datagram, at).map(u32::from_le_bytes);
    let long = |at| array(datagram, at).map(u64::from_le_bytes);
    match (word(0)?, datagram.len()) {
        (KNOCK, KNOCK_LEN..=MAX_KNOCK_LEN) => Some(Heard::Knock {
            number: word(4)?,
            back: word(8)?,
            token: long(12)?,
            nonce: long(20)?,
        }),
        (ANSWER, ANSWER_LEN | COUNTING_LEN) => {
            let counts = datagram.len() == COUNTING_LEN;
            let came =
                if counts { Some(Came { sealed: word(16)?, full: word(20)? }) } else { None };
            Some(Heard::Answer { number: word(4)?, nonce: long(8)?, came })
        }
        _ => None,
    }
}

/// Whether the code under a datagram is by this key.
pub(super) fn is_good(datagram: &[u8], key: KnockKey) -> bool {
    let len = datagram.len();
    let (datagram, full) = match datagram.split_at_checked(KNOCK_LEN) {
        Some((knock, rest)) => (knock, !rest.is_empty()),
        None => (datagram, false),
    };
    let Some((message, code)) = datagram.split_last_chunk::<CODE_LEN>() else { return false };
    // All bytes are looked at, whichever differ.
    let differs = key
        .code(message, full.then_some(len))
        .iter()
        .zip(code)
        .fold(0, |sum, (a, b)| sum | (a ^ b));
    differs == 0
}

/// A knock at whoever gave `at`, to be answered to the number `back`.
pub(super) fn knock(at: &Knocker, back: u32, nonce: u64) -> [u8; KNOCK_LEN] {
    let mut bytes = [0; KNOCK_LEN];
    put(&mut bytes, 0, &KNOCK.to_le_bytes());
    put(&mut bytes, 4, &at.number.to_le_bytes());
    put(&mut bytes, 8, &back.to_le_bytes());
    put(&mut bytes, 12, &at.key.token().to_le_bytes());
    put(&mut bytes, 20, &nonce.to_le_bytes());
    seal(&mut bytes, at.key, None);
    bytes
}

/// The same, so long that it takes as much room as a packet. `len` counts between [`KNOCK_LEN`] and [`MAX_KNOCK_LEN`].
pub(super) fn full_knock(at: &Knocker, back: u32, nonce: u64, len: usize) -> Vec<u8> {
    let mut bytes = knock(at, back, nonce);
    let len = len.clamp(KNOCK_LEN + 1, MAX_KNOCK_LEN);
    seal(&mut bytes, at.key, Some(len));
    let mut bytes = bytes.to_vec();
    bytes.resize(len, 0);
    bytes
}

/// The answer to a knock that was found good by `key`. `came`: how many long datagrams did, where that is told.
pub(super) fn answer(key: KnockKey, back: u32, nonce: u64, came: Option<Came>) -> Vec<u8> {
    let mut bytes = vec![0; if came.is_some() { COUNTING_LEN } else { ANSWER_LEN }];
    put(&mut bytes, 0, &ANSWER.to_le_bytes());
    put(&mut bytes, 4, &back.to_le_bytes());
    put(&mut bytes, 8, &nonce.to_le_bytes());
    if let Some(came) = came {
        put(&mut bytes, 16, &came.sealed.to_le_bytes());
        put(&mut bytes, 20, &came.full.to_le_bytes());
    }
    seal(&mut bytes, key, None);
    bytes
}

/// The number of a question that nobody can tell who doesn't have the secret.
pub(super) fn unguessable(secret: &[u8; 32], question: u64) -> u64 {
    u64::from_le_bytes(cut(hmac(secret, &[b"question", &question.to_le_bytes()])))
}

/// The number of the knock that is so many-th: it grows with that, and nobody who doesn't get the knock can tell it.
pub(super) fn nonce(secret: &[u8; 32], knocks: u64) -> u64 {
    knocks << 32 | unguessable(secret, knocks.wrapping_neg()) & u64::from(u32::MAX)
}

/// Which knock has this number, however its sender makes them.
pub(super) const fn count(nonce: u64) -> u64 {
    if nonce >> 32 == 0 { nonce } else { nonce >> 32 }
}

fn seal(bytes: &mut [u8], key: KnockKey, full: Option<usize>) {
    if let Some((message, code)) = bytes.split_last_chunk_mut::<CODE_LEN>() {
        *code = key.code(message, full);
    }
}

fn cut<const N: usize>(digest: [u8; 32]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(digest).for_each(|(byte, from)| *byte = from);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_bit_counts() {
        let key = KnockKey::of(&[1; 32], &[2; 16], 0);
        let knocker = Knocker { number: 0x0102_0304, key };
        let knock = knock(&knocker, 0x0506_0708, u64::MAX - 1);
        let heard = Heard::Knock {
            number: knocker.number,
            back: 0x0506_0708,
            token: key.token(),
            nonce: u64::MAX - 1,
        };
        assert_eq!(parse(&knock), Some(heard));
        let answers = [None, Some(Came { sealed: u32::MAX - 7, full: 8 })].map(|came| {
            let answer = answer(key, 0x0506_0708, 9, came);
            assert_eq!(parse(&answer), Some(Heard::Answer { number: 0x0506_0708, nonce: 9, came }));
            answer
        });
        for good in [&knock[..], &answers[0], &answers[1]] {
            assert!(is_good(good, key));
            assert!(!is_good(good, KnockKey::of(&[1; 32], &[3; 16], 0)), "another peer's key");
            for bit in 0..good.len() * 8 {
                let mut changed = good.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!is_good(&changed, key), "bit {bit}");
            }
            for len in 0..good.len() {
                let cut = &good[..len];
                assert!(parse(cut).is_none() || !is_good(cut, key), "{len} bytes");
            }
        }
        assert_eq!(format!("{key:?}"), "KnockKey(..)");
        let full = full_knock(&knocker, 0x0506_0708, u64::MAX - 1, 1_252);
        assert_eq!((full.len(), parse(&full)), (1_252, Some(heard)));
        assert!(is_good(&full, key));
        assert!(!is_good(&knock, KnockKey::of(&[1; 32], &[2; 16], 1)), "another run's");
        for len in [KNOCK_LEN, KNOCK_LEN + 1, 1_251] {
            assert!(!is_good(&full[..len], key), "cut to {len} bytes");
        }
        assert!(!is_good(&[&knock[..], &[0; 1_000]].concat(), key), "made longer under way");
        assert_eq!(parse(&[&full[..], &[0; 300]].concat()), None, "longer than any");
    }

    proptest! {
        #[test]
        fn anything_at_all_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let key = KnockKey::of(&[1; 32], &[2; 16], 0);
            prop_assert!(!is_good(&bytes, key));
            let _ = parse(&bytes);
        }
    }
}
