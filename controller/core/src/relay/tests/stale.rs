//! Passes that newer ones make stale: what they open closes, and not before those that are under way may have come.

use super::session::GRACE;
use super::*;

const MOMENT: Duration = Duration::from_millis(1);

/// A packet to the first that the connection met.
fn send(relay: &mut Relay, from: SessionId, now: Instant) -> Result<SessionId, Dropped> {
    relay.forward(from, packet(0, false, 1, 100), now)
}

#[test]
fn two_stale_passes_close_what_one_fresh_one_holds_open() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    // Two that were revoked and keep their old passes, and one whose controller is out of sight.
    let a = enter(&mut relay, &pass_by(100, 1, 1, 10, &[2, 3]), now);
    let b = enter(&mut relay, &pass_by(100, 2, 2, 10, &[1]), now);
    let later = now + Duration::from_secs(1_000_000);
    relay.turn(later);
    assert_eq!(send(&mut relay, a, later), Ok(b), "no clock makes it stale");
    let c = enter(&mut relay, &pass_by(100, 3, 3, 11, &[1]), later);
    let now = later + GRACE;
    assert_eq!(relay.due(), Some(now));
    relay.turn(now - MOMENT);
    assert_eq!(send(&mut relay, a, now), Ok(b));
    relay.turn(now);
    assert_eq!(relay.next(b, now), None, "what waited is gone as well");
    assert_eq!(send(&mut relay, a, now), Err(Dropped::NotShared));
    assert_eq!(send(&mut relay, b, now), Err(Dropped::NotShared));
    assert!(relay.woken().is_superset(&BTreeSet::from([a, b])), "both hear of it");
    assert_eq!(relay.due(), None);
    assert_eq!(relay.forward(a, packet(1, false, 2, 100), now), Ok(c));
    assert_eq!(send(&mut relay, c, now), Ok(a));
    // A controller whose clock was set back: what counts is the number.
    let back = enter(&mut relay, &pass_by(100, 4, 4, 2, &[]), now);
    assert_eq!(send(&mut relay, a, now), Ok(b));
    relay.leave(back);
    relay.renew(b, &pass_by(100, 2, 5, 12, &[1]), now).unwrap();
    assert_eq!(send(&mut relay, a, now), Ok(b));
}

#[test]
fn a_controllers_clock_that_is_set_closes_no_pair_before_its_newer_passes_may_be_there() {
    let mut now = Instant::now();
    let mut relay = relay(Limits::default());
    // Two that are each other's peers, and somebody else.
    let shown = |of, sequence, hours| {
        let peers: &[u16] = if of == 1 { &[2] } else { &[1] };
        pass_by(100, of, sequence, hours, peers)
    };
    let mut ids = [1, 2, 3].map(|of| enter(&mut relay, &shown(of, of.into(), 100_000), now));
    let mut sequence = 10;
    for hours in [200_000, 100_000, 10, 100_000] {
        let [a, b, other] = ids;
        relay.woken();
        for (of, id) in [(3, other), (2, b), (1, a)] {
            sequence += 1;
            relay.renew(id, &shown(of, sequence, hours), now).unwrap();
            now += GRACE / 3;
            relay.turn(now);
            assert_eq!(send(&mut relay, a, now), Ok(b), "after the pass of {of} at {hours} h");
            assert_eq!(send(&mut relay, b, now), Ok(a), "after the pass of {of} at {hours} h");
        }
        now += GRACE;
        relay.turn(now);
        assert_eq!(send(&mut relay, a, now), Ok(b), "at {hours} h");
        assert!(!relay.woken().contains(&a), "nothing changed for it");
        ids = [1, 2, 3].map(|of| enter(&mut relay, &shown(of, sequence, hours), now));
        assert_eq!(send(&mut relay, ids[0], now), Ok(ids[1]), "at {hours} h, connected anew");
    }
    assert_eq!(relay.counts().dropped(Dropped::Gone), 0, "what waits goes with a way that closes");
}

#[test]
fn a_stale_pass_counts_for_no_longer_whoever_connects_anew() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let passes = [pass_by(100, 1, 1, 10, &[2]), pass_by(100, 2, 2, 10, &[1])];
    let connect = |relay: &mut Relay, now| [0, 1].map(|n: usize| enter(relay, &passes[n], now));
    connect(&mut relay, now);
    enter(&mut relay, &pass_by(100, 3, 3, 11, &[]), now);
    // A line that breaks while newer passes are under way costs nothing, and gains nothing.
    let [a, b] = connect(&mut relay, now + GRACE / 2);
    assert_eq!(send(&mut relay, a, now), Ok(b));
    // Nor does another newer pass of somebody.
    enter(&mut relay, &pass_by(100, 3, 4, 12, &[]), now + GRACE / 2);
    let over = now + GRACE;
    relay.turn(over);
    assert_eq!(send(&mut relay, a, over), Err(Dropped::NotShared));
    let [a, b] = connect(&mut relay, over);
    assert_eq!(send(&mut relay, a, over), Err(Dropped::NotShared));
    // Who leaves and comes back has none at all, not even at once.
    for id in [a, b] {
        relay.leave(id);
    }
    let [a, _] = connect(&mut relay, over);
    assert_eq!(send(&mut relay, a, over), Err(Dropped::NotShared));
    assert_eq!(relay.due(), None);
}

#[test]
fn who_is_no_longer_named_is_shut_out_at_once_while_clocks_are_set() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass_by(100, 1, 1, 10, &[2]), now);
    let b = enter(&mut relay, &pass_by(100, 2, 2, 10, &[1]), now);
    enter(&mut relay, &pass_by(100, 3, 3, 11, &[]), now);
    assert_eq!(send(&mut relay, a, now), Ok(b));
    relay.renew(b, &pass_by(100, 2, 4, 11, &[]), now).unwrap();
    assert_eq!(send(&mut relay, a, now), Err(Dropped::NotShared));
}

#[test]
fn a_replaced_controllers_passes_let_nobody_in_and_count_as_stale() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    assert!(Relay::new(Limits::default()).enter(&pass(1, 1, &[]), ROOM, now).is_err());
    let a = enter(&mut relay, &pass(1, 1, &[2]), now);
    let b = enter(&mut relay, &pass(2, 2, &[1]), now);
    relay.set_authority(&authority(101), now);
    assert_eq!(relay.enter(&pass(3, 3, &[]), ROOM, now).unwrap_err().code, RefusalCode::Pass);
    assert_eq!(relay.renew(a, &pass(1, 4, &[2]), now).unwrap_err().code, RefusalCode::Pass);
    assert_eq!(send(&mut relay, a, now), Ok(b), "the new one's may be under way");
    let now = now + GRACE;
    relay.turn(now);
    assert_eq!(send(&mut relay, a, now), Err(Dropped::NotShared));
    relay.renew(b, &pass_by(101, 2, 5, 10, &[1]), now).unwrap();
    assert_eq!(send(&mut relay, a, now), Ok(b), "b has a pass of the new one");
}
