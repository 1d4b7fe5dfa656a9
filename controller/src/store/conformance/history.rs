//! The flow history: when traffic was, and reading all of it.

use super::*;

const DAY: u64 = 86_400_000;
const HOUR: u64 = 3_600_000;

fn at(port: u16, first: u64, last: u64) -> EdgeDelta {
    EdgeDelta { first: UnixMillis(first), last: UnixMillis(last), ..edge(port, Verdict::Tunnel) }
}

pub(super) async fn an_edge_remembers_when(store: &dyn Store) {
    enrolled(store, 1).await;
    let now = UnixMillis(100 * DAY);
    let record = async |boot, sequence, edges| {
        let new = Report { edges, ..report(boot, sequence) };
        store.record_report(gateway(1), &new, now).await.unwrap()
    };
    // Hours 0 and 5 of one day, and the next but one; one report comes twice, one after the agent began anew.
    let second = vec![at(104, 92 * DAY, 92 * DAY)];
    record(1, 1, vec![at(104, 90 * DAY, 90 * DAY + 1)]).await;
    record(1, 2, second.clone()).await;
    assert_eq!(record(1, 2, second).await, Recorded::Duplicate);
    record(2, 1, vec![at(104, 90 * DAY + 5 * HOUR, 90 * DAY + 5 * HOUR)]).await;
    let (edges, _) = store.history(&HistoryQuery::default(), 10).await.unwrap();
    assert_eq!(edges.len(), 1, "{edges:?}");
    assert_eq!((edges[0].flows, edges[0].packets_in), (3, 60), "nothing is lost or doubled");
    let rhythm = edges[0].rhythm;
    assert_eq!(rhythm.days().collect::<Vec<_>>(), [92, 90]);
    assert_eq!(rhythm.hours_of_day(), 2, "{rhythm:?}");
    assert_eq!(store.edges(&EdgeQuery::default(), 1).await.unwrap()[0].rhythm, rhythm);
    // A clock that runs ahead marks today at most, and takes no earlier day away.
    record(2, 2, vec![at(104, 900 * DAY, 901 * DAY)]).await;
    let (edges, _) = store.history(&HistoryQuery::default(), 10).await.unwrap();
    assert_eq!(edges[0].rhythm.days().collect::<Vec<_>>(), [100, 92, 90]);
}

pub(super) async fn the_days_on_which_a_gateway_reported_are_kept(store: &dyn Store) {
    for number in 1..=3 {
        enrolled(store, number).await;
    }
    let mut sequence = 0;
    let mut record = async |number, edges, at| {
        sequence += 1;
        let new = Report { edges, ..report(1, sequence) };
        store.record_report(gateway(number), &new, UnixMillis(at)).await.unwrap()
    };
    assert_eq!(store.recording().await.unwrap().watched, [].into(), "nobody has reported");
    // Traffic or not; a report that comes again on another day marks nothing.
    record(1, vec![], 90 * DAY).await;
    record(1, vec![], 93 * DAY).await;
    let again = Report { edges: vec![], ..report(1, 2) };
    let again = store.record_report(gateway(1), &again, UnixMillis(95 * DAY)).await.unwrap();
    assert_eq!(again, Recorded::Duplicate);
    // What it added up while no controller was there; a clock that runs ahead marks today at most.
    record(2, vec![at(104, 96 * DAY, 98 * DAY)], 99 * DAY).await;
    record(2, vec![at(104, 900 * DAY, 901 * DAY)], 100 * DAY).await;
    let watched = store.recording().await.unwrap().watched;
    let days = |number| watched[&gateway(number)].days().collect::<Vec<_>>();
    assert_eq!((days(1), days(2)), (vec![93, 90], vec![100, 99, 98, 97, 96]));
    assert_eq!(watched.len(), 2, "the third hasn't reported");
}

pub(super) async fn what_old_edges_made_room_for_is_counted(store: &dyn Store) {
    enrolled(store, 1).await;
    let record = async |sequence, edges, at| {
        let new = Report { edges, overflow: 0, ..report(1, sequence) };
        store.record_report(gateway(1), &new, UnixMillis(at)).await.unwrap()
    };
    let full = (0..4).map(|port| at(port, 100, 200 + u64::from(port))).collect();
    let recorded = record(1, full, 500).await;
    assert_eq!(recorded, Recorded::Stored { turned_away: 0, forgotten: 0 });
    // Two have been quiet for longer than the limit, and three are new.
    let late = (10..13).map(|port| at(port, 1202, 1202)).collect();
    let recorded = record(2, late, 1202).await;
    assert_eq!(recorded, Recorded::Stored { turned_away: 1, forgotten: 2 });
    let found = store.recording().await.unwrap();
    assert_eq!((found.turned_away, found.forgotten), (1, 2));
}

