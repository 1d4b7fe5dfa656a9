//! Crowds of strangers at the doors of the controller and of a relay that stands alone: first packets of QUIC handshakes
//! in made-up names, and TCP connections that say nothing.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use anteroom_e2e::attack;
use anteroom_lab::packet::PacketSocket;
use tokio::task::JoinSet;

use super::*;

/// First packets a second, at each door.
const RATE: u64 = 1_000;
/// Different handshakes, until they come again: more than there are places for strangers.
const HANDSHAKES: u64 = 384;
/// How many of them are begun at once.
const AT_ONCE: u64 = 32;
/// Connections over TCP that the stranger holds at each door.
const SILENT: usize = 300;

/// The first datagrams of handshakes with somebody who never answers, each handshake's together.
fn first_packets(stranger: &Host, at: Ipv4Addr) -> Vec<Vec<Vec<u8>>> {
    stranger
        .enter(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let rounds = (0..HANDSHAKES / AT_ONCE)
                .map(|round| runtime.block_on(begin(at, round * AT_ONCE..(round + 1) * AT_ONCE)));
            rounds.flatten().collect()
        })
        .unwrap()
}

async fn begin(at: Ipv4Addr, seeds: std::ops::Range<u64>) -> Vec<Vec<Vec<u8>>> {
    let nobody = tokio::net::UdpSocket::bind((at, 0)).await.unwrap();
    let to = nobody.local_addr().unwrap();
    let mut asking = JoinSet::new();
    for seed in seeds {
        asking.spawn(async move {
            let mut own = [5; 32];
            own[..8].copy_from_slice(&seed.to_be_bytes());
            let [own, theirs] = [own, [6; 32]].map(|seed| IdentityKey::from_seed(&seed));
            let protocol = if seed.is_multiple_of(2) { Protocol::Relay } else { Protocol::Control };
            endpoint::connect_for(to, &own, &[theirs.public()], protocol).await.map(drop)
        });
    }
    let mut heard: BTreeMap<SocketAddr, Vec<Vec<u8>>> = BTreeMap::new();
    let all = usize::try_from(AT_ONCE).unwrap();
    let hear = async {
        let mut buffer = [0; 2_048];
        // A greeting with ML-KEM takes two.
        while heard.len() < all || heard.values().any(|datagrams| datagrams.len() < 2) {
            let (len, from) = nobody.recv_from(&mut buffer).await.unwrap();
            heard.entry(from).or_default().push(buffer[..len].to_vec());
        }
    };
    tokio::time::timeout(DEADLINE, hear).await.unwrap();
    heard.into_values().map(|datagrams| datagrams.into_iter().take(2).collect()).collect()
}

