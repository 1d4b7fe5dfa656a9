//! The connection to one relay: made, kept, made again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anteroom_agent_core::target::{RelayId, Through};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::packet::{self, Datagram, HEADER_LEN, PeerNumber, SEALED_LEN};
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::relay::{
    FromRelay, Hello, MAX_FROM_RELAY, PeerState, Refusal, RefusalCode, ToRelay, VERSIONS,
};
use anteroom_transport::endpoint::{self, Link as Connected};
use anteroom_transport::link::{Connection, SendDatagramError};
use anteroom_transport::message::{MessageReader, MessageWriter};
use anteroom_transport::tls::Protocol;
use tokio::sync::watch;
use tokio::time::{interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::table::Table;
use super::{Known, Place, Who};
use crate::control::{Backoff, plain};
use crate::dataplane::relayed::{Inlet, Outgoing};

/// How long a name may take to become addresses, and one address to answer.
const RESOLVE: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(5);
/// How long the relay may take to say welcome.
const GREETING: Duration = Duration::from_secs(10);
/// How often round trip and room are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Authority documents in one message.
const DOCUMENTS: usize = 16;
/// Most peers that one relay may tell of.
const MOST_PEERS: usize = PeerNumber::COUNT as usize;

/// One relay to stay connected to.
pub(super) struct Link {
    pub(super) id: RelayId,
    pub(super) place: Place,
    pub(super) who: Who,
    pub(super) known: watch::Receiver<Known>,
    pub(super) table: Arc<Table>,
}

/// What a relay says of peers.
#[derive(Debug, Default)]
struct Peers {
    numbers: HashMap<GatewayId, PeerState>,
    names: HashMap<PeerNumber, GatewayId>,
}

impl Peers {
    fn hear(&mut self, states: Vec<PeerState>) {
        for state in states {
            if self.numbers.len() >= MOST_PEERS && !self.numbers.contains_key(&state.gateway) {
                continue;
            }
            if let Some(before) = self.numbers.insert(state.gateway, state) {
                self.names.remove(&before.number);
            }
            self.names.insert(state.number, state.gateway);
        }
    }

    /// Whom it can hand packets to, no longer than `own`.
    fn rooms(&self, own: u16) -> HashMap<GatewayId, u16> {
        let here = self.numbers.values().filter_map(|state| Some((state.gateway, state.room?)));
        here.map(|(gateway, room)| (gateway, room.min(own))).collect()
    }
}

/// What the tasks of one connection share.
struct Shared {
    connection: Connection,
    peers: Mutex<Peers>,
    dropped: AtomicU64,
}

impl Shared {
    fn peers(&self) -> std::sync::MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The longest sealed packet that this end can send now.
    fn room(&self) -> u16 {
        let longest = self.connection.max_datagram_size().unwrap_or(0).saturating_sub(HEADER_LEN);
        u16::try_from(longest.min(*SEALED_LEN.end())).unwrap_or(u16::MAX)
    }
}

impl Link {
    /// Stays connected for as long as it is polled.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut last = String::new();
        loop {
            // Without a pass no relay takes anybody in.
            if self.known.wait_for(|known| known.pass.is_some()).await.is_err() {
                return;
            }
            let mut greeted = false;
            let problem = self.session(&mut greeted).await;
            let problem = plain(&problem);
            if greeted {
                backoff.reset();
            }
            self.table.lost(self.id, &problem).await;
            // The log has it once, and again when it changes.
            if last == problem {
                debug!("relay {}: {problem}", self.name());
            } else {
                warn!("relay {}: {problem}; trying again", self.name());
                last = problem;
            }
            // Without random bytes gateways come back in step, which is no reason not to come back.
            let wait = backoff.next(getrandom::u32().unwrap_or_default());
            tokio::select! {
                () = sleep(wait) => {}
                changed = self.known.changed() => if changed.is_err() { return },
            }
        }
    }

    fn name(&self) -> String {
        self.place.addresses.first().map_or_else(|| self.id.0.to_string(), Clone::clone)
    }

    /// Connects, and says how that ended.
    async fn session(&mut self, greeted: &mut bool) -> String {
        let link = match self.dial().await {
            Ok(link) => link,
            Err(problem) => return problem,
        };
        let problem = self.talk(&link, greeted).await;
        let reason = link.connection().close_reason().map(|reason| reason.to_string());
        link.close("").await;
        match (problem, reason) {
            (Some(problem), _) => problem,
            (None, reason) => {
                format!("the connection ended: {}", reason.unwrap_or_else(|| "no word why".into()))
            }
        }
    }

    async fn dial(&self) -> Result<Connected, String> {
        let mut problem = "no address is known".to_owned();
        for address in &self.place.addresses {
            let resolved = match timeout(RESOLVE, tokio::net::lookup_host(address)).await {
                Ok(Ok(resolved)) => resolved.take(4).collect::<Vec<_>>(),
                Ok(Err(error)) => {
                    problem = format!("{address}: {error}");
                    continue;
                }
                Err(_) => {
                    problem = format!("{address}: its name isn't resolved within 3 s");
                    continue;
                }
            };
            for place in resolved {
                let keys = [self.place.key];
                let connecting =
                    endpoint::connect_for(place, &self.who.identity, &keys, Protocol::Relay);
                match timeout(ANSWER, connecting).await {
                    Ok(Ok(link)) => return Ok(link),
                    Ok(Err(error)) => problem = format!("{address}: {error}"),
                    Err(_) => problem = format!("{address}: {place}: no answer within 5 s"),
                }
            }
        }
        Err(problem)
    }

    /// Says hello and carries packets until it ends. None: the connection knows why.
    async fn talk(&mut self, link: &Connected, greeted: &mut bool) -> Option<String> {
        let (send, receive) = link.connection().open_bi().await.ok()?;
        let mut reader = MessageReader::<FromRelay>::new(receive, MAX_FROM_RELAY);
        let mut writer = MessageWriter::<ToRelay>::new(send);
        let known = self.known.borrow_and_update().clone();
        let (Some(chain), Some(pass)) = (known.chain, known.pass) else {
            return Some("there is no pass for relays yet".into());
        };
        let hello = Hello {
            versions: VERSIONS,
            organisation: self.who.organisation,
            authority: chain.newest().number,
            pass: Box::new(pass.clone()),
        };
        writer.send(&ToRelay::Hello(Box::new(hello))).await.ok()?;
        let documents = chain.to_signed();
        let greeting = async {
            loop {
                match reader.next().await.ok()?? {
                    FromRelay::AuthorityWanted { after } => {
                        let after = usize::try_from(after).unwrap_or(usize::MAX);
                        let missing = documents.get(after..).unwrap_or_default();
                        let missing = missing.get(..DOCUMENTS).unwrap_or(missing).to_vec();
                        writer.send(&ToRelay::Authority(missing)).await.ok()?;
                    }
                    FromRelay::Welcome(welcome) => return Some(Ok(welcome)),
                    FromRelay::Refused(refusal) => return Some(Err(refused(&refusal))),
                    _ => return Some(Err("the relay speaks before it says welcome".into())),
                }
            }
        };
        match timeout(GREETING, greeting).await {
            Ok(Some(Ok(welcome))) if (VERSIONS.0..=VERSIONS.1).contains(&welcome.version) => {}
            Ok(Some(Ok(welcome))) => {
                return Some(format!("the relay speaks version {}, unasked", welcome.version));
            }
            Ok(Some(Err(problem))) => return Some(problem),
            Ok(None) => return None,
            Err(_) => return Some("the relay says nothing".into()),
        }
        *greeted = true;
        info!("connected to the relay at {}", self.name());
        let Some((outgoing, inlet)) = self.table.opened(self.id).await else {
            return Some("the data plane has stopped".into());
        };
        self.table.asks(self.id, link.connection().remote_address()).await;
        let shared = Shared {
            connection: link.connection().clone(),
            peers: Mutex::default(),
            dropped: AtomicU64::new(0),
        };
        let id = self.id;
        tokio::select! {
            problem = self.messages(&shared, pass, reader, writer) => problem,
            () = take_packets(&shared, outgoing) => None,
            () = bring_packets(&shared, id, &inlet) => None,
        }
    }

    async fn messages(
        &mut self,
        shared: &Shared,
        mut shown: Signed<RelayPass>,
        mut reader: MessageReader<FromRelay>,
        mut writer: MessageWriter<ToRelay>,
    ) -> Option<String> {
        let mut look = interval(LOOK);
        loop {
            tokio::select! {
                message = reader.next() => match message.ok()?? {
                    FromRelay::Peers(states) => shared.peers().hear(states),
                    FromRelay::PassTaken(number) => debug!(%number, "the relay took the pass"),
                    FromRelay::PassRefused(refusal) => {
                        let problem = refused(&refusal);
                        warn!("relay {}: the newer pass: {problem}", self.name());
                        self.table.problem(self.id, problem);
                        continue;
                    }
                    FromRelay::Refused(refusal) => return Some(refused(&refusal)),
                    FromRelay::AuthorityWanted { .. } | FromRelay::Welcome(_) => {
                        return Some("the relay speaks out of turn".into());
                    }
                },
                changed = self.known.changed() => {
                    changed.ok()?;
                    let pass = self.known.borrow_and_update().pass.clone();
                    if let Some(pass) = pass.filter(|pass| *pass != shown) {
                        shown = pass.clone();
                        writer.send(&ToRelay::Pass(Box::new(pass))).await.ok()?;
                    }
                    continue;
                }
                _ = look.tick() => {}
            }
            let rooms = shared.peers().rooms(shared.room());
            let dropped = shared.dropped.load(Ordering::Relaxed);
            self.table.found(self.id, rooms, shared.connection.rtt(), dropped);
        }
    }
}

