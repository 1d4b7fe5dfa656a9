//! Which peers are at which relay, as the connections learn it and the data plane is told it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anteroom_agent_core::target::{RelayId, RelayPath};
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_transport::egress;
use anteroom_transport::link::Carrier;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::{Place, RelayStatus};
use crate::dataplane::Handle;
use crate::dataplane::relayed::{Inlet, Outgoing, queues};
use crate::silence::Word;

/// By how much a round trip differs at the least, an eighth of itself aside, before anybody is told. It never stands still, and
/// each change is told to the data plane, to whoever asks, and to the controller.
const NOTABLE: Duration = Duration::from_millis(1);
/// By how much it differs at the least, a quarter of itself aside, before the data plane is told of each peer.
const FAR: Duration = Duration::from_millis(2);
/// Least time between two looks at what changed: many peers come and go together.
const SETTLE: Duration = Duration::from_millis(20);
/// How much longer that is for each gateway whose relays were told last, and how much at the most: a relay that makes thousands come and go all
/// the time takes no more than a share of the packet thread's.
const SETTLE_EACH: Duration = Duration::from_micros(200);
const SETTLE_MOST: Duration = Duration::from_secs(1);

/// One relay, as far as others than its connection need to know.
#[derive(Debug)]
struct Entry {
    status: RelayStatus,
    /// Longest packet for each peer that is there now.
    rooms: HashMap<GatewayId, u16>,
    round_trip: Duration,
    /// The round trip as the data plane is told it.
    distance: Duration,
    /// Since when it owes answers, so that others come before it.
    doubted: Option<Instant>,
    /// When it last gave one that was waited for.
    answered: Option<Instant>,
    /// Where it was connected last.
    met_at: Option<IpAddr>,
}

impl Entry {
    fn new(id: RelayId, addresses: Vec<String>, key: PublicKey) -> Self {
        let status = RelayStatus {
            number: id.0,
            addresses,
            key,
            fingerprint: key.fingerprint().to_string(),
            connected: false,
            over_tcp: false,
            silences: 0,
            round_trip: None,
            peers: 0,
            dropped: 0,
            last_error: None,
            away_since: None,
        };
        Self {
            status,
            rooms: HashMap::new(),
            round_trip: Duration::MAX,
            distance: Duration::MAX,
            doubted: None,
            answered: None,
            met_at: None,
        }
    }

    /// The round trip to it was measured.
    fn note_round_trip(&mut self, round_trip: Duration) {
        self.round_trip = round_trip;
        if round_trip.abs_diff(self.distance) > FAR.max(self.distance / 4) {
            self.distance = round_trip;
        }
    }

    /// It said welcome.
    fn greeted(&mut self, carrier: Carrier) {
        (self.doubted, self.answered) = (None, Some(Instant::now()));
        self.status.over_tcp = carrier == Carrier::Tcp;
    }

    /// Whether it is known to answer after others began not to. Over TCP nobody asks.
    fn answers_since(&self, at: Instant) -> bool {
        self.doubted.is_none() && (self.status.over_tcp || self.answered > Some(at))
    }
}

/// All relays.
pub(crate) struct Table {
    handle: Handle,
    entries: Mutex<BTreeMap<RelayId, Entry>>,
    changed: Notify,
    status: watch::Sender<Vec<RelayStatus>>,
    /// The newest document that the data plane was told of, as far as relays go.
    heeded: watch::Sender<Option<u64>>,
}

impl Table {
    pub(crate) fn new(handle: Handle, status: watch::Sender<Vec<RelayStatus>>) -> Self {
        let (changed, heeded) = (Notify::new(), watch::channel(None).0);
        Self { handle, entries: Mutex::default(), changed, status, heeded }
    }

    /// Says by `heeded` which document the data plane was told of last, as far as relays go: none while nobody connects to relays.
    #[must_use]
    pub(crate) fn saying(mut self, heeded: watch::Sender<Option<u64>>) -> Self {
        self.heeded = heeded;
        self
    }

    /// The data plane was told what the document of this number says of relays; none: it is told nothing any more.
    pub(super) fn heed(&self, document: Option<u64>) {
        self.heeded.send_replace(document);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<RelayId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, id: RelayId, place: &Place) {
        let entry = Entry::new(id, place.addresses.clone(), place.key);
        self.entries().insert(id, entry);
        self.changed.notify_one();
    }

    /// Takes in a QUIC connection to a peer itself. The status of relays says nothing of it.
    pub(crate) fn add_direct(&self, id: RelayId, key: PublicKey) {
        let entry = Entry::new(id, Vec::new(), key);
        self.entries().insert(id, entry);
    }

    pub(crate) async fn forget(&self, id: RelayId) {
        self.entries().remove(&id);
        self.changed.notify_one();
        // Where the data plane has ended there is nothing left to close.
        let _ = self.handle.close_relay(id).await;
    }

