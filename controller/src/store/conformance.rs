//! What every store must do. Each test runs against each implementation.

use std::sync::Arc;

use anteroom_proto::api::{EdgeQuery, HistoryQuery, RevisionInfo, SightingRecord};
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{BootId, GatewayId, InviteId, MemberId};
use anteroom_proto::key::{Hash, IdentityKey};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::{EdgeDelta, Report, Sighting};
use anteroom_proto::v1::{Applied, Reachable};
use anteroom_proto::verdict::{DropReason, Verdict};

use super::sqlite::SqliteStore;
use super::{
    EnrolOutcome, Enrolment, HelloFacts, IssueView, Limits, NewAudit, NewRevision, Recorded,
    SightingPlace, Store, StoredInvite,
};
use crate::audit;

mod rekeys;

use rekeys::a_later_order_voids_what_was_offered_upon_an_earlier_one;

pub(super) const LIMITS: Limits = Limits {
    sightings: 3,
    sighting_age: 1_000_000,
    edges: 4,
    edge_age: 1000,
    unanswered_edges: 1,
    boots: 2,
    enrolment_refusals: 2,
    challenges: 3,
    sessions: 2,
    hints: 20,
    hint_age: 1000,
};

mod hints;
use hints::{
    each_hint_is_kept_once_and_belongs_to_the_member, hints_are_bounded_and_old_ones_make_room,
};
mod history;
use history::{
    an_edge_remembers_when, one_device_that_floods_costs_its_neighbours_no_edge,
    one_device_that_floods_costs_its_neighbours_nothing_unanswered,
    the_days_on_which_a_gateway_reported_are_kept, the_history_is_read_of_some_alone,
    the_history_is_read_page_by_page, what_a_scan_left_makes_room_before_what_is_ones_own,
    what_old_edges_made_room_for_is_counted,
};

mod sightings;
use sightings::{
    made_up_addresses_push_out_their_own_port_alone, sightings_are_read_page_by_page,
    what_was_seen_long_ago_and_in_passing_makes_room,
};

mod standing;
use standing::{
    alarms_stand_as_the_newest_report_has_them,
    bypasses_by_file_stand_as_the_newest_report_has_them,
    devices_held_back_stand_as_the_newest_report_has_them,
    trials_stand_as_the_newest_report_has_them,
};

/// A store and what must outlive it.
struct Fresh {
    store: Arc<dyn Store>,
    _directory: Option<tempfile::TempDir>,
}

async fn memory() -> Fresh {
    let store = Arc::new(SqliteStore::in_memory(LIMITS).await.unwrap());
    Fresh { store, _directory: None }
}

async fn file() -> Fresh {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    let store = Arc::new(SqliteStore::open(&path, true, LIMITS).await.unwrap());
    Fresh { store, _directory: Some(directory) }
}

macro_rules! conforms {
    ($($test:ident)*) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $test() {
                let fresh = super::memory().await;
                super::$test(fresh.store.as_ref()).await;
            })*
        }
        mod in_a_file {
            $(#[tokio::test]
            async fn $test() {
                let fresh = super::file().await;
                super::$test(fresh.store.as_ref()).await;
            })*
        }
    };
}

conforms! {
    only_the_first_claim_is_stored
    an_invite_belongs_to_its_first_identity
    revisions_follow_one_another
    progress_is_what_gateways_have_in_force
    views_are_numbered_upwards
    no_pass_number_is_given_twice
    a_later_order_voids_what_was_offered_upon_an_earlier_one
    nothing_counts_twice
    telemetry_is_bounded
    made_up_addresses_push_out_their_own_port_alone
    what_was_seen_long_ago_and_in_passing_makes_room
    sightings_are_read_page_by_page
    edges_never_answered_make_room
    bypasses_by_file_stand_as_the_newest_report_has_them
    trials_stand_as_the_newest_report_has_them
    devices_held_back_stand_as_the_newest_report_has_them
    alarms_stand_as_the_newest_report_has_them
    counts_do_not_overflow
    edges_are_found_by_what_is_asked
    the_history_is_read_page_by_page
    the_history_is_read_of_some_alone
    an_edge_remembers_when
    the_days_on_which_a_gateway_reported_are_kept
    what_old_edges_made_room_for_is_counted
    one_device_that_floods_costs_its_neighbours_no_edge
    one_device_that_floods_costs_its_neighbours_nothing_unanswered
    what_a_scan_left_makes_room_before_what_is_ones_own
    each_hint_is_kept_once_and_belongs_to_the_member
    hints_are_bounded_and_old_ones_make_room
    the_audit_log_is_a_chain
    sessions_and_challenges_lapse
}

