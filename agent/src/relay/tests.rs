//! Connections to relays over real QUIC, with relays and a data plane that do as the tests say.

use std::time::Duration;

use anteroom_agent_core::target::{RelayPath, Through};
use anteroom_proto::authority::{Controller, Relay};
use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::packet::{self, Datagram, PeerNumber};
use anteroom_proto::relay::pass::PassNumber;
use anteroom_proto::relay::{
    FromRelay, Hello, MAX_TO_RELAY, PeerState, Refusal, RefusalCode, ToRelay, Welcome,
};
use anteroom_proto::time::UnixMillis;
use anteroom_transport::endpoint;
use anteroom_transport::link::Connection;
use anteroom_transport::message::{MessageReader, MessageWriter};
use anteroom_transport::tls::{self, Protocol};
use tokio::time::timeout;

use super::link::Problem;
use super::*;
use crate::dataplane::fake::{FakeWorker, Told};
use crate::dataplane::relayed::Queues;
use crate::testkit::{GATEWAY, ORGANISATION, Organisation, nowhere};

mod away;
mod carriers;
mod overtaking;

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited for {what} in vain"))
}

fn peer(n: u8) -> GatewayId {
    GatewayId::from_bytes([n; 16])
}

fn number(n: u16) -> PeerNumber {
    PeerNumber::new(n).unwrap()
}

fn identity() -> IdentityKey {
    IdentityKey::from_seed(&[3; 32])
}

fn sealed(mark: u8) -> Vec<u8> {
    let mut bytes = vec![mark; 120];
    bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
    bytes
}

/// A relay as a gateway meets it.
struct FakeRelay {
    endpoint: quinn::Endpoint,
    key: PublicKey,
}

/// One gateway's connection there.
struct Guest {
    connection: Connection,
    reader: MessageReader<ToRelay>,
    writer: MessageWriter<Words>,
    hello: Hello,
}

/// What a relay says.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Words {
    Known(FromRelay),
    /// In another version's words.
    Unknown(BTreeMap<&'static str, u8>),
}

impl FakeRelay {
    fn new(seed: u8) -> Self {
        let identity = IdentityKey::from_seed(&[seed; 32]);
        let address = "127.0.0.1:0".parse().unwrap();
        let endpoint = endpoint::listen_for(address, &identity, &[Protocol::Relay]).unwrap();
        Self { endpoint, key: identity.public() }
    }

    fn named(&self) -> Relay {
        let address = self.endpoint.local_addr().unwrap();
        let addresses = vec![nowhere().to_string(), address.to_string()];
        Relay {
            name: format!("relay-{}", address.port()).parse().unwrap(),
            key: self.key,
            addresses,
        }
    }

    /// The next gateway that says hello. One whose patience ends before this relay gets to it comes again.
    async fn greet(&self) -> Guest {
        soon("a gateway", async {
            loop {
                let incoming = self.endpoint.accept().await.unwrap();
                if let Some(guest) = Self::hello(incoming).await {
                    return guest;
                }
            }
        })
        .await
    }

    async fn hello(incoming: quinn::Incoming) -> Option<Guest> {
        Self::hear(incoming.await.ok()?.into()).await
    }

    async fn hear(connection: Connection) -> Option<Guest> {
        let (send, receive) = connection.accept_bi().await.ok()?;
        let mut reader = MessageReader::<ToRelay>::new(receive, MAX_TO_RELAY);
        match reader.next().await.ok()?? {
            ToRelay::Hello(hello) => {
                Some(Guest { connection, reader, writer: MessageWriter::new(send), hello: *hello })
            }
            other => panic!("no hello but {other:?}"),
        }
    }
}

impl Guest {
    async fn say(&mut self, message: FromRelay) {
        self.utter(Words::Known(message)).await;
    }

    async fn utter(&mut self, words: Words) {
        soon("a message to be taken", self.writer.send(&words)).await.unwrap();
    }

