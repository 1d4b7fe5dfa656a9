//! What keeps tunnels up: handshakes, probes, and what gateways say to each other.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::DropReason;

use super::{CONTROL, Peer, Peers, Tunnel, seal, write};
use crate::peer::message::{self, Hello, Message};
use crate::peer::state::NEVER;
use crate::peer::tunnel::{SMALL, Update, sealed_room};
use crate::peer::{OVERHEAD, PeerSlot, doubt, front, secret, trial};
use crate::sink::Sink;
use crate::size;
use crate::target::Target;

/// Most messages that are fetched from boringtun's own queue after one handshake.
const MAX_DRAIN: usize = 300;
/// Most messages that wait to be fetched.
const MAX_INBOX: usize = 64;
/// Least time between two looks at one peer.
const TICK: Duration = Duration::from_millis(1);
/// So many initiations with a pre-shared key that nobody answers let it be tried without.
const IN_VAIN: u32 = 4;

impl Peers {
    /// A session came up: sends what waited for it, and says hello.
    pub(super) fn begin(&mut self, number: u32, now: Instant, out: &mut impl Sink) {
        let Some(tunnel) = self.tunnels.get_mut(number) else { return };
        let index = tunnel.peer;
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(to) = peer.way() else { return };
        for _ in 0..MAX_DRAIN {
            let len = tunnel.drain(&mut self.scratch);
            if len == 0 {
                break;
            }
            write(out, to, CONTROL, &self.scratch[..len]);
        }
        self.flush(index, now, out);
        self.probe(index, now, out);
        self.wake(index, now);
    }

    /// Sends what waited for a session, once it may go.
    fn flush(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(index).filter(|peer| !peer.secrecy.withholds) else {
            return;
        };
        let tunnel = peer.sending.and_then(|number| self.tunnels.get_mut(number));
        let (Some(tunnel), Some(to)) = (tunnel, peer.way()) else { return };
        let late = peer.queue.expire(now);
        while let Some((whose, packet)) = peer.queue.pop() {
            seal(tunnel, to, (whose, &packet), out);
        }
        self.count(DropReason::TunnelDown, late);
    }

    /// Deals with an IPv6 packet out of a tunnel.
    pub(super) fn hear(
        &mut self,
        number: u32,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let unknown = DropReason::PeerUnknown;
        let local = self.local.ok_or(DropReason::PeerDestination)?;
        let index = self.tunnels.get(number).ok_or(unknown)?.peer;
        let refused = self.is_refused(number);
        let peer = self.peers.get_mut(index).ok_or(unknown)?;
        if peer.client {
            return Err(DropReason::Ipv6);
        }
        if let Some(message) = size::wire::read(packet, peer.overlay, local.overlay)? {
            if matches!(message, size::wire::SizeMessage::Part(_)) && refused {
                return Err(DropReason::Classic);
            }
            return self.hear_size(index, message, now, out);
        }
        if !peer.read.take(now) {
            return Err(DropReason::HandshakeLimit);
        }
        let want_time = local.confirmed_time.is_none();
        let boot = peer.boot();
        let psk = self.tunnels.get(number).is_some_and(Tunnel::has_psk);
        let (news, answer) = match message::unpack(packet, peer.overlay, local.overlay)? {
            Message::Hello(hello) => {
                let nonce = hello.nonce;
                (peer.note_said(hello, want_time, now), Some(nonce))
            }
            Message::HelloReply(hello) => {
                peer.note_answer(hello.nonce, now);
                (peer.note_said(hello, want_time, now), None)
            }
            message @ (Message::Claim(_) | Message::ClaimAnswer(_)) => {
                let gateway = peer.gateway;
                if self.inbox.len() >= MAX_INBOX {
                    return Err(DropReason::QueueFull);
                }
                self.inbox.push_back((gateway, message));
                return Ok(None);
            }
            // What goes through lanes is as secret as the tunnel in which their keys are told.
            Message::Lanes(_) if refused => return Err(DropReason::Classic),
            Message::Lanes(offer) => {
                let slot = PeerSlot { index, generation: peer.generation };
                let key = self.tunnels.get(number).ok_or(unknown)?.key;
                if self.offers.len() >= MAX_INBOX {
                    return Err(DropReason::QueueFull);
                }
                self.offers.push_back((slot, key, offer));
                return Ok(None);
            }
            Message::SecretPart(part) => {
                return self.hear_part((index, number), &part, now, out).map(|()| None);
            }
            Message::SecretHeld(held) => {
                self.hear_held(index, &held, now);
                return Ok(None);
            }
        };
        let anew = self.peers.get(index).is_some_and(|peer| peer.boot() != boot);
        if !psk && self.is_silent_under_psk(index, now) {
            self.forget_agreements(index, now, now);
        } else if !psk && anew && boot.is_some() {
            // What was agreed on since it shook hands, it agreed on in this run.
            let end = self.tunnels.get(number).map_or(now, Tunnel::since);
            self.forget_agreements(index, end, now);
        }
        if anew {
            self.review(index);
        }
        self.judge(index, now);
        self.leave_relays(index, now, out);
        if self.peers.get(index).and_then(Peer::answered) == Some(now) {
            self.hearing.note_answered(now);
        }
        if news {
            self.list(index);
        }
        self.follow_capability(index, now);
        self.wake_for_probes(index);
        self.look(index, now);
        let may = |peer: &mut Peer| peer.answers.take(now);
        if let Some(nonce) = answer {
            if !self.peers.get_mut(index).is_some_and(may) {
                return Err(DropReason::HandshakeLimit);
            }
            // Who speaks without a pre-shared key may have none: what goes under one wouldn't be heard.
            let by = (!psk)
                .then_some(number)
                .filter(|number| self.tunnels.get(*number).is_some_and(Tunnel::has_session));
            let reply = |hello| Message::HelloReply(Hello { nonce, ..hello });
            self.say_at(index, (None, by), now, out, reply);
        }
        Ok(None)
    }