pub(super) fn gateway(n: u8) -> GatewayId {
    GatewayId::from_bytes([n; 16])
}

pub(super) fn audit(action: &str) -> NewAudit {
    NewAudit {
        at: UnixMillis(5),
        actor: "test".into(),
        action: action.into(),
        ..NewAudit::default()
    }
}

fn invite(n: u8) -> StoredInvite {
    StoredInvite {
        invite: InviteId::from_bytes([n; 16]),
        gateway: gateway(n),
        signed: Signed::from_bytes(vec![n; 40]),
        used_by: None,
    }
}

fn enrolment(n: u8, key: u8) -> Enrolment {
    Enrolment {
        gateway: gateway(n),
        invite: InviteId::from_bytes([n; 16]),
        identity: IdentityKey::from_seed(&[key; 32]).public(),
        claim: Signed::from_bytes(vec![key; 40]),
        at: UnixMillis(7),
        from: "10.0.0.1:1234".parse().unwrap(),
    }
}

async fn enrol(store: &dyn Store, n: u8, key: u8) -> EnrolOutcome {
    store.enrol(&enrolment(n, key), &audit("enrol"), &audit("late")).await.unwrap()
}

pub(super) async fn enrolled(store: &dyn Store, n: u8) {
    assert!(store.add_invite(&invite(n), UnixMillis(1), &audit("invite")).await.unwrap());
    assert_eq!(enrol(store, n, n).await, EnrolOutcome::First);
}

fn revision(number: u64, affected: &[u8]) -> NewRevision {
    let model = Blob(format!("model {}", number / 2).into_bytes());
    NewRevision {
        info: RevisionInfo {
            number,
            at: UnixMillis(100 * number),
            operator: IdentityKey::from_seed(&[9; 32]).public(),
            action: "policy apply".into(),
            subject: "policy".into(),
            reason: Some("because".into()),
        },
        root: Signed::from_bytes(number.to_be_bytes().to_vec()),
        model_hash: Hash::of("anteroom model", &[&model.0]),
        model,
        affected: affected.iter().map(|n| gateway(*n)).collect(),
    }
}

fn applied(revision: u64, sequence: u64) -> Applied {
    Applied {
        number: ViewNumber { incarnation: 1, sequence },
        revision,
        intent_hash: Hash::of("anteroom test", &[&revision.to_be_bytes()]),
        refused: None,
        problems: vec!["a key left out".into()],
    }
}

fn sighting(last: u8) -> Sighting {
    Sighting {
        port: "port1".parse().unwrap(),
        mac: MacAddr([2, 0, 0, 0, 0, last]),
        vlan: None,
        addresses: vec!["10.20.1.7".parse().unwrap()],
        prefix_len: Some(24),
        router: None,
        member: None,
        held: false,
        kinds: vec!["broadcast".into()],
        claim: None,
        first_seen: UnixMillis(50),
        last_seen: UnixMillis(60),
    }
}

pub(super) fn edge(port: u16, verdict: Verdict) -> EdgeDelta {
    EdgeDelta {
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        member: Some(MemberId::from_bytes([1; 16])),
        local: "10.20.1.7".parse().unwrap(),
        remote: "10.20.4.11".parse().unwrap(),
        remote_member: None,
        outbound: true,
        protocol: 6,
        port,
        verdict,
        rule: None,
        flows: 1,
        packets_out: 10,
        packets_in: 20,
        bytes_out: 1000,
        bytes_in: 2000,
        first: UnixMillis(100),
        last: UnixMillis(200),
    }
}

