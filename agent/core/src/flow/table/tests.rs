use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::verdict::{DropReason, Verdict};
use proptest::prelude::*;

use super::super::{Count, Proof, Side, Tracker, Zone};
use super::*;
use crate::peer::PeerSlot;
use crate::wire::FiveTuple;

#[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
fn start() -> Instant {
    Instant::now()
}

/// What a flow of a station begins with, at the time of its table's origin.
fn flow(station: u16, port: u16, state: State, table: &FlowTable, now: Instant) -> Beginning {
    let station = StationId(station);
    let tuple = FiveTuple {
        source: Ipv4Addr::new(10, 0, 0, 1),
        destination: Ipv4Addr::new(10, 0, 0, 2),
        source_port: port,
        destination_port: 104,
        protocol: 6,
    };
    between(Zone::outside(station), station, &tuple, state, table.moment(now))
}

fn between(
    zone: Zone,
    station: StationId,
    tuple: &FiveTuple,
    state: State,
    now: Moment,
) -> Beginning {
    let (key, initiator_low) = FlowKey::new(zone, tuple);
    Beginning {
        key,
        initiator_low,
        station,
        share: Share(u32::from(station.0)),
        outbound: true,
        judgement: Judgement::of(Verdict::Clear, None),
        epoch: 0,
        tracker: Tracker::default(),
        state,
        now,
    }
}

fn table(limit: usize, per_device: usize, now: Instant) -> FlowTable {
    FlowTable::new(limit, per_device, FixedState::with_seed(1), Origin(now))
}

fn nobody(_: Flow, _: &Judgement) {}

const ONE: Passed = Passed { forward: true, packets: 1, bytes: 100 };

#[test]
fn both_directions_find_the_same_flow() {
    let now = start();
    let mut table = table(10, 10, now);
    let made = flow(0, 7, State::HalfOpen, &table, now);
    let at = table.insert(&made, nobody).unwrap();
    let there = table.get(at).unwrap().tuple();
    let back = there.reversed();
    let zone = Zone::outside(StationId(0));
    let (key, upwards) = FlowKey::new(zone, &there);
    let (reverse, downwards) = FlowKey::new(zone, &back);
    assert_eq!((table.find(&key), table.find(&reverse)), (Some(at), Some(at)));
    assert_ne!(upwards, downwards);
    assert_eq!(table.find(&FlowKey::new(Zone::outside(StationId(1)), &there).0), None);
}

fn insert(
    table: &mut FlowTable,
    (station, port, state): (u16, u16, State),
    now: Instant,
) -> Result<FlowIndex, TableFull> {
    let made = flow(station, port, state, table, now);
    table.insert(&made, nobody)
}

/// The initiators' ports of what a call hands out.
fn ports(call: impl FnOnce(&mut dyn FnMut(Flow, &Judgement))) -> Vec<u16> {
    let mut ports = Vec::new();
    call(&mut |flow, _| ports.push(flow.tuple().source_port));
    ports
}

fn judged(judgements: &mut FlowTable, at: FlowIndex, reason: DropReason) {
    judgements.judge(at, Judgement::of(Verdict::Drop(reason), None));
}

#[test]
fn half_open_flows_make_room_oldest_first_and_established_ones_never() {
    let now = start();
    let mut table = table(100, 3, now);
    insert(&mut table, (0, 1, State::Established), now).unwrap();
    insert(&mut table, (0, 2, State::HalfOpen), now).unwrap();
    insert(&mut table, (0, 3, State::HalfOpen), now).unwrap();
    let gone = ports(|gone| {
        for port in 4..6 {
            let made = flow(0, port, State::Established, &table, now);
            table.insert(&made, &mut *gone).unwrap();
        }
    });
    assert_eq!(gone, [2, 3]);
    assert_eq!(insert(&mut table, (0, 9, State::HalfOpen), now), Err(TableFull));
    assert!(insert(&mut table, (1, 9, State::HalfOpen), now).is_ok());
}