/// Who crowds a door until it is dropped.
struct Crowd {
    stop: Arc<AtomicBool>,
    packets: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Begins at a door which the router reaches by this interface.
    fn start(
        hospital: &Hospital,
        (door, network): (&Host, &str),
        at: SocketAddr,
        handshakes: &[Vec<Vec<u8>>],
    ) -> Self {
        let SocketAddr::V4(to) = at else { unreachable!("the lab has no IPv6") };
        let macs = (door.mac("eth0").unwrap(), hospital.router.mac(network).unwrap());
        // Each handshake comes from a network of its own.
        let frames: Vec<Vec<u8>> = (0_u16..)
            .zip(handshakes)
            .flat_map(|(number, datagrams)| {
                let [high, low] = number.to_be_bytes();
                let from = (Ipv4Addr::new(198, 18 + high, low, 7), 1_024 + number);
                let ends = (from, (*to.ip(), to.port()));
                datagrams.iter().map(move |datagram| {
                    let packet = attack::plain_udp(ends, datagram);
                    attack::frame(macs.0, macs.1, 0x0800, &packet)
                })
            })
            .collect();
        let socket = hospital.router.enter(|| PacketSocket::open_on(network, 0)).unwrap().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let [packets, connections] = [0, 1].map(|_| Arc::new(AtomicU64::new(0)));
        let (ended, count) = (stop.clone(), packets.clone());
        let floods = std::thread::spawn(move || {
            let (begun, mut sent) = (Instant::now(), 0_u64);
            let mut next = frames.iter().cycle();
            while !ended.load(Relaxed) {
                let due = begun.elapsed().as_millis() as u64 * RATE / 1_000;
                // After a pause of the machine's the flood goes on; it doesn't come all at once.
                sent = sent.max(due.saturating_sub(RATE / 20));
                while sent < due {
                    sent += 1;
                    let taken = socket.send(next.next().unwrap()).is_ok();
                    count.fetch_add(u64::from(taken), Relaxed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let (ended, count) = (stop.clone(), connections.clone());
        let intruder = hospital.machine("intruder").host.clone();
        let stands = move || {
            let mut silent = VecDeque::new();
            while !ended.load(Relaxed) {
                if let Ok(stream) = TcpStream::connect_timeout(&at, Duration::from_millis(500)) {
                    count.fetch_add(1, Relaxed);
                    silent.push_back(stream);
                }
                if silent.len() > SILENT {
                    silent.pop_front();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let stands = std::thread::spawn(move || intruder.enter(stands).unwrap());
        Self { stop, packets, connections, threads: vec![floods, stands] }
    }

    /// Waits until so much more has come to the door.
    fn goes_on(&self, packets: u64, connections: u64) {
        let before = [&self.packets, &self.connections].map(|count| count.load(Relaxed));
        wait::until_ok(DEADLINE, "the crowd", || {
            let now = [&self.packets, &self.connections].map(|count| count.load(Relaxed));
            let more = [now[0] - before[0], now[1] - before[1]];
            ensure!(more[0] >= packets && more[1] >= connections, "{more:?} more");
            Ok(())
        })
        .unwrap();
    }

    /// First packets that were sent, and connections that were made.
    fn stop(mut self) -> [u64; 2] {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        [&self.packets, &self.connections].map(|count| count.load(Relaxed))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

#[test]
fn crowds_at_controller_and_relay_stop_no_transfer_and_keep_out_no_gateway_that_restarts() {
    let test = "crowds::crowds_at_controller_and_relay_stop_no_transfer_and_keep_out_no_gateway_that_restarts";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    talk::allow(&fixture.hospital);
    let mut relays = Relays { fixture, running: Vec::new() };
    let code = relays.start("east", "ws-1", 4_500);
    relays.signed(&["relay", "add", "east", "--code", &code]);
    relays.wait_for_guests(&["east"]);
    let hospital = &relays.fixture.hospital;
    hospital.router.ip("rule add pref 10 ipproto udp dport 51820 blackhole").unwrap();
    // What answers go to is nobody's.
    hospital.router.ip("route add blackhole 198.18.0.0/15").unwrap();
    wait_until(hospital, "packets to take a relay", |_, relay| !relay.is_null());
    let [ct, pacs] = ["ct-1", "pacs-1"].map(|name| hospital.machine(name).clone());
    let mut talk = Talk::start(&ct, &pacs);
    talk.goes_on(256 << 10, "by a relay");

    let intruder = hospital.machine("intruder");
    let handshakes = first_packets(&intruder.host, intruder.address());
    assert_eq!(handshakes.len() as u64, HANDSHAKES);
    let stalls = Stalls::watch().unwrap();
    let pinging = Pinging::start_within(&ct.host, pacs.address(), MANY, BEAT, WINDOW).unwrap();
    let east = hospital.machine("ws-1");
    let control = SocketAddr::from((hospital.controller.address, hospital.controller.quic_port));
    let crowds = [
        Crowd::start(hospital, (&hospital.controller.host, "mgmt"), control, &handshakes),
        Crowd::start(hospital, (&east.host, "building"), east.at(4_500), &handshakes),
    ];
    for crowd in &crowds {
        crowd.goes_on(2 * HANDSHAKES, SILENT as u64);
    }
    talk.goes_on(1 << 20, "by a relay, beside crowds at every door");
    let series = pinging.stop().unwrap();
    eprintln!(
        "beside crowds: {} of {} pings lost, median {:?} us, p99 {:?} us; a thread waited for {:?} at worst",
        series.lost(),
        series.sent,
        series.percentile(0.5),
        series.percentile(0.99),
        stalls.worst()
    );

    // One that nobody needs is started anew, then one that the transfer goes through.
    for name in ["ward", "servers"] {
        let gateway = relays.fixture.hospital.gateway(name);
        gateway.kill().unwrap();
        gateway.start().unwrap();
        gateway.wait_running().unwrap();
        let begun = Instant::now();
        wait::until_ok(DEADLINE * 2, "a gateway to come back through the crowd", || {
            let status = relays.fixture.hospital.gateways[name].status()?;
            let control = &status["control"]["connected"];
            let at = status["relays"].as_array().context("relays")?;
            let all = at.len() == 2 && at.iter().all(|relay| relay["connected"] == true);
            ensure!(!control.is_null() && all, "{name}: {}, {at:?}", status["control"]);
            Ok(())
        })
        .unwrap();
        eprintln!("{name} was back after {:?}", begun.elapsed());
        talk.goes_on(256 << 10, &format!("after a restart of {name} beside the crowds"));
    }
    for crowd in &crowds {
        crowd.goes_on(HANDSHAKES, 10);
    }
    talk.stop();
    let came = crowds.map(Crowd::stop);
    eprintln!("first packets and silent connections at controller and relay: {came:?}");
}
