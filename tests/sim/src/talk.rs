//! Two devices behind different gateways that keep talking, and what of it is lost or overheard.

use std::collections::BTreeSet;
use std::time::Duration;

use anteroom_proto::mode::{Mode, PairPath};

use crate::packet::{self, TcpFlags};
use crate::random::Random;
use crate::world::{Cable, World};

/// Marks what is said, for the campus to be searched for it.
const MARK: &[u8] = b"word";

/// A TCP connection between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Who opened it.
    pub client: usize,
    /// To whom.
    pub server: usize,
    /// The client's port.
    pub client_port: u16,
    /// The server's port.
    pub port: u16,
}

impl Connection {
    fn end(&self, host: usize) -> u16 {
        if host == self.client { self.client_port } else { self.port }
    }

    fn other(&self, host: usize) -> usize {
        if host == self.client { self.server } else { self.client }
    }
}

/// A word that was said.
#[derive(Debug, Clone)]
struct Word {
    what: String,
    to: usize,
    payload: Vec<u8>,
}

/// Two devices, their connections, and what was said on them.
pub struct Talk {
    /// Where they are.
    pub world: World,
    /// What chooses who says what, and when.
    pub random: Random,
    pair: [usize; 2],
    said: Vec<Word>,
    next_port: u16,
    /// Which gateways hold the newest revision.
    applied: BTreeSet<usize>,
    leaks: Vec<String>,
}

impl Talk {
    /// Two devices of a world, by their places, that haven't said anything yet.
    #[must_use]
    pub fn new(world: World, pair: [usize; 2], seed: u64) -> Self {
        Self {
            world,
            random: Random::new(seed ^ 0x5eed),
            pair,
            said: Vec::new(),
            next_port: 50_000,
            applied: BTreeSet::new(),
            leaks: Vec::new(),
        }
    }

    /// Opens a connection. Whether the SYN was answered is for [`Self::is_open`] to tell, later.
    pub fn open(&mut self, client: usize, server: usize, port: u16) -> Connection {
        let own = self.next_port;
        self.next_port += 1;
        let connection = Connection { client, server, client_port: own, port };
        let target = (self.world.hosts[server].address, port);
        self.world.act(client, |host, out| host.connect(target, own, b"hello", out));
        connection
    }

    /// Whether a connection's one SYN was answered.
    #[must_use]
    pub fn is_open(&self, connection: &Connection) -> bool {
        let answer = TcpFlags::SYN | TcpFlags::ACK;
        self.world.hosts[connection.client]
            .inbox
            .iter()
            .any(|got| got.port == connection.client_port && got.flags == answer)
    }

    /// Has one end say a word.
    pub fn say(&mut self, connection: &Connection, speaker: usize) {
        let listener = connection.other(speaker);
        let number = u32::try_from(self.said.len()).unwrap_or(u32::MAX);
        let payload = [MARK, &number.to_be_bytes()].concat();
        let to = (self.world.hosts[listener].address, connection.end(listener));
        let own = connection.end(speaker);
        self.world.act(speaker, |host, out| {
            let flags = TcpFlags::ACK | TcpFlags::PSH;
            host.send(packet::tcp((host.address, own), to, flags, &payload), out);
        });
        let what = format!(
            "{number}: {} at {:?} on {connection:?}",
            self.world.hosts[speaker].name,
            self.world.elapsed()
        );
        self.said.push(Word { what, to: listener, payload });
    }

    /// Says a few words in quick succession, from both ends, at odd moments.
    pub fn chatter(&mut self, connections: &[Connection], words: usize) {
        for _ in 0..words {
            let connection = *self.random.pick(connections);
            let speaker = *self.random.pick(&self.pair);
            self.say(&connection, speaker);
            let micros = self.random.next() % 1_500;
            self.run(Duration::from_micros(micros));
        }
    }

    /// A new revision is about to be applied: no gateway holds it yet.
    pub fn revised(&mut self) {
        self.applied.clear();
    }

    /// Applies the newest revision at one gateway.
    pub fn apply(&mut self, gateway: usize) {
        self.world.apply(gateway);
        // What it had sent before is on the cable yet.
        self.run(Duration::from_micros(250));
        self.applied.insert(gateway);
    }

    /// Lets time pass, and watches what the campus carries meanwhile.
    pub fn run(&mut self, time: Duration) {
        let before = self.world.campus.len();
        self.world.run(time);
        let plan = &self.world.plan;
        let modes = self.pair.map(|device| plan.member(device).mode);
        if PairPath::of(modes[0], modes[1]) != PairPath::Tunnel {
            return;
        }
        for device in self.pair {
            let gateway = plan.devices[device].gateway;
            if plan.member(device).mode != Mode::Enforce || !self.applied.contains(&gateway) {
                continue;
            }
            for seen in &self.world.campus[before..] {
                if seen.from == Cable::Gateway(gateway) && says(&seen.bytes) {
                    self.leaks
                        .push(format!("{} said {:02x?}", self.world.hosts[device].name, seen));
                }
            }
        }
    }

    /// How many words were said.
    #[must_use]
    pub fn said(&self) -> usize {
        self.said.len()
    }

    /// What was said and never heard: who said it, when, and on which connection.
    #[must_use]
    pub fn lost(&self) -> Vec<String> {
        let heard: BTreeSet<(usize, &[u8])> = self
            .pair
            .into_iter()
            .flat_map(|host| {
                self.world.hosts[host].inbox.iter().map(move |got| (host, got.payload.as_slice()))
            })
            .collect();
        self.said
            .iter()
            .filter(|word| !heard.contains(&(word.to, word.payload.as_slice())))
            .map(|word| word.what.clone())
            .collect()
    }

    /// What an enforced device of a pair whose path is the tunnel said on the campus.
    #[must_use]
    pub fn leaks(&self) -> &[String] {
        &self.leaks
    }

    /// Whether the campus carried a word since it had carried `from` frames.
    #[must_use]
    pub fn overheard(&self, from: usize) -> bool {
        self.world.campus[from..].iter().any(|seen| says(&seen.bytes))
    }
}

fn says(bytes: &[u8]) -> bool {
    bytes.windows(MARK.len()).any(|window| window == MARK)
}