#[test]
fn a_full_table_takes_from_the_device_with_the_most_flows() {
    let now = start();
    let mut table = table(4, 4, now);
    for port in 0..4 {
        insert(&mut table, (0, port, State::OneWay), now).unwrap();
    }
    let mut gone = Vec::new();
    let made = flow(1, 1, State::HalfOpen, &table, now);
    table.insert(&made, |flow, _| gone.push(flow.station)).unwrap();
    assert_eq!((gone, table.len()), (vec![StationId(0)], 4));
}

#[test]
fn expiry_goes_by_state_and_last_packet() {
    let now = start();
    let mut table = table(10, 10, now);
    let half = insert(&mut table, (0, 1, State::HalfOpen), now).unwrap();
    insert(&mut table, (0, 2, State::HalfOpen), now).unwrap();
    insert(&mut table, (0, 3, State::Established), now).unwrap();
    table.account(half, &ONE, now + Duration::from_secs(20), |flow| flow.state);
    let later = now + Duration::from_secs(31);
    assert_eq!(ports(|gone| assert!(!table.expire(later, 10, gone))), [2]);
    let later = now + Duration::from_secs(24 * 3600);
    let gone = ports(|gone| assert!(!table.expire(later, 10, gone)));
    assert_eq!(gone, [1], "established TCP stays for more than a day");
}

#[test]
fn a_flow_costs_less_than_two_hundred_bytes_with_all_that_belongs_to_it() {
    // A number in the index for each flow, two buckets of it, and a bit of news.
    let all = size_of::<Slot>() + 3 * size_of::<u32>() + 1;
    assert!(all <= 192, "{} bytes, {} of them the flow", all, size_of::<Flow>());
}

#[test]
fn what_flows_have_in_common_is_kept_once_and_no_longer_than_they() {
    let now = start();
    let mut table = table(1_000, 1_000, now);
    let all: Vec<FlowIndex> = (0..300)
        .map(|port| insert(&mut table, (0, port, State::Established), now).unwrap())
        .collect();
    assert_eq!(table.judgements.len(), 1);
    for at in &all[..100] {
        judged(&mut table, *at, DropReason::NoRule);
    }
    judged(&mut table, all[0], DropReason::Expired);
    assert_eq!(table.judgements.len(), 3);
    assert_eq!(table.get(all[0]).unwrap().verdict, Verdict::Drop(DropReason::Expired));
    assert_eq!(table.judgement(all[1]).unwrap().verdict, Verdict::Drop(DropReason::NoRule));
    assert_eq!(table.judgement(all[299]).unwrap().verdict, Verdict::Clear);
    let gone: Vec<Verdict> = all.iter().map(|at| table.remove(*at).unwrap().1.verdict).collect();
    assert_eq!(gone[0], Verdict::Drop(DropReason::Expired));
    assert_eq!(gone[1..100], [Verdict::Drop(DropReason::NoRule); 99]);
    assert_eq!((table.judgements.len(), table.len()), (0, 0));
}

#[test]
fn another_verdict_voids_what_was_proven_and_another_stamp_the_other_way() {
    let now = start();
    let mut table = table(10, 10, now);
    let at = insert(&mut table, (0, 1, State::Established), now).unwrap();
    let proof = |stamp| Proof { stamp, peer: PeerSlot::for_tests(3), mac: MacAddr([7; 6]) };
    let flow = table.get_mut(at).unwrap();
    assert_eq!((flow.proof(Side::Leaving), flow.proof(Side::Coming)), (None, None));
    flow.prove(Side::Leaving, proof(5));
    flow.prove(Side::Coming, proof(5));
    assert_eq!(
        (flow.proof(Side::Leaving), flow.proof(Side::Coming)),
        (Some(proof(5)), Some(proof(5)))
    );
    flow.prove(Side::Coming, proof(6));
    assert_eq!((flow.proof(Side::Leaving), flow.proof(Side::Coming)), (None, Some(proof(6))));
    judged(&mut table, at, DropReason::NoRule);
    assert_eq!(table.get(at).unwrap().proof(Side::Coming), None);
}

