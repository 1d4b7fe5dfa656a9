//! What is told of a relay that can't be connected to.

use super::*;

/// What would be told of the bed's relay so long after `since`.
fn told_of(bed: &Bed, since: Instant, after: Duration) -> Option<RelayAway> {
    let all = away(&bed.status.borrow(), since + after);
    all.into_iter().find(|one| one.key == bed.relay.key)
}

/// The next try of the gateway is refused, and it has heard why. Since when it has tried in vain.
async fn refused(bed: &mut Bed, why: &str) -> Instant {
    let mut guest = bed.relay.greet().await;
    guest.say(FromRelay::Refused(Refusal::new(RefusalCode::Pass, why))).await;
    let heard =
        |relay: &RelayStatus| relay.last_error.as_ref().is_some_and(|error| error.contains(why));
    bed.until("told why", heard).await;
    let key = bed.relay.key;
    let all = bed.status.borrow().clone();
    let since = all.iter().find(|one| one.key == key).and_then(|one| one.away_since);
    since.unwrap_or_else(|| panic!("not known to be away: {all:?}"))
}

#[tokio::test]
async fn a_relay_that_is_tried_in_vain_is_told_of_from_the_first_failure_until_it_is_there() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    let since = refused(&mut bed, "another organisation's").await;
    assert_eq!(refused(&mut bed, "still not").await, since, "the first failure counts");
    let told = told_of(&bed, since, Duration::from_secs(90)).unwrap();
    assert_eq!(told.seconds, 90);
    assert!(told.error.contains("still not"), "{told:?}");
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    bed.until("connected", |relay| relay.connected).await;
    assert_eq!(told_of(&bed, since, Duration::from_secs(90)), None);
    // Lost again, it is counted anew.
    guest.connection.close(1_u32.into(), b"the relay stops");
    bed.until("away", |relay| relay.away_since.is_some_and(|again| again > since)).await;
}

#[tokio::test]
async fn one_that_nobody_has_tried_is_not_told_of_and_long_words_are_cut() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    let since = refused(&mut bed, "not this one").await;
    let key = bed.relay.key;
    let mut one = bed.status.borrow().iter().find(|one| one.key == key).unwrap().clone();
    one.last_error = Some("é".repeat(RelayAway::MAX_ERROR + 1));
    let told = away(std::slice::from_ref(&one), since);
    assert_eq!((told.len(), told[0].seconds), (1, 0));
    assert_eq!(told[0].error, "é".repeat(RelayAway::MAX_ERROR));
    one.away_since = None;
    assert_eq!(away(&[one], since), []);
}
