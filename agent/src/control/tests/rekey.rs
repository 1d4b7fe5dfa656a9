//! The identity key is replaced: what is believed, what is offered, and from when on which key counts.

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::intent::Intent;
use anteroom_proto::key::PublicKey;
use anteroom_proto::rekey::{MAX_AHEAD, RekeyOffer, RekeyOrder, RekeyStatement};
use anteroom_proto::v1::Rotate;

use super::*;
use crate::control::clock::system_time;
use crate::state::Nexts;
use crate::testkit::intent;

fn order(signer: &IdentityKey, gateway: GatewayId, number: u64, withdraw: bool) -> ToAgent {
    let order = RekeyOrder { organisation: ORGANISATION, gateway, number, withdraw };
    ToAgent::Rekey(Box::new(Signed::sign(&order, signer)))
}

/// A view that names `identity`.
fn naming(world: &World, identity: PublicKey, revision: u64) -> ToAgent {
    let intent = Intent { identity: Some(identity), ..intent(GATEWAY, Mode::Observe) };
    view_message(world.organisation.view_of(&intent, revision, revision))
}

fn refused() -> ToAgent {
    ToAgent::Refused(Refusal {
        code: RefusalCode::Unknown,
        message: "another identity key was approved".into(),
        fatal: false,
    })
}

impl Session {
    async fn hear_offer(&mut self) -> RekeyOffer {
        loop {
            if let ToController::Rekey(offer) = self.hear().await {
                return *offer;
            }
        }
    }
}

impl World {
    fn identity(&self) -> PublicKey {
        self.state.identity().unwrap().unwrap().public()
    }

    fn checked(&self, offer: &RekeyOffer) -> RekeyStatement {
        offer.verify(ORGANISATION, GATEWAY, self.identity()).unwrap()
    }

    /// A session of a gateway that is approved.
    async fn approved(&self) -> Session {
        let mut session = self.session().await;
        session.welcome(50, system_time().0).await;
        session.send(view_message(self.organisation.view(1, 1, Mode::Observe))).await;
        session.hear_applied().await;
        session
    }

