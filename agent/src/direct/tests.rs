//! Gateways over real QUIC on loopback, with data planes that do as the tests say.

mod parting;

use std::net::Ipv4Addr;
use std::sync::Mutex;

use anteroom_agent_core::target::Through;
use anteroom_proto::intent::PeerGateway;
use anteroom_proto::mode::Mode;
use anteroom_proto::overlay::gateway_address;
use tokio::time::timeout;

use super::*;
use crate::dataplane::fake::{FakeWorker, Told, Uplink};
use crate::dataplane::relayed::Queues;
use crate::testkit::{GATEWAY, ORGANISATION, Organisation};

const DEADLINE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited for {what} in vain"))
}

/// An address of this process's own.
fn address(end: u8) -> Ipv4Addr {
    let [_, a, b, c] = (std::process::id() << 2 | u32::from(end)).to_be_bytes();
    Ipv4Addr::new(127, a, b, c)
}

fn gateway(end: u8) -> GatewayId {
    GatewayId::from_bytes([end; 16])
}

fn identity(end: u8) -> IdentityKey {
    IdentityKey::from_seed(&[end; 32])
}

/// A peer that is said to take connections at this port.
fn peer(end: u8, quic: Option<u16>) -> Peer {
    Peer {
        gateway: PeerGateway {
            gateway: gateway(end),
            identity: identity(end).public(),
            overlay: gateway_address(ORGANISATION, gateway(end)),
        },
        endpoints: vec![SocketAddr::from((address(end), 51_820))],
        keys: Vec::new(),
        quic,
    }
}

fn view(peers: Vec<Peer>) -> Option<Arc<View>> {
    let organisation = Organisation::new(&[]);
    let mut view = organisation.verified(&organisation.view(1, 1, Mode::Observe));
    assert_eq!(view.intent.gateway, GATEWAY);
    view.peers = peers;
    Some(Arc::new(view))
}

enum Saw {
    Told(Told),
    Brought(Through, Vec<u8>),
}

/// One gateway.
struct End {
    saw: mpsc::UnboundedReceiver<Saw>,
    indirect: Arc<Mutex<Vec<GatewayId>>>,
    uplink: Uplink,
    views: watch::Sender<Option<Arc<View>>>,
    status: watch::Receiver<DirectStatus>,
    _stop: watch::Sender<()>,
    _tasks: Vec<Task>,
}

impl End {
    fn new(end: u8, port: Option<u16>, peers: Vec<Peer>) -> Self {
        let (mut worker, handle) = FakeWorker::new();
        let (indirect, uplink) = (worker.indirect.clone(), worker.uplink.clone());
        let (sees, saw) = mpsc::unbounded_channel();
        let pump = tokio::spawn(async move {
            loop {
                let (told, brought) = worker.split();
                let seen = tokio::select! {
                    told = told => Saw::Told(told),
                    (from, bytes) = brought => Saw::Brought(from, bytes),
                };
                if sees.send(seen).is_err() {
                    return;
                }
            }
        });
        let (status_sender, status) = watch::channel(DirectStatus::default());
        let (views, seen) = watch::channel(view(peers));
        let table = Arc::new(Table::new(handle.clone(), watch::channel(Vec::new()).0));
        let telling = tokio::spawn({
            let table = table.clone();
            async move { table.keep_telling().await }
        });
        let who = Who {
            gateway: gateway(end),
            identity: watch::channel(identity(end)).1,
            bind: address(end).into(),
            port,
            shared: false,
        };
        let (_stop, stop) = watch::channel(());
        let running = tokio::spawn(run(who, seen, handle, table, status_sender, stop));
        let _tasks = [pump, telling, running].map(Task).into();
        Self { saw, indirect, uplink, views, status, _stop, _tasks }
    }

    /// Waits until the data plane was told of a way to a peer, and has queues for it.
    async fn way(&mut self, end: u8) -> (RelayId, Queues) {
        soon("a way", async {
            let mut opened: HashMap<RelayId, Queues> = HashMap::new();
            loop {
                match self.saw.recv().await.unwrap() {
                    Saw::Told(Told::Opened(relay, queues)) => {
                        opened.insert(relay, queues);
                    }
                    Saw::Told(Told::Relays(to, paths)) if to == gateway(end) => {
                        let Some(path) = paths.first() else { continue };
                        assert!(path.relay.is_direct() && path.room >= 1_100, "{path:?}");
                        if let Some(queues) = opened.remove(&path.relay) {
                            return (path.relay, queues);
                        }
                    }
                    Saw::Told(Told::Closed(relay)) => {
                        opened.remove(&relay);
                    }
                    _ => {}
                }
            }
        })
        .await
    }