    /// Sends a hello and waits for its answer.
    pub(super) fn probe(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(index).filter(|peer| !peer.client) else { return };
        let nonce = peer.probe(&mut self.random, now);
        let live = peer.is_live(now);
        self.hearing.note_asked(live, now);
        self.say(index, now, out, |hello| Message::Hello(Hello { nonce, ..hello }));
    }

    /// Asks a peer whether it is there: something of its own, beside its tunnel here, came from there. Its answer moves it,
    /// as whatever comes through that tunnel does.
    pub fn ask_at(&mut self, slot: PeerSlot, to: SocketAddr, now: Instant, out: &mut impl Sink) {
        let index = slot.index;
        let peer = self.peers.get(index).filter(|peer| peer.generation == slot.generation);
        // One that a relay reaches is found by knocks.
        let settled =
            |peer: &Peer| peer.client || peer.route.via().is_some() || peer.endpoint() == Some(to);
        if peer.is_none_or(settled) {
            return;
        }
        // Beside the probes, and not one of them: whoever sends copies from elsewhere has none of those forgotten.
        let nonce = self.random.next();
        self.say_at(index, (Some(to), None), now, out, |hello| {
            Message::Hello(Hello { nonce, ..hello })
        });
    }

    /// The next message of a peer that isn't about its tunnel. Whoever hands datagrams in fetches them all before
    /// the next.
    pub fn poll_message(&mut self) -> Option<(GatewayId, Message)> {
        self.inbox.pop_front()
    }

    /// Tells a peer something, if its tunnel has a session. It may get lost on the way.
    pub fn tell(&mut self, gateway: GatewayId, message: &Message, out: &mut impl Sink) {
        let (Some(local), Some(index)) = (self.local, self.by_gateway.get(&gateway)) else {
            return;
        };
        let Some(peer) = self.peers.get(*index).filter(|peer| !peer.client) else { return };
        let tunnel = peer.sending.and_then(|number| self.tunnels.get_mut(number));
        let (Some(tunnel), Some(to)) = (tunnel, peer.way()) else { return };
        let packet = message::pack(local.overlay, peer.overlay, message);
        let room = sealed_room(packet.len());
        to.put(out, CONTROL, room, |buffer| tunnel.seal(&packet, buffer));
    }

    fn say(
        &mut self,
        index: u32,
        now: Instant,
        out: &mut impl Sink,
        message: impl FnOnce(Hello) -> Message,
    ) {
        self.say_at(index, (None, None), now, out, message);
    }

