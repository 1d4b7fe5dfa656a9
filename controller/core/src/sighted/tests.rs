use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::v1::telemetry::Sighting;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::*;
use crate::fixture::{HOUR, NOW, client, gateway_id, hospital, mac, name};
use crate::resolve::Resolved;

/// The Ethernet address of what is to be confirmed, behind gateway 2.
const STRANGER: u32 = 66;

fn seen(addresses: &[[u8; 4]]) -> SightingRecord {
    sighting(2, STRANGER, addresses, None)
}

fn sighting(
    gateway: u32,
    number: u32,
    addresses: &[[u8; 4]],
    router: Option<[u8; 4]>,
) -> SightingRecord {
    let sighting = Sighting {
        port: name("port9"),
        mac: mac(number),
        vlan: None,
        addresses: addresses.iter().map(|address| Ipv4Addr::from(*address)).collect(),
        prefix_len: Some(24),
        router: router.map(|address| (address.into(), mac(99))),
        member: None,
        held: false,
        kinds: Vec::new(),
        claim: None,
        first_seen: UnixMillis(NOW.0 - 2 * HOUR),
        last_seen: NOW,
    };
    SightingRecord { gateway: gateway_id(gateway), first_seen: sighting.first_seen, sighting }
}

/// An answered conversation, by the gateway of `number`, from five hours ago until `last`.
fn edge(gateway: u32, number: u32, local: [u8; 4], remote: [u8; 4], last: UnixMillis) -> Edge {
    Edge {
        gateway: gateway_id(gateway),
        mac: mac(number),
        member: None,
        local: local.into(),
        remote: remote.into(),
        remote_member: None,
        outbound: number != STRANGER,
        protocol: 17,
        port: 123,
        verdict: Verdict::Clear,
        rule: None,
        flows: 3,
        packets_out: 3,
        packets_in: 3,
        bytes_out: 3,
        bytes_in: 3,
        first: UnixMillis(NOW.0 - 5 * HOUR),
        last,
        rhythm: Rhythm::default(),
    }
}

fn chosen(record: &SightingRecord, others: &[SightingRecord], edges: &[Edge]) -> Chosen {
    let mut model = hospital();
    model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "laptop")]);
    let resolved = Resolved::new(&model).unwrap();
    let mut sighted = Sighted::new(&resolved.model, Some(&resolved.policy), others, [record], NOW);
    edges.iter().for_each(|edge| sighted.take(edge));
    sighted.choose(record)
}

fn doubts(found: &Chosen) -> Vec<String> {
    found.left.iter().map(|(address, doubt)| format!("{address}: {doubt}")).collect()
}

const OWN: [u8; 4] = [10, 20, 2, 15];

#[test]
fn what_somebody_else_has_is_not_a_devices_by_claiming_it() {
    let claims = [
        OWN,
        [10, 20, 0, 123],
        [10, 20, 4, 20],
        [10, 20, 1, 254],
        [10, 20, 9, 70],
        [10, 20, 1, 10],
        [169, 254, 1, 1],
    ];
    let other = sighting(1, 67, &[[10, 20, 1, 67]], Some([10, 20, 1, 254]));
    let found = chosen(&seen(&claims), &[other], &[]);
    assert_eq!(found.address, Some(OWN.into()), "{found:?}");
    let lines = doubts(&found).join("\n");
    for words in [
        "10.20.0.123: the policy has it in [infrastructure.north], under ntp",
        "10.20.4.20: it is external.archive's",
        "10.20.1.254: it is the router of",
        "10.20.9.70: it is laptop-1's",
        "10.20.1.10: it is ct-1's",
    ] {
        assert!(lines.contains(words), "{words:?} in {lines}");
    }
    assert_eq!((found.left.len(), found.foreign().count()), (5, 5), "{lines}");
    // Its own router is its own affair, and at a site where nothing of all that is, nothing is in doubt.
    let itself = sighting(2, STRANGER, &[OWN], Some(OWN));
    assert_eq!(chosen(&itself, std::slice::from_ref(&itself), &[]).address, Some(OWN.into()));
}

