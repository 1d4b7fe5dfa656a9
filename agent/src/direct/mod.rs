//! QUIC to peers themselves, where WireGuard's own packets don't get through: see [`anteroom_proto::direct`].
//!
//! For the data plane such a connection is one more way to a peer, taken in preference to relays. It is made when packets
//! go no direct way, and let go once they have gone directly for a while. Peers' connections are taken where the
//! configuration says so; nobody else is answered.

mod link;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anteroom_agent_core::target::RelayId;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_proto::v1::telemetry::FIRST_DIRECT;
use anteroom_proto::view::{Peer, View};
use anteroom_transport::direct::Direct;
use anteroom_transport::endpoint::peer_key;
use quinn::{Connection, Incoming, VarInt};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use crate::dataplane::Handle;
use crate::relay::Table;
use link::Link;
use plan::Need;

/// Most connections at once, and most that are being made.
const MOST: usize = 256;
const MOST_DIALLED: usize = 8;
/// Most handshakes of peers at once.
const MOST_GREETED: usize = 32;
/// How long a handshake may take.
const ANSWER: Duration = Duration::from_secs(3);
const GREETING: Duration = Duration::from_secs(5);
/// Addresses of one peer that are tried.
const ADDRESSES: usize = 4;
/// How often it is looked at which peers need a connection.
const LOOK: Duration = Duration::from_secs(1);
/// How often a port that couldn't be had is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// What waits for the one task that keeps all this.
const EVENTS: usize = 64;

/// Who this gateway is, and where it takes connections.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) gateway: GatewayId,
    pub(crate) identity: IdentityKey,
    /// The address that its sockets are bound to.
    pub(crate) bind: IpAddr,
    /// The port at which peers' connections are taken, if they are.
    pub(crate) port: Option<u16>,
}

/// How it stands with QUIC to peers themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DirectStatus {
    /// Where peers' connections are taken, if they are.
    pub listening: Option<SocketAddr>,
    /// Why they aren't, though they should be.
    pub problem: Option<String>,
    /// Datagrams that got no answer, since they were no peer's.
    pub turned_away: u64,
    /// The connections, and what came of attempts.
    pub peers: Vec<PeerLink>,
}

/// A connection to a peer, or what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLink {
    /// Which peer.
    pub gateway: GatewayId,
    /// Where it is connected to; none: it isn't.
    pub address: Option<SocketAddr>,
    /// Whether this end made it.
    pub dialled: bool,
    /// QUIC's round trip, in microseconds.
    pub round_trip: Option<u32>,
    /// What went wrong last, if nothing has gone right since.
    pub last_error: Option<String>,
}

enum Event {
    /// An attempt to connect to a peer ended.
    Dialled(GatewayId, PublicKey, Result<Connection, String>),
    /// A peer connected.
    Came(Connection),
    /// A connection ended.
    Ended(GatewayId, RelayId, String),
}

/// Ends its task when it is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Active {
    id: RelayId,
    identity: PublicKey,
    dialled: bool,
    connection: Connection,
    _carrying: Task,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

struct Keeper {
    who: Who,
    handle: Handle,
    table: Arc<Table>,
    socket: Option<Arc<Direct>>,
    /// When the socket is tried again.
    retry: Option<Instant>,
    taking: Option<Task>,
    naming: Option<Task>,
    view: Option<Arc<View>>,
    links: HashMap<GatewayId, Active>,
    dialling: HashMap<GatewayId, Task>,
    needs: HashMap<GatewayId, Need>,
    errors: HashMap<GatewayId, String>,
    next: u16,
    events: mpsc::Sender<Event>,
    status: watch::Sender<DirectStatus>,
    problem: Option<String>,
}