    /// Says something to a peer somewhere, or where it is, by one of its tunnels, or the one that packets take.
    fn say_at(
        &mut self,
        index: u32,
        (to, by): (Option<SocketAddr>, Option<u32>),
        now: Instant,
        out: &mut impl Sink,
        message: impl FnOnce(Hello) -> Message,
    ) {
        let Some(local) = self.local else { return };
        let knocker = self.knocker_for(index);
        let outside = Some(self.outside()).filter(|outside| !outside.places.is_empty());
        let Some(peer) = self.peers.get(index) else { return };
        let tunnel = by.or(peer.sending).and_then(|number| self.tunnels.get_mut(number));
        let to = to.map(Target::Udp).or_else(|| peer.way());
        let (Some(tunnel), Some(to)) = (tunnel, to) else { return };
        self.sequence += 1;
        let time = local.confirmed_time.map(|(time, at)| {
            let passed = now.saturating_duration_since(at).as_millis();
            time.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
        });
        let mut capabilities = self.config.capabilities.clone();
        if self.own.has_kem() && capabilities.len() < message::MAX_CAPABILITIES {
            capabilities.push(secret::CAPABILITY.to_owned());
        }
        for capability in [trial::CAPABILITY, doubt::CAPABILITY] {
            if capabilities.len() < message::MAX_CAPABILITIES {
                capabilities.push(capability.to_owned());
            }
        }
        let hello = Hello {
            versions: (message::VERSION, message::VERSION),
            capabilities,
            boot: self.config.boot,
            sequence: self.sequence,
            revision: local.revision,
            relation: Some(peer.relation),
            authority: local.authority,
            time: time.filter(|time| *time != UnixMillis::default()),
            nonce: 0,
            knocker,
            outside,
        };
        let packet = message::pack(local.overlay, peer.overlay, &message(hello));
        let room = sealed_room(packet.len());
        to.put(out, CONTROL, room, |buffer| tunnel.seal(&packet, buffer));
        let directly = |peer: &&mut Peer| peer.endpoint().map(Target::Udp) == Some(to);
        if let Some(peer) = self.peers.get_mut(index).filter(directly) {
            peer.route.doubt.note_sent(packet.len() + OVERHEAD);
        }
    }

    /// Sends an initiation.
    pub(super) fn initiate(&mut self, number: u32, now: Instant, out: &mut impl Sink) {
        let Some(tunnel) = self.tunnels.get_mut(number) else { return };
        let index = tunnel.peer;
        let Some(peer) = self.peers.get_mut(index) else { return };
        let attempt = tunnel.note_attempt(&mut self.random, now);
        if peer.sending.is_some_and(|sending| sending != number) {
            tunnel.be_patient(&mut self.random, now);
        }
        peer.note_called();
        self.hearing.note_asked(false, now);
        let (way, other) = self.way_to_shake(index, attempt);
        let Some(tunnel) = self.tunnels.get_mut(number) else { return };
        if other {
            tunnel.try_other_way(now);
        }
        if let Some(to) = way {
            to.put(out, CONTROL, front::INITIATION_LEN, |buffer| tunnel.initiate(buffer));
        }
        let wake_at = tunnel.wake_at();
        self.wake(index, wake_at);
    }

