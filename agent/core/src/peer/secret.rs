//! Pre-shared keys between gateways: what is agreed on with a peer, and whether packets wait for that.
//!
//! Of two gateways the one with the lower overlay address encapsulates a secret to an ML-KEM-768 key of the other's,
//! which that one's identity key bound to a tunnel key, and sends the ciphertext through whatever session the two
//! have. Both make a pre-shared key of it, which is for that pair of tunnel keys alone. What has no such key carries
//! the agreement and no packets, wherever both can have one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_proto::cbor::Blob;
use anteroom_proto::key::{Hash, TunnelPublicKey};
use anteroom_proto::v1::telemetry::Secrecy as State;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::message::SecretPart;

/// What an agent says in its hello that agrees on pre-shared keys.
pub(super) const CAPABILITY: &str = "psk";
/// Length of a ciphertext of ML-KEM-768.
pub const CIPHERTEXT_LEN: usize = 1088;
/// A ciphertext travels in parts of one length.
const PARTS: usize = 4;
const PART_LEN: usize = CIPHERTEXT_LEN / PARTS;
/// So much of a digest tells one from the few others that there are.
pub(super) const SHORT: usize = 8;
/// Most ciphertexts of one peer that are put together at once.
const MOST_ARRIVING: usize = 3;
/// How long packets wait for a pre-shared key, with a peer with which there never was one. What waits longer
/// for a tunnel is of no use any more.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// How long a peer rests between two ciphertexts that don't lead to the same key at both ends: the first time, and then.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Least time between two ciphertexts of one peer that are opened.
const OPEN_EVERY: Duration = Duration::from_millis(50);
/// Ciphertexts that aren't answered are sent again: so soon at first, and so late at last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// For how long agreeing is urgent: what fails for longer isn't a matter of lost packets.
const URGENT: Duration = Duration::from_secs(5);

/// An ML-KEM-768 key pair of this gateway, and the means to encapsulate to others'.
pub trait Kem: Send + Sync {
    /// A ciphertext for whoever has the private half of this encapsulation key, and the secret in it. None where that is no
    /// such key, or there is no randomness.
    fn encapsulate(&self, to: &[u8]) -> Option<(Vec<u8>, Zeroizing<[u8; 32]>)>;

    /// The secret in a ciphertext of [`CIPHERTEXT_LEN`] bytes. One that wasn't made for this key gives another secret.
    fn decapsulate(&self, ciphertext: &[u8]) -> Option<Zeroizing<[u8; 32]>>;
}

/// What a tunnel key of this gateway agrees on pre-shared keys with.
#[derive(Clone)]
pub struct OwnKem {
    /// Digest of the binding that names both keys.
    pub binding: Hash,
    /// The key pair.
    pub kem: Arc<dyn Kem>,
}

impl std::fmt::Debug for OwnKem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnKem").field("binding", &self.binding).finish_non_exhaustive()
    }
}

/// What a tunnel key of a peer agrees on pre-shared keys with.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerKem {
    /// The tunnel key.
    pub key: TunnelPublicKey,
    /// Digest of the binding that names both keys.
    pub binding: Hash,
    /// The ML-KEM-768 encapsulation key.
    pub encapsulation: Arc<[u8]>,
}

impl std::fmt::Debug for PeerKem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerKem").field("key", &self.key).field("binding", &self.binding).finish()
    }
}

/// A pre-shared key for one pair of tunnel keys.
pub(super) struct Agreement {
    /// Number of the own key.
    pub(super) own: u32,
    /// The peer's key.
    pub(super) key: TunnelPublicKey,
    pub(super) psk: Zeroizing<[u8; 32]>,
    /// What shows that somebody has the same.
    pub(super) proof: [u8; SHORT],
    pub(super) pair: [u8; 2 * SHORT],
    /// The beginning of the ciphertext's digest.
    pub(super) of: [u8; SHORT],
    /// When it was made.
    pub(super) made: Instant,
    /// The ciphertext, where it was made here.
    ciphertext: Vec<u8>,
    /// Since when the peer is known to have it, too.
    pub(super) held: Option<Instant>,
    /// How often it was sent since it was last answered.
    offers: u32,
    pub(super) next: Instant,
    /// How often it was agreed on, and yet packets took a worse tunnel.
    pub(super) rounds: u32,
}