pub(super) async fn one_device_that_floods_costs_its_neighbours_no_edge(store: &dyn Store) {
    enrolled(store, 1).await;
    let of = |device: u8, member: bool, port, last| EdgeDelta {
        mac: MacAddr([2, 0, 0, 0, 0, device]),
        member: member.then(|| MemberId::from_bytes([device; 16])),
        ..at(port, 100, last)
    };
    let mut sequence = 0;
    let mut record = async |edges, at| {
        sequence += 1;
        let new = Report { edges, overflow: 0, ..report(1, sequence) };
        store.record_report(gateway(1), &new, UnixMillis(at)).await.unwrap()
    };
    let ports = async |device: u8| -> Vec<u16> {
        let edges = store.edges(&EdgeQuery::default(), 20).await.unwrap();
        let of = edges.iter().filter(|edge| edge.mac.0[5] == device);
        let mut ports: Vec<u16> = of.map(|edge| edge.port).collect();
        ports.sort_unstable();
        ports
    };
    // There is room for four. One floods, beside a conversation of its neighbour's that was quiet for long.
    record(vec![of(1, true, 1, 100)], 100).await;
    let flood = (100..110).map(|port| of(7, true, port, 1990)).collect();
    let recorded = record(flood, 2000).await;
    assert_eq!(recorded, Recorded::Stored { turned_away: 7, forgotten: 0 });
    assert_eq!((ports(1).await, ports(7).await), (vec![1], vec![100, 101, 102]));
    // What is new of the neighbour finds room all the same, until both have as many.
    let recorded = record(vec![of(1, true, 2, 2001), of(1, true, 3, 2002)], 2002).await;
    assert_eq!(recorded, Recorded::Stored { turned_away: 1, forgotten: 1 });
    assert_eq!((ports(1).await, ports(7).await), (vec![2, 3], vec![101, 102]));
    // Made-up addresses have one share, however many they are.
    let strangers = (50..60).map(|device| of(device, false, 9, 2003)).collect();
    record(strangers, 2003).await;
    assert_eq!((ports(1).await.len(), ports(7).await.len()), (1, 1));
    record(vec![of(1, true, 4, 2004)], 2004).await;
    record(vec![of(7, true, 103, 2005)], 2005).await;
    assert!(ports(1).await.contains(&4) && ports(7).await.contains(&103));
}

pub(super) async fn one_device_that_floods_costs_its_neighbours_nothing_unanswered(
    store: &dyn Store,
) {
    enrolled(store, 1).await;
    let of = |device: u8, answered: u64, port, last| EdgeDelta {
        mac: MacAddr([2, 0, 0, 0, 0, device]),
        member: Some(MemberId::from_bytes([device; 16])),
        packets_in: answered,
        ..at(port, 100, last)
    };
    let mut sequence = 0;
    let mut record = async |edges, at| {
        sequence += 1;
        let new = Report { edges, overflow: 0, ..report(1, sequence) };
        store.record_report(gateway(1), &new, UnixMillis(at)).await.unwrap()
    };
    let ports = async |device: u8| -> Vec<u16> {
        let edges = store.edges(&EdgeQuery::default(), 20).await.unwrap();
        let of = edges.iter().filter(|edge| edge.mac.0[5] == device);
        let mut ports: Vec<u16> = of.map(|edge| edge.port).collect();
        ports.sort_unstable();
        ports
    };
    // There is room for four. A trap that nobody answers is the oldest there is.
    record(vec![of(1, 0, 162, 100)], 100).await;
    let answered = (100..110).map(|port| of(7, 3, port, 1990)).collect();
    record(answered, 2000).await;
    assert_eq!((ports(1).await, ports(7).await), (vec![162], vec![100, 101, 102]));
    let scan = (200..210).map(|port| of(7, 0, port, 1991)).collect();
    record(scan, 2001).await;
    assert_eq!((ports(1).await, ports(7).await.len()), (vec![162], 3));
    // A second one finds room, and takes the first one's place only once its own are the most.
    record(vec![of(1, 0, 514, 2002)], 2002).await;
    assert_eq!((ports(1).await, ports(7).await.len()), (vec![162, 514], 2));
    record((300..310).map(|port| of(7, 0, port, 2003)).collect(), 2003).await;
    record((400..410).map(|port| of(7, 3, port, 2004)).collect(), 2004).await;
    assert_eq!(ports(1).await, [162, 514]);
}

