//! Connections to relays, for packets whose peers can't be reached directly yet, or no longer.
//!
//! The newest authority document names the relays: those that stand alone, and every controller. Each is connected to
//! as soon as there is a pass, and stays so while direct paths work too: when one dies, a relay must take over at once.
//! Which peers are at which relay, and how far each relay is, the data plane is told; what goes where, it decides.
//!
//! Nothing here needs a controller: chain and pass are on disk, and a pass doesn't expire by any clock.

mod carried;
mod former;
mod link;
mod peers;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use anteroom_agent_core::target::RelayId;
use anteroom_proto::authority::{Authority, AuthorityChain};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::v1::telemetry::{FIRST_DIRECT, RelayAway, RelayUse, TunnelState};
use anteroom_transport::egress;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::again::Again;
use crate::task::Task;
use former::Former;
use link::Link;
pub(crate) use table::{Table, differs};

/// Most relays that a gateway connects to.
const MOST: usize = 16;

/// What connecting to relays takes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// The authority chain: it names relays, and they follow it.
    pub(crate) chain: Option<Arc<AuthorityChain>>,
    /// With whom this gateway shares a view, as a controller signed it.
    pub(crate) pass: Option<Signed<RelayPass>>,
}

/// A relay, and how it stands with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// What the data plane calls it.
    pub number: u16,
    /// Where it is, as the authority document has it.
    pub addresses: Vec<String>,
    /// Its key.
    pub key: PublicKey,
    /// The fingerprint of that.
    pub fingerprint: String,
    /// Whether it has said welcome.
    pub connected: bool,
    /// Whether the connection takes TCP, since UDP doesn't get through.
    #[serde(default)]
    pub over_tcp: bool,
    /// How often one over QUIC was left for one over TCP as soon as nothing got through it, and not when QUIC gave it up.
    #[serde(default)]
    pub silences: u64,
    /// Round trip to it, in microseconds.
    pub round_trip: Option<u32>,
    /// How many peers can be reached through it now.
    pub peers: usize,
    /// Packets that it couldn't take or that are for nobody there.
    pub dropped: u64,
    /// What went wrong last, if nothing has gone right since.
    pub last_error: Option<String>,
    /// Since when connecting to it fails.
    #[serde(skip)]
    pub(crate) away_since: Option<Instant>,
}

/// What the controller is told of relays.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    pub(crate) connected: Vec<RelayUse>,
    pub(crate) away: Vec<RelayAway>,
}

/// How it stands with the relays now.
pub(crate) fn told(relays: &[RelayStatus], tunnels: &[TunnelState]) -> Relays {
    Relays { connected: in_use(relays, tunnels), away: away(relays, Instant::now()) }
}

/// The relays that can't be connected to, for how long, and why. One that nobody has tried yet isn't among them.
fn away(relays: &[RelayStatus], now: Instant) -> Vec<RelayAway> {
    let told = relays.iter().filter_map(|relay| {
        let (since, error) = (relay.away_since?, relay.last_error.as_ref()?);
        let error = error.chars().take(RelayAway::MAX_ERROR).collect();
        Some(RelayAway { key: relay.key, seconds: (now - since).as_secs(), error })
    });
    told.collect()
}

/// The relays that are connected, and how many peers packets for `tunnels` take them to.
fn in_use(relays: &[RelayStatus], tunnels: &[TunnelState]) -> Vec<RelayUse> {
    let carries = |number| {
        let through = tunnels.iter().filter(|tunnel| tunnel.relay == Some(number)).count();
        u32::try_from(through).unwrap_or(u32::MAX)
    };
    let connected = relays.iter().filter(|relay| relay.connected);
    let told = connected.map(|relay| {
        let RelayStatus { number, key, round_trip, .. } = *relay;
        let (carries, over_tcp) = (carries(number), relay.over_tcp);
        RelayUse { key, round_trip, carries, over_tcp, number: Some(number) }
    });
    told.collect()
}

/// A relay as the authority document names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    key: PublicKey,
    addresses: Vec<String>,
}

/// All that may relay.
fn places(authority: &Authority) -> Vec<Place> {
    let relays = authority.relays.iter().map(|relay| (relay.key, &relay.addresses));
    let controllers = authority.controllers.iter().map(|one| (one.key, &one.addresses));
    // However many relays there are, some controllers are among them.
    let room = MOST - authority.controllers.len().min(MOST / 2);
    let all = relays.take(room).chain(controllers);
    all.map(|(key, addresses)| Place { key, addresses: addresses.clone() }).take(MOST).collect()
}

