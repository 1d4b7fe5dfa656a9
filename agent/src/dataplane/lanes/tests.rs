//! Lane threads as they run, with sockets on the loopback; the test is the packet thread of both ends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_agent_core::batch::{RxDatagram, VlanTag};
use anteroom_agent_core::lane::{self, Doorman, Event, LaneId, OwnLaneKey, secret_for};
use anteroom_agent_core::peer::{Config, PeerConfig, PeerSlot, Peers};
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_lab::namespace::in_private_network;
use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::TunnelSecret;

use super::*;
use crate::net::udp::DatagramRing;

/// Long enough for a machine with anything else to do.
const PATIENCE: Duration = Duration::from_secs(60);
const THREADS: u8 = 2;

fn gateway(of: u8) -> GatewayId {
    GatewayId::from_bytes([of; 16])
}

/// Slots of gateways from 1 on.
pub(super) fn slots(count: u8) -> Vec<PeerSlot> {
    let config = Config {
        secret: TunnelSecret::from_bytes([0x70; 32]),
        boot: BootId::from_bytes([1; 16]),
        seed: [3; 32],
        owner: 0,
        capabilities: Vec::new(),
    };
    let now = Instant::now();
    let mut peers = Peers::new(config, now);
    let configs = (1..=count).map(|of| PeerConfig {
        gateway: gateway(of),
        overlay: std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, of.into()),
        keys: Vec::new(),
        endpoints: Vec::new(),
        relation: 0,
        kems: Vec::new(),
        client: false,
    });
    peers.set_peers(&configs.collect::<Vec<_>>(), now);
    (1..=count).map(|of| peers.slot(gateway(of)).unwrap()).collect()
}

struct Nothing;

impl Sink for Nothing {
    fn frame(&mut self, _: PortId, _: VnetHeader, _: Option<VlanTag>, _: &[&[u8]]) {}

    fn datagram(&mut self, _: SocketAddr, _: u8, _: usize, _: impl FnOnce(&mut [u8]) -> usize) {}
}

/// One end: its lane threads, and what a packet thread has beside them.
struct End {
    of: u8,
    secret: TunnelSecret,
    /// First, so that threads end before anything else does.
    threads: Threads,
    first: UdpSocket,
    ring: DatagramRing,
    doorman: Doorman,
    events: Vec<Event>,
    /// Packets that came, and those that came back.
    got: Vec<Vec<u8>>,
    returned: Vec<Vec<u8>>,
}

impl End {
    fn start(of: u8, run: u8, listen: SocketAddr) -> Self {
        let group = UdpSocket::bind_group(listen, 1 + usize::from(THREADS), false).unwrap();
        let mut sockets = group.sockets.into_iter();
        let (first, secret) = (sockets.next().unwrap(), TunnelSecret::from_bytes([of ^ run; 32]));
        Self {
            of,
            threads: Threads::start(sockets.collect()).unwrap(),
            secret,
            first,
            ring: DatagramRing::default(),
            doorman: Doorman::new(&[of; 32], Instant::now()),
            events: Vec::new(),
            got: Vec::new(),
            returned: Vec::new(),
        }
    }

    fn place(&self) -> SocketAddr {
        self.first.local_address().unwrap()
    }

    fn order(&mut self, order: Order) {
        self.doorman.note(&order);
        let owner = match order {
            Order::Open(at) => Some(lane::owner(at, THREADS)),
            _ => None,
        };
        self.threads.order(owner, order);
        self.threads.send();
    }

    /// Tells it of another end, which is at `to`.
    fn know(&mut self, peer: PeerSlot, other: &(u8, TunnelSecret), term: u32, to: SocketAddr) {
        self.order(Order::Know {
            peer,
            own: OwnLaneKey::new(&self.secret, gateway(other.0)),
            key: secret_for(&other.1, gateway(self.of)).public(),
            term,
            lanes: lane::USUAL,
            to,
        });
    }

    fn name(&self) -> (u8, TunnelSecret) {
        (self.of, self.secret.clone())
    }