pub(super) async fn what_a_scan_left_makes_room_before_what_is_ones_own(store: &dyn Store) {
    enrolled(store, 1).await;
    enrolled(store, 2).await;
    let of = |device: u8, answered: u64, port, last| EdgeDelta {
        mac: MacAddr([2, 0, 0, 0, 0, device]),
        member: Some(MemberId::from_bytes([device; 16])),
        packets_in: answered,
        ..at(port, 100, last)
    };
    let mut sequence = 0;
    let mut record = async |number: u8, edges, at| {
        sequence += 1;
        let new = Report { edges, overflow: 0, ..report(1, sequence) };
        store.record_report(gateway(number), &new, UnixMillis(at)).await.unwrap()
    };
    let held = async |number: u8| -> Vec<(u8, u16)> {
        let edges = store.edges(&EdgeQuery::default(), 20).await.unwrap();
        let of = edges.iter().filter(|edge| edge.gateway == gateway(number));
        let mut held: Vec<_> = of.map(|edge| (edge.mac.0[5], edge.port)).collect();
        held.sort_unstable();
        held
    };
    // There is room for four at each. A device's own trap is the oldest there is, then others tried it.
    let probe = |port, last| EdgeDelta { outbound: false, packets_out: 0, ..of(1, 20, port, last) };
    record(1, vec![of(1, 0, 162, 100), probe(80, 200), probe(81, 300), probe(82, 400)], 400).await;
    for (port, left) in [(1, vec![81, 82, 162]), (2, vec![82, 162])] {
        record(1, vec![of(7, 3, port, 500)], 500).await;
        let own = held(1).await.into_iter().filter(|(device, _)| *device == 1);
        let own: Vec<u16> = own.map(|(_, port)| port).collect();
        assert_eq!(own, left);
    }
    // What a scan left goes before a conversation of whoever has as many.
    let scan = [of(1, 0, 200, 1000), of(1, 0, 201, 1001)];
    let conversations = [of(7, 3, 1, 500), of(7, 3, 2, 501)];
    record(2, scan.into_iter().chain(conversations).collect(), 1001).await;
    record(2, vec![of(3, 3, 5, 1002)], 1002).await;
    assert_eq!(held(2).await, [(1, 201), (3, 5), (7, 1), (7, 2)]);
}

pub(super) async fn the_history_is_read_page_by_page(store: &dyn Store) {
    enrolled(store, 1).await;
    enrolled(store, 2).await;
    assert_eq!(store.history(&HistoryQuery::default(), 10).await.unwrap(), (vec![], None));
    for (number, ports) in [(1, 1..4), (2, 1..3)] {
        let edges = ports.map(|port| at(port, 100, 200)).collect();
        let new = Report { edges, ..report(number, 1) };
        store.record_report(gateway(number), &new, UnixMillis(500)).await.unwrap();
    }
    let (mut seen, mut after) = (Vec::new(), None);
    for expected in [2, 2, 1, 0] {
        let (edges, last) =
            store.history(&HistoryQuery { after, ..HistoryQuery::default() }, 2).await.unwrap();
        assert_eq!(edges.len(), expected);
        seen.extend(edges.iter().map(|edge| (edge.gateway, edge.port)));
        // What grows meanwhile stays where it is.
        let more = Report { edges: vec![at(1, 100, 900)], ..report(7, seen.len() as u64 + 1) };
        store.record_report(gateway(1), &more, UnixMillis(900)).await.unwrap();
        after = last.or(after);
    }
    seen.sort_unstable();
    let wanted: Vec<_> = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
        .map(|(number, port)| (gateway(number), port))
        .into();
    assert_eq!(seen, wanted);
    assert_eq!(store.recording().await.unwrap().turned_away, store_away(store).await);
}

pub(super) async fn the_history_is_read_of_some_alone(store: &dyn Store) {
    enrolled(store, 1).await;
    enrolled(store, 2).await;
    let member = |number: u8| MemberId::from_bytes([number; 16]);
    let of = |port, verdict, member, remote_member| EdgeDelta {
        member,
        remote_member,
        ..edge(port, verdict)
    };
    let edges = vec![
        of(1, Verdict::Clear, Some(member(1)), None),
        of(2, Verdict::Tunnel, Some(member(2)), Some(member(1))),
        of(3, Verdict::Drop(DropReason::NoRule), Some(member(2)), None),
    ];
    let others = vec![
        of(4, Verdict::WouldDrop(DropReason::NoRule), None, None),
        of(5, Verdict::Local, Some(member(1)), None),
    ];
    for (number, edges) in [(1, edges), (2, others)] {
        let new = Report { edges, ..report(number, 1) };
        store.record_report(gateway(number), &new, UnixMillis(500)).await.unwrap();
    }
    let asked = async |member, verdicts: Option<&str>, limit| {
        let verdicts = verdicts.map(str::to_owned);
        let (mut ports, mut after) = (Vec::new(), None);
        loop {
            let query = HistoryQuery { after, member, verdicts: verdicts.clone(), limit: None };
            let (edges, last) = store.history(&query, limit).await.unwrap();
            ports.extend(edges.iter().map(|edge| edge.port));
            if last.is_none() {
                break;
            }
            after = last;
        }
        ports.sort_unstable();
        ports
    };
    for limit in [1, 10] {
        assert_eq!(asked(None, None, limit).await, [1, 2, 3, 4, 5]);
        assert_eq!(asked(Some(member(1)), None, limit).await, [1, 2, 4, 5], "and nobody's");
        assert_eq!(asked(None, Some("clear,local"), limit).await, [1, 5]);
        assert_eq!(asked(None, Some("drop"), limit).await, [3], "would-drop is another word");
        assert_eq!(asked(Some(member(1)), Some("would-drop,tunnel"), limit).await, [2, 4]);
        assert_eq!(asked(Some(member(9)), Some("clear"), limit).await, [0_u16; 0]);
    }
}

async fn store_away(store: &dyn Store) -> u64 {
    store.gateways().await.unwrap().values().map(|facts| facts.away.1 + facts.away.2).sum()
}
