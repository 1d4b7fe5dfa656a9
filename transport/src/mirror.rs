//! A listener's socket that also tells gateways how theirs looks from outside.
//!
//! Questions ([`anteroom_proto::relay::mirror`]) share the port with QUIC. They are answered here and nothing of them
//! gets further; all else goes on to QUIC, which drops what isn't its own.
//!
//! Anybody may ask, since nothing is kept of it and an answer is as long as its question: whoever asks in somebody else's
//! name has them sent no more than they could send themselves, and one address gets few answers a second. Most are kept for
//! whoever is connected.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anteroom_proto::relay::mirror;
use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};

use crate::direct::shared::{is_quic, retain};
use crate::network::network;
use crate::sifted::Sift;

/// Answers that one network (an IPv4 address, an IPv6 /64) may have at once, and gains every second: a thousand gateways
/// behind one address ask some 70 times a second.
const BURST: u32 = 256;
const PER_SECOND: u32 = 128;
/// Answers within a second: to everybody, and of these to who isn't [expected](expect). Whoever asks in others' names takes
/// nothing from gateways that are connected.
const IN_ALL: u32 = 8_192;
const FOR_ANYBODY: u32 = IN_ALL / 4;
/// Places for networks; those that meet in one share its allowance.
const PLACES: usize = 4_096;

/// Networks from which connections have come, and how many.
static EXPECTED: LazyLock<Mutex<HashMap<IpAddr, usize>>> = LazyLock::new(Mutex::default);

/// Somebody there is connected, for as long as this is kept.
#[derive(Debug)]
pub struct Expected(IpAddr);

/// Has questions from the network of `address` answered before those of others, since somebody there is connected.
#[must_use]
pub fn expect(address: IpAddr) -> Expected {
    let network = network(address);
    *expected().entry(network).or_default() += 1;
    Expected(network)
}

impl Expected {
    /// Whoever is connected comes from `address` now.
    pub fn follow(&mut self, address: IpAddr) {
        if network(address) != self.0 {
            *self = expect(address);
        }
    }
}

fn expected() -> MutexGuard<'static, HashMap<IpAddr, usize>> {
    EXPECTED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = expected().entry(self.0) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Answers through the listener's socket.
pub(crate) struct Mirror {
    socket: Arc<dyn AsyncUdpSocket>,
    allowances: Mutex<Allowances>,
}

/// How much may still be answered.
struct Allowances {
    hasher: RandomState,
    second: Option<Instant>,
    answered: u32,
    /// The same, to who isn't expected.
    strangers: u32,
    /// What was used of each, and as of when.
    used: Vec<(u32, Option<Instant>)>,
}

impl Allowances {
    fn new() -> Self {
        let used = vec![(0, None); PLACES];
        Self { hasher: RandomState::new(), second: None, answered: 0, strangers: 0, used }
    }

    /// Takes one answer to `to` from what is left.
    fn take(&mut self, to: IpAddr, now: Instant) -> bool {
        let passed = |since: Instant| now.saturating_duration_since(since);
        if self.second.is_none_or(|since| passed(since) >= Duration::from_secs(1)) {
            (self.second, self.answered, self.strangers) = (Some(now), 0, 0);
        }
        let network = network(to);
        let place = self.hasher.hash_one(network) as usize % PLACES;
        let Some((used, since)) = self.used.get_mut(place) else { return false };
        let seconds = since.map_or(0, |since| passed(since).as_secs());
        if seconds > 0 || since.is_none() {
            let gained = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND);
            *used = used.saturating_sub(gained);
            *since = Some(now);
        }
        let is_expected = expected().contains_key(&network);
        let answered = if is_expected { &mut self.answered } else { &mut self.strangers };
        let most = if is_expected { IN_ALL - FOR_ANYBODY } else { FOR_ANYBODY };
        if *used >= BURST || *answered >= most {
            return false;
        }
        *used += 1;
        *answered += 1;
        true
    }
}

impl Mirror {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { socket, allowances: Mutex::new(Allowances::new()) }
    }

    /// Answers what questions there are among received datagrams, and takes them out.
    fn reflect(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let len = meta.len.min(buffer.len());
        let Some(received) = buffer.get_mut(..len) else { return };
        // Merged datagrams are of one sender and one length, whatever is in them.
        if received.chunks(meta.stride.max(1)).all(is_quic) {
            return;
        }
        meta.len = retain(received, meta.stride, |datagram| {
            let question = mirror::parse_question(datagram);
            if let Some(nonce) = question {
                self.answer(nonce, meta);
            }
            question.is_none()
        });
    }

    /// An answer that can't be sent at once isn't sent: the question comes again.
    fn answer(&self, nonce: u64, meta: &RecvMeta) {
        let mut allowances = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        if !allowances.take(meta.addr.ip(), Instant::now()) {
            return;
        }
        drop(allowances);
        let canonical = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
        let answer = mirror::answer(nonce, canonical);
        let transmit = Transmit {
            destination: meta.addr,
            ecn: None,
            contents: &answer,
            segment_size: None,
            src_ip: meta.dst_ip,
        };
        let _ = self.socket.try_send(&transmit);
    }
}

impl Sift for Mirror {
    fn sift(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        self.reflect(buffer, meta);
    }
}

#[cfg(test)]
mod tests;