    async fn welcome(&mut self) {
        let observed = self.connection.remote_address();
        let welcome = Welcome { version: 1, authority: 2, observed, rate: None };
        self.say(FromRelay::Welcome(welcome)).await;
    }

    async fn tell(&mut self, states: &[(u8, u16, Option<u16>)]) {
        let state = |(n, called, room): &(u8, u16, Option<u16>)| PeerState {
            gateway: peer(*n),
            number: number(*called),
            room: *room,
        };
        self.say(FromRelay::Peers(states.iter().map(state).collect())).await;
    }
}

/// A gateway that knows one relay beside its controller, which nobody answers for.
struct Bed {
    relay: FakeRelay,
    worker: FakeWorker,
    organisation: Organisation,
    known: watch::Sender<Known>,
    heeded: watch::Receiver<Option<u64>>,
    status: watch::Receiver<Vec<RelayStatus>>,
    mtu: watch::Sender<Option<u16>>,
    /// Whoever changes its identity key is there for as long as the gateway.
    _renew: watch::Sender<IdentityKey>,
    _running: Task,
}

impl Bed {
    fn new() -> Self {
        let relay = FakeRelay::new(40);
        let named = relay.named();
        Self::with(relay, named)
    }

    /// One whose relay the authority names like this.
    fn with(relay: FakeRelay, named: Relay) -> Self {
        let mut organisation = Organisation::new(&[nowhere()]);
        organisation.extend(|next| next.relays = vec![named]);
        let (worker, handle) = FakeWorker::new();
        let (known, receiver) = watch::channel(Known::default());
        let (status_sender, status) = watch::channel(Vec::new());
        let (heeding, heeded) = watch::channel(None);
        let (mtu, renew) = (watch::Sender::new(None), watch::Sender::new(identity()));
        let who =
            Who { organisation: ORGANISATION, identity: renew.subscribe(), mtu: mtu.subscribe() };
        let table = Table::new(handle, status_sender).saying(heeding);
        let running = Task(tokio::spawn(run(who, receiver, Arc::new(table))));
        let chain = Some(Arc::new(organisation.followed()));
        known.send_modify(|known| known.chain = chain);
        Self {
            relay,
            worker,
            organisation,
            known,
            heeded,
            status,
            mtu,
            _renew: renew,
            _running: running,
        }
    }

    fn pass(&self, sequence: u64) -> Signed<RelayPass> {
        let pass = RelayPass {
            organisation: ORGANISATION,
            gateway: GATEWAY,
            identity: identity().public(),
            number: PassNumber { incarnation: 0, sequence },
            peers: vec![peer(5), peer(6)],
            issued_at: UnixMillis(1),
            lifetime: 3_600,
        };
        Signed::sign(&pass, &self.organisation.controller)
    }

    fn give_pass(&self, sequence: u64) {
        let pass = self.pass(sequence);
        self.known.send_modify(|known| known.pass = Some(pass));
    }

    /// Waits until the data plane was told that these relays reach a peer.
    async fn told(&mut self, n: u8, rooms: &[u16]) -> Vec<RelayPath> {
        soon("word of a peer", async {
            loop {
                if let Told::Relays(gateway, paths) = self.worker.told().await
                    && gateway == peer(n)
                    && paths.iter().map(|path| path.room).eq(rooms.iter().copied())
                {
                    return paths;
                }
            }
        })
        .await
    }

    /// Waits until the data plane has queues for a relay.
    async fn opened(&mut self) -> Queues {
        soon("queues", async {
            loop {
                if let Told::Opened(_, queues) = self.worker.told().await {
                    return queues;
                }
            }
        })
        .await
    }

    /// Waits until a connection to the relay has ended of itself.
    fn ends(&self) -> impl Future<Output = ()> + use<> {
        let (key, mut status) = (self.relay.key.fingerprint().to_string(), self.status.clone());
        async move {
            let ended = |all: &Vec<RelayStatus>| {
                all.iter().any(|one| one.fingerprint == key && one.last_error.is_some())
            };
            let _ = status.wait_for(ended).await;
        }
    }