#[test]
fn an_address_that_others_got_answers_from_is_theirs_who_answered() {
    const SERVER: [u8; 4] = [10, 20, 4, 32];
    let record = seen(&[SERVER, OWN]);
    let asked = edge(1, 1, [10, 20, 1, 10], SERVER, NOW);
    let found = chosen(&record, &[], std::slice::from_ref(&asked));
    assert_eq!(found.address, Some(OWN.into()), "{found:?}");
    assert!(
        doubts(&found)[0].contains("10.20.1.10 (00:1b:00:00:00:01) spoke with it"),
        "{found:?}"
    );
    // An answer that it got itself from the address, whoever to, doesn't make it the one that others spoke with.
    let spoofed = edge(2, STRANGER, SERVER, [10, 20, 7, 7], NOW);
    assert_eq!(chosen(&record, &[], &[asked.clone(), spoofed.clone()]).address, Some(OWN.into()));
    // But where its own gateway saw it answer just those, it is the one.
    let answered = edge(2, STRANGER, SERVER, [10, 20, 1, 10], NOW);
    let found = chosen(&record, &[], &[asked.clone(), answered]);
    assert_eq!(found.address, Some(SERVER.into()), "{found:?}");
    // As it may be where it was elsewhere until it came behind a gateway, and speaks from there.
    let before = Edge { last: UnixMillis(NOW.0 - 3 * HOUR), ..asked.clone() };
    let found = chosen(&record, &[], &[before.clone(), spoofed]);
    assert_eq!(found.address, Some(SERVER.into()), "{found:?}");
    assert_eq!(chosen(&record, &[], &[before]).address, Some(OWN.into()), "it never spoke from it");
    // What nobody answered says nothing, nor what another site's devices have.
    let silent = Edge { packets_in: 0, ..asked.clone() };
    assert!(chosen(&record, &[], &[silent]).foreign().next().is_none());
    let young = Edge { first: NOW, ..asked };
    assert!(chosen(&record, &[], &[young]).foreign().next().is_none(), "reports are on their way");
}

#[test]
fn one_answer_of_its_own_makes_nobody_who_others_at_its_gateway_speak_with() {
    const SERVER: [u8; 4] = [10, 20, 4, 32];
    let record = seen(&[OWN, SERVER]);
    let helper = edge(2, STRANGER, SERVER, [10, 20, 2, 66], NOW);
    let itself = Edge { flows: 1, ..edge(2, STRANGER, OWN, [10, 20, 9, 9], NOW) };
    let pump = |number: u8, verdict, began| Edge {
        verdict,
        first: UnixMillis(NOW.0 - began),
        ..edge(2, 100 + u32::from(number), [10, 20, 2, 40 + number], SERVER, NOW)
    };
    for (verdict, began) in [
        // By way of the uplink, from before it came and since; and to another port, from before it came.
        (Verdict::Clear, 500 * HOUR),
        (Verdict::Clear, HOUR),
        (Verdict::Local, 500 * HOUR),
    ] {
        let mut edges: Vec<Edge> = (0..20).map(|n| pump(n, verdict, began)).collect();
        edges.extend([helper.clone(), itself.clone()]);
        let found = chosen(&record, &[], &edges);
        assert_eq!(found.address, Some(OWN.into()), "{verdict} {began}: {found:?}");
        assert_eq!(found.foreign().count(), 1, "{found:?}");
        // Where it is all that it claims, it gets none.
        let alone = chosen(&seen(&[SERVER]), &[], &edges);
        assert_eq!(alone.address, None, "{verdict} {began}: {alone:?}");
    }
    // Since it came, and at another port of the gateway, it may be the one; but one that is surely its own goes first.
    let local = pump(1, Verdict::Local, HOUR);
    let edges = [local.clone(), helper.clone()];
    assert_eq!(chosen(&seen(&[SERVER]), &[], &edges).address, Some(SERVER.into()));
    assert_eq!(chosen(&record, &[], &[local, helper, itself]).address, Some(OWN.into()));
}

