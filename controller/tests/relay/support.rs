//! A stand-alone relay in a temporary directory, and gateways that use it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anteroom_controller::directory::Directory;
use anteroom_controller::relay::config::Place;
use anteroom_controller::relay::standalone::{self, RunningRelay};
use anteroom_proto::authority::{Authority, Controller, Operator, Relay};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, OrganisationId};
use anteroom_proto::key::{Hash, IdentityKey, PublicKey};
use anteroom_proto::relay::packet::{self, Datagram, PeerNumber};
use anteroom_proto::relay::pass::{PassNumber, RelayPass};
use anteroom_proto::relay::{
    FromRelay, Hello, MAX_FROM_RELAY, PeerState, Refusal, RefusalCode, ToRelay, VERSIONS, Welcome,
};
use anteroom_proto::time::UnixMillis;
use anteroom_transport::dial;
use anteroom_transport::endpoint::Link;
use anteroom_transport::link::Carrier;
use anteroom_transport::message::{MessageReader, MessageWriter};
use anteroom_transport::tls::Protocol;

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);
const OPERATOR: u16 = 1;
pub(crate) const CONTROLLER: u16 = 100;

/// Waits for `what`, or fails saying so.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} for {what} in vain"),
    }
}

/// Waits until `holds`, or fails saying what didn't and showing `state`.
pub(crate) async fn until<S: std::fmt::Debug>(what: &str, mut state: impl FnMut() -> (bool, S)) {
    let start = tokio::time::Instant::now();
    loop {
        let (holds, state) = state();
        if holds {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what} in vain: {state:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn key(n: u16) -> IdentityKey {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    IdentityKey::from_seed(&seed)
}

pub(crate) fn gateway(n: u16) -> GatewayId {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    GatewayId::from_bytes(bytes)
}

/// A relay that can be stopped and started again, and its organisation.
pub(crate) struct Bed {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) relay: Option<RunningRelay>,
    pub(crate) address: SocketAddr,
    pub(crate) key: PublicKey,
    /// The authority chain as every gateway holds it.
    pub(crate) chain: Vec<Signed<Authority>>,
    /// How gateways connect.
    pub(crate) carrier: Carrier,
}

impl Bed {
    /// A relay that the newest authority document names, and that knows nothing but the first one's hash.
    pub(crate) fn new(limits: &str) -> Self {
        let mut bed = Self::made(limits);
        bed.decree(|bed, next| {
            let (name, addresses) = ("relay".parse().unwrap(), vec![bed.address.to_string()]);
            next.relays = vec![Relay { name, key: bed.key, addresses }];
        });
        bed.start();
        bed
    }

    /// A relay that was made, but that nobody has named or started. It lets packets wait for as long as the tests do,
    /// unless `limits` say otherwise: a machine that stands still for a moment costs none.
    pub(crate) fn made(limits: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let first = Authority {
            organisation: ORGANISATION,
            number: 1,
            previous: Hash::ZERO,
            operators: vec![Operator { name: "ana".parse().unwrap(), key: key(OPERATOR).public() }],
            threshold: 1,
            controllers: vec![Controller {
                key: key(CONTROLLER).public(),
                addresses: vec!["c:1".into()],
            }],
            relays: vec![],
            recovery: key(2).public(),
            incarnation: 0,
            root: None,
        };
        let first = Signed::sign(&first, &key(OPERATOR));
        let listen = "127.0.0.1:0".parse().unwrap();
        let advertise = vec!["127.0.0.1:4433".to_owned()];
        let place = Place { listen, tcp: true, advertise, authority: first.hash() };
        let home = Directory::new(&directory.path().join("r"));
        let key = standalone::init(&home, &place).unwrap();
        let file = directory.path().join("r/relay.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let patience = if limits.contains("patience_ms") { "" } else { "patience_ms = 60000\n" };
        let text = text.replace("[limits]\n", &format!("[limits]\n{patience}{limits}\n"));
        std::fs::write(&file, text).unwrap();
        let carrier = Carrier::Quic;
        Self { directory, relay: None, address: listen, key, chain: vec![first], carrier }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("r")
    }

    pub(crate) fn start(&mut self) {
        let running = standalone::start(Directory::new(&self.path())).unwrap();
        self.address = running.address().unwrap();
        self.relay = Some(running);
    }

    pub(crate) async fn stop(&mut self) {
        self.relay.take().unwrap().stop().await;
    }

    pub(crate) fn relay(&self) -> &RunningRelay {
        self.relay.as_ref().unwrap()
    }

    /// An operator signs the next authority document.
    pub(crate) fn decree(&mut self, change: impl FnOnce(&Self, &mut Authority)) {
        let newest = self.chain.last().unwrap();
        let mut next = newest.verify_self_named().unwrap().next(newest);
        change(self, &mut next);
        self.chain.push(Signed::sign(&next, &key(OPERATOR)));
    }
}

/// A pass that the controller signed.
pub(crate) fn pass(of: u16, sequence: u64, peers: &[u16]) -> RelayPass {
    let mut peers: Vec<GatewayId> = peers.iter().map(|n| gateway(*n)).collect();
    peers.sort_unstable();
    RelayPass {
        organisation: ORGANISATION,
        gateway: gateway(of),
        identity: key(of).public(),
        number: PassNumber { incarnation: 0, sequence },
        peers,
        issued_at: UnixMillis(1_000_000),
        lifetime: 3600,
    }
}

pub(crate) fn signed(pass: &RelayPass) -> Signed<RelayPass> {
    Signed::sign(pass, &key(CONTROLLER))
}

/// A gateway at the relay.
pub(crate) struct Gateway {
    pub(crate) link: Link,
    pub(crate) reader: MessageReader<FromRelay>,
    pub(crate) writer: MessageWriter<ToRelay>,
    pub(crate) welcome: Welcome,
    pub(crate) peers: HashMap<GatewayId, PeerState>,
    /// Whether the relay asked for authority documents.
    pub(crate) asked: bool,
}

impl Gateway {
    /// The gateway `of` with a good pass that names `peers`.
    pub(crate) async fn connect(bed: &Bed, of: u16, sequence: u64, peers: &[u16]) -> Self {
        let pass = signed(&pass(of, sequence, peers));
        match Self::greet(bed, of, pass, &bed.chain).await {
            Ok(gateway) => gateway,
            Err(refusal) => panic!("gateway {of} was refused: {refusal:?}"),
        }
    }

    /// Whoever holds the key of `who`, with `pass` and `chain`. A connection that ends before the relay has said yes or
    /// no, as one does that took too long on a busy machine, is made again.
    pub(crate) async fn greet(
        bed: &Bed,
        who: u16,
        pass: Signed<RelayPass>,
        chain: &[Signed<Authority>],
    ) -> Result<Self, Refusal> {
        let (identity, servers) = (key(who), [bed.key]);
        soon("a yes or a no", async {
            loop {
                let link =
                    dial::over(bed.carrier, bed.address, &identity, &servers, Protocol::Relay)
                        .await;
                if let Ok(link) = link
                    && let Some(answer) = Self::say_hello(link, &pass, chain).await
                {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }

    /// None: the connection ended first.
    async fn say_hello(
        link: Link,
        pass: &Signed<RelayPass>,
        chain: &[Signed<Authority>],
    ) -> Option<Result<Self, Refusal>> {
        let (send, receive) = link.connection().open_bi().await.ok()?;
        let mut reader = MessageReader::<FromRelay>::new(receive, MAX_FROM_RELAY);
        let mut writer = MessageWriter::<ToRelay>::new(send);
        let hello = Hello {
            versions: VERSIONS,
            organisation: ORGANISATION,
            authority: chain.len() as u64,
            pass: Box::new(pass.clone()),
        };
        writer.send(&ToRelay::Hello(Box::new(hello))).await.ok()?;
        let mut asked = false;
        loop {
            match reader.next().await.ok()?? {
                FromRelay::AuthorityWanted { after } => {
                    asked = true;
                    let after = usize::try_from(after).unwrap();
                    let documents = ToRelay::Authority(chain[after..].to_vec());
                    writer.send(&documents).await.ok()?;
                }
                FromRelay::Welcome(welcome) => {
                    let peers = HashMap::new();
                    return Some(Ok(Self { link, reader, writer, welcome, peers, asked }));
                }
                FromRelay::Refused(refusal) => return Some(Err(refusal)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Hears messages until one isn't about peers.
    pub(crate) async fn hear(&mut self) -> Option<FromRelay> {
        loop {
            match soon("a message", self.reader.next()).await {
                Ok(Some(FromRelay::Peers(states))) => {
                    self.peers.extend(states.into_iter().map(|state| (state.gateway, state)));
                }
                Ok(other) => return other,
                Err(_) => return None,
            }
        }
    }

    /// Hears messages until what is known of `peer` is as wanted.
    pub(crate) async fn hear_of(
        &mut self,
        peer: u16,
        mut wanted: impl FnMut(Option<u16>) -> bool,
    ) -> PeerNumber {
        loop {
            if let Some(state) = self.peers.get(&gateway(peer)).filter(|state| wanted(state.room)) {
                return state.number;
            }
            match soon("news of a peer", self.reader.next()).await {
                Ok(Some(FromRelay::Peers(states))) => {
                    self.peers.extend(states.into_iter().map(|state| (state.gateway, state)));
                }
                other => panic!("waiting for news of {peer}: {other:?}, {:?}", self.peers),
            }
        }
    }

    /// Waits until `peer` can be reached, and says what it is called.
    pub(crate) async fn meet(&mut self, peer: u16) -> PeerNumber {
        self.hear_of(peer, |room| room.is_some()).await
    }

    pub(crate) fn send(&self, to: PeerNumber, mark: u32, len: usize) {
        // Where the buffer is full the oldest goes, as from a real gateway.
        let _ = self.link.connection().send_datagram(sealed(to, mark, len).into());
    }

    /// Sends a packet until it arrives, as QUIC doesn't send datagrams again. Gives from whom it came and its length.
    pub(crate) async fn deliver(
        &self,
        to: PeerNumber,
        mark: u32,
        len: usize,
        receiver: &Self,
    ) -> (PeerNumber, usize) {
        let receiving = async {
            loop {
                // Copies of the one before may still come.
                let (from, came, len) = receiver.receive().await;
                if came == mark {
                    return (from, len);
                }
            }
        };
        let sending = async {
            loop {
                self.send(to, mark, len);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::select! {
            came = receiving => came,
            () = sending => unreachable!("it sends for ever"),
        }
    }

    /// The next packet: from whom, its mark, its length.
    pub(crate) async fn receive(&self) -> (PeerNumber, u32, usize) {
        let datagram = soon("a packet", self.link.connection().read_datagram()).await.unwrap();
        read(&datagram)
    }

    /// Says nothing more.
    pub(crate) async fn leave(self) {
        self.link.close("done").await;
    }
}

pub(crate) fn sealed(to: PeerNumber, mark: u32, len: usize) -> Vec<u8> {
    let mut bytes = packet::header(to, false).to_vec();
    bytes.extend_from_slice(&[4, 0, 0, 0]);
    bytes.extend_from_slice(&mark.to_be_bytes());
    bytes.resize(packet::HEADER_LEN + len, 0x5a);
    bytes
}

pub(crate) fn read(datagram: &[u8]) -> (PeerNumber, u32, usize) {
    match packet::parse(datagram) {
        Some(Datagram::Packet { peer, sealed, .. }) => {
            (peer, u32::from_be_bytes(sealed[4..8].try_into().unwrap()), sealed.len())
        }
        other => panic!("{other:?}"),
    }
}

/// The code of a refusal that must have come.
pub(crate) fn code<T>(greeted: Result<T, Refusal>) -> RefusalCode {
    match greeted {
        Ok(_) => panic!("it was let in"),
        Err(refusal) => refusal.code,
    }
}
