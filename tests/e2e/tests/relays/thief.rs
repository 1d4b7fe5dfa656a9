//! A relay that operators named and somebody took over, and that makes itself the direct path between two gateways: it tells each that it
//! looks from outside as the thief's own socket. Knocks of the other one there show the thief where that is, and open its NAT for him. From then
//! on he hands over by UDP whatever comes.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anteroom_e2e::wire::End;
use anteroom_e2e::{Stage, drops, fixture, none_lost};
use anteroom_lab::hospital::{self, GATEWAYS, Hospital, Machine};
use anteroom_lab::ping::Pinging;
use anteroom_lab::stall::Stalls;
use anteroom_lab::topology::Host;
use anteroom_lab::wait;
use anteroom_lab::wan::Attach;
use anteroom_lab::wan::nat::Kind;
use anteroom_lab::wan::router::{NatRouter, Place};
use anteroom_proto::relay::mirror;
use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::hostile::{self, Hostile, Manner, id_of};
use super::{BEAT, DEADLINE, MANY, Relays, WINDOW};

/// The port that it forwards from.
const PORT: u16 = 5_000;
/// What the test sends there: all that came before has been counted when this is.
const MARK: &[u8] = b"as far as here";
/// Datagrams of each kind that are kept to be said again.
const KEPT: usize = 64;
/// Between two of those.
const AGAIN: Duration = Duration::from_millis(20);
/// The two between which it places itself, by their place in [`GATEWAYS`].
const VICTIMS: [usize; 2] = [0, 2];

/// To whom, and what.
type Handed = (usize, Vec<u8>);

/// How many datagrams came of which of the gateways, by their first byte and length.
type Received = BTreeMap<(usize, u8, usize), u64>;

/// What came beyond `before`.
fn since(before: &Received, mut after: Received) -> Received {
    for (what, count) in before {
        after.entry(*what).and_modify(|after| *after -= count);
    }
    after.retain(|_, count| *count > 0);
    after
}

/// The socket that the thief forwards by, and what came there.
#[derive(Debug)]
pub(super) struct Detour {
    socket: UdpSocket,
    homes: [IpAddr; 3],
    /// Where gateways were heard.
    met: Mutex<[Option<SocketAddr>; 3]>,
    /// What was handed over, by the kind of message, and to whom.
    kept: Mutex<BTreeMap<u8, VecDeque<Handed>>>,
    /// Sealed packets that are still to be held back, and those that were.
    to_hold: AtomicU64,
    held: Mutex<Vec<Handed>>,
    /// Whether what was kept and held back is said again.
    replays: AtomicBool,
    again: AtomicU64,
    /// What came of gateways, handed over or not, and what the test sent.
    received: Mutex<Received>,
    marks: AtomicU64,
    ended: AtomicBool,
}

impl Detour {
    fn open(homes: [IpAddr; 3]) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        socket.set_read_timeout(Some(AGAIN)).unwrap();
        let (met, kept, held) = Default::default();
        let (to_hold, again, marks) = Default::default();
        let (received, replays, ended) = Default::default();
        Self { socket, homes, met, kept, to_hold, held, replays, again, received, marks, ended }
    }

    /// Hands something over by UDP; false where it isn't known where to.
    pub(super) fn hand(&self, whom: usize, datagram: &[u8]) -> bool {
        let Some(at) = self.met.lock().unwrap().get(whom).copied().flatten() else { return false };
        let kind = datagram.first().copied().unwrap_or_default();
        let mut kept = self.kept.lock().unwrap();
        let kept = kept.entry(kind).or_default();
        kept.push_back((whom, datagram.to_vec()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        self.socket.send_to(datagram, at).is_ok()
    }

    fn takes_from_hold(&self) -> bool {
        self.to_hold.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn hear(&self, from: SocketAddr, datagram: &[u8]) {
        if datagram == MARK {
            self.marks.fetch_add(1, Relaxed);
        }
        let at_home = |place: &&usize| self.homes[**place] == from.ip();
        let Some(&own) = VICTIMS.iter().find(at_home) else { return };
        let kind = datagram.first().copied().unwrap_or_default();
        let what = (own, kind, datagram.len());
        *self.received.lock().unwrap().entry(what).or_default() += 1;
        self.met.lock().unwrap()[own] = Some(from);
        let other = VICTIMS[usize::from(own == VICTIMS[0])];
        if datagram.first() == Some(&4) && self.takes_from_hold() {
            self.held.lock().unwrap().push((other, datagram.to_vec()));
        } else {
            self.hand(other, datagram);
        }
    }

    fn run(&self) {
        let mut buffer = [0; 2_048];
        let mut next = Instant::now();
        while !self.ended.load(Relaxed) {
            if let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
                self.hear(from, &buffer[..len]);
            }
            if self.replays.load(Relaxed) && Instant::now() >= next {
                next = Instant::now() + AGAIN;
                self.say_again();
            }
        }
    }

    /// One of each kind, and one that nobody has seen yet.
    fn say_again(&self) {
        let turn = usize::try_from(self.again.fetch_add(1, Relaxed)).unwrap();
        let one = |from: &[Handed]| from.get(turn % from.len().max(1)).cloned();
        let mut all: Vec<_> = one(&self.held.lock().unwrap()).into_iter().collect();
        for kept in self.kept.lock().unwrap().values_mut() {
            all.extend(one(kept.make_contiguous()));
        }
        let met = *self.met.lock().unwrap();
        for (whom, datagram) in all {
            let _ = met[whom].map(|at| self.socket.send_to(&datagram, at));
        }
    }

    /// What has come of gateways until now.
    fn count(&self, thief: &Machine) -> Received {
        let before = self.marks.load(Relaxed);
        thief
            .host
            .enter(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                socket.send_to(MARK, thief.at(PORT)).unwrap();
            })
            .unwrap();
        let counted = || (self.marks.load(Relaxed) > before).then_some(());
        wait::until(DEADLINE, "all that came to be counted", counted).unwrap();
        self.received.lock().unwrap().clone()
    }
}