impl std::fmt::Debug for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agreement")
            .field("own", &self.own)
            .field("key", &self.key)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl Agreement {
    /// `bindings`: that of the one who encapsulated first.
    pub(super) fn new(
        (own, key): (u32, TunnelPublicKey),
        bindings: (&Hash, &Hash),
        ciphertext: &[u8],
        secret: &[u8; 32],
        now: Instant,
    ) -> Self {
        let digest = Sha256::digest(ciphertext);
        let both = [bindings.0.as_bytes().as_slice(), bindings.1.as_bytes(), &digest].concat();
        let derived = hkdf(b"anteroom pre-shared key 1", secret, &both);
        let mut psk = Zeroizing::new([0; 32]);
        psk.copy_from_slice(&derived[..32]);
        Self {
            own,
            key,
            psk,
            proof: short(&derived[32..]),
            pair: pair(bindings.0, bindings.1),
            of: short(&digest),
            made: now,
            ciphertext: Vec::new(),
            held: None,
            offers: 0,
            next: now,
            rounds: 0,
        }
    }

    /// The same, to be sent.
    pub(super) fn with_ciphertext(mut self, ciphertext: Vec<u8>) -> Self {
        self.ciphertext = ciphertext;
        self
    }

    /// The same, which the peer has as well.
    pub(super) const fn held(mut self, now: Instant) -> Self {
        self.held = Some(now);
        self
    }

    /// The ciphertext's parts; it is sent now.
    pub(super) fn offer(&mut self, now: Instant) -> Vec<SecretPart> {
        let pause = AGAIN.0.saturating_mul(1 << self.offers.min(8));
        self.offers = self.offers.saturating_add(1);
        self.next = now + pause.min(AGAIN.1);
        let part = |(bytes, number): (&[u8], u8)| SecretPart {
            pair: Blob(self.pair.to_vec()),
            of: Blob(self.of.to_vec()),
            number,
            bytes: Blob(bytes.to_vec()),
        };
        self.ciphertext.chunks(PART_LEN).zip(0..).map(part).collect()
    }

    /// It is offered once more, from the beginning.
    pub(super) const fn renew(&mut self, now: Instant) {
        (self.held, self.offers, self.next) = (None, 0, now);
        self.rounds = self.rounds.saturating_add(1);
    }
}

/// A ciphertext of which parts are here.
#[derive(Debug)]
struct Arriving {
    of: [u8; SHORT],
    here: [bool; PARTS],
    bytes: Vec<u8>,
}

/// How it stands with a peer's pre-shared keys.
#[derive(Debug, Default)]
pub(super) struct Secrecy {
    /// What its keys agree with.
    pub(super) kems: Vec<PeerKem>,
    pub(super) agreements: Vec<Agreement>,
    arriving: Vec<Arriving>,
    opened: Option<Instant>,
    /// Before when nothing new is agreed on.
    pub(super) rests: Option<Instant>,
    /// Whether agreeing led nowhere since it last led to a key.
    failed: bool,
    /// Whether it says that it agrees on such keys, once it has said something.
    pub(super) can: Option<bool>,
    /// Whether packets ever went under such a key, in this run or, as far as is remembered, before it.
    pub(super) reached: bool,
    /// Whether packets may go without.
    open: bool,
    /// Whether packets never go without, whoever lacks a key.
    strict: bool,
    /// Since when there is a session, and none with such a key.
    since: Option<Instant>,
    /// Whether there could be such a key, and packets go without, or wait.
    pub(super) is_awaited: bool,
    /// Whether this gateway could have such keys, or must, and has none with this peer: it tells it no keys of lanes either,
    /// which are as secret as the tunnel in which they are told, and last for as long as it runs.
    pub(super) hides_lanes: bool,
    /// Whether packets wait.
    pub(super) withholds: bool,
    pub(super) state: State,
}

impl Secrecy {
    /// Takes over what the peer's keys agree with.
    pub(super) fn set_kems(&mut self, kems: impl Iterator<Item = PeerKem>) {
        self.kems = kems.collect();
    }

    /// Which of its keys the binding is of whose digest begins so, and that digest.
    pub(super) fn kem_of(&self, digest: &[u8]) -> Option<&PeerKem> {
        self.kems.iter().find(|kem| kem.binding.as_bytes().starts_with(digest))
    }

    pub(super) fn agreement(&mut self, own: u32, key: &TunnelPublicKey) -> Option<&mut Agreement> {
        self.agreements.iter_mut().find(|one| one.own == own && one.key == *key)
    }

    /// Packets go under the pre-shared key of a pair of keys. `best`: whether none is better.
    pub(super) fn note_success(&mut self, own: u32, key: &TunnelPublicKey, best: bool) {
        self.failed &= !best;
        if let Some(agreement) = self.agreement(own, key) {
            agreement.rounds = 0;
        }
    }