#[test]
fn counters_are_reported_before_they_run_over() {
    let now = start();
    let mut table = table(10, 10, now);
    let at = insert(&mut table, (0, 1, State::Established), now).unwrap();
    let much = Passed { forward: false, packets: 45, bytes: 65_000 };
    let (mut rounds, mut reported) = (0_u64, Count::default());
    while rounds < 200_000 {
        rounds += 1;
        if table.account(at, &much, now, |flow| flow.state) {
            table.report_one(at, |flow, _| {
                let news = flow.take_news();
                reported.add(news.counts[1].packets, news.counts[1].bytes);
            });
        }
    }
    assert!(reported.bytes > 4 * u64::from(u32::MAX) / 2, "{reported:?}");
    let all = Count { packets: rounds * 45, bytes: rounds * 65_000 };
    assert_eq!(table.get(at).unwrap().totals(), [Count::default(), all]);
}

#[test]
fn a_report_is_made_in_steps_and_looks_at_nothing_that_has_no_news() {
    let now = start();
    let mut table = table(10_000, 10_000, now);
    let all: Vec<FlowIndex> = (0..5_000)
        .map(|port| insert(&mut table, (0, port, State::Established), now).unwrap())
        .collect();
    let step = |table: &mut FlowTable, budget| {
        let mut found = 0;
        let more = table.report_some(budget, |flow, _| {
            flow.take_news();
            found += 1;
        });
        (found, more)
    };
    assert_eq!(step(&mut table, 100), (0, false), "nobody asked");
    table.begin_report();
    assert_eq!(step(&mut table, 3_000), (3_000, true));
    assert_eq!(step(&mut table, 3_000), (2_000, false));
    assert_eq!(step(&mut table, 3_000), (0, false), "that was all");
    table.begin_report();
    assert_eq!(step(&mut table, 3_000), (0, false), "nothing happened since");
    for at in [17, 4_711, 17] {
        table.account(all[at], &ONE, now, |flow| flow.state);
    }
    table.remove(all[18]).unwrap();
    table.begin_report();
    assert_eq!(step(&mut table, 3_000), (2, false));
    // What happens while it is made makes it no longer.
    table.begin_report();
    let mut steps = 0;
    while steps < 100 {
        for at in &all[..100] {
            table.account(*at, &ONE, now, |flow| flow.state);
        }
        steps += 1;
        if !step(&mut table, 60).1 {
            break;
        }
    }
    assert!(steps < 10, "{steps} steps");
}

#[test]
fn the_last_used_come_first_and_not_all_are_looked_at() {
    let now = start();
    let mut table = table(60_000, 60_000, now);
    let at = |millis: u64| now + Duration::from_millis(millis);
    let mut order = Vec::new();
    for port in 0..2_000 {
        let (station, moment) = (port % 3, at(u64::from(port) * 7 % 2_003 * 10));
        let state = [State::Established, State::HalfOpen][usize::from(port % 2)];
        let flow = insert(&mut table, (station, port, state), now).unwrap();
        order.push((moment, port, flow));
    }
    order.sort_unstable_by_key(|(moment, ..)| *moment);
    for (moment, _, flow) in &order {
        table.account(*flow, &ONE, *moment, |flow| flow.state);
    }
    let wanted: Vec<u16> = order.iter().rev().map(|(_, port, _)| *port).take(500).collect();
    let found: Vec<u16> = table.recent(500).iter().map(|flow| flow.tuple().source_port).collect();
    assert_eq!(found, wanted);
    assert_eq!((table.recent(0).len(), table.recent(usize::MAX).len()), (0, 2_000));
    let own: Vec<u16> = table.of_share(Share(1)).map(|(_, flow)| flow.station.0).collect();
    assert!(own.iter().all(|station| *station == 1) && own.len() == 667, "{}", own.len());
}