/// Who asks the relay how it looks from outside is told that it looks as the thief's socket: the answer to a question's frame, if it is one.
fn lie(frame: &[u8], homes: &[IpAddr; 3], place: SocketAddr) -> Option<Vec<u8>> {
    let headers = 14 + 20 + 8;
    let (port, question) = (frame.get(36..38)?, frame.get(headers..headers + mirror::LEN)?);
    let is_udp = frame.get(12..15)? == [8, 0, 0x45] && frame.get(23)? == &17;
    let from = IpAddr::from(*frame.get(26..)?.first_chunk::<4>()?);
    let theirs = VICTIMS.iter().any(|victim| homes[*victim] == from);
    if !is_udp || !theirs || port != hostile::PORT.to_be_bytes() {
        return None;
    }
    let answer = mirror::answer(mirror::parse_question(question)?, place);
    let part = |from: usize, to: usize| &frame[from..to];
    // Swapped addresses leave the header's sum as it is; without one of its own UDP's isn't looked at.
    Some(
        [
            part(6, 12),
            part(0, 6),
            part(12, 26),
            part(30, 34),
            part(26, 30),
            part(36, 38),
            part(34, 36),
            part(38, 40),
            &[0, 0],
            &answer,
        ]
        .concat(),
    )
}

struct Thief {
    relay: Hostile,
    detour: Arc<Detour>,
    machine: Machine,
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.detour.ended.store(true, Relaxed);
    }
}

impl Thief {
    fn start(hospital: &Hospital, machine: &str, homes: [IpAddr; 3]) -> Self {
        let machine = hospital.machine(machine).clone();
        let detour = Arc::new(machine.host.enter(|| Detour::open(homes)).unwrap());
        let forwards = detour.clone();
        machine.host.thread(move || forwards.run()).unwrap();
        let mut end = End::open(&machine.host, "eth0").unwrap();
        let (lies, place) = (detour.clone(), machine.at(PORT));
        machine
            .host
            .thread(move || {
                while !lies.ended.load(Relaxed) {
                    end.listen(AGAIN).unwrap();
                    for frame in end.take() {
                        if let Some(answer) = lie(&frame, &homes, place) {
                            end.send(&answer).unwrap();
                        }
                    }
                }
            })
            .unwrap();
        let ids = GATEWAYS.map(|gateway| id_of(hospital, gateway));
        let manner = (Manner::Detours(detour.clone()), homes);
        let relay = Hostile::start(&machine.host, machine.address(), manner, ids);
        Self { relay, detour, machine }
    }
}

/// Puts both gateways behind NATs between which there is no direct path. Gives the routers, and where gateways come from now.
fn behind_nats(hospital: &Hospital) -> (Vec<NatRouter>, [IpAddr; 3]) {
    let mut homes = hostile::homes();
    let mut routers = Vec::new();
    for (number, victim) in (1_u8..).zip(VICTIMS) {
        let network = GATEWAYS[victim];
        let outside = |last| Ipv4Addr::new(100, 64, number, last);
        hospital.router.ip(&format!("link delete {network}")).unwrap();
        let inside = Place { address: hospital::address(network, 1), prefix: 24 };
        let nat = NatRouter::set_up(
            &format!("nat-{number}"),
            (Attach::Switch(&hospital.campus, &format!("br-{network}")), inside),
            (Attach::Host(&hospital.router, network), Place { address: outside(2), prefix: 24 }),
            Some(outside(1)),
            Kind::symmetric(),
            number.into(),
        );
        hospital.router.address(network, outside(1), 24).unwrap();
        routers.push(nat.unwrap());
        homes[victim] = outside(2).into();
    }
    (routers, homes)
}

/// What one of the two says of the other.
fn peer(hospital: &Hospital, here: usize) -> anyhow::Result<Value> {
    let there = VICTIMS[usize::from(here == VICTIMS[0])];
    let id =
        hospital.gateways[GATEWAYS[there]].status()?["data_plane"]["engine"]["gateway"].clone();
    let status = hospital.gateways[GATEWAYS[here]].status()?;
    let peers = status["data_plane"]["engine"]["peers"].as_array().context("peers")?;
    let peer = peers.iter().find(|peer| peer["gateway"] == id);
    peer.cloned().with_context(|| status.to_string())
}