pub(super) fn report(boot: u8, sequence: u64) -> Report {
    Report {
        boot: BootId::from_bytes([boot; 16]),
        sequence,
        at: UnixMillis(1),
        sightings: vec![],
        edges: vec![edge(104, Verdict::Tunnel)],
        drops: [("no-rule".to_owned(), 5)].into(),
        overflow: 2,
        tunnels: vec![],
        alarms: vec![],
        bypasses: vec![],
        trials: vec![],
        held_back: vec![],
        relays: Vec::new(),
        relays_away: Vec::new(),
        hints: Vec::new(),
    }
}

async fn only_the_first_claim_is_stored(store: &dyn Store) {
    assert!(store.authority().await.unwrap().is_empty());
    let first = Signed::from_bytes(vec![1; 50]);
    assert!(store.claim(&first, &audit("claim")).await.unwrap());
    assert!(!store.claim(&Signed::from_bytes(vec![2; 50]), &audit("claim")).await.unwrap());
    assert_eq!(store.authority().await.unwrap(), vec![first]);
    assert_eq!(store.audit(0, 10).await.unwrap().len(), 1, "a refused claim isn't in the log");
}

async fn an_invite_belongs_to_its_first_identity(store: &dyn Store) {
    enrolled(store, 1).await;
    let taken = StoredInvite { gateway: gateway(1), ..invite(2) };
    assert!(!store.add_invite(&taken, UnixMillis(1), &audit("invite")).await.unwrap());
    assert!(store.add_invite(&invite(3), UnixMillis(2), &audit("invite")).await.unwrap());
    assert_eq!(enrol(store, 1, 1).await, EnrolOutcome::Again);
    for late in [2, 2, 3, 4] {
        assert_eq!(enrol(store, 1, late).await, EnrolOutcome::Taken);
    }
    assert_eq!(enrol(store, 3, 1).await, EnrolOutcome::Taken, "one identity, one gateway");
    let actions: Vec<String> =
        store.audit(0, 100).await.unwrap().into_iter().map(|entry| entry.action).collect();
    assert_eq!(actions, ["invite", "enrol", "invite", "late", "late", "late"]);
    let known = store.enrolment(gateway(1)).await.unwrap().unwrap();
    assert_eq!(known, enrolment(1, 1));
    assert_eq!(store.enrolment(gateway(9)).await.unwrap(), None);
    let listed = store.invites(10).await.unwrap();
    assert_eq!(
        listed.iter().map(|invite| invite.gateway).collect::<Vec<_>>(),
        [gateway(3), gateway(1)]
    );
    assert_eq!(listed[1].used_by, Some(known.identity));
    assert_eq!(
        store.invite(invite(1).invite).await.unwrap().unwrap().used_by,
        Some(known.identity)
    );
    assert_eq!(store.pending(10).await.unwrap(), vec![known]);
    assert!(store.add_model(&revision(1, &[1]), &audit("approve")).await.unwrap());
    assert!(store.pending(10).await.unwrap().is_empty());
    assert!(store.was_approved(gateway(1)).await.unwrap());
    assert!(!store.was_approved(gateway(3)).await.unwrap());
}

async fn revisions_follow_one_another(store: &dyn Store) {
    assert_eq!(store.newest_model().await.unwrap(), None);
    assert!(!store.add_model(&revision(2, &[]), &audit("gap")).await.unwrap());
    for number in 1..=3 {
        assert!(store.add_model(&revision(number, &[]), &audit("apply")).await.unwrap());
    }
    assert!(!store.add_model(&revision(3, &[]), &audit("again")).await.unwrap());
    let newest = store.newest_model().await.unwrap().unwrap();
    assert_eq!((newest.number, newest.model.0.as_slice()), (3, b"model 1".as_slice()));
    assert_eq!(newest.root, revision(3, &[]).root);
    assert_eq!(store.model(1).await.unwrap().unwrap().model.0, b"model 0");
    assert_eq!(store.model(4).await.unwrap(), None);
    let history = store.revisions(2).await.unwrap();
    assert_eq!(history, vec![revision(3, &[]).info, revision(2, &[]).info]);
    assert_eq!(store.audit(0, 10).await.unwrap().len(), 3, "refused revisions aren't in the log");
}