    fn send(&mut self, at: LaneId, number: u8) {
        let mut packet = vec![number; 100];
        packet[..4].copy_from_slice(&[0x45, 0, 0, 100]);
        let job =
            Job { at, vnet: VnetHeader::default(), network: 0, limit: 1400, packet: &mut packet };
        let end = Instant::now() + PATIENCE;
        while !self.threads.job(lane::owner(at, THREADS), &job) {
            assert!(Instant::now() < end, "no room for a job");
            self.threads.send();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.threads.send();
    }

    /// A packet thread's turn.
    fn turn(&mut self) {
        self.ring.fetch(&self.first).unwrap();
        let (doorman, threads) = (&mut self.doorman, &mut self.threads);
        self.ring.lend(&mut 0, |messages| {
            for RxDatagram { from, segment, bytes } in messages {
                for datagram in bytes.chunks((*segment).max(1)) {
                    let now = Instant::now();
                    let owner = lane::owner_of(datagram).or_else(|| {
                        let at = doorman.admit(*from, datagram, now, &mut Nothing).ok().flatten();
                        at.map(|at| lane::owner(at, THREADS))
                    });
                    threads.hand_on(owner.unwrap_or(0), *from, datagram);
                }
            }
        });
        self.threads.send();
        self.threads.note_waiting();
        while let Some((owner, mut haul)) = self.threads.haul() {
            self.events.append(&mut haul.events);
            haul.returned(|job| self.returned.push(job.packet.to_vec()));
            self.got.extend(haul.packets().map(|(_, packet)| packet.to_vec()));
            self.threads.give_back(owner, haul);
        }
    }

    fn has(&self, numbers: &[u8]) -> bool {
        self.got.iter().map(|packet| packet[99]).eq(numbers.iter().copied())
    }
}

/// Gives both ends turns until something is so.
fn until(ends: &mut [&mut End], what: &str, is_so: impl Fn(&[&mut End]) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so(ends) {
        let seen: Vec<_> = ends.iter().map(|end| (&end.events, end.got.len())).collect();
        assert!(Instant::now() < end, "never {what}: {seen:?}");
        ends.iter_mut().for_each(|end| end.turn());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a test where nobody else takes ports.
fn alone(test: &str) -> bool {
    let alone = in_private_network(&format!("dataplane::lanes::tests::{test}"));
    if alone {
        let mut up = std::process::Command::new("ip");
        assert!(up.args(["link", "set", "lo", "up"]).status().unwrap().success());
    }
    alone
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[test]
fn an_end_that_restarts_is_met_anew_and_what_was_for_it_comes_back() {
    if !alone("an_end_that_restarts_is_met_anew_and_what_was_for_it_comes_back") {
        return;
    }
    let peers = slots(2);
    let (mut a, mut b) = (End::start(1, 0, any()), End::start(2, 0, any()));
    let (to_a, to_b) = (LaneId { peer: peers[0], lane: 2 }, LaneId { peer: peers[1], lane: 2 });
    let places = [a.place(), b.place()];
    a.know(peers[1], &b.name(), 1, places[1]);
    b.know(peers[0], &a.name(), 1, places[0]);
    a.order(Order::Open(to_b));
    let ready = |end: &End, at, term| end.events.contains(&Event::Ready { at, term });
    until(&mut [&mut a, &mut b], "a lane", |ends| {
        ready(ends[0], to_b, 1) && ready(ends[1], to_a, 1)
    });
    a.send(to_b, 1);
    b.send(to_a, 2);
    until(&mut [&mut a, &mut b], "both ways", |ends| ends[0].has(&[2]) && ends[1].has(&[1]));
    drop(b);
    let mut b = End::start(2, 0x55, places[1]);
    a.know(peers[1], &b.name(), 2, places[1]);
    b.know(peers[0], &a.name(), 1, places[0]);
    // The packet thread thought that the lane could be used.
    a.send(to_b, 3);
    a.send(to_b, 4);
    until(&mut [&mut a, &mut b], "given back", |ends| ends[0].returned.len() == 2);
    assert!(a.returned[0][99] == 3 && a.returned[1][99] == 4, "as they were, in their order");
    assert!(a.events.contains(&Event::Gone { at: to_b, term: 2 }), "{:?}", a.events);
    a.order(Order::Open(to_b));
    until(&mut [&mut a, &mut b], "a lane again", |ends| {
        ready(ends[0], to_b, 2) && ready(ends[1], to_a, 1)
    });
    a.send(to_b, 5);
    until(&mut [&mut a, &mut b], "it carries", |ends| ends[1].has(&[5]));
}

#[test]
fn an_end_that_is_elsewhere_is_told_of_and_followed_by_order() {
    if !alone("an_end_that_is_elsewhere_is_told_of_and_followed_by_order") {
        return;
    }
    let peers = slots(2);
    let (mut a, mut b) = (End::start(1, 0, any()), End::start(2, 0, any()));
    let (to_a, to_b) = (LaneId { peer: peers[0], lane: 1 }, LaneId { peer: peers[1], lane: 1 });
    let (place_a, place_b) = (a.place(), b.place());
    // Between them a NAT, which changes its mind: it has a socket for A, and one for B that is another one later.
    let socket = || {
        let socket = std::net::UdpSocket::bind(any()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let inside = socket();
    let outside = std::cell::RefCell::new(socket());
    let relay = || {
        let (outside, mut room) = (outside.borrow(), [0; 2048]);
        for (from, to, target) in [(&inside, &*outside, place_b), (&*outside, &inside, place_a)] {
            while let Ok((len, _)) = from.recv_from(&mut room) {
                // What doesn't get through is sent again.
                let _ = to.send_to(&room[..len], target);
            }
        }
    };
    let before = outside.borrow().local_addr().unwrap();
    a.know(peers[1], &b.name(), 1, inside.local_addr().unwrap());
    b.know(peers[0], &a.name(), 1, before);
    a.order(Order::Open(to_b));
    until(&mut [&mut a, &mut b], "a lane", |ends| {
        relay();
        ends[0].events.contains(&Event::Ready { at: to_b, term: 1 })
            && ends[1].events.contains(&Event::Ready { at: to_a, term: 1 })
    });
    let later = socket();
    let after = later.local_addr().unwrap();
    *outside.borrow_mut() = later;
    a.send(to_b, 1);
    let elsewhere = Event::Elsewhere { peer: peers[0], from: after };
    until(&mut [&mut a, &mut b], "told", |ends| {
        relay();
        ends[1].has(&[1]) && ends[1].events.contains(&elsewhere)
    });
    b.order(Order::Move { peer: peers[0], to: after });
    b.send(to_a, 2);
    until(&mut [&mut a, &mut b], "followed", |ends| {
        relay();
        ends[0].has(&[2])
    });
}

#[test]
fn more_peers_than_there_are_lanes_for_are_turned_away_and_get_theirs_when_others_go() {
    if !alone("more_peers_than_there_are_lanes_for_are_turned_away_and_get_theirs_when_others_go") {
        return;
    }
    let peers = slots(70);
    let mut a = End::start(99, 0, any());
    // Nobody answers there.
    let silent = std::net::UdpSocket::bind(any()).unwrap();
    let to = silent.local_addr().unwrap();
    let others = (1..=70).map(|of| (of, TunnelSecret::from_bytes([of; 32])));
    for (peer, other) in peers.iter().zip(others) {
        a.know(*peer, &other, 1, to);
        for lane in 1..=4 {
            a.order(Order::Open(LaneId { peer: *peer, lane }));
        }
        a.turn();
    }
    // Orders and jobs are done in their order: what comes back shows that all were.
    let settled = |a: &mut End| {
        let before = a.returned.len();
        for lane in [1, 2] {
            a.send(LaneId { peer: peers[69], lane }, 0);
        }
        until(&mut [a], "done", |ends| ends[0].returned.len() == before + 2);
    };
    settled(&mut a);
    let full = |a: &End| a.events.iter().filter(|one| matches!(one, Event::Full(_))).count();
    assert_eq!(full(&a), 4 * 70 - MOST_LANES, "{:?}", a.events);
    for peer in &peers[..30] {
        a.order(Order::Forget { peer: *peer });
    }
    for peer in &peers[30..] {
        for lane in 1..=4 {
            a.order(Order::Open(LaneId { peer: *peer, lane }));
        }
        a.turn();
    }
    settled(&mut a);
    assert_eq!(full(&a), 4 * 70 - MOST_LANES, "there is room again: {:?}", a.events);
}
