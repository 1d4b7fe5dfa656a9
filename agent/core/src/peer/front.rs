//! What happens to a datagram before it costs anything: kind and length, and a limit on handshakes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anteroom_proto::key::TunnelPublicKey;
use anteroom_proto::verdict::DropReason;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::random::Random;
use crate::wire::array;

/// Initiations in one second from which on a sender must prove its address by a cookie.
const CALM_PER_SECOND: u32 = 256;
/// The same for responses to initiations of ours. After a start they come from all peers, a few hundred in a second;
/// whoever forges some must have seen what they answer.
const RESPONSES_PER_SECOND: u32 = 1024;
/// Messages of senders who proved their addresses that are let in within one second: what they may cost in
/// all, at two or three multiplications on the curve each.
const PROVEN_PER_SECOND: u32 = 2048;
/// Messages of a kind that one source address may send at once, and gains every second.
const BURST: u32 = 64;
const PER_SECOND: u32 = 20;
/// Places for source addresses; those that meet in one share its allowance.
const BUCKETS: usize = 512;

pub(super) const INITIATION_LEN: usize = 148;
pub(super) const RESPONSE_LEN: usize = 92;
pub(super) const COOKIE_LEN: usize = 64;
/// Length of a keepalive, the shortest message with data.
pub(super) const KEEPALIVE_LEN: usize = 32;
/// Longest payload of a UDP datagram over IPv4.
pub(super) const MAX_DATAGRAM_LEN: usize = 65_507;

/// What a datagram says that it is. Its length fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Initiation,
    Response { receiver: u32 },
    Cookie { receiver: u32 },
    Data { receiver: u32 },
}

/// The kind of a datagram.
pub(super) fn classify(datagram: &[u8]) -> Result<Kind, DropReason> {
    let number = array(datagram, 0).map(u32::from_le_bytes);
    let receiver = |at| array(datagram, at).map(u32::from_le_bytes).ok_or(DropReason::Malformed);
    match (number, datagram.len()) {
        (Some(1), INITIATION_LEN) => Ok(Kind::Initiation),
        (Some(2), RESPONSE_LEN) => Ok(Kind::Response { receiver: receiver(8)? }),
        (Some(3), COOKIE_LEN) => Ok(Kind::Cookie { receiver: receiver(4)? }),
        (Some(4), KEEPALIVE_LEN..=MAX_DATAGRAM_LEN) => Ok(Kind::Data { receiver: receiver(4)? }),
        (Some(1..=4), _) => Err(DropReason::Malformed),
        _ => Err(DropReason::PeerUnknown),
    }
}

/// What the front makes of a handshake message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may cost some.
    Admitted,
    /// Too much is going on: its sender is to come again with this cookie.
    Cookie([u8; COOKIE_LEN]),
    /// It goes no further.
    Refused(DropReason),
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    used: u32,
    since: Option<Instant>,
}

/// What may pass of one kind: so much in a second, and of each source address so much.
struct Gate {
    per_second: u32,
    second: Instant,
    passed: u32,
    buckets: Vec<Bucket>,
    hasher: foldhash::quality::FixedState,
}

impl Gate {
    fn new(per_second: u32, seed: u64, now: Instant) -> Self {
        Self {
            per_second,
            second: now,
            passed: 0,
            buckets: vec![Bucket::default(); BUCKETS],
            hasher: foldhash::quality::FixedState::with_seed(seed),
        }
    }

    /// Takes one from what is left for this second, and from the allowance of a source address.
    fn pass(&mut self, from: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.passed = 0;
        }
        let passes = self.passed < self.per_second && self.draw(from, now);
        self.passed += u32::from(passes);
        passes
    }

    fn draw(&mut self, from: IpAddr, now: Instant) -> bool {
        use std::hash::BuildHasher;
        let place = self.hasher.hash_one(from) as usize % BUCKETS;
        let Some(bucket) = self.buckets.get_mut(place) else { return false };
        let since = *bucket.since.get_or_insert(now);
        let seconds = now.saturating_duration_since(since).as_secs();
        if seconds > 0 {
            let gained = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND);
            bucket.used = bucket.used.saturating_sub(gained);
            bucket.since = Some(now);
        }
        let left = bucket.used < BURST;
        bucket.used += u32::from(left);
        left
    }
}