async fn progress_is_what_gateways_have_in_force(store: &dyn Store) {
    enrolled(store, 1).await;
    enrolled(store, 2).await;
    assert_eq!(store.progress(1).await.unwrap(), None);
    store.add_model(&revision(1, &[1, 2]), &audit("apply")).await.unwrap();
    store.add_model(&revision(2, &[1]), &audit("apply")).await.unwrap();
    let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
    assert_eq!((facts.wanted, facts.behind_since), (2, Some(UnixMillis(100))));
    store.record_applied(gateway(1), &applied(1, 1), UnixMillis(1000)).await.unwrap();
    let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
    assert_eq!(facts.behind_since, Some(UnixMillis(100)), "it still lags");
    let refused = Applied { refused: Some("no room".into()), ..applied(2, 2) };
    store.record_applied(gateway(1), &refused, UnixMillis(1100)).await.unwrap();
    let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
    assert_eq!(facts.refused.as_deref(), Some("no room"));
    assert_eq!(facts.applied.unwrap().revision, 1, "what was in force before still is");
    store.record_applied(gateway(1), &applied(2, 3), UnixMillis(1200)).await.unwrap();
    let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
    assert_eq!((facts.behind_since, facts.refused), (None, None));
    assert_eq!(facts.problems, ["a key left out"]);
    let progress = store.progress(1).await.unwrap().unwrap();
    assert_eq!(progress.len(), 2);
    assert_eq!((progress[0].revision, progress[0].applied_at), (Some(2), Some(UnixMillis(1000))));
    assert_eq!((progress[1].revision, progress[1].applied_at), (None, None));
    let progress = store.progress(2).await.unwrap().unwrap();
    assert_eq!((progress.len(), progress[0].applied_at), (1, Some(UnixMillis(1200))));
    // A gateway that lost its disk says so, and lags again.
    let hello = HelloFacts {
        at: UnixMillis(2000),
        agent_version: "0.1.0".into(),
        observed: "10.0.0.1:1".parse().unwrap(),
        reachable: Reachable { endpoints: vec![], keys: vec![], ports: vec![], quic: None },
        applied: None,
    };
    store.record_hello(gateway(1), &hello).await.unwrap();
    let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
    assert_eq!((facts.applied, facts.behind_since), (None, Some(UnixMillis(2000))));
    assert_eq!(facts.agent_version.as_deref(), Some("0.1.0"));
    store.record_seen(&[gateway(1), gateway(9)], UnixMillis(3000)).await.unwrap();
    let all = store.gateways().await.unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[&gateway(1)].last_seen, Some(UnixMillis(3000)));
}

async fn views_are_numbered_upwards(store: &dyn Store) {
    enrolled(store, 1).await;
    let hash = Hash::of("anteroom test", &[b"x"]);
    let view = |n| IssueView { gateway: gateway(n), revision: 4, intent: hash, operation: hash };
    let mut issued = Vec::new();
    for incarnation in [0, 0, 1, 1] {
        issued.extend(store.issue_views(incarnation, &[view(1), view(9)]).await.unwrap());
    }
    let numbers: Vec<String> = issued.iter().map(|(_, number)| number.to_string()).collect();
    assert_eq!(numbers, ["0.1", "0.2", "1.1", "1.2"], "the unknown gateway is left out");
    let view = store.gateway(gateway(1)).await.unwrap().unwrap().view;
    assert_eq!(view.number, ViewNumber { incarnation: 1, sequence: 2 });
    assert_eq!((view.intent, view.operation), (Some(hash), Some(hash)));
}

