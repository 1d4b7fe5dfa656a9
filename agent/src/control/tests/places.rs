//! Where this gateway is, as it tells its controller and as clients were told, and what else it tells unasked.

use super::*;

#[tokio::test]
async fn new_addresses_are_told() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let moved = vec!["192.0.2.7:51820".parse().unwrap()];
    world.until("connected", |status| status.connected.is_some()).await;
    world.reach.send_modify(|reach| reach.endpoints = moved.clone());
    loop {
        if let ToController::Reachable(reachable) = session.hear().await
            && reachable.endpoints == moved
        {
            break;
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn an_address_that_changed_while_the_gateway_was_off_raises_an_alarm_that_the_controller_hears()
 {
    let before: SocketAddr = "198.51.100.9:51820".parse().unwrap();
    let mut told = None;
    for clients in [true, false] {
        let world = World::with(|state, organisation| {
            state.write_client_place(before).unwrap();
            state.write_view(&organisation.view_of(&with_clients(clients), 4, 7)).unwrap();
        });
        let mut session = world.session().await;
        assert_eq!(session.hello.applied.as_ref().map(|applied| applied.problems.len()), Some(0));
        session.welcome(60_000, 5).await;
        if clients {
            // What raises it isn't acknowledged by anything else.
            let applied = session.hear_applied().await;
            told = applied
                .problems
                .iter()
                .find(|problem| problem.contains(&before.to_string()))
                .cloned();
            assert!(told.is_some(), "{applied:?}");
        } else {
            let own = world.reach.borrow().endpoints[0];
            let kept = || world.state.client_place().unwrap() == Some(own);
            world.soon("at the new place on disk", kept).await;
            assert_eq!(named(&world.status.borrow()), [""; 0]);
        }
        world.finish().await;
    }
    let told = told.unwrap_or_default();
    assert!(told.contains("192.0.2.1:51820") && told.contains("client show"), "{told}");
}

#[tokio::test]
async fn what_stands_in_the_way_is_told_when_it_comes_and_when_it_is_gone() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let taken = "no member is reached: 10.20.9.8 is this machine's".to_owned();
    world.plane.told(|told| told.hindrances = vec![taken.clone()]);
    session.send(view_message(world.organisation.view(4, 7, Mode::Enforce))).await;
    assert_eq!(session.hear_applied().await.problems, [taken]);
    // Nothing else is acknowledged from here on.
    world.plane.told(|told| told.hindrances.clear());
    assert_eq!(session.hear_applied().await.problems, [""; 0]);
    world.finish().await;
}

fn named(status: &ControlStatus) -> Vec<String> {
    let alarms = status.alarms.iter().map(|alarm| alarm.what.clone());
    alarms.filter(|what| what.contains("were configured with")).collect()
}

/// What this gateway is to do, for a WireGuard client too or for none.
fn with_clients(clients: bool) -> anteroom_proto::intent::Intent {
    let mut intent = intent(GATEWAY, Mode::Enforce);
    if clients {
        intent.clients.push(anteroom_proto::intent::Client {
            id: MemberId::from_bytes([77; 16]),
            key: TunnelSecret::from_bytes([77; 32]).public(),
            overlay: member_address(ORGANISATION, MemberId::from_bytes([77; 16])),
            site: SiteId::of("north"),
            address: [10, 20, 1, 77].into(),
        });
    }
    intent
}

#[tokio::test]
async fn an_address_that_clients_were_configured_with_and_is_no_more_raises_an_alarm() {
    let place = |last: u8| SocketAddr::from(([192, 0, 2, last], 51_820));
    for clients in [true, false] {
        let world = World::new();
        let mut session = world.session().await;
        session.welcome(60_000, 5).await;
        session.send(view_message(world.organisation.view_of(&with_clients(clients), 4, 7))).await;
        assert_eq!(session.hear_applied().await.refused, None);
        // First one more, then that one alone, then another.
        let before = world.reach.borrow().endpoints[0];
        for (endpoints, alarms) in
            [(vec![place(7), before], 0), (vec![place(7)], 1), (vec![place(8)], 2)]
        {
            world.reach.send_modify(|reach| reach.endpoints = endpoints.clone());
            while !matches!(session.hear().await, ToController::Reachable(reachable) if reachable.endpoints == endpoints)
            {
            }
            let alarms = if clients { alarms } else { 0 };
            world.until("the alarm", |status| named(status).len() == alarms).await;
        }
        if clients {
            let said = named(&world.status.borrow()).remove(0);
            assert!(said.contains(&before.to_string()) && said.contains("client show"), "{said}");
        }
        world.finish().await;
    }
}