    async fn on_disk(&self, what: &str, so: impl Fn(&StateDir) -> bool) {
        let looking = async {
            while !so(&self.state) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(timeout(DEADLINE, looking).await.is_ok(), "never on disk: {what}");
    }
}

#[tokio::test]
async fn only_an_operators_order_has_a_key_made_and_it_is_on_disk_before_it_is_offered() {
    let world = World::with(|state, _| super::keys::with_key(state));
    let mut session = world.session().await;
    assert!(session.hello.capabilities.iter().any(|word| word == "rekey"));
    session.welcome(60_000, system_time().0).await;
    let operator = world.organisation.operator.clone();
    // The controller's own, a stranger's, and one for another gateway.
    let other = GatewayId::from_bytes([44; 16]);
    session.send(order(&world.organisation.controller, GATEWAY, 5, false)).await;
    session.send(order(&key(99), GATEWAY, 5, false)).await;
    session.send(order(&operator, other, 5, false)).await;
    // Not yet approved: it waits.
    session.send(order(&operator, GATEWAY, 5, false)).await;
    world.until("refused", |status| status.alarms.len() == 3).await;
    assert!(world.state.next_identities().unwrap().is_empty());

    session.send(view_message(world.organisation.view(1, 1, Mode::Observe))).await;
    let offer = session.hear_offer().await;
    let stated = world.checked(&offer);
    let nexts = world.state.next_identities().unwrap();
    assert!(nexts.find(stated.new).is_some_and(|next| next.order == 5), "it isn't on disk");
    assert_ne!(stated.new, world.identity());
    assert_eq!(offer.keys.len(), session.hello.reachable.keys.len());

    // The same order again has the same key offered again; an older one nothing.
    session.send(order(&operator, GATEWAY, 4, false)).await;
    session.send(order(&operator, GATEWAY, 5, false)).await;
    assert_eq!(world.checked(&session.hear_offer().await).new, stated.new);
    // Tunnel keys that change meanwhile are bound by the key on offer, too.
    let up_to = session.hello.reachable.keys[0].verify_self_named().unwrap().serial;
    session.send(ToAgent::Rotate(Rotate { up_to, now: false })).await;
    let again = session.hear_offer().await;
    assert_eq!(world.checked(&again).new, stated.new);
    let serial = |offer: &RekeyOffer| offer.keys[0].verify_self_named().unwrap().serial;
    assert!(serial(&again) > serial(&offer));

    // A newer order has another one made; withdrawn, all are gone, and no earlier order brings one back.
    session.send(order(&operator, GATEWAY, 6, false)).await;
    let newer = loop {
        let stated = world.checked(&session.hear_offer().await);
        if stated.order == 6 {
            break stated;
        }
    };
    assert_ne!(newer.new, stated.new);
    session.send(order(&operator, GATEWAY, 7, true)).await;
    world
        .on_disk("the withdrawal", |state| {
            let nexts = state.next_identities().unwrap();
            nexts.is_empty() && nexts.newest() == 7
        })
        .await;
    session.send(order(&operator, GATEWAY, 6, false)).await;
    session.send(order(&operator, GATEWAY, 8, false)).await;
    assert_eq!(world.checked(&session.hear_offer().await).order, 8);
    world.finish().await;
}

#[tokio::test]
async fn refused_with_the_one_key_it_comes_with_the_other_and_uses_that_once_its_leaf_names_it() {
    let world = World::new();
    let operator = world.organisation.operator.clone();
    let old = world.identity();
    let mut session = world.approved().await;
    session.send(order(&operator, GATEWAY, 5, false)).await;
    let new = world.checked(&session.hear_offer().await).new;
    session.send(refused()).await;

    // At once, and with its tunnel keys bound by that key; nothing else is done with it yet.
    let mut session = world.session().await;
    assert_eq!(session.connection.peer_key(), Some(new));
    check_binding(&session.hello.reachable.keys[0], new);
    session.welcome(50, system_time().0).await;
    // There is nothing that could be vouched for by now.
    session.send(order(&operator, GATEWAY, 6, false)).await;
    session.send(view_message(world.organisation.view(2, 2, Mode::Observe))).await;
    session.hear_applied().await;
    assert_eq!(world.identity(), old, "the controller's word alone");
    assert!(world.plane.told(|told| told.identities.is_empty()));

    // A controller that knows it by the old one still finds it.
    session.send(refused()).await;
    let mut session = world.session().await;
    assert_eq!(session.connection.peer_key(), Some(old));
    session.send(refused()).await;
    let mut session = world.session().await;
    assert_eq!(session.connection.peer_key(), Some(new));
    session.welcome(50, system_time().0).await;
    session.send(naming(&world, new, 3)).await;
    session.hear_applied().await;
    assert_eq!(world.plane.told(|told| told.identities.clone()), [new]);
    let state = world.state.clone();
    world
        .on_disk("the new key", |state| {
            state.identity().unwrap().unwrap().public() == new
                && state.next_identities().unwrap().is_empty()
        })
        .await;
    let enrolled = Held::load(&state).unwrap().enrolled.unwrap();
    assert_eq!(enrolled.identity.public(), new);

    // From then on refusals change nothing about who it is. And another replacement can follow.
    session.send(order(&operator, GATEWAY, 7, false)).await;
    let third = world.checked(&session.hear_offer().await);
    assert_eq!((third.old, third.order), (new, 7));
    world.finish().await;
}

#[tokio::test]
async fn a_leaf_over_the_old_keys_connection_has_it_come_back_with_the_new_one() {
    let world = World::new();
    let operator = world.organisation.operator.clone();
    let mut session = world.approved().await;
    session.send(order(&operator, GATEWAY, 5, false)).await;
    let new = world.checked(&session.hear_offer().await).new;
    session.send(naming(&world, new, 3)).await;
    let session = world.session().await;
    assert_eq!(session.connection.peer_key(), Some(new));
    assert_eq!(world.plane.told(|told| told.identities.clone()), [new]);
    // A key that nobody has here is no reason to give up the one that is.
    let mut session = session;
    session.welcome(50, system_time().0).await;
    session.send(naming(&world, key(98).public(), 4)).await;
    world
        .until("told", |status| status.alarms.iter().any(|alarm| alarm.what.contains("isn't here")))
        .await;
    world.on_disk("the new key", |state| state.identity().unwrap().unwrap().public() == new).await;
    world.finish().await;
}

#[tokio::test]
async fn a_gateway_that_was_away_when_it_was_approved_comes_back_with_the_key_on_disk() {
    let mut new = None;
    let world = World::with(|state, _| {
        let next = StateDir::new_identity(5).unwrap();
        new = Some(next.key.public());
        let nexts = state.next_identities().unwrap().with(next, &[]);
        state.write_next_identities(&nexts).unwrap();
        state.new_tunnel_key(&[], 0).unwrap();
    });
    let new = new.unwrap();
    let mut session = world.session().await;
    assert_eq!(session.connection.peer_key(), Some(world.identity()));
    session.send(refused()).await;
    let mut session = world.session().await;
    assert_eq!(session.connection.peer_key(), Some(new));
    session.welcome(50, system_time().0).await;
    session.send(naming(&world, new, 3)).await;
    session.hear_applied().await;
    world.on_disk("the new key", |state| state.identity().unwrap().unwrap().public() == new).await;
    // Whoever has the old one may have the tunnel keys, too: they follow by themselves.
    let before = session.hello.reachable.keys[0].verify_self_named().unwrap().into_document();
    let after = loop {
        let ToController::Reachable(reachable) = session.hear().await else { continue };
        let newest = reachable.keys[0].clone();
        if newest.verify_self_named().unwrap().serial > before.serial {
            break newest;
        }
    };
    check_binding(&after, new);
    assert_ne!(after.verify_self_named().unwrap().x25519, before.x25519);
    world.finish().await;
}

#[tokio::test]
async fn tunnel_keys_follow_a_new_identity_key_over_a_restart_in_between() {
    let world = World::with(|state, _| {
        super::keys::with_key(state);
        let next = StateDir::new_identity(system_time().0).unwrap();
        let new = next.key.public();
        state.write_next_identities(&Nexts::default().with(next, &[])).unwrap();
        state.adopt_identity(new).unwrap();
    });
    let mut session = world.session().await;
    let serial = |keys: &[Signed<TunnelKeyBinding>]| keys[0].verify_self_named().unwrap().serial;
    let before = serial(&session.hello.reachable.keys);
    session.welcome(60_000, system_time().0).await;
    loop {
        if let ToController::Reachable(reachable) = session.hear().await
            && serial(&reachable.keys) > before
        {
            break;
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn orders_out_of_their_time_are_refused_aloud_and_shut_nothing_out() {
    let world = World::with(|state, _| super::keys::with_key(state));
    let operator = world.organisation.operator.clone();
    let mut session = world.approved().await;
    let now = system_time().0;
    let said = |what: &'static str| {
        world.until(what, move |status| status.alarms.iter().any(|alarm| alarm.what.contains(what)))
    };
    for far in [now + 2 * MAX_AHEAD, u64::MAX] {
        session.send(order(&operator, GATEWAY, far, false)).await;
        session.send(order(&operator, GATEWAY, far, true)).await;
    }
    said("ahead of the controller's time").await;
    session.send(order(&operator, GATEWAY, now, false)).await;
    assert_eq!(world.checked(&session.hear_offer().await).order, now);
    session.send(order(&operator, GATEWAY, now - 5_000, false)).await;
    said("the operator's clock is behind").await;
    world.finish().await;
}

#[tokio::test]
async fn the_key_in_use_is_not_offered_again_nor_kept_twice() {
    let world = World::new();
    let operator = world.organisation.operator.clone();
    let mut session = world.approved().await;
    session.send(order(&operator, GATEWAY, 5, false)).await;
    let new = world.checked(&session.hear_offer().await).new;
    session.send(naming(&world, new, 3)).await;
    let mut session = world.session().await;
    session.welcome(50, system_time().0).await;
    world.on_disk("the new key", |state| state.identity().unwrap().unwrap().public() == new).await;
    session.send(naming(&world, new, 4)).await;
    session.hear_applied().await;
    session.send(order(&operator, GATEWAY, 5, false)).await;
    session.send(order(&operator, GATEWAY, 6, false)).await;
    let third = world.checked(&session.hear_offer().await);
    assert_eq!((third.old, third.order), (new, 6), "the key in use as its own successor");
    let nexts = world.state.next_identities().unwrap();
    assert!(nexts.find(new).is_none() && nexts.find(third.new).is_some(), "{nexts:?}");
    assert_eq!(nexts.done, 5);
    world.finish().await;
}

#[tokio::test]
async fn a_key_that_cannot_be_written_is_not_offered() {
    let (world, disc) = super::keep::world(super::keep::Mood::Full);
    let mut session = world.session().await;
    session.welcome(50, system_time().0).await;
    session.send(view_message(world.organisation.view(1, 1, Mode::Observe))).await;
    session.send(order(&world.organisation.operator, GATEWAY, 5, false)).await;
    world
        .until("alarmed", |status| {
            status.alarms.iter().any(|alarm| alarm.what.contains("no other identity key"))
        })
        .await;
    assert!(world.state.next_identities().unwrap().is_empty());
    drop(disc);
    world.finish().await;
}