async fn no_pass_number_is_given_twice(store: &dyn Store) {
    assert_eq!(store.reserve_passes(1).await.unwrap(), 1);
    assert_eq!(store.reserve_passes(100).await.unwrap(), 2);
    assert_eq!(store.reserve_passes(1).await.unwrap(), 102);
}

async fn nothing_counts_twice(store: &dyn Store) {
    enrolled(store, 1).await;
    let at = UnixMillis(1000);
    let once = Recorded::Stored { turned_away: 0, forgotten: 0 };
    for (boot, sequence, expected) in [
        (1, 1, once),
        (1, 1, Recorded::Duplicate),
        (1, 2, once),
        (1, 1, Recorded::Duplicate),
        (2, 1, once),
        (1, 2, Recorded::Duplicate),
    ] {
        let recorded = store.record_report(gateway(1), &report(boot, sequence), at).await.unwrap();
        assert_eq!(recorded, expected, "boot {boot}, sequence {sequence}");
    }
    let edges = store.edges(&EdgeQuery::default(), 10).await.unwrap();
    assert_eq!(edges.len(), 1);
    assert_eq!((edges[0].flows, edges[0].packets_in, edges[0].bytes_out), (3, 60, 3000));
    let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
    assert_eq!(facts.drops, [("no-rule".to_owned(), 15)].into());
    assert_eq!(facts.away, (0, 0, 6));
}

async fn telemetry_is_bounded(store: &dyn Store) {
    enrolled(store, 1).await;
    let mut new = report(1, 1);
    new.sightings = (0..5).map(sighting).collect();
    let claim = anteroom_proto::cose::Signed::from_bytes(vec![1, 2, 3]);
    new.sightings[4].claim = Some(claim.clone());
    new.edges = (0..6).map(|port| edge(port, Verdict::Tunnel)).collect();
    let recorded = store.record_report(gateway(1), &new, UnixMillis(500)).await.unwrap();
    assert_eq!(recorded, Recorded::Stored { turned_away: 4, forgotten: 0 });
    let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
    assert_eq!(facts.away, (2, 2, 2));
    // What is there still grows, and a restarted agent's sighting doesn't forget.
    let mut next = report(1, 2);
    next.sightings =
        vec![Sighting { addresses: vec![], kinds: vec!["ipv6".into()], ..sighting(4) }];
    next.edges = vec![edge(0, Verdict::Tunnel)];
    let recorded = store.record_report(gateway(1), &next, UnixMillis(600)).await.unwrap();
    assert_eq!(recorded, Recorded::Stored { turned_away: 0, forgotten: 0 });
    let seen = store.sightings(10).await.unwrap();
    assert_eq!((seen.len(), seen[0].first_seen), (3, UnixMillis(500)));
    assert_eq!(seen[0].sighting.kinds, ["broadcast", "ipv6"]);
    assert_eq!(seen[0].sighting.addresses, sighting(4).addresses);
    assert_eq!(seen[0].sighting.claim, Some(claim));
    // An edge that was quiet for long makes room.
    let mut late = report(1, 3);
    late.edges = vec![edge(99, Verdict::Tunnel)];
    let recorded = store.record_report(gateway(1), &late, UnixMillis(5000)).await.unwrap();
    assert_eq!(recorded, Recorded::Stored { turned_away: 0, forgotten: 1 });
    let edges = store.edges(&EdgeQuery::default(), 10).await.unwrap();
    assert_eq!(edges.len(), 4);
    assert!(edges.iter().any(|edge| edge.port == 99));
    // Watermarks of old runs go; the newest stay.
    for boot in 2..=4 {
        store
            .record_report(gateway(1), &report(boot, 1), UnixMillis(5000 + u64::from(boot)))
            .await
            .unwrap();
    }
    let again = store.record_report(gateway(1), &report(4, 1), UnixMillis(6000)).await.unwrap();
    assert_eq!(again, Recorded::Duplicate);
}

