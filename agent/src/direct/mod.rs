//! QUIC to peers themselves, where WireGuard's own packets don't get through: see [`anteroom_proto::direct`].
//!
//! For the data plane such a connection is one more way to a peer, taken in preference to relays. It is made when packets
//! go no direct way, and let go once they have gone directly for a while. Peers' connections are taken where the
//! configuration says so; nobody else is answered.

mod ends;
mod link;
mod plan;
mod socket;
mod status;
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
use anteroom_transport::direct::shared::Shared;
use anteroom_transport::direct::{Caller, Direct};
use quinn::{Connection, VarInt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::dataplane::{Handle, UnderlaysTold};
use crate::looks::Looks;
use crate::relay::Table;
use crate::task::Task;
use link::{Active, Link};
use plan::Need;
use socket::{connect, take_peers};
pub use status::{DirectStatus, PeerLink};

/// Most connections at once, and most that are being made.
const MOST: usize = 256;
const MOST_DIALLED: usize = 8;
/// Addresses of one peer that are tried.
const ADDRESSES: usize = 4;
/// How often it is looked at which peers need a connection.
const LOOK: Duration = Duration::from_secs(1);
/// How often a port that couldn't be had is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long what is on its way on a connection is taken after another has its place.
const LEAVING: Duration = Duration::from_secs(2);
/// How long that is taken where one of the two gets another identity key or takes another uplink: the other may hear of it later.
const PARTING: Duration = Duration::from_secs(10);
/// How long the end of all connections may take.
const FAREWELL: Duration = Duration::from_millis(500);
/// What waits for the one task that keeps all this.
const EVENTS: usize = 64;

/// Who this gateway is, and where it takes connections.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) gateway: GatewayId,
    /// Its identity key, as it changes.
    pub(crate) identity: watch::Receiver<IdentityKey>,
    /// The address that its sockets are bound to.
    pub(crate) bind: IpAddr,
    /// The port at which peers' connections are taken, if they are.
    pub(crate) port: Option<u16>,
    /// Whether that is the tunnels' own port.
    pub(crate) shared: bool,
}

enum Event {
    /// The attempt of this number to connect to a peer ended.
    Dialled(GatewayId, u64, PublicKey, Result<Connection, String>),
    /// The peer with this key connected, to the socket of this number.
    Came(u64, PublicKey, Connection),
    /// A connection can carry packets.
    Carries(GatewayId, RelayId),
    /// The peer sends by other ways than a connection, which it ends soon.
    Left(GatewayId, RelayId),
    /// A connection ended.
    Ended(GatewayId, RelayId, String),
    /// The socket of this number failed.
    Closed(u64),
}

struct Keeper {
    who: Who,
    handle: Handle,
    table: Arc<Table>,
    socket: Option<Arc<Direct>>,
    /// Counts sockets: what comes from one before is of no interest.
    sockets: u64,
    /// What is handed over between it and the tunnels' sockets, where they share the port.
    strays: Option<Arc<Shared>>,
    /// When the socket is tried again.
    retry: Option<Instant>,
    taking: Option<Task>,
    naming: Option<Task>,
    view: Option<Arc<View>>,
    links: HashMap<GatewayId, Active>,
    /// Connections in whose place others are, until when they are kept.
    leaving: Vec<(Instant, GatewayId, Active)>,
    dialling: HashMap<GatewayId, (u64, Task)>,
    dialled: u64,
    /// When socket and connections are made anew, with another identity key.
    anew: Option<Instant>,
    /// How often this gateway's uplink had changed when that was last told.
    moves: u64,
    needs: HashMap<GatewayId, Need>,
    errors: HashMap<GatewayId, String>,
    next: u16,
    events: mpsc::Sender<Event>,
    status: watch::Sender<DirectStatus>,
    problem: Option<String>,
    /// Whether a peer was turned down since there are too many connections.
    full: bool,
}

