//! What a relay must not do, whatever it is shown.

use super::*;

#[test]
fn one_pass_is_not_enough() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 1, &[2]), now);
    let b = enter(&mut relay, &pass(2, 2, &[3]), now);
    assert_eq!((relay.news(a, 9), relay.news(b, 9)), (vec![], vec![]), "b isn't told of a at all");
    assert_eq!(relay.forward(a, packet(0, false, 1, 100), now), Err(Dropped::NotShared));
    assert_eq!(relay.forward(b, packet(0, false, 1, 100), now), Err(Dropped::Absent));
    assert_eq!(relay.forward(b, packet(1, false, 1, 100), now), Err(Dropped::Unknown));
    relay.renew(b, &pass(2, 3, &[1, 3]), now).unwrap();
    assert!(relay.forward(a, packet(0, false, 1, 100), now).is_ok());
}

#[test]
fn a_pass_that_no_longer_names_the_other_closes_at_once() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 1, &[2]), now);
    let b = enter(&mut relay, &pass(2, 2, &[1]), now);
    relay.forward(a, packet(0, false, 1, 100), now).unwrap();
    relay.news(a, 9);
    relay.renew(b, &pass(2, 3, &[]), now).unwrap();
    assert_eq!(relay.next(b, now), None, "what waited is gone as well");
    assert_eq!(relay.news(a, 9)[0].room, None);
    assert_eq!(relay.forward(a, packet(0, false, 1, 100), now), Err(Dropped::NotShared));
    assert_eq!(relay.forward(b, packet(0, false, 1, 100), now), Err(Dropped::NotShared));
}

#[test]
fn an_older_pass_is_refused_though_its_gateway_has_left_and_come_back() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 5, &[]), now);
    let older = pass(1, 4, &[2, 3]);
    assert_eq!(relay.renew(a, &older, now).unwrap_err().code, RefusalCode::Superseded);
    relay.leave(a);
    let error = relay.enter(&older, ROOM, now).unwrap_err();
    assert_eq!(error.code, RefusalCode::Superseded);
    assert!(error.message.contains("0.4") && error.message.contains("0.5"), "{}", error.message);
    assert!(relay.enter(&pass(1, 5, &[]), ROOM, now).is_ok(), "the newest may be shown again");
    assert_eq!(relay.counts().refused, 2);
}

#[test]
fn a_pass_of_another_gateway_renews_nothing() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 1, &[]), now);
    assert_eq!(relay.renew(a, &pass(2, 2, &[]), now).unwrap_err().code, RefusalCode::Pass);
}

#[test]
fn who_is_barred_is_out_and_stays_out() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 1, &[2]), now);
    let b = enter(&mut relay, &pass(2, 2, &[1]), now);
    assert_eq!(relay.set_barred(BTreeSet::from([gateway(2), gateway(9)])), [b]);
    assert_eq!(relay.forward(a, packet(0, false, 1, 100), now), Err(Dropped::Absent));
    let error = relay.enter(&pass(2, 9, &[1]), ROOM, now).unwrap_err();
    assert_eq!(error.code, RefusalCode::Revoked);
}

#[test]
fn who_shows_a_replaced_identity_key_stays_out_and_who_is_here_with_one_until_the_new_one_comes() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let old = pass(1, 1, &[2]);
    let renewed = RelayPass { identity: key(8).public(), ..(*pass(1, 3, &[2])).clone() };
    let renewed = Signed::sign(&renewed, &key(100));
    let renewed = RelayPass::verify(&renewed, &authority(100), key(8).public()).unwrap();
    let here = enter(&mut relay, &old, now);
    assert_eq!(relay.set_former(BTreeSet::from([old.identity])), [here]);
    let b = RelayPass { identity: key(7).public(), ..(*pass(2, 2, &[1])).clone() };
    let b = Signed::sign(&b, &key(100));
    let b = RelayPass::verify(&b, &authority(100), key(7).public()).unwrap();
    let peer = enter(&mut relay, &b, now);
    assert!(relay.forward(here, packet(0, false, 1, 100), now).is_ok(), "it hasn't heard of it");
    assert!(relay.forward(peer, packet(0, false, 1, 100), now).is_ok());
    let error = relay.enter(&old, ROOM, now).unwrap_err();
    assert_eq!(error.code, RefusalCode::Pass, "{error:?}");
    let entered = relay.enter(&renewed, ROOM, now).unwrap();
    assert_eq!(entered.replaced, Some(here));
    assert!(relay.forward(peer, packet(0, false, 1, 100), now).is_ok());
    // Nor where a relay never hears of replaced keys: it has seen a newer pass.
    assert!(relay.set_former(BTreeSet::new()).is_empty());
    assert_eq!(relay.enter(&old, ROOM, now).unwrap_err().code, RefusalCode::Superseded);
}

#[test]
fn no_more_come_in_than_there_is_room_for_but_who_is_here_may_come_again() {
    let now = Instant::now();
    let mut relay = relay(Limits { gateways: 2, remembered: 3, ..Limits::default() });
    for n in 1..=2 {
        enter(&mut relay, &pass(n, n.into(), &[]), now);
    }
    assert_eq!(relay.enter(&pass(3, 3, &[]), ROOM, now).unwrap_err().code, RefusalCode::Busy);
    for round in 0..5 {
        enter(&mut relay, &pass(1, 10 + round, &[]), now);
    }
    assert_eq!((relay.gateways(), relay.slots.len()), (2, 2));
    // What is remembered of those who left is bounded.
    for n in 3..20 {
        let id = enter(&mut relay, &pass(2, 100 + u64::from(n), &[]), now);
        relay.leave(id);
        let id = enter(&mut relay, &pass(n, 100 + u64::from(n), &[]), now);
        relay.leave(id);
        assert!(relay.newest.len() <= 4, "{} are remembered", relay.newest.len());
    }
}

#[test]
fn what_is_no_packet_goes_nowhere() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 1, &[2]), now);
    enter(&mut relay, &pass(2, 2, &[1]), now);
    for bad in [vec![], vec![0], vec![0; 50], packet::probe([0; 8]), packet(0, false, 1, 2049)] {
        assert_eq!(relay.forward(a, bad.clone(), now), Err(Dropped::Malformed), "{bad:?}");
    }
    assert_eq!(relay.counts().dropped(Dropped::Malformed), 5);
    assert_eq!(relay.waiting(), 0);
}