    async fn until(&mut self, what: &str, so: impl Fn(&RelayStatus) -> bool) {
        let key = self.relay.key.fingerprint().to_string();
        let so = |all: &Vec<RelayStatus>| all.iter().any(|one| one.fingerprint == key && so(one));
        let waited = timeout(DEADLINE, self.status.wait_for(so)).await.is_ok();
        assert!(waited, "never {what}: {:?}", *self.status.borrow());
    }
}

#[tokio::test]
async fn packets_go_through_a_relay_both_ways_and_it_is_said_who_is_there() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    let mut guest = bed.relay.greet().await;
    assert_eq!((guest.hello.authority, &*guest.hello.pass), (2, &bed.pass(1)));
    // A relay that knows less is told the rest of the chain.
    guest.say(FromRelay::AuthorityWanted { after: 1 }).await;
    match soon("documents", guest.reader.next()).await.unwrap() {
        Some(ToRelay::Authority(documents)) => {
            assert_eq!(documents, bed.organisation.chain[1..]);
        }
        other => panic!("no documents but {other:?}"),
    }
    guest.welcome().await;
    let (opened, queues) = soon("queues", async {
        loop {
            if let Told::Opened(relay, queues) = bed.worker.told().await {
                return (relay, queues);
            }
        }
    })
    .await;
    guest.tell(&[(5, 0, Some(900)), (6, 1, None)]).await;
    let paths = bed.told(5, &[900]).await;
    bed.until("connected, with one peer", |relay| relay.connected && relay.peers == 1).await;

    queues.put(peer(5), &sealed(9));
    queues.put(peer(77), &sealed(8));
    let datagram = soon("a packet", guest.connection.read_datagram()).await.unwrap();
    let wanted = Datagram::Packet { peer: number(0), bulk: false, sealed: &sealed(9) };
    assert_eq!(packet::parse(&datagram), Some(wanted));
    bed.until("what is for nobody is counted", |relay| relay.dropped >= 1).await;

    for (from, mark) in [(0, 1), (3, 2), (1, 3)] {
        let bytes = [packet::header(number(from), false).as_slice(), &sealed(mark)].concat();
        guest.connection.send_datagram(bytes.into()).unwrap();
    }
    let relay = paths[0].relay;
    assert_eq!(relay, opened);
    let first = soon("a packet", bed.worker.brought()).await;
    assert_eq!(first, (Through { relay, peer: peer(5) }, sealed(1)));
    let second = soon("a packet", bed.worker.brought()).await;
    assert_eq!(second, (Through { relay, peer: peer(6) }, sealed(3)), "3 is nobody's number");

    // A newer pass is shown at once, and who left is left.
    bed.give_pass(2);
    match soon("a pass", guest.reader.next()).await.unwrap() {
        Some(ToRelay::Pass(pass)) => assert_eq!(*pass, bed.pass(2)),
        other => panic!("no pass but {other:?}"),
    }
    guest.tell(&[(5, 0, None)]).await;
    bed.told(5, &[]).await;
}

#[tokio::test]
async fn without_a_pass_nobody_connects_and_a_lost_connection_is_made_again() {
    let mut bed = Bed::new();
    // The controller is looked for, as a relay, as little as the other.
    let early = timeout(Duration::from_millis(300), bed.relay.endpoint.accept()).await;
    assert!(early.is_err(), "nobody comes without a pass");
    bed.give_pass(1);
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    guest.tell(&[(5, 0, Some(1_000))]).await;
    bed.told(5, &[1_000]).await;
    guest.connection.close(1_u32.into(), b"the relay stops");
    bed.told(5, &[]).await;
    // Before the next greeting, which may end with an error of its own.
    let said = |relay: &RelayStatus| {
        relay.last_error.as_ref().is_some_and(|error| error.contains("the relay stops"))
    };
    bed.until("told why", said).await;
    let mut guest = bed.relay.greet().await;
    guest.say(FromRelay::Refused(Refusal::new(RefusalCode::Pass, "not this one"))).await;
    let said = |relay: &RelayStatus| {
        relay.last_error.as_ref().is_some_and(|error| error.contains("not this one"))
    };
    bed.until("told why", said).await;
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    bed.until("connected again", |relay| relay.connected && relay.last_error.is_none()).await;
    guest.tell(&[(5, 4, Some(1_000))]).await;
    bed.told(5, &[1_000]).await;
}

