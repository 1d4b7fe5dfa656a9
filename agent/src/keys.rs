//! This gateway's tunnel keys: when a new one is made, who is offered which, and when an old one goes.
//!
//! A key is on the disk before the engine uses it, and in the engine before anybody hears of it: whoever shakes hands
//! with it finds it, whatever is restarted meanwhile. An old one goes from the disk first, and the last mention of it
//! with the next greeting. The first key that a gateway ever had stays for its clients, whose configuration names it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anteroom_agent_core::peer::{KeyUse, OwnKem, OwnKey};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, OrganisationId};
use anteroom_proto::key::{IdentityKey, TunnelSecret};
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::kem::KemKey;
use crate::state::{Enrolment, TunnelKey};

/// Most keys for other gateways at once: a new one isn't made while peers hold on to so many.
pub const MOST: usize = 3;
/// How long an old key waits for peers that aren't there. They catch up by way of the controller when they are back.
pub const FOR_AWAY: Duration = Duration::from_secs(24 * 3600);
/// How long an old key has in an emergency, whoever still needs it.
pub const IN_EMERGENCY: Duration = Duration::from_secs(30);
/// A key that was made so much later than it is now was made by a clock that went wrong.
const AHEAD: Duration = Duration::from_secs(3600);

/// Whether a key that was made then was made by a clock that went wrong.
#[must_use]
pub fn is_ahead(made: UnixMillis, now: UnixMillis) -> bool {
    made.since(now) > AHEAD
}

/// A tunnel key as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// Its public half, as WireGuard writes keys.
    pub key: String,
    /// Its serial number.
    pub serial: u64,
    /// When it was made, by the clock of then.
    pub made: UnixMillis,
    /// What it is for: `gateways`, `clients`, or both.
    pub serves: String,
    /// Whether pre-shared keys are agreed on with it, by ML-KEM-768.
    #[serde(default)]
    pub post_quantum: bool,
    /// Live peers that still need it, though there is a newer one.
    pub needed_by: Option<usize>,
    /// Absent peers that know no newer one.
    pub awaited: Option<usize>,
}

/// The tunnel keys of this gateway, newest first. There is always one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    newest: TunnelKey,
    older: Vec<TunnelKey>,
    /// When older keys were replaced, by their serials. It isn't written down: after a restart the next newer key that is left
    /// counts, so that they wait longer then and never less.
    replaced: BTreeMap<u64, UnixMillis>,
}

impl Ring {
    /// What was on the disk, newest first; `newest` where nothing was.
    #[must_use]
    pub fn new(keys: Vec<TunnelKey>, newest: TunnelKey) -> Self {
        let mut keys = keys.into_iter();
        let newest = keys.next().unwrap_or(newest);
        let mut ring = Self { newest, older: keys.collect(), replaced: BTreeMap::new() };
        ring.replaced =
            ring.all().zip(&ring.older).map(|(newer, key)| (key.serial, newer.made)).collect();
        if !ring.all().any(|key| key.clients) {
            let first = ring.older.last_mut().unwrap_or(&mut ring.newest);
            first.clients = true;
        }
        ring
    }

    /// The key that peers are to use.
    #[must_use]
    pub const fn newest(&self) -> &TunnelKey {
        &self.newest
    }

    /// All of them, newest first.
    pub fn all(&self) -> impl Iterator<Item = &TunnelKey> + Clone {
        std::iter::once(&self.newest).chain(&self.older)
    }

    fn for_gateways(&self) -> impl Iterator<Item = &TunnelKey> {
        self.all().filter(|key| !key.retired)
    }

