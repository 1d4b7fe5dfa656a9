//! A relay that operators named and somebody took over: it says each packet several times, now and later, under wrong
//! senders' names, and floods gateways with what no gateway sealed.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anteroom_e2e::wire::End;
use anteroom_e2e::{Stage, drops, fixture};
use anteroom_lab::hospital::{GATEWAYS, Hospital, address};
use anteroom_lab::ping::Pinging;
use anteroom_lab::topology::Host;
use anteroom_lab::wait;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::relay::code::RelayCode;
use anteroom_proto::relay::packet::{self, Datagram, HEADER_LEN, PeerNumber};
use anteroom_proto::relay::{FromRelay, MAX_TO_RELAY, PeerState, ToRelay, Welcome};
use anteroom_transport::endpoint;
use anteroom_transport::link::Connection;
use anteroom_transport::message::{MessageReader, MessageWriter};
use anteroom_transport::tls::Protocol;
use anyhow::{Context as _, ensure};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::thief::Detour;
use super::{BEAT, DEADLINE, MANY, Relays, wait_for};

/// Between two bursts of the flood at each gateway.
const BURST_EVERY: Duration = Duration::from_millis(5);
/// Datagrams in one burst: 2,400 a second.
const BURST: usize = 12;
/// Packets that are kept to be said again.
const KEPT: usize = 256;
/// The port that it listens on.
pub(super) const PORT: u16 = 4_500;

/// What it does with what gateways give it to carry.
#[derive(Debug)]
pub(super) enum Manner {
    /// Says it again, and lies.
    Lies,
    /// Hands it on by UDP where it can.
    Detours(Arc<Detour>),
}

/// Who is connected, by the gateway's place in [`GATEWAYS`], and what was done to them.
#[derive(Debug)]
pub(super) struct Guests {
    manner: Manner,
    /// Where gateways come from.
    homes: [IpAddr; 3],
    ids: [GatewayId; 3],
    here: Mutex<BTreeMap<usize, Connection>>,
    carried: AtomicU64,
    repeated: AtomicU64,
    misnamed: AtomicU64,
    made_up: AtomicU64,
}

impl Guests {
    fn new(manner: Manner, homes: [IpAddr; 3], ids: [GatewayId; 3]) -> Self {
        let (carried, repeated, misnamed, made_up) = Default::default();
        let here = Mutex::default();
        Self { manner, homes, ids, here, carried, repeated, misnamed, made_up }
    }

    fn at(&self, place: usize) -> Option<Connection> {
        self.here.lock().unwrap().get(&place).cloned()
    }

    pub(super) fn names(&self) -> Vec<usize> {
        self.here.lock().unwrap().keys().copied().collect()
    }
}

