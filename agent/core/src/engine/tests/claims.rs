//! What a peer may claim, and what not, whatever keys it has stolen.

use std::net::Ipv4Addr;

use anteroom_proto::alarm::AlarmKind;
use anteroom_proto::claim::AddressClaim;
use anteroom_proto::cose::Signed;

use super::*;
use crate::holding::Use;
use crate::peer::message::{ClaimAnswer, ClaimOutcome};

const FAR: MemberId = MemberId::from_bytes([20; 16]);
const HERE: MemberId = MemberId::from_bytes([11; 16]);

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, 4, last)
}

/// An engine whose own device 11 and far member 20 have dynamic addresses in one prefix; 21 is pinned.
fn start_engine(now: Instant) -> Engine {
    let mut view = (*view([Mode::Enforce; 2], &["tcp/104"])).clone();
    view.intent.members[0].addresses = vec!["10.20.4.0/24".parse().unwrap()];
    view.intent.members.push(member(21, OTHER, "10.20.4.21/32", Mode::Enforce));
    view.intent.devices[1].member.addresses = vec!["10.20.4.0/24".parse().unwrap()];
    view.intent.infrastructure = Infrastructure::default();
    let mut engine = engine(Limits::default(), now);
    engine.apply(Arc::new(view), now);
    engine
}

fn claim(member: MemberId, number: u64, addresses: &[Ipv4Addr]) -> AddressClaim {
    AddressClaim {
        organisation: ORGANISATION,
        gateway: OTHER,
        member,
        number,
        addresses: addresses.to_vec(),
        lease_seconds: Some(600),
    }
}

fn signed(claim: &AddressClaim, seed: u8) -> Signed<AddressClaim> {
    Signed::sign(claim, &IdentityKey::from_seed(&[seed; 32]))
}

/// What the peer is told. None: it is not even answered.
fn take(engine: &mut Engine, claim: &Signed<AddressClaim>, now: Instant) -> Option<ClaimOutcome> {
    let mut answer = None;
    engine.change_holdings(now, |holdings, at| {
        let taken = holdings.take(at, OTHER, claim);
        answer = taken.answer;
        taken.changed
    });
    answer.map(|answer| answer.outcome)
}

fn who(engine: &Engine, address: Ipv4Addr) -> Option<MemberId> {
    let policy = engine.policy.as_ref().unwrap();
    policy.at(address).and_then(|index| policy.member(index)).map(|member| member.id)
}

#[test]
fn a_claim_counts_until_a_newer_one_and_never_again_after_it() {
    let now = start();
    let mut engine = start_engine(now);
    let first = signed(&claim(FAR, 7, &[at(50)]), 3);
    assert_eq!(take(&mut engine, &first, now), Some(ClaimOutcome::Held));
    assert_eq!(take(&mut engine, &first, now), Some(ClaimOutcome::Held), "told twice");
    assert_eq!(who(&engine, at(50)), Some(FAR));
    let second = signed(&claim(FAR, 8, &[at(51)]), 3);
    assert_eq!(take(&mut engine, &second, now), Some(ClaimOutcome::Held));
    assert_eq!((who(&engine, at(50)), who(&engine, at(51))), (None, Some(FAR)));
    let stale = Some(ClaimOutcome::Stale(second.clone()));
    assert_eq!(take(&mut engine, &first, now), stale, "an older one");
    let twin = signed(&claim(FAR, 8, &[at(52)]), 3);
    assert_eq!(take(&mut engine, &twin, now), stale, "another one of the same number");
    assert_eq!((who(&engine, at(50)), who(&engine, at(51))), (None, Some(FAR)));
    // The same over a restart.
    let learned = engine.learned();
    let mut engine = start_engine(now);
    let view = engine.policy.as_ref().map(|policy| Arc::clone(&policy.view)).unwrap();
    engine.restore(learned);
    engine.apply(view, now);
    assert_eq!(who(&engine, at(51)), Some(FAR));
    assert_eq!(take(&mut engine, &first, now), stale);
}