fn wait_for_both(hospital: &Hospital, what: &str, so: impl Fn(&Value) -> bool) {
    for here in VICTIMS {
        wait::until_ok(DEADLINE * 3, what, || {
            let peer = peer(hospital, here)?;
            ensure!(so(&peer), "{}: {peer}", GATEWAYS[here]);
            Ok(())
        })
        .unwrap();
    }
}

fn pings(pinging: &Pinging, more: u64, what: &str) {
    let before = pinging.received();
    let come = || (pinging.received() > before + more).then_some(());
    wait::until(DEADLINE, what, come).unwrap();
}

fn misplaced(hospital: &Hospital) -> u64 {
    let of = |victim: usize| drops(&hospital.gateways[GATEWAYS[victim]]).unwrap();
    VICTIMS.iter().filter_map(|victim| of(*victim).get("peer-place").copied()).sum()
}

#[test]
fn a_stolen_relay_that_made_itself_the_direct_path_is_out_of_it_once_operators_take_it_out() {
    let test = "thief::a_stolen_relay_that_made_itself_the_direct_path_is_out_of_it_once_operators_take_it_out";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let mut relays = Relays { fixture, running: Vec::new() };
    let (_routers, homes) = behind_nats(&relays.fixture.hospital);
    let thief = Thief::start(&relays.fixture.hospital, "ws-1", homes);
    relays.signed(&["relay", "add", "east", "--code", &thief.relay.code]);
    let code = relays.start("west", "hvac-1", hostile::PORT);
    relays.signed(&["relay", "add", "west", "--code", &code]);
    relays.wait_for_guests(&["east", "west"]);
    let hospital = &relays.fixture.hospital;
    let place = thief.machine.at(PORT).to_string();
    let by_thief = |peer: &Value| {
        peer["endpoint"] == *place && peer["path"] == "proved" && peer["relay"].is_null()
    };
    wait_for_both(hospital, "the thief to be taken for the direct path", by_thief);

    // He keeps something back that opens later.
    let host: Host = hospital.machine("ct-1").host.clone();
    let pacs = hospital.machine("pacs-1").address();
    let pinging = Pinging::start(&host, pacs, MANY, BEAT).unwrap();
    pings(&pinging, 50, "pings by the thief");
    thief.detour.to_hold.store(20, Relaxed);
    wait::until(DEADLINE, "packets to be held back", || {
        (thief.detour.held.lock().unwrap().len() == 20).then_some(())
    })
    .unwrap();
    pinging.stop().unwrap();
    wait_for_both(hospital, "the thief still to be the direct path", by_thief);

    let stalls = Stalls::watch().unwrap();
    let pinging = Pinging::start_within(&host, pacs, MANY, BEAT, WINDOW).unwrap();
    let before = thief.detour.count(&thief.machine);
    pings(&pinging, 100, "pings by the thief");
    let carried: u64 = since(&before, thief.detour.count(&thief.machine)).values().sum();
    assert!(carried >= 200, "{carried} datagrams for 100 pings and their answers");
    let misplaced_before = misplaced(hospital);
    relays.signed(&["relay", "remove", "east"]);
    thief.detour.replays.store(true, Relaxed);
    let relayed = |peer: &Value| peer["endpoint"] != *place && !peer["relay"].is_null();
    wait_for_both(hospital, "packets to take another relay", relayed);
    relays.wait_for_guests(&["west"]);
    pings(&pinging, 50, "what was under way to be there");

    let (before, again) = (thief.detour.count(&thief.machine), thief.detour.again.load(Relaxed));
    pings(&pinging, 2_000, "pings by another relay");
    let after = since(&before, thief.detour.count(&thief.machine));
    let again = thief.detour.again.load(Relaxed) - again;
    eprintln!("to the thief beside 2,000 pings by another relay: {after:?}");
    // Who says handshakes again faster than one address may has cookies for them, as any stranger with a gateway's key: no more than
    // were said, and nothing else. Each round has one first message and one answer.
    let is_cookie = |(_, kind, len): &(usize, u8, usize)| (*kind, *len) == (3, 64);
    let cookies: u64 = after.iter().filter(|(what, _)| is_cookie(what)).map(|(_, n)| n).sum();
    assert!(
        after.keys().all(is_cookie) && cookies <= 2 * again,
        "datagrams went to the thief: {after:?}, {again} rounds; {:?}",
        VICTIMS.map(|at| peer(hospital, at))
    );
    assert!(again > 50, "he said something again {again} times only");
    wait_for_both(hospital, "packets still to take another relay", relayed);
    let refused = misplaced(hospital) - misplaced_before;
    assert!(refused > 0, "handshakes that he kept were dropped for something else");
    none_lost(
        &pinging.stop().unwrap(),
        BEAT,
        stalls.worst(),
        "a relay in the direct path taken out",
    );
    eprintln!(
        "{carried} datagrams by the thief before; {again} times something again after, {refused} handshakes refused"
    );
}