    /// Waits until the data plane was told that there is no way to a peer.
    async fn no_way(&mut self, end: u8) {
        soon("the way's end", async {
            loop {
                if let Saw::Told(Told::Relays(to, paths)) = self.saw.recv().await.unwrap()
                    && to == gateway(end)
                    && paths.is_empty()
                {
                    return;
                }
            }
        })
        .await;
    }

    async fn brought(&mut self) -> (Through, Vec<u8>) {
        soon("a packet", async {
            loop {
                if let Saw::Brought(from, bytes) = self.saw.recv().await.unwrap() {
                    return (from, bytes);
                }
            }
        })
        .await
    }

    async fn until(&mut self, what: &str, so: impl FnMut(&DirectStatus) -> bool) {
        let waited = timeout(DEADLINE, self.status.wait_for(so)).await.is_ok();
        assert!(waited, "never {what}: {:?}", *self.status.borrow());
    }
}

fn sealed(mark: u8) -> Vec<u8> {
    let mut bytes = vec![mark; 120];
    bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
    bytes
}

#[tokio::test]
async fn two_that_have_no_direct_path_connect_once_and_carry_packets_until_one_is_no_peer() {
    const PORT: u16 = 4433;
    let mut low = End::new(1, Some(PORT), vec![peer(2, Some(PORT))]);
    // It is told later where the other takes connections: so there is one for certain.
    let mut high = End::new(2, Some(PORT), vec![peer(1, None)]);
    for end in [&mut low, &mut high] {
        end.until("listening", |status| status.listening.is_some()).await;
    }
    // While WireGuard's own packets get through, nobody connects.
    tokio::time::sleep(plan::PATIENCE + LOOK * 2).await;
    assert_eq!(low.status.borrow().peers, []);
    low.indirect.lock().unwrap().push(gateway(2));
    high.indirect.lock().unwrap().push(gateway(1));
    let (near, to_high) = low.way(2).await;
    let (far, to_low) = high.way(1).await;
    low.until("connected by itself", |status| {
        status.peers.iter().any(|link| link.dialled && link.address.is_some())
    })
    .await;
    high.until("connected by the other", |status| {
        status.peers.iter().any(|link| !link.dialled && link.address.is_some())
    })
    .await;

    to_high.put(gateway(2), &sealed(1));
    to_low.put(gateway(1), &sealed(2));
    // Whoever isn't at the other end gets nothing.
    to_high.put(gateway(9), &sealed(3));
    to_high.put(gateway(2), &sealed(4));
    assert_eq!(high.brought().await, (Through { relay: far, peer: gateway(1) }, sealed(1)));
    assert_eq!(high.brought().await, (Through { relay: far, peer: gateway(1) }, sealed(4)));
    assert_eq!(low.brought().await, (Through { relay: near, peer: gateway(2) }, sealed(2)));

    high.views.send_replace(view(vec![peer(1, Some(PORT))]));

    // One is revoked: the other lets go and answers no more.
    low.views.send_replace(view(Vec::new()));
    low.no_way(2).await;
    high.no_way(1).await;
    high.until("told why", |status| {
        status.peers.iter().any(|link| link.address.is_none() && link.last_error.is_some())
    })
    .await;
    let before = low.status.borrow().turned_away;
    low.until("knocked in vain", |status| status.turned_away > before).await;
    assert_eq!(low.status.borrow().peers, []);
    // It is a peer again.
    low.views.send_replace(view(vec![peer(2, Some(PORT))]));
    low.way(2).await;
}