    /// What was agreed on led nowhere. Says before when nothing is agreed on now.
    pub(super) fn rest(&mut self, now: Instant) -> Instant {
        let failed = std::mem::replace(&mut self.failed, true);
        *self.rests.insert(now + if failed { REST.1 } else { REST.0 })
    }

    /// Forgets what was agreed on for a pair of keys.
    pub(super) fn forget(&mut self, own: u32, key: &TunnelPublicKey) {
        self.agreements.retain(|one| one.own != own || one.key != *key);
    }

    /// Finds out whether packets may go. `sending`: whether the tunnel that they take has a pre-shared key, if there is one; `strict`:
    /// whether they wait for one however long that takes. Says whether they may that couldn't.
    pub(super) fn judge(
        &mut self,
        sending: Option<bool>,
        (own_kem, strict): (bool, bool),
        now: Instant,
    ) -> bool {
        let withheld = self.withholds;
        self.strict = strict;
        let lacks = match self.can {
            _ if !own_kem => Some(State::OwnKeyLacks),
            // It says that it has such a key, and the view names none: whoever makes views keeps it back, or hasn't heard of it.
            Some(true) if self.kems.is_empty() => Some(State::Unanswered),
            _ if self.kems.is_empty() => Some(State::PeerKeyLacks),
            Some(false) => Some(State::PeerCannot),
            _ => None,
        };
        (self.is_awaited, self.withholds) = (false, false);
        if let Some(psk) = sending {
            self.hides_lanes = (own_kem || strict) && !psk;
        }
        match (sending, lacks) {
            (None, _) => (self.since, self.state) = (None, State::Awaited),
            (Some(true), _) => {
                (self.since, self.reached, self.state) = (None, true, State::MlKem768);
            }
            (Some(false), Some(why)) => {
                // It says so in its tunnel: an older version was put back there.
                self.reached &= why != State::PeerCannot;
                self.since = strict.then(|| self.since.unwrap_or(now));
                (self.open, self.withholds, self.state) = (true, strict, why);
            }
            (Some(false), None) => {
                let since = *self.since.get_or_insert(now);
                self.open |= now.saturating_duration_since(since) >= GRACE;
                self.is_awaited = true;
                // Nothing but its own word brings a peer back to tunnels without that has shown that it can do better.
                self.withholds = strict || self.reached || !self.open;
                self.state = if self.withholds { State::Awaited } else { State::Unanswered };
            }
        }
        withheld && !self.withholds
    }

    /// Whether packets wait, and what they wait for is begun again at once where it doesn't come.
    pub(super) fn is_urgent(&self, now: Instant) -> bool {
        let soon = |since| now.saturating_duration_since(since) < URGENT;
        self.withholds && self.since.is_none_or(soon)
    }

    /// When [`Self::judge`] may find something else.
    pub(super) fn due(&self) -> Option<Instant> {
        let waits = self.withholds && !self.reached && !self.strict;
        self.since.filter(|_| waits).map(|since| since + GRACE)
    }

    /// Takes a part of a ciphertext whose digest begins so. Gives the whole, once it is here and one may be opened.
    pub(super) fn join(
        &mut self,
        of: [u8; SHORT],
        (number, bytes): (u8, &[u8]),
        now: Instant,
    ) -> Option<Vec<u8>> {
        let from = usize::from(number) * PART_LEN;
        if usize::from(number) >= PARTS || bytes.len() != PART_LEN {
            return None;
        }
        let at = self.arriving.iter().position(|arriving| arriving.of == of).unwrap_or_else(|| {
            if self.arriving.len() >= MOST_ARRIVING {
                self.arriving.remove(0);
            }
            let (here, bytes) = ([false; PARTS], vec![0; CIPHERTEXT_LEN]);
            self.arriving.push(Arriving { of, here, bytes });
            self.arriving.len() - 1
        });
        let arriving = self.arriving.get_mut(at)?;
        arriving.bytes.get_mut(from..from + PART_LEN)?.copy_from_slice(bytes);
        *arriving.here.get_mut(usize::from(number))? = true;
        if arriving.here.contains(&false) {
            return None;
        }
        let whole = self.arriving.remove(at).bytes;
        let soon = |at: Instant| now.saturating_duration_since(at) < OPEN_EVERY;
        if short::<SHORT>(&Sha256::digest(&whole)) != of || self.opened.is_some_and(soon) {
            return None;
        }
        self.opened = Some(now);
        Some(whole)
    }

    /// The peer runs anew, and has nothing any more of what was agreed on until `end`.
    pub(super) fn forget_until(&mut self, end: Instant) {
        self.agreements.retain(|one| one.made > end);
        self.rests = None;
    }
}