#[test]
fn a_peer_speaks_for_its_own_devices_and_their_prefixes_alone() {
    let now = start();
    let mut engine = start_engine(now);
    let good = claim(FAR, 1, &[at(50)]);
    let silent = [
        ("another's key", signed(&good, 4)),
        ("another gateway", signed(&AddressClaim { gateway: OWN, ..good.clone() }, 3)),
        (
            "another organisation",
            signed(
                &AddressClaim {
                    organisation: anteroom_proto::id::OrganisationId::from_bytes([0xee; 16]),
                    ..good.clone()
                },
                3,
            ),
        ),
        ("garbage", Signed::from_bytes(vec![0xd2, 0x84])),
    ];
    for (what, claim) in silent {
        assert_eq!(take(&mut engine, &claim, now), None, "{what}");
    }
    let refused = [
        ("this gateway's device", claim(HERE, 1, &[at(50)])),
        ("nobody", claim(MemberId::from_bytes([99; 16]), 1, &[at(50)])),
        ("a pinned device's prefix", claim(MemberId::from_bytes([21; 16]), 1, &[at(50)])),
        ("outside its prefix", claim(FAR, 2, &[Ipv4Addr::new(10, 20, 9, 9)])),
        ("the prefix's own address", claim(FAR, 3, &[at(0)])),
        ("too many", claim(FAR, 4, &[at(50); 9])),
    ];
    for (what, claim) in refused {
        assert_eq!(
            take(&mut engine, &signed(&claim, 3), now),
            Some(ClaimOutcome::Refused),
            "{what}"
        );
    }
    let pinned = signed(&claim(FAR, 10, &[at(21)]), 3);
    assert_eq!(take(&mut engine, &pinned, now), Some(ClaimOutcome::Conflict(at(21))));
    assert_eq!(who(&engine, at(21)), Some(MemberId::from_bytes([21; 16])));
    assert_eq!(who(&engine, at(50)), None);
    let alarms = engine.report(now).alarms;
    assert_eq!(alarms.len(), 1, "{alarms:#?}");
    let about = (alarms[0].mac, alarms[0].address, alarms[0].member);
    assert_eq!(about, (mac(20), Some(at(21)), Some(MemberId::from_bytes([21; 16]))));
}

#[test]
fn a_peer_cant_take_what_a_device_here_has() {
    let now = start();
    let mut engine = start_engine(now);
    // Device 11 uses the address first.
    let frame = crate::wire::arp::request(mac(11), at(50), Ipv4Addr::new(10, 20, 4, 1));
    feed(&mut engine, PortId::device(1), VnetHeader::default(), &frame, now);
    assert_eq!(who(&engine, at(50)), Some(HERE));
    let theirs = signed(&claim(FAR, u64::MAX, &[at(50), at(60)]), 3);
    assert_eq!(take(&mut engine, &theirs, now), Some(ClaimOutcome::Conflict(at(50))));
    assert_eq!((who(&engine, at(50)), who(&engine, at(60))), (Some(HERE), Some(FAR)));
    // Nor can the device here take what the peer's has.
    let later = now + std::time::Duration::from_secs(60);
    let frame = crate::wire::arp::request(mac(11), at(60), Ipv4Addr::new(10, 20, 4, 1));
    feed(&mut engine, PortId::device(1), VnetHeader::default(), &frame, later);
    assert_eq!((who(&engine, at(50)), who(&engine, at(60))), (Some(HERE), Some(FAR)));
    let alarms = engine.report(later).alarms;
    let about: Vec<_> = alarms.iter().map(|a| (a.mac, a.address, a.member)).collect();
    let expected = [(mac(20), Some(at(50)), Some(HERE)), (mac(11), Some(at(60)), Some(FAR))];
    assert_eq!(about, expected, "{alarms:#?}");
}

