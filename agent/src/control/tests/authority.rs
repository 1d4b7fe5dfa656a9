//! Authority documents: newer ones, older ones, forks, and those that were lost.

use super::*;

#[tokio::test]
async fn a_newer_authority_is_kept_and_an_older_or_forked_one_is_not() {
    let mut world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let old = world.organisation.chain.clone();
    world.organisation.extend(|next| next.incarnation = 1);
    let fork = {
        let mut other = Organisation { chain: old.clone(), operator: key(10), controller: key(11) };
        other.extend(|next| next.incarnation = 2);
        other.chain
    };
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    world.until("the second document", |status| status.authority == 2).await;
    for (sequence, bad) in (1..).zip([old, fork, Vec::new()]) {
        session.send(ToAgent::Authority(bad)).await;
        // Its answer to what comes behind shows that it has read this.
        session.send(view_message(world.organisation.view(1, sequence, Mode::Observe))).await;
        assert_eq!(session.hear_applied().await.number.sequence, sequence);
        assert!(world.status.borrow().last_error.is_some());
        assert_eq!(world.status.borrow().authority, 2);
    }
    let held = Held::load(&world.state).unwrap();
    assert_eq!(held.enrolled.unwrap().chain.unwrap(), world.organisation.followed());
    world.finish().await;
}

/// An honest controller whose clock was years ahead for a minute.
#[tokio::test]
async fn a_time_that_was_ahead_is_an_alarm_and_operators_take_it_back() {
    let mut world = World::new();
    let mut session = world.session().await;
    let years = UnixMillis(400_000_000_000);
    session.welcome(60_000, years.0).await;
    session.send(view_message(world.organisation.view(1, 1, Mode::Observe))).await;
    session.hear_applied().await;
    session.connection.close(0u32.into(), b"its clock is set");
    let mut session = world.session().await;
    session.welcome(60_000, 2_000_000).await;
    world
        .until("told", |status| status.alarms.iter().any(|alarm| alarm.what.contains("4629 days")))
        .await;
    let floor = || Held::load(&world.state).unwrap().enrolled.unwrap().floor;
    let time = || world.plane.told(|told| told.times.last().copied()).unwrap();
    assert!(time().0 >= years, "nobody else takes it back: {:?}", time());
    world.organisation.extend(|next| next.incarnation = 1);
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    session.send(view_message(world.organisation.view(2, 2, Mode::Observe))).await;
    while session.hear_applied().await.revision < 2 {}
    let deadline = Instant::now() + DEADLINE;
    while floor().revision.0 < 1 {
        assert!(Instant::now() < deadline, "{:?}", floor());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(floor().time < years, "{:?}", floor());
    session.connection.close(0u32.into(), b"again");
    let mut session = world.session().await;
    session.welcome(60_000, 3_000_000).await;
    world
        .until("connected", |status| status.connected.is_some() && status.last_error.is_none())
        .await;
    let deadline = Instant::now() + DEADLINE;
    while time().0 != UnixMillis(3_000_000) {
        assert!(Instant::now() < deadline, "{:?}", time());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(floor().time < years, "{:?}", floor());
    world.finish().await;
}

#[tokio::test]
async fn a_controller_that_the_authority_no_longer_names_is_left() {
    let mut world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    world.organisation.extend(|next| next.controllers[0].key = key(50).public());
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    timeout(DEADLINE, session.connection.closed()).await.expect("it hangs up");
    let endpoint = world.endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    world
        .until("it refuses the old key", |status| {
            status
                .last_error
                .as_ref()
                .is_some_and(|error| error.contains(&key(50).public().fingerprint().to_string()))
        })
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_lost_chain_comes_back_with_the_welcome() {
    let world = World::with(|state, _| {
        std::fs::remove_file(state.path().join("authority")).unwrap();
    });
    let mut session = world.session().await;
    assert_eq!(session.hello.authority, 0);
    let welcome = Welcome {
        version: 1,
        approved: true,
        authority: Some(world.organisation.chain.clone()),
        observed: session.connection.remote_address(),
        time: UnixMillis(5),
        report_every: 60_000,
    };
    session.send(ToAgent::Welcome(Box::new(welcome))).await;
    session.send(view_message(world.organisation.view(4, 7, Mode::Observe))).await;
    assert_eq!(session.hear_applied().await.refused, None);
    world.finish().await;
}

#[tokio::test]
async fn peers_hear_of_a_document_once_the_data_plane_knows_which_relays_it_takes_out() {
    let mut world = World::new();
    world.heeded.send_replace(Some(1));
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let mut relays = world.relays.clone();
    for number in [2, 3] {
        world.organisation.extend(|_| {});
        session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
        let here = |known: &Known| {
            known.chain.as_ref().is_some_and(|chain| chain.newest().number == number)
        };
        timeout(DEADLINE, relays.wait_for(here)).await.expect("relays are told first").unwrap();
        let told = world.plane.told(|told| told.authorities.last().copied());
        assert_eq!(told, Some(number - 1), "peers aren't yet");
        // It is done, and the second time nobody does it any more.
        world.heeded.send_replace(Some(number).filter(|number| *number == 2));
        let told = async {
            while world.plane.told(|told| told.authorities.last() != Some(&number)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, told).await.expect("peers are told");
    }
    world.finish().await;
}