#[tokio::test]
async fn what_cant_be_read_of_a_relay_is_said_in_place_of_that_its_connection_ended() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    for welcome in [false, true] {
        let mut guest = bed.relay.greet().await;
        if welcome {
            guest.welcome().await;
            bed.until("connected", |relay| relay.connected && relay.last_error.is_none()).await;
        }
        guest.utter(Words::Unknown(BTreeMap::from([("waltz", 3)]))).await;
        let said = |relay: &RelayStatus| {
            let error = relay.last_error.as_deref().unwrap_or_default();
            !relay.connected && error.contains("isn't a message of this protocol")
        };
        bed.until("told what it sent", said).await;
    }
}

#[tokio::test]
async fn a_relay_that_the_authority_names_no_more_is_left() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    guest.tell(&[(5, 0, Some(1_000))]).await;
    let relay = bed.told(5, &[1_000]).await[0].relay;
    bed.organisation.extend(|next| next.relays.clear());
    let followed = bed.organisation.followed();
    let number = followed.newest().number;
    assert_eq!(*bed.heeded.borrow(), Some(number - 1));
    bed.known.send_modify(|known| known.chain = Some(Arc::new(followed)));
    soon("the data plane to be told", async {
        let (mut closed, mut left, mut out) = (false, false, false);
        while !(closed && left) {
            match bed.worker.told().await {
                Told::TakenOut(relays, addresses, document) => {
                    assert!(!closed, "before its queues are gone");
                    assert_eq!(relays, [relay]);
                    assert!(addresses.is_empty(), "the controller is at the same: {addresses:?}");
                    assert_eq!(document, number);
                    out = true;
                }
                Told::Closed(one) => {
                    assert!(out, "what it showed is forgotten");
                    closed |= one == relay;
                }
                Told::Relays(gateway, paths) => left |= gateway == peer(5) && paths.is_empty(),
                Told::Opened(..) => {}
            }
        }
    })
    .await;
    assert_eq!(*bed.heeded.borrow(), Some(number), "that it was told");
    soon("the end of the connection", guest.connection.closed()).await;
    let key = bed.relay.key.fingerprint().to_string();
    let gone = |all: &Vec<RelayStatus>| all.iter().all(|one| one.fingerprint != key);
    soon("the relay's leaving the status", bed.status.wait_for(gone)).await.unwrap();
}

/// Fifteen relays and a controller are all that there is room for.
#[tokio::test]
async fn a_relay_for_which_there_is_no_room_any_more_is_left_and_not_taken_out() {
    let relay = FakeRelay::new(40);
    let last = relay.named();
    let mut bed = Bed::with(relay, last.clone());
    bed.give_pass(1);
    let others = (50..64).map(|seed: u8| Relay {
        name: format!("other-{seed}").parse().unwrap(),
        key: IdentityKey::from_seed(&[seed; 32]).public(),
        addresses: vec![nowhere().to_string()],
    });
    let all: Vec<Relay> = others.chain([last]).collect();
    assert_eq!(all.len() + 1, MOST);
    bed.organisation.extend(|next| next.relays = all);
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    guest.tell(&[(5, 0, Some(1_000))]).await;
    let relay = bed.told(5, &[1_000]).await[0].relay;
    for controllers in [1, 2] {
        bed.organisation.extend(|next| {
            let one = next.controllers[0].clone();
            let key = |n: u8| IdentityKey::from_seed(&[90 + n; 32]).public();
            let more = (1..controllers).map(|n| Controller { key: key(n), ..one.clone() });
            next.controllers.extend(more);
        });
        let chain = Some(Arc::new(bed.organisation.followed()));
        bed.known.send_modify(|known| known.chain = chain);
    }
    soon("the end of its queues", async {
        loop {
            match bed.worker.told().await {
                Told::TakenOut(relays, ..) => panic!("operators name it: {relays:?}"),
                Told::Closed(one) if one == relay => return,
                _ => {}
            }
        }
    })
    .await;
}

