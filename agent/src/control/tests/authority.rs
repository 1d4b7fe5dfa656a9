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
