//! Which peers are at which relay, as the connections learn it and the data plane is told it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anteroom_agent_core::target::{RelayId, RelayPath};
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_transport::link::Carrier;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::{Place, RelayStatus};
use crate::dataplane::Handle;
use crate::dataplane::relayed::{Inlet, Outgoing, queues};

/// By how much a round trip differs at the least, an eighth of itself aside, before anybody is told. It never stands still, and
/// each change is told to the data plane, to whoever asks, and to the controller.
const NOTABLE: Duration = Duration::from_millis(1);
/// Least time between two looks at what changed: many peers come and go together.
const SETTLE: Duration = Duration::from_millis(20);

/// One relay, as far as others than its connection need to know.
#[derive(Debug)]
struct Entry {
    status: RelayStatus,
    /// Longest packet for each peer that is there now.
    rooms: HashMap<GatewayId, u16>,
    round_trip: Duration,
}

/// All relays.
pub(crate) struct Table {
    handle: Handle,
    entries: Mutex<BTreeMap<RelayId, Entry>>,
    changed: Notify,
    status: watch::Sender<Vec<RelayStatus>>,
}

impl Table {
    pub(crate) fn new(handle: Handle, status: watch::Sender<Vec<RelayStatus>>) -> Self {
        Self { handle, entries: Mutex::default(), changed: Notify::new(), status }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<RelayId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, id: RelayId, place: &Place) {
        let status = RelayStatus {
            number: id.0,
            addresses: place.addresses.clone(),
            key: place.key,
            fingerprint: place.key.fingerprint().to_string(),
            connected: false,
            over_tcp: false,
            round_trip: None,
            peers: 0,
            dropped: 0,
            last_error: None,
        };
        let entry = Entry { status, rooms: HashMap::new(), round_trip: Duration::MAX };
        self.entries().insert(id, entry);
        self.changed.notify_one();
    }

    /// Takes in a QUIC connection to a peer itself. The status of relays says nothing of it.
    pub(crate) fn add_direct(&self, id: RelayId, key: PublicKey) {
        let status = RelayStatus {
            number: id.0,
            addresses: Vec::new(),
            key,
            fingerprint: key.fingerprint().to_string(),
            connected: false,
            over_tcp: false,
            round_trip: None,
            peers: 0,
            dropped: 0,
            last_error: None,
        };
        let entry = Entry { status, rooms: HashMap::new(), round_trip: Duration::MAX };
        self.entries().insert(id, entry);
    }

    pub(crate) async fn forget(&self, id: RelayId) {
        self.entries().remove(&id);
        self.changed.notify_one();
        // Where the data plane has ended there is nothing left to close.
        let _ = self.handle.close_relay(id).await;
    }

    /// Changes what is known of a relay.
    fn with(&self, id: RelayId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries().get_mut(&id) {
            change(entry);
            entry.status.peers = entry.rooms.len();
        }
        self.changed.notify_one();
    }

    /// A relay said welcome: from now on the data plane has queues for it. None where that has ended.
    pub(crate) async fn opened(&self, id: RelayId, carrier: Carrier) -> Option<(Outgoing, Inlet)> {
        let (into, outgoing) = queues();
        self.handle.open_relay(id, into).await.ok()?;
        self.with(id, |entry| {
            entry.status.connected = true;
            entry.status.over_tcp = carrier == Carrier::Tcp;
            entry.status.last_error = None;
        });
        Some((outgoing, self.handle.inlet()))
    }

    /// The relay may be asked at `at` how the tunnels look from outside, until its connection ends.
    pub(super) async fn asks(&self, id: RelayId, at: SocketAddr) {
        // Where the data plane has ended nobody asks.
        let _ = self.handle.set_mirror(id, at).await;
    }

    /// A relay said welcome on another connection, which has the place of the one before.
    pub(super) fn carried(&self, id: RelayId, carrier: Carrier) {
        self.with(id, |entry| entry.status.over_tcp = carrier == Carrier::Tcp);
    }

    /// The connection ended.
    pub(crate) async fn lost(&self, id: RelayId, problem: &str) {
        self.with(id, |entry| {
            entry.rooms.clear();
            entry.status.connected = false;
            entry.status.round_trip = None;
            entry.status.last_error = Some(problem.to_owned());
        });
        let _ = self.handle.close_relay(id).await;
    }