/// Who this gateway is to relays.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) organisation: OrganisationId,
    /// Its identity key, as it changes.
    pub(crate) identity: watch::Receiver<IdentityKey>,
    /// How many bytes of IP the interface takes in one piece by which connections leave, as it changes. None: it isn't known.
    pub(crate) mtu: watch::Receiver<Option<u16>>,
}

impl Who {
    /// The identity key of now.
    fn key(&self) -> IdentityKey {
        self.identity.borrow().clone()
    }
}

impl Known {
    /// The pass, where it is for `identity`: one for a key that was replaced lets nobody in.
    fn pass_for(&self, identity: PublicKey) -> Option<&Signed<RelayPass>> {
        let fits = |pass: &&Signed<RelayPass>| {
            pass.verify_self_named().is_ok_and(|pass| pass.identity == identity)
        };
        self.pass.as_ref().filter(fits)
    }

    /// Whether the relay with this key is to be told of the newest authority document by a connection of its own, after one that told it
    /// of document `told`: it hears of documents by hellos alone. Not before there is a pass that is good by the newest: a relay
    /// that hears of it takes none of a controller that was replaced.
    fn outdates(&self, told: u64, relay: PublicKey, identity: PublicKey) -> bool {
        let (Some(chain), Some(pass)) = (&self.chain, self.pass_for(identity)) else {
            return false;
        };
        let newest = chain.newest();
        // Controllers have it from operators.
        newest.number > told
            && newest.relays.iter().any(|named| named.key == relay)
            && RelayPass::verify(pass, newest, identity).is_ok()
    }
}

/// Says that nobody connects to relays any more when it is dropped.
struct Heeding(Arc<Table>);

impl Drop for Heeding {
    fn drop(&mut self) {
        self.0.heed(None);
    }
}

/// Stays connected to all relays for as long as it is polled.
pub(crate) async fn run(who: Who, mut known: watch::Receiver<Known>, table: Arc<Table>) {
    // Nobody waits for it any more once it has ended, however it did.
    let heeding = Heeding(table.clone());
    let mut links: BTreeMap<u16, (Place, Task)> = BTreeMap::new();
    let mut next = 0_u16;
    let mut former = Former::default();
    let telling = tokio::spawn({
        let table = table.clone();
        async move { table.keep_telling().await }
    });
    let _telling = Task(telling);
    loop {
        let chain = known.borrow_and_update().chain.clone();
        let wanted = chain.as_ref().map(|chain| places(chain.newest())).unwrap_or_default();
        let gone = links.iter().filter(|(_, (place, _))| !wanted.contains(place));
        let gone: Vec<(u16, PublicKey)> = gone.map(|(id, (place, _))| (*id, place.key)).collect();
        let stays = links.iter().filter(|(_, (place, _))| wanted.contains(place));
        // One that is merely beyond the first isn't taken out.
        let keys = chain.as_ref().map(|chain| chain.newest().relay_keys()).unwrap_or_default();
        let named = |key: &PublicKey| keys.contains(key);
        let beyond = |key: &PublicKey| named(key) && !wanted.iter().any(|place| place.key == *key);
        former.note(
            gone.iter()
                .filter(|(_, key)| !beyond(key))
                .filter_map(|(number, _)| table.met_at(RelayId(*number))),
            stays.filter_map(|(number, _)| table.met_at(RelayId(*number))),
        );
        for (number, _) in &gone {
            if let Some((_, mut link)) = links.remove(number) {
                link.end().await;
            }
        }
        let out = gone.iter().filter(|(_, key)| !named(key)).map(|(number, _)| RelayId(*number));
        let out: Vec<RelayId> = out.collect();
        if let Some((addresses, document)) = former.told(chain.as_deref(), !out.is_empty()) {
            table.take_out(out, addresses, document).await;
        }
        heeding.0.heed(Some(chain.map_or(0, |chain| chain.newest().number)));
        for (number, _) in gone {
            table.forget(RelayId(number)).await;
        }
        for place in wanted {
            if links.values().any(|(known, _)| *known == place) {
                continue;
            }
            let number = next;
            next = next.wrapping_add(1) % FIRST_DIRECT;
            table.add(RelayId(number), &place);
            let link = Link {
                id: RelayId(number),
                place: place.clone(),
                who: who.clone(),
                known: known.clone(),
                table: table.clone(),
                again: Again::default(),
                last: None,
                moves: egress::moves(),
            };
            links.insert(number, (place, Task(tokio::spawn(link.run()))));
        }
        if known.changed().await.is_err() {
            return;
        }
    }
}