/// Names a pair of tunnel keys by their bindings: that of the one who encapsulates first.
pub(super) fn pair(first: &Hash, second: &Hash) -> [u8; 2 * SHORT] {
    let mut pair = [0; 2 * SHORT];
    let (one, other) = pair.split_at_mut(SHORT);
    one.copy_from_slice(&first.as_bytes()[..SHORT]);
    other.copy_from_slice(&second.as_bytes()[..SHORT]);
    pair
}

/// The beginning of something that is long enough.
fn short<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk::<N>().copied().unwrap_or([0; N])
}

/// 64 bytes of HKDF-SHA256 (RFC 5869).
fn hkdf(salt: &[u8], secret: &[u8], info: &[u8]) -> Zeroizing<[u8; 64]> {
    let mut bytes = Zeroizing::new([0; 64]);
    // It fails for more than 255 times 32 bytes alone.
    let expanded = Hkdf::<Sha256>::new(Some(salt), secret).expand(info, bytes.as_mut_slice());
    debug_assert!(expanded.is_ok(), "{expanded:?}");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_derives_as_rfc_5869_has_it() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let found = hkdf(&salt, &[0x0b; 22], &info);
        let expected =
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
        let found: String = found[..42].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, expected);
    }

    fn instant() -> Instant {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        Instant::now()
    }

    #[test]
    fn a_ciphertext_is_put_together_from_parts_in_any_order_and_no_other_than_it_says() {
        let now = instant();
        let hash = |at: u8| Hash::of("binding", &[&[at]]);
        let key = anteroom_proto::key::TunnelSecret::from_bytes([3; 32]).public();
        let ciphertext: Vec<u8> = (0..CIPHERTEXT_LEN).map(|at| at as u8).collect();
        let made = Agreement::new((1, key), (&hash(1), &hash(2)), &ciphertext, &[7; 32], now);
        let mut made = made.with_ciphertext(ciphertext.clone());
        let mut parts = made.offer(now);
        assert_eq!((parts.len(), made.next > now), (PARTS, true));
        parts.reverse();
        let mut secrecy = Secrecy::default();
        let give = |secrecy: &mut Secrecy, part: &SecretPart, at| {
            secrecy.join(short(&part.of.0), (part.number, &part.bytes.0), at)
        };
        for part in &parts[..3] {
            assert_eq!(give(&mut secrecy, part, now), None);
            assert_eq!(give(&mut secrecy, part, now), None, "twice");
        }
        // What else arrives meanwhile pushes nothing out, as long as it isn't much.
        let other = SecretPart { of: Blob(vec![1; SHORT]), ..parts[3].clone() };
        assert_eq!(give(&mut secrecy, &other, now), None);
        assert_eq!(give(&mut secrecy, &parts[3], now), Some(ciphertext));
        // Nothing that is too short, too far behind, or something else than was said.
        let bad = [
            SecretPart { number: 4, ..parts[0].clone() },
            SecretPart { bytes: Blob(vec![0; PART_LEN - 1]), ..parts[0].clone() },
            SecretPart { bytes: Blob(Vec::new()), ..parts[0].clone() },
        ];
        let later = now + Duration::from_secs(1);
        for part in &bad {
            assert_eq!(give(&mut secrecy, part, later), None);
        }
        parts[0].bytes.0[0] ^= 1;
        for part in &parts {
            assert_eq!(give(&mut secrecy, part, later), None);
        }
        for number in 0..200 {
            let of = Blob(vec![number; SHORT]);
            give(&mut secrecy, &SecretPart { of, ..parts[0].clone() }, later);
            assert!(secrecy.arriving.len() <= MOST_ARRIVING);
        }
    }

    #[test]
    fn the_key_depends_on_the_secret_the_ciphertext_and_both_bindings_in_their_order() {
        let now = instant();
        let hash = |at: u8| Hash::of("binding", &[&[at]]);
        let key = anteroom_proto::key::TunnelSecret::from_bytes([3; 32]).public();
        let of = |one: u8, two: u8, ciphertext: &[u8], secret: u8| {
            let bindings = (&hash(one), &hash(two));
            let made = Agreement::new((0, key), bindings, ciphertext, &[secret; 32], now);
            (*made.psk, made.proof)
        };
        let one = of(1, 2, b"c", 9);
        assert_eq!(one, of(1, 2, b"c", 9));
        for other in [of(2, 1, b"c", 9), of(1, 3, b"c", 9), of(1, 2, b"d", 9), of(1, 2, b"c", 8)] {
            assert!(one.0 != other.0 && one.1 != other.1);
        }
        assert!(!one.0.starts_with(&one.1));
    }
}
