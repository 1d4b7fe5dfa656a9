use std::net::Ipv4Addr;

use anteroom_proto::verdict::Verdict;

use super::*;
use crate::fixture::{HOUR, NOW, gateway_id, hospital, mac, member_id};

fn told(number: u32, remote: [u8; 4], outbound: bool) -> api::Edge {
    api::Edge {
        gateway: gateway_id(1),
        mac: mac(number),
        member: None,
        local: Ipv4Addr::new(10, 20, 1, 10).into(),
        remote: Ipv4Addr::from(remote).into(),
        remote_member: None,
        outbound,
        protocol: 6,
        port: 104,
        verdict: Verdict::Clear,
        rule: None,
        flows: 2,
        packets_out: 10,
        packets_in: 20,
        bytes_out: 1000,
        bytes_in: 9000,
        first: NOW,
        last: UnixMillis(NOW.0 + HOUR),
        rhythm: Rhythm::default(),
    }
}

const LATER: UnixMillis = UnixMillis(NOW.0 + 2 * HOUR);

#[test]
fn both_gateways_of_a_pair_make_one_edge_that_counts_once() {
    let resolved = Resolved::new(&hospital()).unwrap();
    let names = Names::of(&resolved.model);
    let mut history = History::new(100);
    // The scanner tells the archive of ten packets, the archive's gateway of nine of them.
    let near = told(1, [10, 20, 4, 10], true);
    assert_eq!(history.recorded(&resolved, &names, &near, LATER), Folded::Added);
    let far = told(5, [10, 20, 1, 10], false);
    let far = api::Edge { gateway: gateway_id(3), packets_in: 9, packets_out: 20, ..far };
    assert_eq!(history.recorded(&resolved, &names, &far, LATER), Folded::Added);
    let edges: Vec<Edge> = history.edges().collect();
    assert_eq!(edges.len(), 1, "{edges:?}");
    assert_eq!(
        (edges[0].from, edges[0].to),
        (Party::Member(member_id(1)), Party::Member(member_id(5)))
    );
    let counts = edges[0].counts;
    assert_eq!((counts.flows, counts.packets, counts.packets_back), (2, 10, 20));
    assert_eq!(edges[0].rhythm.hours_of_day(), 2);
    assert_eq!(edges[0].way, Way::Clear);
}

#[test]
fn what_no_rule_can_open_is_counted_apart_and_strangers_teach_nothing() {
    let resolved = Resolved::new(&hospital()).unwrap();
    let names = Names::of(&resolved.model);
    let mut history = History::new(100);
    let mut recorded = |edge: &api::Edge| history.recorded(&resolved, &names, edge, LATER);
    let broadcast = Folded::Uncarried(DropReason::Broadcast);
    // The last is the broadcast address of the scanner's own network.
    for group in [[224, 0, 0, 251], [239, 255, 255, 250], [255, 255, 255, 255], [10, 20, 1, 255]] {
        let datagram = api::Edge { protocol: 17, ..told(1, group, true) };
        assert_eq!(recorded(&datagram), broadcast, "{group:?}");
    }
    // Of another network its gateway alone knows, once it holds the frame against a policy.
    let elsewhere = told(1, [10, 20, 7, 127], true);
    for verdict in [Verdict::WouldDrop(DropReason::Broadcast), Verdict::Drop(DropReason::Broadcast)]
    {
        assert_eq!(recorded(&api::Edge { verdict, ..elsewhere.clone() }), broadcast, "{verdict}");
    }
    let gre = api::Edge { protocol: 47, ..told(1, [10, 20, 4, 10], true) };
    assert_eq!(recorded(&gre), Folded::Uncarried(DropReason::OtherProtocol));
    assert_eq!(recorded(&told(99, [10, 20, 4, 10], true)), Folded::Stranger);
    assert!(history.is_empty());
    assert_eq!(history.uncarried().len(), 2);
}

#[test]
fn a_scan_takes_a_quarter_of_the_room_and_an_answer_gives_its_place_back() {
    let mut history = History::new(8);
    let seen = |number: u32, back: u64| Seen {
        from: Party::Member(member_id(1)),
        to: Party::Member(member_id(number)),
        protocol: Protocol::Tcp,
        port: 445,
        way: Way::Clear,
        at: End::From,
        counts: Counts { flows: 1, packets: 1, packets_back: back, ..Counts::default() },
        first: NOW,
        last: NOW,
    };
    let taken = (10..14).filter(|number| history.add(&seen(*number, 0))).count();
    assert_eq!(taken, 2);
    assert!(history.add(&seen(10, 1)), "an answer");
    assert!(history.add(&seen(12, 0)), "which makes room for another that nobody answered");
    for number in 20..25 {
        assert!(history.add(&seen(number, 1)), "{number}");
    }
    assert!(!history.add(&seen(30, 1)), "full");
    assert!(history.add(&seen(20, 1)), "what is known goes on growing");
    assert_eq!((history.len(), history.turned_away()), (8, 3));
}
