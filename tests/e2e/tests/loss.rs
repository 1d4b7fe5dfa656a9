//! Nothing is lost of what is allowed before and after a change.

use anteroom_e2e::{Stage, fixture};
use anteroom_lab::figures::pings_through_changes;

#[track_caller]
fn none_is_lost(test: &str, pings: u64) {
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let series = pings_through_changes(&mut fixture.hospital, pings).unwrap();
    assert_eq!(series.sent, pings);
    assert_eq!(series.lost(), 0, "{series:?}");
}

#[test]
fn no_ping_is_lost_while_a_revision_is_applied_and_the_controller_restarts() {
    none_is_lost("no_ping_is_lost_while_a_revision_is_applied_and_the_controller_restarts", 2_500);
}

/// The figure in full: `cargo test -p anteroom-e2e --test loss -- --ignored`.
#[test]
#[ignore = "takes half a minute"]
fn none_of_ten_thousand_pings_is_lost() {
    none_is_lost("none_of_ten_thousand_pings_is_lost", 10_000);
}