    /// Has the data plane find anew what it found with the help of relays that an authority document took out. `former` are the
    /// addresses of all that ever were.
    pub(super) async fn take_out(&self, ids: Vec<RelayId>, former: Vec<IpAddr>, document: u64) {
        self.entries().retain(|id, _| !ids.contains(id));
        let _ = self.handle.forget_relays(ids, former, document).await;
    }

    /// Where a relay was connected last.
    pub(super) fn met_at(&self, id: RelayId) -> Option<IpAddr> {
        self.entries().get(&id)?.met_at
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
            entry.greeted(carrier);
            entry.status.connected = true;
            entry.status.away_since = None;
            entry.status.last_error = None;
        });
        Some((outgoing, self.handle.inlet()))
    }

    /// The relay may be asked at `at` how the tunnels look from outside, until its connection ends.
    pub(super) async fn asks(&self, id: RelayId, at: SocketAddr) {
        self.with(id, |entry| entry.met_at = Some(at.ip().to_canonical()));
        // Where the data plane has ended nobody asks.
        let _ = self.handle.set_mirror(id, at).await;
    }

    /// A relay said welcome on another connection, which has the place of the one before.
    pub(super) fn carried(&self, id: RelayId, carrier: Carrier) {
        self.with(id, |entry| {
            entry.greeted(carrier);
            entry.status.last_error = None;
        });
    }

    /// A silent connection over QUIC was left for one over TCP.
    pub(super) fn silent(&self, id: RelayId) {
        self.with(id, |entry| entry.status.silences += 1);
    }

    /// A relay owes answers, or has given them: peers are reached by others meanwhile that give them. All are asked at once.
    pub(super) fn heard(&self, id: RelayId, word: Word) {
        let now = Instant::now();
        if let Word::Waits(since) = word {
            self.handle.note_owing(since.into_std());
            return;
        }
        self.with(id, |entry| match word {
            Word::Owes => entry.doubted = Some(now),
            Word::OwesNothing => entry.doubted = None,
            Word::Answered => entry.answered = Some(now),
            Word::Waits(_) => {}
        });
        if word == Word::Owes {
            egress::doubt();
        }
    }

    /// The connection ended.
    pub(crate) async fn lost(&self, id: RelayId, problem: &str) {
        self.with(id, |entry| {
            entry.rooms.clear();
            entry.status.connected = false;
            entry.status.round_trip = None;
            entry.status.last_error = Some(problem.to_owned());
            entry.status.away_since.get_or_insert_with(Instant::now);
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
                entry.note_round_trip(round_trip);
                entry.status.dropped = dropped;
                entry.status.round_trip = u32::try_from(round_trip.as_micros()).ok();
            });
        }
    }

    /// A relay doesn't take something; the connection goes on.
    pub(crate) fn problem(&self, id: RelayId, problem: String) {
        self.with(id, |entry| entry.status.last_error = Some(problem));
    }

    /// A relay takes what it didn't.
    pub(super) fn right(&self, id: RelayId) {
        self.with(id, |entry| entry.status.last_error = None);
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
                paths(&entries)
            };
            let gone = told.keys().filter(|gateway| !wanted.contains_key(gateway));
            let gone: Vec<GatewayId> = gone.copied().collect();
            let mut news = gone.len();
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
                news += 1;
                told.insert(gateway, paths.clone());
                if self.handle.set_relays(gateway, paths).await.is_err() {
                    return;
                }
            }
            sleep(rest(news)).await;
        }
    }
}

/// How long to wait after the relays of so many gateways were told.
fn rest(news: usize) -> Duration {
    let each = SETTLE_EACH.saturating_mul(u32::try_from(news).unwrap_or(u32::MAX));
    SETTLE.saturating_add(each).min(SETTLE_MOST)
}

/// Whether a round trip is another one than before, and not just a moment's.
pub(crate) fn differs(before: Duration, now: Duration) -> bool {
    now.abs_diff(before) > NOTABLE.max(before / 8)
}