#[tokio::test]
async fn one_that_takes_no_connections_makes_them() {
    const PORT: u16 = 4434;
    let mut taker = End::new(1, Some(PORT), vec![peer(2, None)]);
    let mut maker = End::new(2, None, vec![peer(1, Some(PORT))]);
    maker.indirect.lock().unwrap().push(gateway(1));
    let (_, to_taker) = maker.way(1).await;
    let (from, to_maker) = taker.way(2).await;
    to_taker.put(gateway(1), &sealed(1));
    to_maker.put(gateway(2), &sealed(2));
    assert_eq!(taker.brought().await, (Through { relay: from, peer: gateway(2) }, sealed(1)));
    assert_eq!(maker.brought().await.1, sealed(2));
    assert_eq!(maker.status.borrow().listening, None);
    // The taker is replaced by one with another identity key under the same id: it isn't that one any more.
    let mut other = peer(1, Some(PORT));
    other.gateway.identity = identity(7).public();
    maker.views.send_replace(view(vec![other]));
    maker.no_way(1).await;
    taker.no_way(2).await;
    maker
        .until("told that nobody answers", |status| {
            status.peers.iter().any(|link| {
                link.last_error.as_ref().is_some_and(|error| error.contains("no answer"))
            })
        })
        .await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_and_had_later() {
    const PORT: u16 = 4435;
    let taken = UdpSocket::bind((address(3), PORT)).unwrap();
    let mut end = End::new(3, Some(PORT), Vec::new());
    end.until("told of the taken port", |status| {
        status.problem.as_ref().is_some_and(|problem| problem.contains("underlay.quic"))
    })
    .await;
    drop(taken);
    end.until("listening", |status| status.listening.is_some() && status.problem.is_none()).await;
}

/// The other end, as a test has it.
fn raw(end: u8, port: Option<u16>, peers: &[u8]) -> Arc<Direct> {
    let socket = UdpSocket::bind((address(end), port.unwrap_or(0))).unwrap();
    let direct = Direct::open(socket, &identity(end), port.is_some(), None).unwrap();
    let caller = |end: &u8| Caller { key: identity(*end).public(), addresses: Vec::new() };
    direct.set_peers(&peers.iter().map(caller).collect::<Vec<_>>());
    Arc::new(direct)
}

#[tokio::test]
async fn one_that_stops_tells_its_peers() {
    const PORT: u16 = 4436;
    let mut taker = End::new(1, Some(PORT), vec![peer(2, None)]);
    let mut maker = End::new(2, None, vec![peer(1, Some(PORT))]);
    maker.indirect.lock().unwrap().push(gateway(1));
    maker.way(1).await;
    taker.way(2).await;
    drop(taker._stop);
    maker.no_way(1).await;
    maker
        .until("told why", |status| {
            let error = status.peers.first().and_then(|link| link.last_error.as_ref());
            error.is_some_and(|error| error.contains("the agent stops"))
        })
        .await;
}

#[tokio::test]
async fn a_connection_is_left_when_the_next_carries_packets_and_not_before() {
    const PORT: u16 = 4438;
    let mut taker = End::new(1, Some(PORT), vec![peer(2, None)]);
    taker.until("listening", |status| status.listening.is_some()).await;
    let maker = raw(2, None, &[]);
    let (at, key) = (SocketAddr::from((address(1), PORT)), identity(1).public());
    let connect = || async {
        soon("a connection", async {
            loop {
                if let Ok(connection) = maker.connect(at, &key).await {
                    return connection;
                }
            }
        })
        .await
    };
    let before = connect().await;
    let (first, _queues) = taker.way(2).await;
    let after = connect().await;
    let mut best = first;
    soon("the first to go", async {
        loop {
            match taker.saw.recv().await.unwrap() {
                Saw::Told(Told::Relays(to, paths)) if to == gateway(2) => {
                    best = paths.first().expect("there is always a way").relay;
                }
                Saw::Told(Told::Closed(relay)) => {
                    assert_eq!(relay, first);
                    return;
                }
                _ => {}
            }
        }
    })
    .await;
    assert_ne!(best, first, "the next was told of before");
    soon("the end", before.closed()).await;
    assert!(after.close_reason().is_none());
}

/// What keeps one gateway's connections, with nobody who turns it: time stands still for it.
struct Alone {
    keeper: Keeper,
    happened: mpsc::Receiver<Event>,
    worker: FakeWorker,
    _identities: watch::Sender<IdentityKey>,
}

impl Alone {
    async fn new(end: u8, port: Option<u16>, peers: Vec<Peer>) -> Self {
        let (worker, handle) = FakeWorker::new();
        let table = Arc::new(Table::new(handle.clone(), watch::channel(Vec::new()).0));
        let (_identities, identity) = watch::channel(identity(end));
        let bind = address(end).into();
        let who = Who { gateway: gateway(end), identity, bind, port, shared: false };
        let (events, happened) = mpsc::channel(EVENTS);
        let mut keeper = Keeper::new(who, handle, table, events, watch::channel(<_>::default()).0);
        keeper.follow(view(peers)).await;
        keeper.open(Instant::now());
        Self { keeper, happened, worker, _identities }
    }
}

/// Hands on both ways between whoever comes to `at` and `to`.
async fn forward(at: SocketAddr, to: SocketAddr) -> Task {
    let [front, back] = [at, SocketAddr::new(at.ip(), 0)].map(tokio::net::UdpSocket::bind);
    let (front, back) = (front.await.unwrap(), back.await.unwrap());
    Task(tokio::spawn(async move {
        let (mut there, mut here, mut caller) = ([0; 2048], [0; 2048], None);
        loop {
            tokio::select! {
                Ok((len, from)) = front.recv_from(&mut there) => {
                    caller = Some(from);
                    let _ = back.send_to(&there[..len], to).await;
                }
                Ok((len, _)) = back.recv_from(&mut here) => {
                    if let Some(caller) = caller {
                        let _ = front.send_to(&here[..len], caller).await;
                    }
                }
            }
        }
    }))
}

/// Takes whoever comes to a port, and gives them to the test.
fn taking(end: u8, port: u16, peers: &[u8]) -> (mpsc::UnboundedReceiver<Connection>, Task) {
    let taker = raw(end, Some(port), peers);
    let (sender, came) = mpsc::unbounded_channel();
    let taking = tokio::spawn(async move {
        while let Some(guest) = taker.accept().await {
            if let Some(connection) = guest.greet().await {
                let _ = sender.send(connection);
            }
        }
    });
    (came, Task(taking))
}

/// What went wrong last with the only peer.
fn last_error(status: &DirectStatus) -> &str {
    let error = status.peers.first().and_then(|link| link.last_error.as_deref());
    error.unwrap_or_default()
}

#[tokio::test]
async fn a_connection_by_which_nothing_comes_is_dead() {
    const PORT: u16 = 4439;
    let (_came, _taking) = taking(1, PORT + 1, &[2]);
    let at = |port| SocketAddr::from((address(1), port));
    let mut maker = End::new(2, None, vec![peer(1, Some(PORT))]);
    maker.indirect.lock().unwrap().push(gateway(1));
    let mut said = Vec::new();
    // A test that is kept from running for seconds finds that QUIC saw it first.
    for _ in 0..4 {
        let forwarding = forward(at(PORT), at(PORT + 1)).await;
        maker.way(1).await;
        let mut status = maker.status.clone();
        drop(forwarding);
        let ended = status.wait_for(|status| last_error(status).contains("the connection ended"));
        let why = last_error(&soon("the end", ended).await.unwrap()).to_owned();
        if why.contains("nothing came") {
            return;
        }
        said.push(why);
    }
    panic!("its silence wasn't seen: {said:?}");
}

#[tokio::test]
async fn what_a_peer_says_at_the_end_steers_no_terminal() {
    const PORT: u16 = 4441;
    let (mut came, _taking) = taking(1, PORT, &[2]);
    let mut maker = End::new(2, None, vec![peer(1, Some(PORT))]);
    maker.indirect.lock().unwrap().push(gateway(1));
    maker.way(1).await;
    let there = soon("a connection", came.recv()).await.unwrap();
    let reason = [b"\x1b[2Jgood\r\nbye".as_slice(), &[b'x'; 900]].concat();
    there.close(VarInt::from_u32(0), &reason);
    maker.until("told why", |status| last_error(status).contains("goodbye")).await;
    let said = last_error(&maker.status.borrow()).to_owned();
    assert!(said.len() < 400 && !said.contains(char::is_control), "{said:?}");
}

#[tokio::test]
async fn at_a_change_of_uplink_connections_that_came_end_and_those_made_stay() {
    const PORT: u16 = 4442;
    let (mut came, _taking) = taking(3, PORT, &[1]);
    let mut middle = End::new(1, Some(PORT), vec![peer(2, None), peer(3, Some(PORT))]);
    middle.until("listening", |status| status.listening.is_some()).await;
    middle.indirect.lock().unwrap().extend([gateway(2), gateway(3)]);
    let (_, to_third) = middle.way(3).await;
    let third = soon("a connection", came.recv()).await.unwrap();
    let second = raw(2, None, &[]);
    let (at, key) = (SocketAddr::from((address(1), PORT)), identity(1).public());
    let second = soon("a connection", async {
        loop {
            if let Ok(connection) = second.connect(at, &key).await {
                return connection;
            }
        }
    })
    .await;
    middle.way(2).await;
    middle.uplink.change(true);
    soon("the end of the one that came", second.closed()).await;
    middle
        .until("told why", |status| {
            let error = status.peers.iter().find_map(|link| link.last_error.as_ref());
            error.is_some_and(|error| error.contains("uplink changed"))
        })
        .await;
    to_third.put(gateway(3), &sealed(1));
    soon("a packet", third.read_datagram()).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_left_goes_on_where_the_next_ends_at_once() {
    const PORT: u16 = 4443;
    let mut taker = End::new(1, Some(PORT), vec![peer(2, None)]);
    taker.until("listening", |status| status.listening.is_some()).await;
    let maker = raw(2, None, &[]);
    let (at, key) = (SocketAddr::from((address(1), PORT)), identity(1).public());
    let connect = || async {
        soon("a connection", async {
            loop {
                if let Ok(connection) = maker.connect(at, &key).await {
                    return connection;
                }
            }
        })
        .await
    };
    let mut rounds = 0;
    // A test that is kept from running for two seconds sees the one before let go already.
    let (before, queues) = loop {
        rounds += 1;
        assert!(rounds <= 5, "the one before was always let go");
        let before = connect().await;
        let (first, queues) = taker.way(2).await;
        let after = connect().await;
        let mut next = None;
        // The next carries packets, and is told to go by whoever made it.
        let went = soon("what becomes of it", async {
            loop {
                match taker.saw.recv().await.unwrap() {
                    Saw::Told(Told::Opened(relay, _)) => next = Some(relay),
                    Saw::Told(Told::Relays(to, paths)) if to == gateway(2) => {
                        let ways: Vec<RelayId> = paths.iter().map(|path| path.relay).collect();
                        if next.is_some_and(|next| ways == [next]) {
                            after.close(VarInt::from_u32(0), b"no");
                        }
                    }
                    Saw::Told(Told::Closed(relay)) => return relay,
                    _ => {}
                }
            }
        })
        .await;
        if went != first {
            break (before, queues);
        }
        after.close(VarInt::from_u32(0), b"");
        taker.no_way(2).await;
    };
    assert!(before.close_reason().is_none());
    queues.put(gateway(2), &sealed(1));
    soon("a packet", before.read_datagram()).await.unwrap();
    taker
        .until("told of it", |status| status.peers.iter().any(|link| link.address.is_some()))
        .await;
    // For good: not just until it would have been let go.
    taker.until("as at first", |status| last_error(status).is_empty()).await;
    let kept = timeout(LEAVING + LOOK * 2, before.closed()).await;
    assert!(kept.is_err(), "{kept:?}");
}

#[tokio::test]
async fn what_a_socket_before_took_or_told_is_of_no_interest() {
    const PORT: u16 = 4444;
    let mut alone = Alone::new(1, Some(PORT), vec![peer(2, None)]).await;
    let Alone { keeper, happened, .. } = &mut alone;
    let maker = raw(2, None, &[]);
    let (at, key) = (SocketAddr::from((address(1), PORT)), identity(1).public());
    let _connection = soon("a connection", maker.connect(at, &key)).await.unwrap();
    let came = soon("it to be taken", happened.recv()).await.unwrap();
    let Event::Came(..) = &came else { panic!("another event") };

    keeper.begin_anew().await;
    keeper.take(came).await;
    assert!(keeper.links.is_empty(), "its port would be kept by a connection of the key before");
    soon("the port to be free", async {
        while keeper.socket.is_none() {
            keeper.open(Instant::now() + LOOK);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    keeper.take(Event::Closed(0)).await;
    assert!(keeper.socket.is_some());
}