/// Keeps connections to peers until the data plane ends, or `stop` does; then tells peers that they have ended.
pub(crate) async fn run(
    who: Who,
    mut views: watch::Receiver<Option<Arc<View>>>,
    handle: Handle,
    table: Arc<Table>,
    status: watch::Sender<DirectStatus>,
    mut stop: watch::Receiver<()>,
) {
    let (events, mut happened) = mpsc::channel(EVENTS);
    let mut identity = who.identity.clone();
    let mut underlays = handle.underlays();
    let mut keeper = Keeper::new(who, handle, table, events, status);
    let mut look = Looks::every(LOOK);
    views.mark_changed();
    loop {
        tokio::select! {
            changed = views.changed() => {
                if changed.is_err() {
                    break;
                }
                let view = views.borrow_and_update().clone();
                keeper.follow(view).await;
            }
            Ok(()) = identity.changed() => keeper.prepare_anew(),
            Ok(()) = underlays.changed() => {
                let changes = underlays.borrow_and_update().as_ref().map(UnderlaysTold::changes);
                if let Some((changes, forced)) = changes {
                    keeper.follow_uplink(changes, forced).await;
                }
            }
            Some(event) = happened.recv() => keeper.take(event).await,
            () = look.next(), if keeper.is_of_use() => {
                if keeper.tend().await.is_none() {
                    break;
                }
            }
            _ = stop.changed() => break,
        }
        keeper.tell();
    }
    keeper.farewell().await;
}

impl Keeper {
    fn new(
        who: Who,
        handle: Handle,
        table: Arc<Table>,
        events: mpsc::Sender<Event>,
        status: watch::Sender<DirectStatus>,
    ) -> Self {
        Self {
            who,
            handle,
            table,
            socket: None,
            sockets: 0,
            strays: None,
            retry: None,
            taking: None,
            naming: None,
            view: None,
            links: HashMap::new(),
            leaving: Vec::new(),
            dialling: HashMap::new(),
            dialled: 0,
            anew: None,
            moves: 0,
            needs: HashMap::new(),
            errors: HashMap::new(),
            next: FIRST_DIRECT,
            events,
            status,
            problem: None,
            full: false,
        }
    }

    /// Ends all connections, and has peers told.
    async fn farewell(self) {
        if let Some(socket) = &self.socket {
            socket.close("the agent stops", FAREWELL).await;
        }
    }

    fn peers(&self) -> &[Peer] {
        self.view.as_ref().map(|view| view.peers.as_slice()).unwrap_or_default()
    }

    /// Whether a gateway is a peer, with this identity key.
    fn is_peer(&self, gateway: GatewayId, identity: &PublicKey) -> bool {
        let mut peers = self.peers().iter();
        peers.any(|peer| peer.gateway.gateway == gateway && peer.gateway.identity == *identity)
    }