async fn edges_never_answered_make_room(store: &dyn Store) {
    enrolled(store, 1).await;
    enrolled(store, 2).await;
    let scan = |port, last| EdgeDelta {
        packets_in: 0,
        bytes_in: 0,
        last: UnixMillis(last),
        ..edge(port, Verdict::Clear)
    };
    let heard =
        EdgeDelta { packets_out: 0, bytes_out: 0, last: UnixMillis(40), ..edge(2, Verdict::Clear) };
    let real = |port, last| EdgeDelta { last: UnixMillis(last), ..edge(port, Verdict::Tunnel) };
    let mut sequence = 0;
    let mut record = async |gateway, edges, at| {
        sequence += 1;
        let new = Report { edges, ..report(1, sequence) };
        match store.record_report(gateway, &new, UnixMillis(at)).await.unwrap() {
            Recorded::Stored { turned_away, .. } => turned_away,
            Recorded::Duplicate => panic!("report {sequence} counts as a duplicate"),
        }
    };
    let ports = async || -> Vec<u16> {
        let edges = store.edges(&EdgeQuery::default(), 20).await.unwrap();
        let mut ports: Vec<u16> =
            edges.iter().filter(|edge| edge.gateway == gateway(1)).map(|edge| edge.port).collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(record(gateway(2), vec![scan(9, 1)], 100).await, 0);
    // The oldest edge of all is a conversation: it stays, and so does another gateway's older scan.
    let first = vec![real(1, 10), heard, scan(3, 30), scan(4, 50)];
    assert_eq!(record(gateway(1), first, 100).await, 0);
    assert_eq!(record(gateway(1), vec![real(5, 60)], 100).await, 1);
    assert_eq!(ports().await, [1, 2, 4, 5], "the oldest unanswered one makes room");
    assert_eq!(record(gateway(1), vec![real(6, 61)], 100).await, 1);
    assert_eq!(ports().await, [1, 4, 5, 6], "one that only answers is no conversation either");
    // An answer that comes later makes an edge one that stays.
    let answer = EdgeDelta { packets_out: 0, ..edge(4, Verdict::Clear) };
    assert_eq!(record(gateway(1), vec![answer], 100).await, 0);
    assert_eq!(record(gateway(1), vec![real(7, 70)], 100).await, 1);
    assert_eq!(ports().await, [1, 4, 5, 6], "nothing is left to make room");
    // Once an old one has made room, a whole scan has this one place only.
    let flood: Vec<_> = (100..110).map(|port| scan(port, 2000 + u64::from(port))).collect();
    assert_eq!(record(gateway(1), flood, 1015).await, 9);
    assert_eq!(ports().await, [4, 5, 6, 109]);
    assert_eq!(record(gateway(1), vec![real(8, 3000)], 1015).await, 1);
    assert_eq!(ports().await, [4, 5, 6, 8]);
    assert_eq!(store.gateway(gateway(1)).await.unwrap().unwrap().away.1, 13);
    assert_eq!(store.gateway(gateway(2)).await.unwrap().unwrap().away.1, 0);
    let edges = store.edges(&EdgeQuery::default(), 20).await.unwrap();
    assert!(edges.iter().any(|edge| edge.gateway == gateway(2) && edge.port == 9), "{edges:?}");
}

async fn counts_do_not_overflow(store: &dyn Store) {
    enrolled(store, 1).await;
    for sequence in 1..=4 {
        let mut huge = report(1, sequence);
        huge.edges[0].bytes_in = u64::MAX;
        huge.drops.insert("no-rule".into(), u64::MAX);
        huge.overflow = u64::MAX;
        store.record_report(gateway(1), &huge, UnixMillis(1)).await.unwrap();
    }
    let edges = store.edges(&EdgeQuery::default(), 10).await.unwrap();
    assert!(edges[0].bytes_in >= 1 << 62, "{}", edges[0].bytes_in);
    let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
    assert!(facts.drops["no-rule"] >= 1 << 62);
}

async fn edges_are_found_by_what_is_asked(store: &dyn Store) {
    enrolled(store, 1).await;
    let mut new = report(1, 1);
    let other = MemberId::from_bytes([2; 16]);
    new.edges = vec![
        edge(1, Verdict::ClearTunnelDown),
        EdgeDelta { last: UnixMillis(900), ..edge(2, Verdict::Drop(DropReason::NoRule)) },
        EdgeDelta {
            member: None,
            remote_member: Some(other),
            remote: "fd00::1".parse().unwrap(),
            last: UnixMillis(300),
            ..edge(3, Verdict::WouldDrop(DropReason::NoRule))
        },
    ];
    store.record_report(gateway(1), &new, UnixMillis(1000)).await.unwrap();
    let ports = async |query: EdgeQuery, limit| -> Vec<u16> {
        store.edges(&query, limit).await.unwrap().iter().map(|edge| edge.port).collect()
    };
    let all = EdgeQuery::default;
    assert_eq!(ports(all(), 10).await, [2, 3, 1]);
    assert_eq!(ports(all(), 1).await, [2]);
    let kind = |kind: &str| EdgeQuery { verdict: Some(kind.into()), ..all() };
    assert_eq!(ports(kind("clear"), 10).await, [1]);
    assert_eq!(ports(kind("would-drop"), 10).await, [3]);
    assert_eq!(ports(kind("drop"), 10).await, [2]);
    assert_eq!(ports(EdgeQuery { since: Some(300), ..all() }, 10).await, [2]);
    assert_eq!(ports(EdgeQuery { member: Some(other), ..all() }, 10).await, [3]);
    let edges = store.edges(&kind("would-drop"), 10).await.unwrap();
    assert_eq!(edges[0].verdict, Verdict::WouldDrop(DropReason::NoRule));
    assert_eq!((edges[0].member, edges[0].remote_member), (None, Some(other)));
}

async fn the_audit_log_is_a_chain(store: &dyn Store) {
    for action in ["one", "two", "three"] {
        let full = NewAudit {
            subject: "s".into(),
            reason: Some("r".into()),
            before: Some("b".into()),
            after: Some("a".into()),
            revision: Some(7),
            root: Some(Hash::of("anteroom test", &[b"root"])),
            ..audit(action)
        };
        let entry = store.append_audit(&full).await.unwrap();
        assert_eq!(entry.hash, entry.compute_hash());
    }
    assert_eq!(audit::check(store).await.unwrap(), 3);
    let rest = store.audit(1, 1).await.unwrap();
    assert_eq!((rest.len(), rest[0].number, rest[0].action.as_str()), (1, 2, "two"));
}

async fn sessions_and_challenges_lapse(store: &dyn Store) {
    let hash = |n: u8| Hash::of("anteroom test", &[&[n]]);
    let ana = IdentityKey::from_seed(&[1; 32]).public();
    let at = UnixMillis;
    for n in 1..=3 {
        store.add_session(hash(n), ana, at(10), at(100 + u64::from(n))).await.unwrap();
    }
    assert_eq!(store.session(hash(1), at(20)).await.unwrap(), None, "the oldest made room");
    assert_eq!(store.session(hash(2), at(20)).await.unwrap(), Some(ana));
    assert_eq!(store.session(hash(2), at(102)).await.unwrap(), None);
    store.end_session(hash(3)).await.unwrap();
    assert_eq!(store.session(hash(3), at(20)).await.unwrap(), None);

    for n in 1..=4 {
        let added = store.add_challenge(hash(n), at(10), at(100)).await.unwrap();
        assert_eq!(added, n <= 3, "challenge {n}");
    }
    assert!(store.take_challenge(hash(1), at(20)).await.unwrap());
    assert!(!store.take_challenge(hash(1), at(20)).await.unwrap(), "good once");
    assert!(!store.take_challenge(hash(2), at(100)).await.unwrap(), "lapsed");
    assert!(store.add_challenge(hash(5), at(200), at(300)).await.unwrap(), "lapsed ones made room");
}