#[test]
fn what_a_protected_neighbour_spoke_with_may_be_the_device_and_it_is_said_that_nobody_tells() {
    const SERVER: [u8; 4] = [10, 20, 4, 32];
    let record = seen(&[SERVER]);
    let itself = edge(2, STRANGER, SERVER, [10, 20, 9, 9], NOW);
    let monitor = |gateway, verdict, began| Edge {
        verdict,
        first: UnixMillis(NOW.0 - began),
        ..edge(gateway, 101, [10, 20, 2, 41], SERVER, NOW)
    };
    let would_drop = Verdict::WouldDrop(DropReason::NoRule);
    let said = |edges: &[Edge]| {
        let found = chosen(&record, &[], edges);
        assert_eq!(found.address, None, "{found:?}");
        doubts(&found).remove(0)
    };
    let untold = said(&[itself.clone(), monitor(2, would_drop, HOUR)]);
    assert!(
        untold.contains("10.20.2.41 (00:1b:00:00:00:65) spoke with it, it may be with this"),
        "{untold}"
    );
    // Where it surely was with another, that is said: by another gateway, from before it came, or where it never spoke from it.
    for edges in [
        vec![itself.clone(), monitor(1, would_drop, HOUR)],
        vec![itself.clone(), monitor(2, would_drop, 500 * HOUR)],
        vec![monitor(2, would_drop, HOUR)],
        vec![itself, monitor(2, would_drop, HOUR), monitor(1, Verdict::Clear, HOUR)],
    ] {
        let sure = said(&edges);
        assert!(sure.contains("no gateway tells that it was this device"), "{sure}");
    }
}

#[test]
fn an_address_that_two_speak_from_is_neithers_until_somebody_says_whose() {
    let record = seen(&[OWN]);
    let itself = edge(2, STRANGER, OWN, [10, 20, 9, 9], NOW);
    let other = edge(2, 67, OWN, [10, 20, 9, 9], NOW);
    let found = chosen(&record, &[], &[itself.clone(), other.clone()]);
    assert_eq!(found.address, None, "{found:?}");
    let lines = doubts(&found).join("\n");
    assert!(lines.contains("10.20.2.15: 00:1b:00:00:00:43 speaks from it, too"), "{lines}");
    // What it replaced, and is quiet since, is no other.
    let before = Edge { last: UnixMillis(NOW.0 - 3 * HOUR), ..other };
    assert_eq!(chosen(&record, &[], &[itself, before]).address, Some(OWN.into()));
}

#[test]
fn a_server_has_its_address_however_many_its_clients_are() {
    const SERVER: [u8; 4] = [10, 20, 4, 33];
    let record = seen(&[SERVER]);
    let client = |number: u16| {
        let [high, low] = number.to_be_bytes();
        [10, 30, high, low]
    };
    for clients in [200, 300, 3_000] {
        let asked = (0..clients).map(|n| edge(1, 1000 + u32::from(n), client(n), SERVER, NOW));
        let told = (0..clients).rev().map(|n| edge(2, STRANGER, SERVER, client(n), NOW));
        let edges: Vec<Edge> = asked.chain(told).collect();
        let found = chosen(&record, &[], &edges);
        assert_eq!(found.address, Some(SERVER.into()), "{clients}: {:?}", found.left);
        // Of one it didn't answer.
        let found = chosen(&record, &[], &edges[..edges.len() - 1]);
        assert_eq!(found.address, None, "{clients}");
        assert!(doubts(&found)[0].contains("10.30.0.0 ("), "{found:?}");
    }
}

#[test]
fn of_what_found_no_room_nothing_is_concluded() {
    const SERVER: [u8; 4] = [10, 20, 4, 33];
    let client = |number: u32| {
        let [_, high, middle, low] = number.to_be_bytes();
        [11, high, middle, low]
    };
    let many = u32::try_from(MOST).unwrap() + 1;
    let told = (0..many).map(|n| edge(2, STRANGER, SERVER, client(n), NOW));
    let mut edges: Vec<Edge> = told.collect();
    assert_eq!(chosen(&seen(&[SERVER]), &[], &edges).address, Some(SERVER.into()));
    edges.push(edge(1, 1, client(many - 1), SERVER, NOW));
    let found = chosen(&seen(&[SERVER]), &[], &edges);
    assert_eq!((found.address, &found.left[0].1), (None, &Doubt::Many));
    assert!(doubts(&found)[0].contains("more than 65536 conversations"), "{found:?}");
}

#[test]
fn of_several_the_one_that_it_speaks_from_is_taken() {
    let second = [10, 20, 2, 16];
    let record = seen(&[OWN, second]);
    let found = chosen(&record, &[], &[]);
    assert_eq!(found.address, Some(OWN.into()));
    assert_eq!(found.left, [(second.into(), Doubt::Second(OWN.into()))]);
    assert_eq!(found.foreign().count(), 0);
    let spoke = edge(2, STRANGER, second, [10, 20, 4, 10], NOW);
    assert_eq!(chosen(&record, &[], &[spoke]).address, Some(second.into()));
    assert_eq!(chosen(&seen(&[]), &[], &[]), Chosen::default());
}