    /// Whether anything can come of it.
    fn is_of_use(&self) -> bool {
        self.who.port.is_some()
            || !self.links.is_empty()
            || !self.leaving.is_empty()
            || self.anew.is_some()
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
            if identities.contains_key(&gateway) {
                info!(%gateway, "the peer has another identity key: its QUIC connection is let go");
                self.part(gateway);
            } else {
                info!(%gateway, "no peer any more: its QUIC connection is closed");
                self.cut(gateway).await;
            }
        }
        let gone = self.leaving.extract_if(.., |(_, of, _)| !identities.contains_key(of));
        for link in gone.map(|(_, _, link)| link).collect::<Vec<_>>() {
            self.forget(link).await;
        }
        self.dialling.retain(|gateway, _| identities.contains_key(gateway));
        self.needs.retain(|gateway, _| identities.contains_key(gateway));
        self.errors.retain(|gateway, _| identities.contains_key(gateway));
        self.name_peers();
    }

    /// Lets go of the socket. What it still tells is of no interest: a connection that it took would keep its port.
    async fn close(&mut self) {
        self.sockets += 1;
        if let Some(mut taking) = self.taking.take() {
            taking.end().await;
        }
        (self.socket, self.strays) = (None, None);
    }

    /// Tells the socket who may connect.
    fn name_peers(&mut self) {
        let Some(socket) = self.socket.clone().filter(|_| self.who.port.is_some()) else { return };
        let caller = |peer: &Peer| Caller {
            key: peer.gateway.identity,
            addresses: peer.endpoints.iter().map(SocketAddr::ip).collect(),
        };
        let callers: Vec<Caller> = self.peers().iter().map(caller).collect();
        let before = self.naming.take();
        self.naming = Some(Task(tokio::spawn(async move {
            // One after the other, or an older view could have the last word.
            if let Some(mut before) = before {
                let _ = (&mut before.0).await;
            }
            let _ = tokio::task::spawn_blocking(move || socket.set_peers(&callers)).await;
        })));
    }

    /// Opens the socket, where there is none yet and one is of use.
    fn open(&mut self, now: Instant) {
        if self.socket.is_some() || self.retry.is_some_and(|at| at > now) {
            return;
        }
        let port = self.who.port;
        let at = SocketAddr::new(self.who.bind, port.unwrap_or(0));
        let identity = self.who.identity.borrow().clone();
        let opened = self.bind(at).and_then(|(socket, strays)| {
            Direct::open(socket, &identity, port.is_some(), strays.clone())
                .map(|socket| (socket, strays))
                .map_err(|error| error.to_string())
        });
        match opened {
            Ok((socket, strays)) => {
                let socket = Arc::new(socket);
                self.strays = strays;
                if port.is_some() {
                    info!("peers' QUIC connections are taken at {at}");
                    let taking = take_peers(socket.clone(), self.sockets, self.events.clone());
                    self.taking = Some(Task(tokio::spawn(taking)));
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

    /// A socket there, and what is handed over where it shares its port with the tunnels.
    fn bind(&self, at: SocketAddr) -> Result<(UdpSocket, Option<Arc<Shared>>), String> {
        let failed = |error| format!("underlay.quic: no UDP socket at {at}: {error}");
        if !self.who.shared {
            return UdpSocket::bind(at).map(|socket| (socket, None)).map_err(failed);
        }
        match self.handle.quic_socket() {
            Ok((socket, shared)) => Ok((socket, Some(shared))),
            Err(problem) => Err(format!("underlay.quic: {at}: {problem}")),
        }
    }

    /// Connects where that is needed, and lets go where it isn't. None once the data plane has ended.
    async fn tend(&mut self) -> Option<()> {
        let now = Instant::now();
        if self.anew.is_some_and(|at| at <= now) {
            self.begin_anew().await;
        }
        let indirect: HashSet<GatewayId> = self.handle.indirect().await.ok()?.into_iter().collect();
        let listens = self.who.port.is_some();
        let view = self.view.clone();
        let peers = view.as_ref().map(|view| view.peers.as_slice()).unwrap_or_default();
        if listens || peers.iter().any(|peer| peer.quic.is_some()) {
            self.open(now);
        }
        self.end_the_dead(now).await;
        self.end_the_left(now).await;
        self.full &= self.links.len() >= MOST;
        let mut due: Vec<(Option<Instant>, &Peer)> = Vec::new();
        for peer in peers {
            let gateway = peer.gateway.gateway;
            let need = self.needs.entry(gateway).or_default();
            need.note(!indirect.contains(&gateway), now);
            let link = self.links.get(&gateway);
            if let Some(link) = link {
                need.is_connected(now.saturating_duration_since(link.since));
            }
            let need = *need;
            if need.is_direct() {
                // What went wrong is of no interest any more.
                self.errors.remove(&gateway);
            }
            match link {
                Some(link) if link.dialled && need.lets_go(now) => {
                    info!(%gateway, "WireGuard's own path works: the QUIC connection is let go");
                    self.cut(gateway).await;
                }
                Some(_) => {}
                None if self.anew.is_some() => {}
                None => {
                    let first = plan::is_first(self.who.gateway, gateway, listens);
                    let can = peer.quic.is_some() && !self.dialling.contains_key(&gateway);
                    if can && need.dials(first, now) {
                        due.push((need.tried(), peer));
                    }
                }
            }
        }
        // Those that have waited longest, or many that never answer would keep all places.
        due.sort_by_key(|(tried, peer)| (*tried, peer.gateway.gateway));
        for (_, peer) in due {
            if self.dialling.len() >= MOST_DIALLED || self.links.len() >= MOST {
                break;
            }
            self.needs.entry(peer.gateway.gateway).or_default().tries(now);
            self.dial(peer);
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
        self.dialled += 1;
        let number = self.dialled;
        let dialling = tokio::spawn(async move {
            let dialled = connect(&socket, &addresses, &key).await;
            let _ = events.send(Event::Dialled(gateway, number, key, dialled)).await;
        });
        self.dialling.insert(gateway, (number, Task(dialling)));
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Dialled(gateway, number, key, dialled) => {
                // Of a peer that left, and may have come back since, it is of no interest.
                if self.dialling.get(&gateway).is_none_or(|(last, _)| *last != number) {
                    return;
                }
                self.dialling.remove(&gateway);
                match dialled {
                    Ok(connection) => self.connected(gateway, key, connection, true).await,
                    Err(problem) => self.failed(gateway, problem),
                }
            }
            Event::Came(socket, key, connection) => {
                let mut peers = self.peers().iter().filter(|_| socket == self.sockets);
                let peer = peers.find(|peer| peer.gateway.identity == key);
                match peer.map(|peer| (peer.gateway.gateway, peer.gateway.identity)) {
                    Some((gateway, key)) => self.connected(gateway, key, connection, false).await,
                    None => connection.close(VarInt::from_u32(0), b""),
                }
            }
            Event::Carries(gateway, id) => {
                if self.links.get(&gateway).is_some_and(|link| link.id == id) {
                    // Packets go there from now on.
                    let now = Instant::now();
                    let before = self.leaving.iter_mut().filter(|(_, of, _)| *of == gateway);
                    for (until, _, link) in before {
                        *until = (*until).min(now + LEAVING);
                        link.leaves.send_replace(true);
                        self.table.found(link.id, HashMap::new(), Duration::MAX, 0);
                    }
                }
            }
            Event::Left(gateway, id) => {
                if self.links.get(&gateway).is_some_and(|link| link.id == id) {
                    self.let_go(gateway, "the peer sends by other ways", false);
                }
            }
            Event::Ended(gateway, id, why) => {
                if self.links.get(&gateway).is_some_and(|link| link.id == id) {
                    self.ended(gateway, &why).await;
                }
            }
            Event::Closed(socket) if socket != self.sockets => {}
            Event::Closed(_) => {
                warn!("the socket for peers' QUIC connections failed; it is opened anew");
                self.close().await;
                self.retry = Some(Instant::now() + AGAIN);
                self.problem = Some("underlay.quic: the socket failed; it is opened anew".into());
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
        // With an identity key of this gateway that was replaced it isn't kept either.
        if self.anew.is_some() || !self.is_peer(gateway, &identity) {
            connection.close(VarInt::from_u32(0), b"");
            return;
        }
        let kept = match self.links.get(&gateway) {
            Some(before) => {
                let age = before.since.elapsed();
                !plan::replaces(self.who.gateway, gateway, (before.dialled, age), dialled)
                    && before.connection.close_reason().is_none()
            }
            None => self.links.len() >= MOST && !self.make_room().await,
        };
        if kept {
            self.full |= self.links.len() >= MOST;
            connection.close(VarInt::from_u32(0), b"");
            return;
        }
        self.errors.remove(&gateway);
        let id = self.number();
        let address = connection.remote_address();
        info!(%gateway, %address, dialled, "connected by QUIC");
        self.table.add_direct(id, identity);
        let (leaves, leaving) = watch::channel(false);
        let link = Link {
            id,
            peer: gateway,
            connection: connection.clone().into(),
            dropped: AtomicU64::new(0),
            leaves: leaving,
        };
        let (table, events) = (self.table.clone(), self.events.clone());
        let carrying = Task(tokio::spawn(async move {
            let carries = async || {
                let _ = events.send(Event::Carries(gateway, id)).await;
            };
            let left = async || {
                let _ = events.send(Event::Left(gateway, id)).await;
            };
            let why = link.run(&table, carries, left).await;
            let _ = events.send(Event::Ended(gateway, id, why)).await;
        }));
        let since = Instant::now();
        let heard = (0, since);
        let (parted, tells) = (false, false);
        let active = Active {
            id,
            identity,
            dialled,
            since,
            connection,
            heard,
            leaves,
            parted,
            tells,
            carrying,
        };
        // Packets go by the one before until this one carries them, and what is under way then still arrives.
        if let Some(before) = self.links.insert(gateway, active) {
            self.leaving.push((since + plan::SETTLED, gateway, before));
        }
    }

    /// A number that no connection has.
    fn number(&mut self) -> RelayId {
        loop {
            let number = RelayId(self.next);
            self.next = self.next.wrapping_add(1).max(FIRST_DIRECT);
            let leaving = self.leaving.iter().map(|(_, _, link)| link);
            if self.links.values().chain(leaving).all(|link| link.id != number) {
                return number;
            }
        }
    }

    fn tell(&self) {
        let leaving = self.leaving.iter().map(|(_, _, link)| link);
        let live = self.links.values().chain(leaving);
        if let Some(socket) = &self.socket {
            socket.set_live(live.map(|link| link.connection.remote_address()));
        }
        let full =
            || format!("there are {MOST} connections, which is the most: a peer was turned down");
        let strays = self.strays.as_ref().map(|shared| {
            let [quic, others] = [shared.quic.counts(), shared.others.counts()];
            (quic.0 + others.0, quic.1 + others.1)
        });
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
        let mut told = DirectStatus {
            listening: socket
                .filter(|_| self.who.port.is_some())
                .and_then(|socket| socket.local_address().ok()),
            problem: self.problem.clone().or_else(|| self.full.then(full)),
            turned_away: socket.map_or(0, |socket| socket.turned_away()),
            strays,
            peers: peers.collect(),
        };
        self.status.send_if_modified(|before| {
            told.calm(before);
            let changed = *before != told;
            *before = told;
            changed
        });
    }
}