/// The relay, in a thread of its own. It ends with this value.
pub(super) struct Hostile {
    pub(super) code: String,
    pub(super) guests: Arc<Guests>,
    stop: watch::Sender<bool>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Where gateways are in their networks.
pub(super) fn homes() -> [IpAddr; 3] {
    GATEWAYS.map(|name| address(name, 2).into())
}

fn number(place: usize) -> PeerNumber {
    PeerNumber::new(u16::try_from(place).unwrap()).unwrap()
}

fn says(from: PeerNumber, sealed: &[u8]) -> Vec<u8> {
    [&packet::header(from, false)[..], sealed].concat()
}

/// Says something at once, whatever waits for its turn.
fn send(to: &Connection, datagram: Vec<u8>, count: &AtomicU64) {
    if to.send_datagram(datagram.into()).is_ok() {
        count.fetch_add(1, Relaxed);
    }
}

impl Hostile {
    pub(super) fn start(
        host: &Host,
        at: Ipv4Addr,
        (manner, homes): (Manner, [IpAddr; 3]),
        ids: [GatewayId; 3],
    ) -> Self {
        let identity = IdentityKey::from_seed(&[77; 32]);
        let addresses = vec![format!("{at}:{PORT}")];
        let code = RelayCode { key: identity.public(), addresses }.to_string();
        let guests = Arc::new(Guests::new(manner, homes, ids));
        let (stop, mut stopped) = watch::channel(false);
        let all = guests.clone();
        host.thread(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
                let endpoint = endpoint::listen_for(listen, &identity, &[Protocol::Relay]).unwrap();
                let changes = watch::Sender::new(0_u64);
                let accept = async {
                    while let Some(incoming) = endpoint.accept().await {
                        let (all, changes) = (all.clone(), changes.clone());
                        tokio::spawn(async move {
                            if let Ok(connection) = incoming.await {
                                serve(connection.into(), &all, &changes).await;
                            }
                        });
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
        })
        .unwrap();
        Self { code, guests, stop }
    }

    /// What it has done: carried, repeated, said of the wrong one, and made up.
    fn done(&self) -> [u64; 4] {
        let Guests { carried, repeated, misnamed, made_up, .. } = &*self.guests;
        [carried, repeated, misnamed, made_up].map(|count| count.load(Relaxed))
    }
}

/// Takes a gateway in, whatever its pass says, for as long as it stays.
async fn serve(connection: Connection, guests: &Arc<Guests>, changes: &watch::Sender<u64>) {
    let from = connection.remote_address().ip();
    let Some(own) = guests.homes.iter().position(|home| *home == from) else { return };
    let Ok((send, receive)) = connection.accept_bi().await else { return };
    let mut reader = MessageReader::<ToRelay>::new(receive, MAX_TO_RELAY);
    let mut writer = MessageWriter::<FromRelay>::new(send);
    let Ok(Some(ToRelay::Hello(hello))) = reader.next().await else { return };
    let observed = connection.remote_address();
    let welcome = Welcome { version: 1, authority: hello.authority, observed, rate: None };
    if writer.send(&FromRelay::Welcome(welcome)).await.is_err() {
        return;
    }
    guests.here.lock().unwrap().insert(own, connection.clone());
    changes.send_modify(|count| *count += 1);
    let mut changed = changes.subscribe();
    changed.mark_changed();
    let tell = async {
        while changed.changed().await.is_ok() {
            let states = guests.ids.iter().enumerate().filter(|(place, _)| *place != own);
            let states = states.map(|(place, id)| {
                let room = guests.at(place).and_then(|peer| peer.max_datagram_size());
                let room = room.and_then(|room| u16::try_from(room - HEADER_LEN).ok());
                PeerState { gateway: *id, number: number(place), room }
            });
            if writer.send(&FromRelay::Peers(states.collect())).await.is_err() {
                break;
            }
        }
    };
    let listen = async { while let Ok(Some(_)) = reader.next().await {} };
    let treat = async {
        match &guests.manner {
            Manner::Lies => tokio::select! {
                () = carry(&connection, own, guests) => {}
                () = flood(&connection, own, guests) => {}
            },
            Manner::Detours(detour) => hand_over(&connection, own, guests, detour).await,
        }
    };
    tokio::select! {
        () = treat => {}
        () = tell => {}
        () = listen => {}
    }
    let mut here = guests.here.lock().unwrap();
    if here.get(&own).is_some_and(|now| now.close_reason().is_some()) {
        here.remove(&own);
    }
    drop(here);
    changes.send_modify(|count| *count += 1);
}

/// Carries what a gateway sends: twice, once more under another's name and once under nobody's, and with each packet an
/// old one.
async fn carry(connection: &Connection, own: usize, guests: &Guests) {
    let mut kept: VecDeque<(usize, Vec<u8>)> = VecDeque::new();
    while let Ok(datagram) = connection.read_datagram().await {
        let Some(Datagram::Packet { peer, sealed, .. }) = packet::parse(&datagram) else {
            continue;
        };
        let whom = usize::from(peer.get());
        let Some(to) = guests.at(whom) else { continue };
        // The lie comes first, as one that is to be believed would.
        let another = (0..3).find(|place| *place != own && *place != whom).unwrap();
        for liar in [number(another), number(whom), PeerNumber::new(99).unwrap()] {
            send(&to, says(liar, sealed), &guests.misnamed);
        }
        send(&to, says(number(own), sealed), &guests.carried);
        send(&to, says(number(own), sealed), &guests.repeated);
        kept.push_back((whom, sealed.to_vec()));
        if kept.len() > KEPT
            && let Some((whom, old)) = kept.pop_front()
            && let Some(to) = guests.at(whom)
        {
            send(&to, says(number(own), &old), &guests.repeated);
        }
    }
}

/// Carries what a gateway sends: by UDP, once it is known where the other one is to be found by that.
async fn hand_over(connection: &Connection, own: usize, guests: &Guests, detour: &Detour) {
    while let Ok(datagram) = connection.read_datagram().await {
        let Some(Datagram::Packet { peer, sealed, .. }) = packet::parse(&datagram) else {
            continue;
        };
        let whom = usize::from(peer.get());
        if !detour.hand(whom, sealed)
            && let Some(to) = guests.at(whom)
        {
            send(&to, says(number(own), sealed), &guests.carried);
        }
    }
}

/// Bytes that look like nothing.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    next.take(len).collect()
}

/// Sends a gateway what nobody sealed, as fast as its connection takes it within bounds.
async fn flood(connection: &Connection, own: usize, guests: &Guests) {
    let mut ticks = tokio::time::interval(BURST_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let peers: Vec<usize> = (0..3).filter(|place| *place != own).collect();
    let mut seed = 0_u64;
    loop {
        ticks.tick().await;
        for _ in 0..BURST {
            seed += 1;
            let kind = usize::try_from(seed % 6).unwrap();
            // All kinds of WireGuard's messages in their sizes, and what is none of them.
            let (word, len) = [(1, 148), (2, 92), (3, 64), (4, 112), (4, 1_000), (9, 80)][kind];
            let mut sealed = noise(seed, len);
            sealed[..4].copy_from_slice(&[word, 0, 0, 0]);
            let peer = peers[usize::try_from(seed / 6 % 2).unwrap()];
            let datagram = says(number(peer), &sealed);
            if connection.send_datagram_wait(datagram.into()).await.is_err() {
                return;
            }
            guests.made_up.fetch_add(1, Relaxed);
        }
    }
}

pub(super) fn id_of(hospital: &Hospital, gateway: &str) -> GatewayId {
    let status = hospital.gateways[gateway].status().unwrap();
    let id = status["data_plane"]["engine"]["gateway"].as_str().unwrap();
    id.parse().unwrap()
}

/// How often each echo request of `from` came out at a device, by what tells it from others.
fn requests(end: &mut End, from: Ipv4Addr, seen: &mut BTreeMap<[u8; 4], u32>) {
    end.listen(Duration::ZERO).unwrap();
    for frame in end.take() {
        let is_request = frame.get(12..14) == Some(&[8, 0])
            && frame.get(23) == Some(&1)
            && frame.get(26..30) == Some(&from.octets())
            && frame.get(34) == Some(&8);
        if let (true, Some(name)) = (is_request, frame.get(38..42)) {
            *seen.entry(name.try_into().unwrap()).or_default() += 1;
        }
    }
}

/// Packets that relays brought a gateway and that its connections there dropped.
fn dropped_at_relays(hospital: &Hospital, gateway: &str) -> anyhow::Result<u64> {
    let status = hospital.gateways[gateway].status()?;
    let relays = status["relays"].as_array().context("relays")?;
    Ok(relays.iter().filter_map(|relay| relay["dropped"].as_u64()).sum())
}

#[test]
fn a_relay_that_replays_floods_and_lies_brings_each_packet_once_and_stops_nothing() {
    let test =
        "hostile::a_relay_that_replays_floods_and_lies_brings_each_packet_once_and_stops_nothing";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let mut relays = Relays { fixture, running: Vec::new() };
    let hospital = &relays.fixture.hospital;
    let ids = GATEWAYS.map(|gateway| id_of(hospital, gateway));
    let machine = hospital.machine("ws-1");
    let manner = (Manner::Lies, homes());
    let hostile = Hostile::start(&machine.host, machine.address(), manner, ids);
    relays.signed(&["relay", "add", "east", "--code", &hostile.code]);
    relays.wait_for_guests(&["east"]);
    wait::until_ok(DEADLINE, "all gateways to be there", || {
        let here = hostile.guests.names();
        ensure!(here.len() == 3, "{here:?}");
        Ok(())
    })
    .unwrap();

    wait_for(&relays.fixture.hospital, "direct paths", "proved", false);

    // There is no other relay, and no tunnel gets through.
    relays.fixture.hospital.controller.kill().unwrap();
    let hospital = &relays.fixture.hospital;
    let rule = "pref 10 ipproto udp dport 51820 blackhole";
    hospital.router.ip(&format!("rule add {rule}")).unwrap();
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
    let mut end = End::open(&pacs.host, "eth0").unwrap();
    let mut seen = BTreeMap::new();
    let before = drops(&hospital.gateways["servers"]).unwrap();
    let pinging = Pinging::start(&ct.host, pacs.address(), MANY, BEAT).unwrap();
    let mut more = |what: &str| {
        let before = pinging.received();
        wait::until(DEADLINE, what, || {
            requests(&mut end, ct.address(), &mut seen);
            (pinging.received() > before + 400).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", hostile.done()));
    };
    wait_for(hospital, "packets to take the relay", "died", true);
    more("pings by a relay that replays, floods and lies");
    let [carried, repeated, misnamed, made_up] = hostile.done();
    for (what, count) in
        [("carried", carried), ("repeated", repeated), ("misnamed", misnamed), ("made up", made_up)]
    {
        assert!(count > 400, "{what}: {count} only");
    }

    // The relay is worth nothing, and costs nothing but itself.
    hospital.router.ip(&format!("rule del {rule}")).unwrap();
    wait_for(hospital, "packets to go directly", "proved", false);
    more("pings beside it");
    let series = pinging.stop().unwrap();
    requests(&mut end, ct.address(), &mut seen);

    let twice = seen.values().filter(|times| **times > 1).count();
    assert_eq!(twice, 0, "of {} requests that came some came more than once", seen.len());
    assert!(seen.len() > 400, "{} requests were seen, {series:?}", seen.len());
    let after = drops(&hospital.gateways["servers"]).unwrap();
    let grown = |reason: &str| after.get(reason).unwrap_or(&0) - before.get(reason).unwrap_or(&0);
    // Each packet that came was said once more, and under the ward's name.
    assert!(grown("peer-unauthenticated") > 400, "{before:?} {after:?}");
    for gateway in ["imaging", "servers"] {
        let dropped = dropped_at_relays(hospital, gateway).unwrap();
        assert!(dropped > 400, "{gateway} turned away {dropped} of nobody's");
    }
    eprintln!(
        "{carried} carried, {repeated} again, {misnamed} of the wrong one, {made_up} made up; {} of {} pings lost, none came twice; turned away: {after:?}",
        series.lost(),
        series.sent,
    );
}
