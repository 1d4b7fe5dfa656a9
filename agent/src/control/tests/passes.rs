//! Passes for relays.

use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::CAPABILITY;
use anteroom_proto::relay::pass::{PassNumber, RelayPass};

use super::*;

fn pass(world: &World, sequence: u64) -> RelayPass {
    RelayPass {
        organisation: ORGANISATION,
        gateway: GATEWAY,
        identity: world.state.identity_or_new().unwrap().public(),
        number: PassNumber { incarnation: 0, sequence },
        peers: vec![GatewayId::from_bytes([9; 16])],
        issued_at: UnixMillis(1),
        lifetime: 3_600,
    }
}

#[tokio::test]
async fn a_pass_is_taken_unless_it_is_older_forged_or_of_another() {
    let world = World::new();
    let mut session = world.session().await;
    assert!(session.hello.capabilities.iter().any(|one| one == CAPABILITY));
    session.welcome(60_000, 5).await;
    let mut relays = world.relays.clone();
    let number = relays.borrow().chain.as_ref().map(|chain| chain.newest().number);
    assert_eq!(number, Some(1), "relays are known before any controller is in sight");
    let good = Signed::sign(&pass(&world, 2), &world.organisation.controller);
    session.send(ToAgent::Pass(Box::new(good.clone()))).await;
    let taken = relays.wait_for(|known| known.pass.as_ref() == Some(&good));
    assert!(timeout(DEADLINE, taken).await.is_ok(), "the pass is taken");
    let other = GatewayId::from_bytes([8; 16]);
    let newer = pass(&world, 9);
    for (pass, key) in [
        (pass(&world, 1), &world.organisation.controller),
        (newer.clone(), &world.organisation.operator),
        (RelayPass { identity: key(77).public(), ..newer.clone() }, &world.organisation.controller),
        (RelayPass { gateway: other, ..newer.clone() }, &world.organisation.controller),
    ] {
        session.send(ToAgent::Pass(Box::new(Signed::sign(&pass, key)))).await;
    }
    let last = |alarm: &Alarm| alarm.what.contains("another gateway's pass");
    world.until("alarmed", |status| status.alarms.iter().any(last)).await;
    assert_eq!(world.status.borrow().alarms.len(), 3, "{:?}", world.status.borrow().alarms);
    assert_eq!(relays.borrow().pass.as_ref(), Some(&good), "nothing else was");
    let newer = Signed::sign(&newer, &world.organisation.controller);
    session.send(ToAgent::Pass(Box::new(newer.clone()))).await;
    let taken = relays.wait_for(|known| known.pass.as_ref() == Some(&newer));
    assert!(timeout(DEADLINE, taken).await.is_ok(), "the newer one is");
    world.finish().await;
}