#[test]
fn nobody_but_this_gateway_moves_its_own_count() {
    let now = start();
    let mut engine = start_engine(now);
    let frame = crate::wire::arp::request(mac(11), at(50), Ipv4Addr::new(10, 20, 4, 1));
    feed(&mut engine, PortId::device(1), VnetHeader::default(), &frame, now);
    let reported = |engine: &mut Engine| -> Vec<Signed<AddressClaim>> {
        let sightings = engine.report(now).sightings;
        sightings.into_iter().filter_map(|sighting| sighting.claim).collect()
    };
    let news = reported(&mut engine);
    let own = IdentityKey::from_seed(&[9; 32]).public();
    let number = |claims: &[Signed<AddressClaim>]| {
        claims.iter().map(|claim| claim.verify(ORGANISATION, &[own]).unwrap().number).max()
    };
    let first = number(&news).unwrap();
    let mut answer = |newer: Signed<AddressClaim>| {
        let outcome = ClaimOutcome::Stale(newer);
        engine.change_holdings(now, |holdings, at| {
            let answer = ClaimAnswer { member: HERE, number: first, outcome };
            holdings.answered(at, (OTHER, None), answer)
        });
        number(&reported(&mut engine))
    };
    let mine = |number| AddressClaim { gateway: OWN, ..claim(HERE, number, &[at(99)]) };
    assert_eq!(answer(signed(&mine(u64::MAX), 3)), None, "signed by somebody else");
    assert_eq!(answer(signed(&mine(first - 1), 9)), None, "an old one");
    assert_eq!(answer(signed(&claim(HERE, 999, &[]), 9)), None, "not of this gateway");
    assert_eq!(answer(signed(&mine(first + 100), 9)), Some(first + 101), "an earlier run's");
    assert_eq!(who(&engine, at(50)), Some(HERE), "what it holds is this gateway's own word");
    assert_eq!(who(&engine, at(99)), None);
}

#[test]
fn a_flood_of_claims_costs_a_bounded_number_of_checks() {
    let now = start();
    let mut engine = start_engine(now);
    let checked = (0..10_000).filter(|_| engine.holdings.may_check(OTHER, now)).count();
    assert_eq!(checked, 64);
    let later = now + std::time::Duration::from_secs(1);
    assert!(engine.holdings.may_check(OTHER, later));
    // Of whoever is a peer no more nothing is kept.
    let mut view = (*engine.policy.as_ref().unwrap().view).clone();
    view.intent.peers.clear();
    view.peers.clear();
    assert_eq!(engine.holdings.counted(), 1);
    engine.apply(Arc::new(view), later);
    assert_eq!(engine.holdings.counted(), 0);
}

/// A view like the others', in which operators also named single addresses within the devices' prefix: a server, a
/// router, an external. Another external is wider than the prefix.
fn name_apart(engine: &mut Engine, now: Instant) {
    let policy = engine.policy.as_ref().unwrap();
    let mut view = (*policy.view).clone();
    view.intent.infrastructure.dns = vec![at(53)];
    view.intent.infrastructure.ntp = vec![at(123)];
    view.intent.devices[0].router = Some(Router { address: at(1), mac: None });
    view.intent.externals[0].prefixes =
        ["10.20.4.80/30", "10.20.0.0/16"].map(|net| net.parse().unwrap()).to_vec();
    engine.apply(Arc::new(view), now);
}

/// Addresses that `name_apart` names: of servers, a router and an external.
const NAMED: [u8; 4] = [53, 123, 1, 81];