/// Keeps connections to peers for as long as it is polled and the data plane is there.
pub(crate) async fn run(
    who: Who,
    mut views: watch::Receiver<Option<Arc<View>>>,
    handle: Handle,
    table: Arc<Table>,
    status: watch::Sender<DirectStatus>,
) {
    let (events, mut happened) = mpsc::channel(EVENTS);
    let mut keeper = Keeper {
        who,
        handle,
        table,
        socket: None,
        retry: None,
        taking: None,
        naming: None,
        view: None,
        links: HashMap::new(),
        dialling: HashMap::new(),
        needs: HashMap::new(),
        errors: HashMap::new(),
        next: FIRST_DIRECT,
        events,
        status,
        problem: None,
    };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    views.mark_changed();
    loop {
        tokio::select! {
            changed = views.changed() => {
                if changed.is_err() {
                    return;
                }
                let view = views.borrow_and_update().clone();
                keeper.follow(view).await;
            }
            Some(event) = happened.recv() => keeper.take(event).await,
            _ = look.tick(), if keeper.is_of_use() => {
                if keeper.tend().await.is_none() {
                    return;
                }
            }
        }
        keeper.tell();
    }
}

impl Keeper {
    fn peers(&self) -> &[Peer] {
        self.view.as_ref().map(|view| view.peers.as_slice()).unwrap_or_default()
    }

    /// Whether anything can come of it.
    fn is_of_use(&self) -> bool {
        self.who.port.is_some()
            || !self.links.is_empty()
            || self.peers().iter().any(|peer| peer.quic.is_some())
    }

    /// Another view is in force.
    async fn follow(&mut self, view: Option<Arc<View>>) {
        self.view = view;
        let identities: HashMap<GatewayId, PublicKey> =
            self.peers().iter().map(|peer| (peer.gateway.gateway, peer.gateway.identity)).collect();
        let is_peer =
            |gateway: &GatewayId, identity: &PublicKey| identities.get(gateway) == Some(identity);
        let gone: Vec<GatewayId> = self
            .links
            .iter()
            .filter(|(gateway, link)| !is_peer(gateway, &link.identity))
            .map(|(gateway, _)| *gateway)
            .collect();
        for gateway in gone {
            info!(%gateway, "no peer any more: its QUIC connection is closed");
            self.cut(gateway).await;
        }
        self.dialling.retain(|gateway, _| identities.contains_key(gateway));
        self.needs.retain(|gateway, _| identities.contains_key(gateway));
        self.errors.retain(|gateway, _| identities.contains_key(gateway));
        self.name_peers();
    }

    /// Tells the socket who may connect.
    fn name_peers(&mut self) {
        let Some(socket) = self.socket.clone().filter(|_| self.who.port.is_some()) else { return };
        let keys: Vec<PublicKey> = self.peers().iter().map(|peer| peer.gateway.identity).collect();
        let before = self.naming.take();
        self.naming = Some(Task(tokio::spawn(async move {
            // One after the other, or an older view could have the last word.
            if let Some(mut before) = before {
                let _ = (&mut before.0).await;
            }
            let _ = tokio::task::spawn_blocking(move || socket.set_peers(&keys)).await;
        })));
    }