    /// Whether an old key is still there for other gateways.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.for_gateways().count() > 1
    }

    /// As the engine uses them.
    #[must_use]
    pub fn own(&self, who: (OrganisationId, GatewayId)) -> Vec<OwnKey> {
        let own = |key: &TunnelKey| OwnKey {
            secret: key.secret.clone(),
            gateways: !key.retired,
            clients: key.clients,
            kem: key.kem.as_ref().map(|kem| OwnKem {
                binding: key.binding(who).digest(),
                kem: Arc::<KemKey>::clone(kem),
            }),
        };
        self.all().map(own).collect()
    }

    /// As they are offered: those for other gateways, and the one for clients where that is another than the newest.
    #[must_use]
    pub fn bindings(
        &self,
        enrolment: &Enrolment,
        identity: &IdentityKey,
    ) -> Vec<Signed<TunnelKeyBinding>> {
        let mut bindings: Vec<_> =
            self.for_gateways().map(|key| key.bind(enrolment, identity)).collect();
        let clients = self.older.iter().filter(|key| key.clients);
        bindings.extend(clients.map(|key| key.bind_for_clients(enrolment, identity)));
        bindings
    }

    /// Whether the newest key is as old as a key gets, or of a version that knew no pre-shared keys.
    #[must_use]
    pub fn is_due(&self, every: Duration, now: UnixMillis) -> bool {
        let made = self.newest.made;
        self.newest.kem.is_none() || now.since(made) >= every || is_ahead(made, now)
    }

    /// Whether peers hold on to so many keys that another one has to wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.for_gateways().count() >= MOST
    }

    /// The same with a new key, made now, with a serial above those in use and `above`. In an emergency what is too much goes at once.
    #[must_use]
    pub fn with_new(
        &self,
        (secret, kem): (TunnelSecret, Option<Arc<KemKey>>),
        urgent: bool,
        above: u64,
        now: UnixMillis,
    ) -> Self {
        let serial = self.newest.serial.max(above).saturating_add(1).max(now.0 / 1000);
        let (unsure, clients, retired) = (false, false, false);
        let made = UnixMillis(now.0 / 1000 * 1000);
        let newest = TunnelKey { serial, made, secret, kem, unsure, clients, retired, urgent };
        let mut older: Vec<TunnelKey> = self.all().cloned().collect();
        let surplus = older.iter().filter(|key| !key.retired).count().saturating_sub(MOST - 1);
        for key in older.iter_mut().rev().filter(|key| !key.retired).take(surplus) {
            key.retired = true;
        }
        let mut replaced = self.replaced.clone();
        replaced.insert(self.newest.serial, now);
        let mut ring = Self { newest, older, replaced };
        ring.drop_retired();
        ring
    }

    fn drop_retired(&mut self) {
        self.older.retain(|key| key.clients || !key.retired);
        // Clients agree on no pre-shared keys: what is left for them must open nothing that was said between gateways.
        for key in self.older.iter_mut().filter(|key| key.retired) {
            key.kem = None;
        }
        let older = &self.older;
        self.replaced.retain(|serial, _| older.iter().any(|key| key.serial == *serial));
    }

    /// How long ago an older key was replaced.
    fn replaced_for(&self, key: &TunnelKey, now: UnixMillis) -> Duration {
        self.replaced.get(&key.serial).map_or(Duration::ZERO, |at| now.since(*at))
    }

    /// The same without what nobody needs any more; `None` where that is nothing. The newest key has been in use for `used`, at least. Where
    /// nobody has confirmed the time, that alone counts, and nobody who is away has waited for long enough.
    #[must_use]
    pub fn without_unneeded(
        &self,
        uses: &[KeyUse],
        used: Duration,
        now: Option<UnixMillis>,
    ) -> Option<Self> {
        let age = now.map_or(used, |now| now.since(self.newest.made).max(used));
        let hurries = self.newest.urgent && age >= IN_EMERGENCY;
        let mut ring = self.clone();
        for key in ring.older.iter_mut().filter(|key| !key.retired) {
            let public = key.secret.public();
            let Some(found) = uses.iter().find(|found| found.key == public) else { continue };
            let waited = now.is_some_and(|now| self.replaced_for(key, now) >= FOR_AWAY);
            let over = found.live == 0 && (found.away == 0 || waited);
            key.retired = over || hurries;
        }
        ring.drop_retired();
        (ring != *self).then_some(ring)
    }

    /// Live peers that hold on to a key that was replaced a day ago or earlier: they weren't told of the newer ones, or don't want to
    /// move. Of each key no more are given than [`KeyUse`] names.
    #[must_use]
    pub fn held_on_by(&self, uses: &[KeyUse], now: UnixMillis) -> BTreeSet<GatewayId> {
        let late = |key: &&TunnelKey| !key.retired && self.replaced_for(key, now) >= FOR_AWAY;
        let late = self.older.iter().filter(late).map(|key| key.secret.public());
        let of = |key| uses.iter().filter(move |found| found.key == key);
        late.flat_map(of).flat_map(|found| found.names.iter().copied()).collect()
    }

    /// The same with old keys that wait for nobody; `None` where there are none, or they don't already.
    #[must_use]
    pub fn hurried(&self) -> Option<Self> {
        let mut ring = self.clone();
        ring.newest.urgent = true;
        (self.is_changing() && ring != *self).then_some(ring)
    }

    /// Takes over a confirmed time: whatever serials lost keys had, they were no higher than the time then. Says whether
    /// that changed anything.
    pub fn settle(&mut self, now: UnixMillis) -> bool {
        let changes = self.newest.unsure && self.newest.serial < now.0 / 1000;
        if changes {
            (self.newest.serial, self.newest.unsure) = (now.0 / 1000, false);
            self.newest.made = UnixMillis(now.0 / 1000 * 1000);
        }
        changes
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self, uses: &[KeyUse]) -> Vec<KeyStatus> {
        let show = |key: &TunnelKey| {
            let public = key.secret.public();
            let old = key.serial != self.newest.serial && !key.retired;
            let found = uses.iter().find(|found| old && found.key == public);
            KeyStatus {
                key: public.to_wireguard(),
                serial: key.serial,
                made: key.made,
                serves: match (key.retired, key.clients) {
                    (true, _) => "clients",
                    (false, true) => "gateways, clients",
                    (false, false) => "gateways",
                }
                .into(),
                post_quantum: key.kem.is_some() && !key.retired,
                needed_by: found.map(|found| found.live),
                awaited: found.map(|found| found.away),
            }
        };
        self.all().map(show).collect()
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::key::TunnelPublicKey;

    use std::sync::LazyLock;

    use super::*;

    const WHO: (OrganisationId, GatewayId) =
        (OrganisationId::from_bytes([1; 16]), GatewayId::from_bytes([2; 16]));
    static KEM: LazyLock<Option<Arc<KemKey>>> = LazyLock::new(KemKey::generate);
    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn secret(number: u8) -> TunnelSecret {
        TunnelSecret::from_bytes([number; 32])
    }

    fn key(number: u8, serial: u64) -> TunnelKey {
        let secret = secret(number);
        TunnelKey {
            serial,
            made: UnixMillis(serial * 1000),
            secret,
            kem: KEM.clone(),
            unsure: false,
            clients: false,
            retired: false,
            urgent: false,
        }
    }

    fn ring() -> Ring {
        Ring::new(vec![key(1, NOW.0 / 1000)], key(9, 1))
    }

    fn named(key: u8, peer: usize) -> GatewayId {
        GatewayId::from_bytes([key * 16 + u8::try_from(peer).unwrap(); 16])
    }

    fn uses(found: &[(u8, usize, usize)]) -> Vec<KeyUse> {
        let one = |(number, live, away): &(u8, usize, usize)| KeyUse {
            key: secret(*number).public(),
            live: *live,
            away: *away,
            names: (0..*live).map(|peer| named(*number, peer)).collect(),
        };
        found.iter().map(one).collect()
    }

    fn publics<'a>(keys: impl Iterator<Item = &'a OwnKey>) -> Vec<TunnelPublicKey> {
        keys.map(|own| own.secret.public()).collect()
    }

    fn after(time: Duration) -> UnixMillis {
        NOW.saturating_add(u64::try_from(time.as_millis()).unwrap())
    }

    #[test]
    fn what_is_left_to_clients_opens_nothing_that_was_said_between_gateways() {
        let ring =
            ring().with_new((secret(2), KEM.clone()), false, 0, after(Duration::from_secs(9)));
        let gone = ring.without_unneeded(&uses(&[(1, 0, 0)]), Duration::ZERO, Some(NOW)).unwrap();
        let first: Vec<&TunnelKey> = gone.all().filter(|key| key.retired).collect();
        assert_eq!(first.len(), 1, "{gone:?}");
        assert!(first[0].clients && first[0].kem.is_none(), "{gone:?}");
        assert!(gone.newest().kem.is_some());
    }

    #[test]
    fn a_new_key_is_due_by_age_and_where_the_clock_was_wrong() {
        let day = Duration::from_secs(86_400);
        assert!(!ring().is_due(day, NOW));
        assert!(!ring().is_due(day, after(day - Duration::from_secs(1))));
        assert!(ring().is_due(day, after(day)));
        assert!(!ring().is_due(day, UnixMillis(NOW.0 - 1_800_000)), "half an hour ahead");
        assert!(ring().is_due(day, UnixMillis(NOW.0 - 7_200_000)), "made by a wrong clock");
        let old = Ring::new(vec![TunnelKey { kem: None, ..key(1, NOW.0 / 1000) }], key(9, 1));
        assert!(old.is_due(day, NOW), "it can have no pre-shared keys");
    }

    #[test]
    fn an_old_key_goes_when_nobody_needs_it_and_the_first_stays_for_clients() {
        let two =
            ring().with_new((secret(2), KEM.clone()), false, 0, after(Duration::from_secs(5)));
        assert_eq!(two.newest().serial, NOW.0 / 1000 + 5);
        let soon = after(Duration::from_secs(60));
        assert_eq!(
            two.without_unneeded(&uses(&[(2, 0, 0), (1, 1, 0)]), Duration::ZERO, Some(soon)),
            None
        );
        assert_eq!(
            two.without_unneeded(&uses(&[(2, 0, 0), (1, 0, 1)]), Duration::ZERO, Some(soon)),
            None
        );
        assert_eq!(
            two.without_unneeded(&[], Duration::ZERO, Some(soon)),
            None,
            "the engine says nothing of it yet"
        );
        let late = after(FOR_AWAY + Duration::from_secs(5));
        assert!(
            two.without_unneeded(&uses(&[(1, 1, 0)]), Duration::ZERO, Some(late)).is_none(),
            "a live one is needed"
        );
        assert!(
            two.without_unneeded(&uses(&[(1, 0, 7)]), Duration::ZERO, Some(late)).is_some(),
            "nobody waits for ever"
        );
        let one = two
            .without_unneeded(&uses(&[(2, 0, 0), (1, 0, 0)]), Duration::ZERO, Some(soon))
            .unwrap();
        let own = one.own(WHO);
        let gateways = publics(own.iter().filter(|own| own.gateways));
        let clients = publics(own.iter().filter(|own| own.clients));
        assert_eq!(gateways, [secret(2).public()]);
        assert_eq!(clients, [secret(1).public()]);
        // The next one leaves nothing of the second.
        let three = one.with_new((secret(3), KEM.clone()), false, 0, soon);
        let three = three
            .without_unneeded(&uses(&[(3, 0, 0), (2, 0, 0)]), Duration::ZERO, Some(soon))
            .unwrap();
        assert_eq!(publics(three.own(WHO).iter()), [secret(3).public(), secret(1).public()]);
        assert!(!three.is_changing());
    }

    /// One change a day, as by default: the newest key is never a day old.
    #[test]
    fn who_is_away_or_holds_on_has_a_day_from_the_change_however_many_follow() {
        let day = |days: f64| after(FOR_AWAY.mul_f64(days));
        let mut ring = ring();
        for (number, days) in [(2, 0.0), (3, 0.95)] {
            ring = ring.with_new((secret(number), KEM.clone()), false, 0, day(days));
        }
        let away = uses(&[(3, 0, 0), (2, 0, 1), (1, 0, 1)]);
        assert_eq!(ring.without_unneeded(&away, Duration::ZERO, Some(day(0.99))), None);
        let left = ring.without_unneeded(&away, Duration::ZERO, Some(day(1.0))).unwrap();
        let left: Vec<u64> = left.for_gateways().map(|key| key.serial).collect();
        assert_eq!(left, [day(0.95).0 / 1000, NOW.0 / 1000 + 1], "the second was replaced at 0.95");
        let held = uses(&[(3, 5, 0), (2, 1, 0), (1, 2, 0)]);
        assert!(
            ring.without_unneeded(&held, Duration::ZERO, Some(day(9.0))).is_none(),
            "live ones are waited for"
        );
        assert_eq!(ring.held_on_by(&held, day(0.99)), BTreeSet::new());
        let of_first = BTreeSet::from([named(1, 0), named(1, 1)]);
        assert_eq!(ring.held_on_by(&held, day(1.0)), of_first);
        assert_eq!(ring.held_on_by(&away, day(1.0)), BTreeSet::new(), "nobody who is there");
        assert_eq!(ring.held_on_by(&held, day(1.95)).len(), 3);
        // A key between that goes takes nothing from that.
        let newer = uses(&[(3, 5, 0), (2, 0, 0), (1, 2, 0)]);
        let ring = ring.without_unneeded(&newer, Duration::ZERO, Some(day(0.97))).unwrap();
        assert_eq!(ring.held_on_by(&newer, day(1.0)), of_first);
        // After a restart that isn't known any more: it counts from the next newer key that is left.
        let ring = Ring::new(ring.all().cloned().collect(), key(9, 1));
        assert_eq!(ring.held_on_by(&newer, day(1.0)), BTreeSet::new());
        assert_eq!(ring.held_on_by(&newer, day(1.96)), of_first);
    }

    #[test]
    fn in_an_emergency_nobody_is_waited_for() {
        let two = ring().with_new((secret(2), KEM.clone()), true, 0, NOW);
        let needed = uses(&[(1, 5, 5)]);
        let soon = IN_EMERGENCY - Duration::from_millis(1);
        assert_eq!(two.without_unneeded(&needed, soon, Some(after(soon))), None);
        assert!(two.without_unneeded(&needed, Duration::ZERO, Some(after(IN_EMERGENCY))).is_some());
        // Whatever the clock says.
        assert!(two.without_unneeded(&needed, IN_EMERGENCY, Some(UnixMillis(0))).is_some());
        assert!(two.without_unneeded(&needed, IN_EMERGENCY, None).is_some());
        assert_eq!(two.without_unneeded(&needed, soon, None), None);
    }

    #[test]
    fn keys_that_a_clock_made_that_was_years_ahead_change_as_any_others() {
        let years = 11 * 365 * 86_400;
        let ahead = Ring::new(vec![key(1, NOW.0 / 1000 + years)], key(9, 1));
        assert!(ahead.is_due(FOR_AWAY, NOW));
        let two = ahead.with_new((secret(2), KEM.clone()), true, 0, NOW);
        assert_eq!(two.newest().serial, NOW.0 / 1000 + years + 1, "peers take none that is lower");
        assert_eq!(two.newest().made, NOW);
        assert!(!two.is_due(FOR_AWAY, NOW), "once is enough");
        assert!(two.is_due(FOR_AWAY, after(FOR_AWAY)));
        let needed = uses(&[(2, 0, 0), (1, 5, 5)]);
        let one = two.without_unneeded(&needed, Duration::ZERO, Some(after(IN_EMERGENCY)));
        assert!(!one.unwrap().is_changing(), "the old one is void in an emergency");
        // A gateway that lost its keys and goes above those that peers have seen.
        let lost = ring().with_new((secret(3), KEM.clone()), false, NOW.0 / 1000 + years, NOW);
        assert_eq!(lost.newest().serial, NOW.0 / 1000 + years + 1);
        assert!(!lost.is_due(FOR_AWAY, NOW));
    }

    #[test]
    fn who_is_away_is_waited_for_while_nobody_knows_the_time() {
        let two = ring().with_new((secret(2), KEM.clone()), false, 0, NOW);
        let away = uses(&[(2, 0, 0), (1, 0, 1)]);
        assert_eq!(two.without_unneeded(&away, FOR_AWAY * 9, None), None);
        let unneeded = uses(&[(2, 0, 0), (1, 0, 0)]);
        assert!(two.without_unneeded(&unneeded, Duration::ZERO, None).is_some());
    }

    #[test]
    fn there_are_never_more_than_a_few() {
        let mut ring = ring();
        for number in 2..9 {
            ring = ring.with_new((secret(number), KEM.clone()), true, 0, NOW);
            let own = ring.own(WHO);
            assert!(own.iter().filter(|own| own.gateways).count() <= MOST);
            assert!(own.len() <= anteroom_agent_core::peer::MAX_OWN_KEYS);
            assert!(own.iter().any(|own| own.clients));
        }
        assert!(ring.is_full());
        let serials: Vec<u64> = ring.all().map(|key| key.serial).collect();
        assert!(serials.is_sorted_by(|a, b| a > b), "{serials:?}");
    }

    #[test]
    fn what_was_stored_before_there_was_any_change_is_read_as_a_key_for_all() {
        let ring = ring();
        assert!(ring.newest().clients && !ring.is_changing());
        let two = Ring::new(vec![key(2, 20), key(1, 10)], key(9, 1));
        assert_eq!((two.newest().clients, two.older[0].clients), (false, true));
    }
}
