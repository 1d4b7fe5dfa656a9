use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::batch::VlanTag;
use crate::port::PortId;
use crate::sink::Sink;
use crate::target::{RelayId, Target, Through, Whose};
use crate::vnet::VnetHeader;
use crate::wire::ipv4::Header;

mod earlier;
mod hostile;
mod life;
mod many;
mod paths;
mod restart;
mod rotation;
mod secrets;
mod sizes;

/// Keeps what it gets.
#[derive(Debug, Default)]
struct Kept {
    datagrams: Vec<(SocketAddr, u8, Vec<u8>)>,
    relayed: Vec<(Through, Vec<u8>)>,
    /// Whose everything was that was ever given to relays.
    whose: Vec<Whose>,
}

impl Sink for Kept {
    fn frame(&mut self, _: PortId, _: VnetHeader, _: Option<VlanTag>, _: &[&[u8]]) {
        panic!("peers send no frames");
    }

    fn datagram(
        &mut self,
        to: SocketAddr,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut buffer = vec![0xee; capacity];
        let len = write(&mut buffer);
        assert!(len <= capacity, "{len} bytes written into {capacity}");
        if len > 0 {
            buffer.truncate(len);
            self.datagrams.push((to, dscp_ecn, buffer));
        }
    }

    fn relayed(
        &mut self,
        to: Through,
        whose: Whose,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut buffer = vec![0xee; capacity];
        let len = write(&mut buffer);
        assert!(len <= capacity, "{len} bytes written into {capacity}");
        if len > 0 {
            buffer.truncate(len);
            self.relayed.push((to, buffer));
            self.whose.push(whose);
        }
    }
}

struct Side {
    secret: TunnelSecret,
    gateway: GatewayId,
    overlay: Ipv6Addr,
    at: SocketAddr,
    peers: Peers,
    /// Packets that came out of tunnels.
    packets: Vec<Vec<u8>>,
    events: Vec<PeerEvent>,
    drops: Vec<DropReason>,
    sent: Kept,
}

impl Side {
    fn new(number: u8, boot: u8, now: Instant) -> Self {
        let secret = TunnelSecret::from_bytes([number; 32]);
        let config = Config {
            secret: secret.clone(),
            boot: BootId::from_bytes([boot; 16]),
            seed: [boot ^ 0x55; 32],
            owner: number,
            capabilities: vec!["test".to_owned()],
        };
        let mut peers = Peers::new(config, now);
        let overlay = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, u16::from(number));
        let local = Local { overlay, revision: 1, authority: 1, confirmed_time: None };
        peers.set_local(local, now);
        Self {
            secret,
            gateway: GatewayId::from_bytes([number; 16]),
            overlay,
            at: SocketAddr::from(([192, 0, 2, number], 51820)),
            peers,
            packets: Vec::new(),
            events: Vec::new(),
            drops: Vec::new(),
            sent: Kept::default(),
        }
    }

    /// How others are told of this one.
    fn as_peer(&self) -> PeerConfig {
        PeerConfig {
            gateway: self.gateway,
            overlay: self.overlay,
            keys: vec![self.secret.public()],
            endpoints: vec![self.at],
            relation: 0,
            kems: Vec::new(),
            client: false,
        }
    }

    fn peer(&self, other: GatewayId) -> &Peer {
        self.peers.get(self.peers.slot(other).unwrap()).unwrap()
    }

    fn deliver(
        &mut self,
        from: impl Into<Target>,
        datagram: &[u8],
        now: Instant,
    ) -> Option<DropReason> {
        let mut scratch = vec![0; SCRATCH_LEN];
        let opened = self.peers.open(from, datagram, &mut scratch, now, &mut self.sent);
        let dropped = match opened {
            Opened::Packet { packet, .. } => {
                self.packets.push(packet.to_vec());
                None
            }
            Opened::Whole { packet, .. } => {
                self.packets.push(packet);
                None
            }
            Opened::Handled => None,
            Opened::Dropped(reason) => Some(reason),
        };
        self.drops.extend(dropped);
        self.events.extend(std::iter::from_fn(|| self.peers.poll_event()));
        dropped
    }
}

type Fate = Box<dyn FnMut(usize, usize, &[u8]) -> usize>;

/// Gateways in one network, and the time.
struct World {
    sides: Vec<Side>,
    now: Instant,
    /// What happens to a datagram from one side to another: how many copies arrive.
    fate: Fate,
    delivered: Vec<(usize, SocketAddr, Vec<u8>)>,
    /// Whether forged copies run ahead of every datagram.
    forging: bool,
    /// What becomes of what relays get.
    relays: Relays,
}

/// What relays do with datagrams.
#[derive(Debug, Default)]
struct Relays {
    /// Those that swallow what they get.
    dead: Vec<RelayId>,
    /// Those that swallow what one side gives them.
    half_dead: Vec<(usize, RelayId)>,
    /// Whether all is kept back, and what is: from which side to which, and how.
    holds: bool,
    held: Vec<(usize, usize, RelayId, Vec<u8>)>,
    carried: usize,
    /// One that hands over by UDP what it gets, from this address, and what comes there.
    detour: Option<(RelayId, SocketAddr)>,
    /// What came there: from which side.
    detoured: Vec<(usize, Vec<u8>)>,
}