fn refused(refusal: &Refusal) -> String {
    let what = match refusal.code {
        RefusalCode::Replaced => "another connection of this gateway took its place",
        _ => "refused",
    };
    format!("{what} ({:?}): {}", refusal.code, plain(&refusal.message))
}

/// Takes what the data plane has for the relay, until the connection ends.
async fn take_packets(shared: &Shared, mut outgoing: Outgoing) {
    while let Some(mut packet) = outgoing.next().await {
        let number = shared.peers().numbers.get(&packet.to).map(|state| state.number);
        let (Some(number), Some(head)) = (number, packet.bytes.get_mut(..HEADER_LEN)) else {
            shared.drop_one();
            continue;
        };
        head.copy_from_slice(&packet::header(number, false));
        match shared.connection.send_datagram_wait(packet.bytes.into()).await {
            Ok(()) => {}
            Err(SendDatagramError::TooLarge) => shared.drop_one(),
            Err(_) => break,
        }
    }
    shared.connection.closed().await;
}

/// Brings the data plane what the relay has for it, until the connection ends.
async fn bring_packets(shared: &Shared, relay: RelayId, inlet: &Inlet) {
    while let Ok(datagram) = shared.connection.read_datagram().await {
        match packet::parse(&datagram) {
            Some(Datagram::Packet { peer, sealed, .. }) => {
                let from = shared.peers().names.get(&peer).copied();
                match from {
                    Some(peer) => inlet.bring(Through { relay, peer }, sealed),
                    None => shared.drop_one(),
                }
            }
            // QUIC measures the round trip by itself.
            Some(Datagram::Probe(_) | Datagram::Answer(_)) => {}
            None => shared.drop_one(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_relay_says_of_peers_is_kept_by_name_and_number() {
        let gateway = |n| GatewayId::from_bytes([n; 16]);
        let number = |n| PeerNumber::new(n).unwrap();
        let state =
            |n, called, room| PeerState { gateway: gateway(n), number: number(called), room };
        let mut peers = Peers::default();
        peers.hear(vec![state(1, 0, Some(1_200)), state(2, 1, None)]);
        assert_eq!(peers.rooms(1_160), HashMap::from([(gateway(1), 1_160)]));
        peers.hear(vec![state(2, 1, Some(900))]);
        assert_eq!(peers.rooms(1_160).get(&gateway(2)), Some(&900));
        // One that calls a peer otherwise all at once is believed, and the old name is nobody's.
        peers.hear(vec![state(2, 7, Some(900))]);
        assert_eq!(peers.names.get(&number(1)), None);
        assert_eq!(peers.names.get(&number(7)), Some(&gateway(2)));
    }
}