/// By which relays each gateway is reached, nearest first, behind QUIC to the gateway itself. Those that owe answers come last,
/// and not at all once another has answered since: before that nobody knows whether it is any better.
fn paths(entries: &BTreeMap<RelayId, Entry>) -> HashMap<GatewayId, Vec<RelayPath>> {
    let mut relays: Vec<_> = entries.iter().collect();
    relays.sort_by_key(|(id, entry)| {
        (!id.is_direct(), entry.doubted.is_some(), entry.round_trip, **id)
    });
    let mut paths: HashMap<GatewayId, Vec<RelayPath>> = HashMap::new();
    for (relay, entry) in &relays {
        for (gateway, room) in &entry.rooms {
            let is_outdone = entry.doubted.is_some_and(|since| {
                let mut others = relays.iter().filter(|(id, _)| !id.is_direct());
                others.any(|(_, other)| {
                    other.rooms.contains_key(gateway) && other.answers_since(since)
                })
            });
            if !is_outdone {
                let path = RelayPath { relay: **relay, room: *room, round_trip: entry.distance };
                paths.entry(*gateway).or_default().push(path);
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use anteroom_proto::key::IdentityKey;

    use super::*;

    #[test]
    fn who_makes_many_come_and_go_is_followed_at_leisure_and_who_makes_few_at_once() {
        assert_eq!(rest(0), SETTLE);
        assert!(rest(50) <= SETTLE * 2, "{:?}", rest(50));
        assert!(rest(3_000) >= Duration::from_millis(500), "{:?}", rest(3_000));
        assert_eq!(rest(usize::MAX), SETTLE_MOST);
    }

    #[test]
    fn a_round_trip_is_news_once_it_is_another_one() {
        let micros = Duration::from_micros;
        assert!(!differs(micros(300), micros(1_200)));
        assert!(differs(micros(300), micros(1_400)));
        assert!(!differs(micros(80_000), micros(71_000)));
        assert!(differs(micros(80_000), micros(69_000)) && differs(micros(69_000), micros(80_000)));
    }

    fn gateway(n: u8) -> GatewayId {
        GatewayId::from_bytes([n; 16])
    }

    fn entry(millis: u64, rooms: &[(u8, u16)]) -> Entry {
        let rooms = rooms.iter().map(|(n, room)| (gateway(*n), *room)).collect();
        let key = IdentityKey::from_seed(&[1; 32]).public();
        let mut entry = Entry { rooms, ..Entry::new(RelayId(0), Vec::new(), key) };
        entry.note_round_trip(Duration::from_millis(millis));
        entry
    }

    fn order(entries: &BTreeMap<RelayId, Entry>, to: u8) -> Vec<(u16, u16)> {
        let paths = paths(entries);
        paths[&gateway(to)].iter().map(|path| (path.relay.0, path.room)).collect()
    }

    #[test]
    fn the_nearest_relay_where_a_peer_is_comes_first() {
        let far = entry(40, &[(1, 1_300), (2, 1_300)]);
        let relays = BTreeMap::from([(RelayId(0), far), (RelayId(1), entry(3, &[(1, 1_100)]))]);
        assert_eq!(order(&relays, 1), [(1, 1_100), (0, 1_300)]);
        assert_eq!(order(&relays, 2), [(0, 1_300)]);
        assert_eq!(paths(&relays).len(), 2);
    }

    #[test]
    fn the_data_plane_is_told_how_far_a_relay_is_where_that_matters() {
        let mut relays = BTreeMap::from([(RelayId(0), entry(40, &[(1, 1_300)]))]);
        let mut told = |millis| {
            let one = relays.get_mut(&RelayId(0)).unwrap();
            one.note_round_trip(Duration::from_millis(millis));
            paths(&relays)[&gateway(1)][0].round_trip.as_millis()
        };
        assert_eq!([40, 50, 31, 51, 45, 9, 10, 6].map(&mut told), [40, 40, 40, 51, 51, 9, 9, 6]);
    }

    #[test]
    fn quic_to_a_peer_itself_comes_before_the_nearest_relay() {
        let ways = [(RelayId(0), 0), (RelayId(0x8000), 90)];
        let ways = ways.map(|(id, millis)| (id, entry(millis, &[(1, 1_150)])));
        assert_eq!(order(&BTreeMap::from(ways), 1), [(0x8000, 1_150), (0, 1_150)]);
    }

    #[test]
    fn a_relay_that_owes_answers_comes_last_until_another_has_answered_since() {
        let relays = [(0, 1), (1, 20), (2, 30)];
        let relays = relays.map(|(id, millis)| (RelayId(id), entry(millis, &[(1, 1_150)])));
        let mut relays = BTreeMap::from(relays);
        let begun = Instant::now();
        let mut after = |id: u16, seconds: u64, word: Word| {
            let one = relays.get_mut(&RelayId(id)).unwrap();
            let at = Some(begun + Duration::from_secs(seconds));
            match word {
                Word::Owes => one.doubted = at,
                Word::OwesNothing => one.doubted = None,
                Word::Answered => one.answered = at,
                Word::Waits(_) => {}
            }
            order(&relays, 1).iter().map(|(relay, _)| *relay).collect::<Vec<_>>()
        };
        // Nobody knows yet whether the others are any better: packets stay where they are.
        assert_eq!(after(1, 1, Word::Answered), [0, 1, 2]);
        assert_eq!(after(0, 2, Word::Owes), [1, 2, 0]);
        assert_eq!(after(2, 3, Word::Answered), [1, 2]);
        assert_eq!(after(2, 4, Word::Owes), [1, 0, 2]);
        assert_eq!(after(1, 5, Word::Owes), [0, 1, 2]);
        // One that answers again is only taken once it does so steadily.
        assert_eq!(after(0, 6, Word::Answered), [0, 1, 2]);
        assert_eq!(after(0, 8, Word::OwesNothing), [0]);
        // Over TCP nothing is owed.
        relays.get_mut(&RelayId(0)).unwrap().answered = None;
        assert_eq!(order(&relays, 1).len(), 3);
        relays.get_mut(&RelayId(0)).unwrap().status.over_tcp = true;
        assert_eq!(order(&relays, 1), [(0, 1_150)]);
    }
}
