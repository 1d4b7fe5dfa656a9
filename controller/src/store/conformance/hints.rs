//! What devices let be seen of themselves.

use anteroom_proto::inventory::{DeviceHints, Hint, HintKind, MAX_OF_KIND};
use anteroom_proto::mac::MacAddr;

use super::*;

fn seen(device: u8, member: Option<u8>, hints: Vec<(HintKind, String, u64)>) -> DeviceHints {
    let hint =
        |(kind, value, at)| Hint { kind, value, first: UnixMillis(at), last: UnixMillis(at) };
    DeviceHints {
        port: "port1".parse().unwrap(),
        mac: MacAddr([2, 0, 0, 0, 0, device]),
        vlan: None,
        member: member.map(|n| anteroom_proto::id::MemberId::from_bytes([n; 16])),
        hints: hints.into_iter().map(hint).collect(),
    }
}

async fn tell(store: &dyn Store, from: u8, sequence: u64, at: u64, device: DeviceHints) -> u64 {
    let new = Report { hints: vec![device], edges: vec![], ..report(from, sequence) };
    match store.record_report(gateway(from), &new, UnixMillis(at)).await.unwrap() {
        Recorded::Stored { turned_away, .. } => turned_away,
        Recorded::Duplicate => panic!("report {sequence} is new"),
    }
}

pub(super) async fn each_hint_is_kept_once_and_belongs_to_the_member(store: &dyn Store) {
    enrolled(store, 1).await;
    enrolled(store, 2).await;
    assert_eq!(store.hints(None, 10).await.unwrap(), (vec![], None));
    let name = |at| vec![(HintKind::DhcpHostname, "ct-1".to_owned(), at)];
    tell(store, 1, 1, 100, seen(1, None, name(50))).await;
    let (before, _) = store.hints(None, 10).await.unwrap();
    assert_eq!((before.len(), before[0].member), (1, None));
    // Confirmed since; a clock that runs ahead is held to now.
    tell(store, 1, 2, 200, seen(1, Some(7), name(9000))).await;
    tell(store, 1, 3, 300, seen(1, Some(7), vec![])).await;
    // Another gateway takes this one's place.
    tell(store, 2, 1, 400, seen(1, Some(7), name(350))).await;
    let (all, _) = store.hints(None, 10).await.unwrap();
    let member = Some(anteroom_proto::id::MemberId::from_bytes([7; 16]));
    let told: Vec<_> =
        all.iter().map(|hint| (hint.gateway, hint.member, hint.first.0, hint.last.0)).collect();
    assert_eq!(told, [(gateway(1), member, 50, 200), (gateway(2), member, 350, 350)]);
    assert_eq!((all[0].kind, all[0].value.as_str()), (HintKind::DhcpHostname, "ct-1"));
    // What somebody at another port showed with its address isn't its own once it is confirmed.
    let other = |member, at| DeviceHints {
        port: "port2".parse().unwrap(),
        ..seen(3, member, vec![(HintKind::SnmpName, "not-mine".to_owned(), at)])
    };
    tell(store, 1, 4, 500, other(None, 450)).await;
    tell(store, 1, 5, 500, seen(3, Some(8), vec![])).await;
    let (with_it, _) = store.hints(None, 10).await.unwrap();
    assert_eq!(
        with_it.last().map(|hint| (hint.value.as_str(), hint.member)),
        Some(("not-mine", None))
    );
    let all = with_it;
    let last = store.hints(None, 10).await.unwrap().1;
    // Page by page.
    let (first, after) = store.hints(None, 1).await.unwrap();
    let (second, end) = store.hints(after, 2).await.unwrap();
    assert_eq!([first, second].concat(), all);
    assert_eq!(end, last);
    assert_eq!(store.hints(end, 1).await.unwrap(), (vec![], None));
}

pub(super) async fn hints_are_bounded_and_old_ones_make_room(store: &dyn Store) {
    enrolled(store, 1).await;
    let names = |count: usize, at| {
        let name = |n| (HintKind::DnsQuery, format!("host-{n}"), at);
        (0..count).map(name).collect::<Vec<_>>()
    };
    let away = tell(store, 1, 1, 100, seen(1, None, names(MAX_OF_KIND + 3, 100))).await;
    assert_eq!(away, 3, "of one kind");
    // Others of the gateway: 20 in all.
    let others = HintKind::ALL.iter().take(6).map(|kind| (*kind, "x".to_owned(), 100)).collect();
    assert_eq!(tell(store, 1, 2, 100, seen(2, None, others)).await, 2, "of one gateway");
    assert_eq!(store.hints_away().await.unwrap(), 5);
    assert_eq!(store.hints(None, 100).await.unwrap().0.len(), 20);
    // What wasn't seen for long makes room.
    let new = vec![(HintKind::DnsQuery, "new".to_owned(), 5000)];
    assert_eq!(tell(store, 1, 3, 5000, seen(1, None, new)).await, 0);
    let (all, _) = store.hints(None, 100).await.unwrap();
    assert_eq!(all.len(), 20);
    assert!(all.iter().any(|hint| hint.value == "new"), "{all:#?}");
}