#[test]
fn a_peer_cant_claim_what_operators_named_apart_from_its_prefix() {
    let now = start();
    let mut engine = start_engine(now);
    name_apart(&mut engine, now);
    for (number, last) in (1..).zip(NAMED) {
        let claim = signed(&claim(FAR, number, &[at(last)]), 3);
        let answer = take(&mut engine, &claim, now);
        assert_eq!(answer, Some(ClaimOutcome::Conflict(at(last))), "{last}");
        assert_eq!(who(&engine, at(last)), None, "{last}");
    }
    let alarms = engine.report(now).alarms;
    assert!(alarms.iter().any(|alarm| alarm.kind == AlarmKind::Conflict), "{alarms:#?}");
    let good = signed(&claim(FAR, 10, &[at(50)]), 3);
    assert_eq!(take(&mut engine, &good, now), Some(ClaimOutcome::Held), "within the wide external");
    assert_eq!(who(&engine, at(50)), Some(FAR));
}

#[test]
fn a_device_here_gets_none_of_what_operators_named_apart_from_its_prefix() {
    let now = start();
    let mut engine = start_engine(now);
    name_apart(&mut engine, now);
    let lease = |engine: &mut Engine, last| {
        engine.change_holdings(now, |holdings, about| holdings.leased(about, HERE, at(last), 600));
    };
    lease(&mut engine, 50);
    for last in NAMED {
        lease(&mut engine, last);
        let later = now + std::time::Duration::from_secs(60);
        let seen = Use { address: at(last), suffices: true, watched: true };
        engine.change_holdings(later, |holdings, about| holdings.used(about, HERE, seen));
        assert_eq!((who(&engine, at(last)), who(&engine, at(50))), (None, Some(HERE)), "{last}");
    }
}

#[test]
fn what_operators_name_apart_later_is_given_up() {
    let now = start();
    let mut engine = start_engine(now);
    let theirs = signed(&claim(FAR, 1, &[at(53)]), 3);
    assert_eq!(take(&mut engine, &theirs, now), Some(ClaimOutcome::Held));
    engine.change_holdings(now, |holdings, about| holdings.leased(about, HERE, at(81), 600));
    assert_eq!((who(&engine, at(53)), who(&engine, at(81))), (Some(FAR), Some(HERE)));
    name_apart(&mut engine, now);
    assert_eq!((who(&engine, at(53)), who(&engine, at(81))), (None, None));
}

#[test]
fn a_device_that_takes_and_gives_up_without_end_costs_a_bounded_number_of_signatures() {
    let now = start();
    let mut engine = start_engine(now);
    // Each address by use, and each by a lease, which may be for another time whenever it is renewed.
    let rounds = |engine: &mut Engine, now: Instant| {
        let (epoch, mut signed) = (engine.epoch, 0);
        for round in 0..1_000_u32 {
            let address = at(2 + u8::try_from(round % 200).unwrap());
            let seen = Use { address, suffices: true, watched: true };
            engine.change_holdings(now, |holdings, about| holdings.used(about, HERE, seen));
            signed += engine.holdings.take_news().len();
            for seconds in [600, 700] {
                engine.change_holdings(now, |holdings, about| {
                    holdings.leased(about, HERE, address, seconds + round)
                });
                signed += engine.holdings.take_news().len();
            }
            engine.change_holdings(now, |holdings, about| holdings.released(about, HERE, address));
            signed += engine.holdings.take_news().len();
        }
        (signed, engine.epoch - epoch)
    };
    let (signed, epochs) = rounds(&mut engine, now);
    assert!((1..=16).contains(&signed) && epochs <= 16, "{signed} signatures, {epochs} epochs");
    let (signed, epochs) = rounds(&mut engine, now + std::time::Duration::from_secs(3));
    assert!((3..=6).contains(&signed) && epochs <= 6, "{signed} signatures, {epochs} epochs");
    // It isn't shut out for good.
    let later = now + std::time::Duration::from_secs(5);
    let seen = Use { address: at(50), suffices: true, watched: true };
    assert!(engine.change_holdings(later, |holdings, about| holdings.used(about, HERE, seen)));
    assert_eq!(who(&engine, at(50)), Some(HERE));
}