#[test]
fn a_station_that_goes_takes_all_its_flows_along() {
    let now = start();
    let mut table = table(100, 100, now);
    insert(&mut table, (1, 1, State::Established), now).unwrap();
    insert(&mut table, (2, 2, State::Established), now).unwrap();
    let shares = [Share(1), Share(9)];
    let gone = ports(|gone| table.remove_station(StationId(1), shares, gone));
    assert_eq!(gone, [1]);
    // Opened by another device here, in whose share it is.
    insert(&mut table, (1, 1, State::Established), now).unwrap();
    let tuple = FiveTuple {
        source: Ipv4Addr::new(10, 0, 0, 2),
        destination: Ipv4Addr::new(10, 0, 0, 1),
        source_port: 3,
        destination_port: 104,
        protocol: 6,
    };
    let zone = Zone::between(StationId(2), StationId(1));
    let state = State::Established;
    let made = between(zone, StationId(2), &tuple, state, table.moment(now));
    let at = table.insert(&made, nobody).unwrap();
    assert_eq!(table.get(at).unwrap().other(), Some(StationId(1)));
    let mut gone = ports(|gone| table.remove_station(StationId(1), shares, gone));
    gone.sort_unstable();
    assert_eq!((gone, table.len()), (vec![1, 3], 1));
}

proptest! {
    /// Whatever is done, counts, lists, index, news and judgements stay one.
    #[test]
    fn the_table_stays_whole(actions in prop::collection::vec((0u16..3, 0u16..12, 0usize..=State::COUNT + 1, 0u64..40), 1..200)) {
        let mut now = start();
        let mut table = table(8, 5, now);
        for (station, port, what, seconds) in actions {
            now += Duration::from_secs(seconds);
            let state = State::ALL[what % State::COUNT];
            let made = flow(station, port, state, &table, now);
            match (table.find(&made.key), what) {
                (Some(at), State::COUNT) => { table.remove(at); }
                (Some(at), more) if more > State::COUNT => {
                    judged(&mut table, at, DropReason::ALL[usize::from(port) % 3]);
                }
                (Some(at), _) => { table.account(at, &ONE, now, |_| state); }
                (None, _) => { let _ = table.insert(&made, nobody); }
            }
            if seconds > 30 {
                table.expire(now, 3, nobody);
                table.begin_report();
                table.report_some(2, |flow, _| { flow.take_news(); });
            }
            prop_assert!(table.len() <= 8);
            let counted: usize = (0..3).map(|s| table.count_of(Share(s))).sum();
            prop_assert_eq!(counted, table.len());
            let mut linked = 0;
            for device in 0..table.devices.len() {
                prop_assert!(table.devices[device].count <= 5);
                for state in State::ALL {
                    let mut at = table.devices[device].lists[state.index()].head;
                    let mut before = None;
                    while at != NONE {
                        let slot = table.slots.get(at).unwrap();
                        let flow = slot.flow.as_ref().unwrap();
                        prop_assert_eq!(flow.state, state);
                        prop_assert!(before.is_none_or(|before| before <= flow.last));
                        before = Some(flow.last);
                        let noted = table.news[at as usize / 64] >> (at % 64) & 1 == 1;
                        prop_assert_eq!(noted, flow.has_news());
                        linked += 1;
                        at = slot.after;
                    }
                }
            }
            prop_assert_eq!(linked, table.len());
            let seen = table.iter().filter(|flow| table.find(&flow.key).is_some()).count();
            prop_assert_eq!(seen, table.len());
            let judgements: HashSet<Judgement> =
                table.iter().map(|flow| table.judgement_of(flow).unwrap()).collect();
            prop_assert_eq!(judgements.len(), table.judgements.len());
            prop_assert!(table.iter().all(|f| table.judgement_of(f).unwrap().verdict == f.verdict));
        }
    }
}