/// A controller was replaced. The relay hears of it as soon as this gateway has a pass that is good then.
#[tokio::test]
async fn a_relay_hears_of_a_newer_authority_document_by_a_connection_that_loses_nothing() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    let mut guest = bed.relay.greet().await;
    assert_eq!(guest.hello.authority, 2);
    guest.welcome().await;
    let queues = bed.opened().await;
    guest.tell(&[(5, 0, Some(900))]).await;
    bed.told(5, &[900]).await;
    let replaced = IdentityKey::from_seed(&[41; 32]);
    bed.organisation.extend(|next| next.controllers[0].key = replaced.public());
    let chain = Some(Arc::new(bed.organisation.followed()));
    bed.known.send_modify(|known| known.chain = chain);
    let early = timeout(Duration::from_millis(300), bed.relay.endpoint.accept()).await;
    assert!(early.is_err(), "with no pass but the old controller's it would shut itself out");
    bed.organisation.controller = replaced;
    bed.give_pass(2);
    // It is shown at once, to a relay that can't judge it.
    match soon("a pass", guest.reader.next()).await.unwrap() {
        Some(ToRelay::Pass(pass)) => assert_eq!(*pass, bed.pass(2)),
        other => panic!("no pass but {other:?}"),
    }
    guest.say(FromRelay::PassRefused(Refusal::new(RefusalCode::Pass, "who is that?"))).await;
    // A relay that says no to the newer connection is asked again, and packets go by the one before.
    let mut better = bed.relay.greet().await;
    assert_eq!((better.hello.authority, &*better.hello.pass), (3, &bed.pass(2)));
    better.say(FromRelay::Refused(Refusal::new(RefusalCode::Busy, "not now"))).await;
    queues.put(peer(5), &sealed(1));
    let packet = async |guest: &Guest, called: u16, mark: u8| {
        let got = soon("a packet", async {
            loop {
                let datagram = guest.connection.read_datagram().await.unwrap();
                if let Some(Datagram::Packet { peer, sealed, .. }) = packet::parse(&datagram) {
                    return (peer, sealed.to_vec());
                }
            }
        });
        assert_eq!(got.await, (number(called), sealed(mark)));
    };
    packet(&guest, 0, 1).await;
    let mut better = bed.relay.greet().await;
    assert_eq!(better.hello.authority, 3);
    guest.say(FromRelay::Refused(Refusal::new(RefusalCode::Replaced, "by a newer one"))).await;
    guest.connection.close(1_u32.into(), b"replaced");
    queues.put(peer(5), &sealed(2));
    better.welcome().await;
    better.tell(&[(5, 3, Some(900))]).await;
    packet(&better, 3, 2).await;
    bed.until("well", |relay| relay.connected && relay.last_error.is_none()).await;

    // What isn't news is told to nobody.
    bed.known.send_modify(|_| {});
    let again = timeout(Duration::from_millis(300), bed.relay.endpoint.accept()).await;
    assert!(again.is_err(), "it knows");
    // A pass that is refused and one that is taken: the status says what is so.
    bed.give_pass(3);
    better.say(FromRelay::PassRefused(Refusal::new(RefusalCode::Pass, "not this one"))).await;
    bed.until("refused", |relay| relay.last_error.is_some()).await;
    better.say(FromRelay::PassTaken(PassNumber { incarnation: 0, sequence: 3 })).await;
    bed.until("taken", |relay| relay.last_error.is_none()).await;
}

