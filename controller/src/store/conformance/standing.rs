//! What stands at a gateway: it is as the newest report has it.

use anteroom_proto::alarm::{Alarm, AlarmKind};
use anteroom_proto::approval::Place;
use anteroom_proto::mode::Mode;
use anteroom_proto::rollout::{HeldBackReport, Over, TrialReport, Why};
use anteroom_proto::v1::telemetry::FileBypass;

use super::*;

pub(super) async fn bypasses_by_file_stand_as_the_newest_report_has_them(store: &dyn Store) {
    enrolled(store, 1).await;
    let open = FileBypass { gateway: gateway(2), until: UnixMillis(9_000), serial: 77 };
    let mut sequence = 0;
    for bypasses in [vec![open], vec![]] {
        sequence += 1;
        let new = Report { bypasses: bypasses.clone(), ..report(1, sequence) };
        store.record_report(gateway(1), &new, UnixMillis(7)).await.unwrap();
        assert_eq!(store.gateways().await.unwrap()[&gateway(1)].bypasses, bypasses);
    }
}

pub(super) async fn trials_stand_as_the_newest_report_has_them(store: &dyn Store) {
    enrolled(store, 1).await;
    let running = TrialReport {
        member: MemberId::from_bytes([2; 16]),
        since: Place::new(0, 7),
        left: 60_000,
        over: None,
    };
    let over = Some(Over { why: Why::Unconfirmed, at: UnixMillis(9) });
    let over = TrialReport { left: 0, over, ..running.clone() };
    let mut sequence = 0;
    for trials in [vec![running], vec![over], vec![]] {
        sequence += 1;
        let new = Report { trials: trials.clone(), ..report(1, sequence) };
        store.record_report(gateway(1), &new, UnixMillis(7)).await.unwrap();
        assert_eq!(store.gateways().await.unwrap()[&gateway(1)].trials, trials);
        assert_eq!(store.gateway(gateway(1)).await.unwrap().unwrap().trials, trials);
    }
}

pub(super) async fn devices_held_back_stand_as_the_newest_report_has_them(store: &dyn Store) {
    enrolled(store, 1).await;
    let member = MemberId::from_bytes([2; 16]);
    let one = HeldBackReport { member, signed: Mode::Enforce, mode: Mode::Protect };
    let mut sequence = 0;
    for held_back in [vec![one], vec![]] {
        sequence += 1;
        let new = Report { held_back: held_back.clone(), ..report(1, sequence) };
        store.record_report(gateway(1), &new, UnixMillis(7)).await.unwrap();
        assert_eq!(store.gateways().await.unwrap()[&gateway(1)].held_back, held_back);
    }
}

pub(super) async fn alarms_stand_as_the_newest_report_has_them(store: &dyn Store) {
    enrolled(store, 1).await;
    let alarm = Alarm {
        kind: AlarmKind::Moved,
        port: Some("port2".parse().unwrap()),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        address: None,
        member: None,
        count: 3,
        first: UnixMillis(1),
        last: UnixMillis(2),
    };
    let mut sequence = 0;
    for alarms in [vec![alarm.clone()], vec![alarm.clone(), alarm], vec![]] {
        sequence += 1;
        let new = Report { alarms: alarms.clone(), ..report(1, sequence) };
        store.record_report(gateway(1), &new, UnixMillis(9)).await.unwrap();
        let facts = store.gateway(gateway(1)).await.unwrap().unwrap();
        assert_eq!(facts.alarms, alarms);
        assert_eq!(store.gateways().await.unwrap()[&gateway(1)].alarms, alarms);
    }
}