impl World {
    fn new(count: u8) -> Self {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let now = Instant::now();
        let sides = (1..=count).map(|number| Side::new(number, number, now)).collect();
        Self {
            sides,
            now,
            fate: Box::new(|_, _, _| 1),
            delivered: Vec::new(),
            forging: false,
            relays: Relays::default(),
        }
    }

    /// Two sides that know each other; nothing was sent yet.
    fn pair() -> Self {
        let mut world = Self::new(2);
        world.introduce(0, 1);
        world.introduce(1, 0);
        world
    }

    /// Two sides with a session that lives in both directions.
    fn live_pair() -> Self {
        let mut world = Self::pair();
        world.run(Duration::from_millis(100));
        assert!(world.live(0, 1) && world.live(1, 0), "{:?}", world.sides[0].peers);
        world
    }

    fn introduce(&mut self, to: usize, who: usize) {
        let config = self.sides[who].as_peer();
        self.sides[to].peers.set_peers(&[config], self.now);
    }

    fn live(&self, here: usize, there: usize) -> bool {
        self.sides[here].peer(self.sides[there].gateway).is_live(self.now)
    }

    fn send(&mut self, from: usize, to: usize, packet: &[u8]) -> Sent {
        let gateway = self.sides[to].gateway;
        let side = &mut self.sides[from];
        let slot = side.peers.slot(gateway).unwrap();
        side.peers.send(slot, packet, self.now, &mut side.sent)
    }

    /// Carries datagrams until nobody has anything to say.
    fn settle(&mut self) {
        for side in &self.sides {
            side.peers.assert_counted();
        }
        for _ in 0..10_000 {
            let mut quiet = true;
            for here in 0..self.sides.len() {
                for (to, _, datagram) in std::mem::take(&mut self.sides[here].sent.datagrams) {
                    quiet = false;
                    let from = self.sides[here].at;
                    if self.relays.detour.is_some_and(|(_, at)| at == to) {
                        if !self.relays.holds {
                            self.sides[1 - here].deliver(to, &datagram, self.now);
                        }
                        self.relays.detoured.push((here, datagram));
                        continue;
                    }
                    let Some(there) = self.sides.iter().position(|side| side.at == to) else {
                        continue;
                    };
                    if self.forging {
                        for place in [4, 8, 50, datagram.len() / 2, datagram.len() - 17] {
                            let mut forged = datagram.clone();
                            forged.get_mut(place).into_iter().for_each(|byte| *byte ^= 1);
                            if forged != datagram {
                                self.sides[there].deliver(from, &forged, self.now);
                            }
                        }
                    }
                    for _ in 0..(self.fate)(here, there, &datagram) {
                        self.delivered.push((there, from, datagram.clone()));
                        self.sides[there].deliver(from, &datagram, self.now);
                    }
                }
                quiet &= !self.through_relays(here);
            }
            if quiet {
                return;
            }
        }
        panic!("the two never stop talking");
    }

    /// Has relays carry what a side gave them. Says whether that was anything.
    fn through_relays(&mut self, here: usize) -> bool {
        let given = std::mem::take(&mut self.sides[here].sent.relayed);
        let any = !given.is_empty();
        for (to, datagram) in given {
            let there = self.sides.iter().position(|side| side.gateway == to.peer);
            let there = there.expect("nothing goes to strangers");
            self.relays.held.push((here, there, to.relay, datagram));
        }
        if !self.relays.holds {
            self.release();
        }
        any
    }

    /// Has relays hand over what they kept back.
    fn release(&mut self) {
        for (here, there, relay, datagram) in std::mem::take(&mut self.relays.held) {
            let swallowed =
                self.relays.dead.contains(&relay) || self.relays.half_dead.contains(&(here, relay));
            if !swallowed {
                self.relays.carried += 1;
                let from = match self.relays.detour {
                    Some((lying, at)) if lying == relay => {
                        self.relays.detoured.push((here, datagram.clone()));
                        Target::Udp(at)
                    }
                    _ => Target::Relay(Through { relay, peer: self.sides[here].gateway }),
                };
                self.sides[there].deliver(from, &datagram, self.now);
            }
        }
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut again = 0;
        loop {
            for side in &mut self.sides {
                side.peers.handle_timeout(self.now, &mut side.sent);
                side.events.extend(std::iter::from_fn(|| side.peers.poll_event()));
            }
            self.settle();
            let due = self.sides.iter().filter_map(|side| side.peers.poll_timeout());
            let next = due.map(|(at, _)| at).min().filter(|next| *next <= end);
            match next {
                Some(next) => {
                    again = if next > self.now { 0 } else { again + 1 };
                    assert!(again < 10, "a timeout that is due is left again and again");
                    self.now = self.now.max(next);
                }
                None => break,
            }
        }
        self.now = end;
    }
}

fn packet(number: u32, len: usize) -> Vec<u8> {
    let header = Header {
        source: Ipv4Addr::new(10, 0, 0, 1),
        destination: Ipv4Addr::new(10, 0, 0, 2),
        protocol: 253,
        ttl: 64,
        dscp_ecn: 0xb9,
        id: 1,
        payload_len: len.max(4),
    };
    let mut bytes = header.to_bytes().unwrap().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.resize(20 + len.max(4), number as u8);
    bytes
}