/// Limits handshakes. Anybody can write any source address into a datagram, so what proves nothing draws from other
/// allowances than what carries a cookie (mac2): whoever uses up the first in somebody's name makes that one come
/// again with a cookie, and no more. Responses have an allowance of their own, or initiations of others would keep
/// away the answers to ours.
///
/// The allowances hold whichever keys the messages are for. Load is counted here, by the engine's clock: of boringtun's limiter, which counts by its own, only the checks are
/// used, one that never finds itself under load and one that always does.
pub(super) struct Gates {
    initiations: Gate,
    responses: Gate,
    proven: Gate,
}

impl Gates {
    pub(super) fn new(random: &mut Random, now: Instant) -> Self {
        let seed = random.next();
        Self {
            initiations: Gate::new(CALM_PER_SECOND, seed, now),
            responses: Gate::new(RESPONSES_PER_SECOND, seed, now),
            proven: Gate::new(PROVEN_PER_SECOND, seed, now),
        }
    }

    /// Looks at an initiation or a response for the key of `loaded`, which always finds itself under load.
    pub(super) fn admit(
        &mut self,
        loaded: &RateLimiter,
        from: IpAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Admission {
        let mut reply = [0; COOKIE_LEN];
        let gate = match loaded.verify_packet(Some(from), datagram, &mut reply) {
            Ok(_) => {
                let passes = self.proven.pass(from, now);
                let refused = Admission::Refused(DropReason::HandshakeLimit);
                return if passes { Admission::Admitted } else { refused };
            }
            Err(TunnResult::WriteToNetwork(cookie)) if cookie.len() == COOKIE_LEN => {
                match datagram.len() {
                    RESPONSE_LEN => &mut self.responses,
                    _ => &mut self.initiations,
                }
            }
            // Whoever doesn't know this gateway's key gets no further, and no answer.
            Err(_) => return Admission::Refused(DropReason::PeerUnauthenticated),
        };
        if gate.pass(from, now) { Admission::Admitted } else { Admission::Cookie(reply) }
    }
}

/// Whose initiation this claims to be. Only whoever knows this gateway's key can make one that is read.
pub(super) fn initiator(
    secret: &StaticSecret,
    public: &PublicKey,
    datagram: &[u8],
) -> Result<TunnelPublicKey, DropReason> {
    let unauthenticated = DropReason::PeerUnauthenticated;
    let Ok(Packet::HandshakeInit(message)) = Tunn::parse_incoming_packet(datagram) else {
        return Err(unauthenticated);
    };
    let half = parse_handshake_anon(secret, public, &message).map_err(|_| unauthenticated)?;
    TunnelPublicKey::try_from(half.peer_static_public).map_err(|_| unauthenticated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_need_their_exact_lengths() {
        for len in 0..2000 {
            for number in 0..=255u8 {
                let mut datagram = vec![0; len];
                if let Some(first) = datagram.first_mut() {
                    *first = number;
                }
                let fits = match number {
                    1 => len == INITIATION_LEN,
                    2 => len == RESPONSE_LEN,
                    3 => len == COOKIE_LEN,
                    4 => len >= KEEPALIVE_LEN,
                    _ => false,
                };
                assert_eq!(classify(&datagram).is_ok(), fits, "type {number}, {len} bytes");
                assert!(!fits || Tunn::parse_incoming_packet(&datagram).is_ok());
            }
        }
        let mut reserved = [0; KEEPALIVE_LEN];
        (reserved[0], reserved[1]) = (4, 1);
        assert_eq!(classify(&reserved), Err(DropReason::PeerUnknown));
        let mut long = vec![0; MAX_DATAGRAM_LEN + 1];
        long[0] = 4;
        assert_eq!(classify(&long), Err(DropReason::Malformed));
    }
}
