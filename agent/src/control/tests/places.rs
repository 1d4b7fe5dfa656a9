//! Where this gateway is, as it tells its controller and as clients were told.

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
async fn an_address_that_clients_were_configured_with_and_is_no_more_raises_an_alarm() {
    let named = |status: &ControlStatus| {
        let alarms = status.alarms.iter().map(|alarm| alarm.what.clone());
        alarms.filter(|what| what.contains("were configured with")).collect::<Vec<_>>()
    };
    let place = |last: u8| SocketAddr::from(([192, 0, 2, last], 51_820));
    for clients in [true, false] {
        let world = World::new();
        let mut session = world.session().await;
        session.welcome(60_000, 5).await;
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
        session.send(view_message(world.organisation.view_of(&intent, 4, 7))).await;
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