    /// What a connection found out: who is there, and how far it is.
    pub(crate) fn found(
        &self,
        id: RelayId,
        rooms: HashMap<GatewayId, u16>,
        round_trip: Duration,
        dropped: u64,
    ) {
        let is_news = self.entries().get(&id).is_some_and(|entry| {
            entry.rooms != rooms
                || entry.status.dropped != dropped
                || entry.status.round_trip.is_none()
                || differs(entry.round_trip, round_trip)
        });
        if is_news {
            self.with(id, |entry| {
                entry.rooms = rooms;
                entry.round_trip = round_trip;
                entry.status.dropped = dropped;
                entry.status.round_trip = u32::try_from(round_trip.as_micros()).ok();
            });
        }
    }

    /// A relay doesn't take something; the connection goes on.
    pub(crate) fn problem(&self, id: RelayId, problem: String) {
        self.with(id, |entry| entry.status.last_error = Some(problem));
    }

    /// Tells the data plane whatever changes, for as long as it is polled and that one is there.
    pub(crate) async fn keep_telling(&self) {
        let mut told: HashMap<GatewayId, Vec<RelayPath>> = HashMap::new();
        loop {
            self.changed.notified().await;
            let wanted = {
                let entries = self.entries();
                let relays = entries.iter().filter(|(id, _)| !id.is_direct());
                let status = relays.map(|(_, entry)| entry.status.clone()).collect();
                self.status.send_if_modified(|before: &mut Vec<RelayStatus>| {
                    let changed = *before != status;
                    *before = status;
                    changed
                });
                paths(entries.iter().map(|(id, entry)| (*id, entry.round_trip, &entry.rooms)))
            };
            let gone = told.keys().filter(|gateway| !wanted.contains_key(gateway));
            let gone: Vec<GatewayId> = gone.copied().collect();
            for gateway in gone {
                told.remove(&gateway);
                if self.handle.set_relays(gateway, Vec::new()).await.is_err() {
                    return;
                }
            }
            for (gateway, paths) in wanted {
                if told.get(&gateway) == Some(&paths) {
                    continue;
                }
                told.insert(gateway, paths.clone());
                if self.handle.set_relays(gateway, paths).await.is_err() {
                    return;
                }
            }
            sleep(SETTLE).await;
        }
    }
}

/// Whether a round trip is another one than before, and not just a moment's.
fn differs(before: Duration, now: Duration) -> bool {
    now.abs_diff(before) > NOTABLE.max(before / 8)
}

/// By which relays each gateway is reached, nearest first, behind QUIC to the gateway itself.
fn paths<'a>(
    relays: impl Iterator<Item = (RelayId, Duration, &'a HashMap<GatewayId, u16>)>,
) -> HashMap<GatewayId, Vec<RelayPath>> {
    let mut relays: Vec<_> = relays.collect();
    relays.sort_by_key(|(relay, round_trip, _)| (!relay.is_direct(), *round_trip, *relay));
    let mut paths: HashMap<GatewayId, Vec<RelayPath>> = HashMap::new();
    for (relay, _, rooms) in relays {
        for (gateway, room) in rooms {
            paths.entry(*gateway).or_default().push(RelayPath { relay, room: *room });
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_news_once_it_is_another_one() {
        let micros = Duration::from_micros;
        assert!(!differs(micros(300), micros(1_200)));
        assert!(differs(micros(300), micros(1_400)));
        assert!(!differs(micros(80_000), micros(71_000)));
        assert!(differs(micros(80_000), micros(69_000)) && differs(micros(69_000), micros(80_000)));
    }

    #[test]
    fn the_nearest_relay_where_a_peer_is_comes_first() {
        let gateway = |n| GatewayId::from_bytes([n; 16]);
        let near = HashMap::from([(gateway(1), 1_100)]);
        let far = HashMap::from([(gateway(1), 1_300), (gateway(2), 1_300)]);
        let millis = Duration::from_millis;
        let relays = [(RelayId(0), millis(40), &far), (RelayId(1), millis(3), &near)];
        let paths = paths(relays.into_iter());
        let path = |relay, room| RelayPath { relay: RelayId(relay), room };
        assert_eq!(paths[&gateway(1)], [path(1, 1_100), path(0, 1_300)]);
        assert_eq!(paths[&gateway(2)], [path(0, 1_300)]);
        assert_eq!(paths.len(), 2);
    }

    #[test]
    fn quic_to_a_peer_itself_comes_before_the_nearest_relay() {
        let gateway = GatewayId::from_bytes([1; 16]);
        let rooms = HashMap::from([(gateway, 1_150)]);
        let direct = RelayId(0x8000);
        let far = Duration::from_millis(90);
        let ways = [(RelayId(0), Duration::ZERO, &rooms), (direct, far, &rooms)];
        let paths = paths(ways.into_iter());
        let order: Vec<RelayId> = paths[&gateway].iter().map(|path| path.relay).collect();
        assert_eq!(order, [direct, RelayId(0)]);
    }
}