    /// Does what is due for one peer, and finds out when to come again.
    pub(super) fn tend(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get(index) else { return };
        for number in peer.tunnels.clone() {
            self.update(number, now, out);
        }
        self.choose_sending(index);
        self.judge(index, now);
        let secrets = self.tend_secrets(index, now, out);
        let wanted = self.wanted(index);
        let Some(peer) = self.peers.get(index) else { return };
        let (sending, hears_us) = (peer.sending, peer.hears_us(now));
        let needed = peer.tunnels[..wanted].to_vec();
        // Where a client is isn't known before it was heard, and it isn't disturbed without need.
        let on_demand = peer.client.then(|| peer.is_wanted());
        let place = needed.iter().position(|number| Some(*number) == sending);
        for (at, number) in needed.into_iter().enumerate() {
            // What is worse than the one in use is needed where that one isn't answered: its session says nothing.
            let watch = place.is_some_and(|place| at >= place).then_some(hears_us);
            let due = |tunnel: &mut Tunnel| {
                if sending.is_none() {
                    tunnel.lose_patience(now);
                }
                match on_demand {
                    Some(wanted) => tunnel.due_on_demand(wanted, now),
                    None => tunnel.due(watch, now),
                }
            };
            if self.tunnels.get_mut(number).is_some_and(due) {
                self.initiate(number, now, out);
            }
        }
        let Some(peer) = self.peers.get_mut(index) else { return };
        let late = peer.queue.expire(now);
        let waits = peer.waiting() > 0;
        let probe = !peer.client && peer.sending.is_some() && peer.next_probe <= now;
        self.count(DropReason::TunnelDown, late);
        self.look(index, now);
        if waits {
            self.flush(index, now, out);
        }
        if probe {
            self.probe(index, now, out);
        }
        self.call(index, now, out);
        self.tend_path(index, now, out);
        self.probe_sizes(index, now, out);
        self.doubt_path(index, now, out);
        let Some(peer) = self.peers.get_mut(index) else { return };
        let tunnels = peer.tunnels[..wanted.min(peer.tunnels.len())].iter();
        let tunnels = tunnels.filter_map(|number| self.tunnels.get(*number)).map(Tunnel::wake_at);
        let probe = peer.sending.filter(|_| !peer.client).and(self.local).map(|_| peer.next_probe);
        let size = peer.sending.and_then(|_| peer.path.poll_timeout());
        let path = peer.sending.and_then(|_| peer.route.due());
        let secrecy = peer.secrecy.due();
        let (silent, calls) = (peer.silent_at(), peer.calls_due());
        let others = [silent, peer.queue.due(), probe, size, path, secrecy, secrets, calls];
        let next = tunnels.chain(others.into_iter().flatten()).min();
        // A peer without tunnels has nothing to come again for.
        let wake_at = next.unwrap_or(now + NEVER).max(now + TICK);
        peer.wake_at = wake_at;
        self.agenda.note(index, wake_at);
    }

    /// How many of a peer's tunnels, the best ones, need a session: none that is worse than the one in use, unless the peer
    /// doesn't answer there any more. It may have lost its pre-shared keys, so those without are tried as well then.
    fn wanted(&self, index: u32) -> usize {
        let Some(peer) = self.peers.get(index) else { return 0 };
        let get = |number: &u32| self.tunnels.get(*number);
        let all = peer.tunnels.len();
        let with_psk = peer.tunnels.iter().filter_map(get).take_while(|tunnel| tunnel.has_psk());
        let with_psk = with_psk.count();
        let in_vain = |tunnel: &Tunnel| tunnel.attempts() >= IN_VAIN;
        match peer.sending {
            Some(number) if get(&number).is_some_and(|one| one.has_psk() && in_vain(one)) => all,
            Some(number) => {
                let place = peer.tunnels.iter().position(|other| *other == number);
                place.map_or(all, |place| place + 1)
            }
            None => {
                let psks = peer.tunnels[..with_psk].iter().filter_map(get);
                let hope = psks.filter(|tunnel| tunnel.is_proved()).any(|tunnel| !in_vain(tunnel));
                if hope { with_psk } else { all }
            }
        }
    }

    /// Lets boringtun keep its time, and sends what it writes.
    fn update(&mut self, number: u32, now: Instant, out: &mut impl Sink) {
        let Some(tunnel) = self.tunnels.get_mut(number) else { return };
        let Some(peer) = self.peers.get(tunnel.peer) else { return };
        let mut buffer = [0; SMALL];
        let (len, to) = match tunnel.update(&mut buffer, now) {
            Update::Nothing => return,
            Update::Expired => return tunnel.begin_anew(),
            Update::Initiation(len) => {
                let index = tunnel.peer;
                let attempt = tunnel.note_attempt(&mut self.random, now);
                (len, self.way_to_shake(index, attempt).0)
            }
            Update::Other(len) => (len, peer.way()),
        };
        if let (Some(to), Some(message)) = (to, buffer.get(..len)) {
            write(out, to, CONTROL, message);
        }
    }
}