/// Peers that a gateway has met by a connection keep their numbers, of which there are so many.
#[tokio::test]
async fn a_connection_that_has_met_too_many_peers_is_made_anew_and_ends_only_then() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    let queues = bed.opened().await;
    guest.tell(&[(5, 0, Some(900))]).await;
    bed.told(5, &[900]).await;
    bed.give_pass(2);
    match soon("a pass", guest.reader.next()).await.unwrap() {
        Some(ToRelay::Pass(pass)) => assert_eq!(*pass, bed.pass(2)),
        other => panic!("no pass but {other:?}"),
    }
    guest.say(FromRelay::PassRefused(Refusal::new(RefusalCode::Busy, "too many peers"))).await;
    let mut better = bed.relay.greet().await;
    assert_eq!(*better.hello.pass, bed.pass(2));
    // Until it is welcome there, the one before carries.
    assert!(guest.connection.close_reason().is_none(), "{:?}", guest.connection.close_reason());
    better.welcome().await;
    better.tell(&[(5, 3, Some(900))]).await;
    queues.put(peer(5), &sealed(1));
    let by_the_better = soon("a packet", async {
        loop {
            let datagram = better.connection.read_datagram().await.unwrap();
            if let Some(Datagram::Packet { peer, sealed, .. }) = packet::parse(&datagram) {
                return (peer, sealed.to_vec());
            }
        }
    });
    assert_eq!(by_the_better.await, (number(3), sealed(1)));
    bed.until("well", |relay| relay.connected && relay.last_error.is_none()).await;
    let again = timeout(Duration::from_millis(300), bed.relay.endpoint.accept()).await;
    assert!(again.is_err(), "one is enough");
}

#[tokio::test]
async fn a_connection_whose_packets_another_uplink_does_not_take_is_made_anew_and_loses_nothing() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    bed.mtu.send_replace(Some(1_500));
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    let queues = bed.opened().await;
    guest.tell(&[(5, 0, Some(1_440))]).await;
    soon("the search for the longest", async {
        while !matches!(
            bed.worker.told().await,
            Told::Relays(_, paths) if paths.first().is_some_and(|path| path.room > 1_300)
        ) {}
    })
    .await;
    bed.mtu.send_replace(Some(1_300));
    let mut better = bed.relay.greet().await;
    assert_eq!(better.hello.pass, guest.hello.pass);
    guest.say(FromRelay::Refused(Refusal::new(RefusalCode::Replaced, "by a newer one"))).await;
    queues.put(peer(5), &sealed(7));
    better.welcome().await;
    better.tell(&[(5, 3, Some(1_440))]).await;
    let datagram = soon("what waited", better.connection.read_datagram()).await.unwrap();
    let wanted = Datagram::Packet { peer: number(3), bulk: false, sealed: &sealed(7) };
    assert_eq!(packet::parse(&datagram), Some(wanted));
    bed.until("connected", |relay| relay.connected && !relay.over_tcp).await;
}

#[tokio::test]
async fn a_relay_that_grants_no_stream_is_given_up_as_one_that_says_nothing() {
    let mut bed = Bed::new();
    let tls = tls::server_config(&IdentityKey::from_seed(&[40; 32]), &[Protocol::Relay]).unwrap();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut grants = quinn::TransportConfig::default();
    grants.max_concurrent_bidi_streams(0_u8.into());
    config.transport_config(Arc::new(grants));
    bed.relay.endpoint.set_server_config(Some(config));
    let endpoint = bed.relay.endpoint.clone();
    let _holding = Task(tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(incoming) = endpoint.accept().await {
            held.push(incoming.await);
        }
    }));
    bed.give_pass(1);
    let silent = Problem::Silent.to_string();
    bed.until("given up", |relay| relay.last_error.as_ref() == Some(&silent)).await;
}