    /// Opens the socket, where there is none yet and one is of use.
    fn open(&mut self, now: Instant) {
        if self.socket.is_some() || self.retry.is_some_and(|at| at > now) {
            return;
        }
        let port = self.who.port;
        let at = SocketAddr::new(self.who.bind, port.unwrap_or(0));
        let opened = UdpSocket::bind(at)
            .map_err(|error| format!("underlay.quic: no UDP socket at {at}: {error}"))
            .and_then(|socket| {
                Direct::open(socket, &self.who.identity, port.is_some())
                    .map_err(|error| error.to_string())
            });
        match opened {
            Ok(socket) => {
                let socket = Arc::new(socket);
                if port.is_some() {
                    info!("peers' QUIC connections are taken at {at}");
                    let events = self.events.clone();
                    self.taking = Some(Task(tokio::spawn(take_peers(socket.clone(), events))));
                }
                self.socket = Some(socket);
                self.problem = None;
                self.name_peers();
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    warn!("{problem}; trying again");
                }
                self.problem = Some(problem);
                self.retry = Some(now + AGAIN);
            }
        }
    }

    /// Connects where that is needed, and lets go where it isn't. None once the data plane has ended.
    async fn tend(&mut self) -> Option<()> {
        let now = Instant::now();
        let indirect: HashSet<GatewayId> = self.handle.indirect().await.ok()?.into_iter().collect();
        let listens = self.who.port.is_some();
        let view = self.view.clone();
        let peers = view.as_ref().map(|view| view.peers.as_slice()).unwrap_or_default();
        if listens || peers.iter().any(|peer| peer.quic.is_some()) {
            self.open(now);
        }
        for peer in peers {
            let gateway = peer.gateway.gateway;
            let need = self.needs.entry(gateway).or_default();
            need.note(!indirect.contains(&gateway), now);
            let need = *need;
            match self.links.get(&gateway) {
                Some(link) if link.dialled && need.lets_go(now) => {
                    info!(%gateway, "WireGuard's own path works: the QUIC connection is let go");
                    self.cut(gateway).await;
                }
                Some(_) => {}
                None => {
                    let first = plan::is_first(self.who.gateway, gateway, listens);
                    let room = self.dialling.len() < MOST_DIALLED && self.links.len() < MOST;
                    if room && !self.dialling.contains_key(&gateway) && need.dials(first, now) {
                        self.dial(peer);
                    }
                }
            }
        }
        Some(())
    }

    fn dial(&mut self, peer: &Peer) {
        let (Some(socket), Some(port)) = (self.socket.clone(), peer.quic) else { return };
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for endpoint in &peer.endpoints {
            let address = SocketAddr::new(endpoint.ip(), port);
            if !addresses.contains(&address) && addresses.len() < ADDRESSES {
                addresses.push(address);
            }
        }
        let (gateway, key, events) =
            (peer.gateway.gateway, peer.gateway.identity, self.events.clone());
        let dialling = tokio::spawn(async move {
            let dialled = connect(&socket, &addresses, &key).await;
            let _ = events.send(Event::Dialled(gateway, key, dialled)).await;
        });
        self.dialling.insert(gateway, Task(dialling));
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Dialled(gateway, key, dialled) => {
                self.dialling.remove(&gateway);
                match dialled {
                    Ok(connection) => self.connected(gateway, key, connection, true).await,
                    Err(problem) => self.failed(gateway, problem),
                }
            }
            Event::Came(connection) => {
                let key = peer_key(&connection);
                let peer = self.peers().iter().find(|peer| Some(peer.gateway.identity) == key);
                match peer.map(|peer| (peer.gateway.gateway, peer.gateway.identity)) {
                    Some((gateway, key)) => self.connected(gateway, key, connection, false).await,
                    None => connection.close(VarInt::from_u32(0), b""),
                }
            }
            Event::Ended(gateway, id, why) => {
                if self.links.get(&gateway).is_some_and(|link| link.id == id) {
                    debug!(%gateway, "the QUIC connection ended: {why}");
                    self.cut(gateway).await;
                    self.errors.insert(gateway, format!("the connection ended: {why}"));
                }
            }
        }
    }

    fn failed(&mut self, gateway: GatewayId, problem: String) {
        let random = getrandom::u32().unwrap_or_default();
        self.needs.entry(gateway).or_default().failed(Instant::now(), random);
        debug!(%gateway, "no QUIC connection: {problem}");
        self.errors.insert(gateway, problem);
    }

    /// There is a connection with a peer.
    async fn connected(
        &mut self,
        gateway: GatewayId,
        identity: PublicKey,
        connection: Connection,
        dialled: bool,
    ) {
        let peer = self.peers().iter().find(|peer| peer.gateway.gateway == gateway);
        let is_peer = peer.is_some_and(|peer| peer.gateway.identity == identity);
        let kept = match self.links.get(&gateway) {
            Some(before) => {
                !plan::replaces(self.who.gateway, gateway, before.dialled, dialled)
                    && before.connection.close_reason().is_none()
            }
            None => self.links.len() >= MOST,
        };
        if !is_peer || kept {
            connection.close(VarInt::from_u32(0), b"");
            return;
        }
        self.needs.entry(gateway).or_default().worked();
        self.errors.remove(&gateway);
        let id = self.number();
        let address = connection.remote_address();
        info!(%gateway, %address, dialled, "connected by QUIC");
        self.table.add_direct(id, identity);
        let link =
            Link { id, peer: gateway, connection: connection.clone(), dropped: AtomicU64::new(0) };
        let (table, events) = (self.table.clone(), self.events.clone());
        let carrying = Task(tokio::spawn(async move {
            let why = link.run(&table).await;
            let _ = events.send(Event::Ended(gateway, id, why)).await;
        }));
        let active = Active { id, identity, dialled, connection, _carrying: carrying };
        // What comes after is there before the one before goes.
        if let Some(before) = self.links.insert(gateway, active) {
            self.table.forget(before.id).await;
        }
    }

    /// Ends the connection with a peer.
    async fn cut(&mut self, gateway: GatewayId) {
        if let Some(link) = self.links.remove(&gateway) {
            self.table.forget(link.id).await;
        }
    }

    /// A number that no connection has.
    fn number(&mut self) -> RelayId {
        loop {
            let number = RelayId(self.next);
            self.next = self.next.wrapping_add(1).max(FIRST_DIRECT);
            if self.links.values().all(|link| link.id != number) {
                return number;
            }
        }
    }

    fn tell(&self) {
        let micros = |connection: &Connection| u32::try_from(connection.rtt().as_micros()).ok();
        let mut gateways: Vec<GatewayId> =
            self.links.keys().chain(self.errors.keys()).copied().collect();
        gateways.sort_unstable();
        gateways.dedup();
        let peers = gateways.into_iter().map(|gateway| {
            let link = self.links.get(&gateway);
            PeerLink {
                gateway,
                address: link.map(|link| link.connection.remote_address()),
                dialled: link.is_some_and(|link| link.dialled),
                round_trip: link.and_then(|link| micros(&link.connection)),
                last_error: self.errors.get(&gateway).cloned(),
            }
        });
        let socket = self.socket.as_ref();
        let told = DirectStatus {
            listening: socket
                .filter(|_| self.who.port.is_some())
                .and_then(|socket| socket.local_address().ok()),
            problem: self.problem.clone(),
            turned_away: socket.map_or(0, |socket| socket.turned_away()),
            peers: peers.collect(),
        };
        self.status.send_if_modified(|before| {
            let changed = *before != told;
            *before = told;
            changed
        });
    }
}

/// Connects to the first address that answers.
async fn connect(
    socket: &Direct,
    addresses: &[SocketAddr],
    key: &PublicKey,
) -> Result<Connection, String> {
    let mut problem = "no address of it is known".to_owned();
    for address in addresses {
        match timeout(ANSWER, socket.connect(*address, key)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => problem = error.to_string(),
            Err(_) => problem = format!("{address}: no answer within {} s", ANSWER.as_secs()),
        }
    }
    Err(problem)
}

/// Takes peers' connections for as long as it is polled.
async fn take_peers(socket: Arc<Direct>, events: mpsc::Sender<Event>) {
    let room = Arc::new(Semaphore::new(MOST_GREETED));
    while let Some(incoming) = socket.accept().await {
        let Ok(permit) = room.clone().try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        let events = events.clone();
        tokio::spawn(async move {
            if let Some(connection) = greet(incoming).await {
                let _ = events.send(Event::Came(connection)).await;
            }
            drop(permit);
        });
    }
}

async fn greet(incoming: Incoming) -> Option<Connection> {
    timeout(GREETING, incoming).await.ok()?.ok()
}
