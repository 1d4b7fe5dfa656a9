//! Devices that are enforced only if two operators have approved of it, whatever one of them signs or a controller passes on.

use anteroom_proto::approval::{Approval, Place, Step};
use anteroom_proto::authority::{Operator, RootId};
use anteroom_proto::intent::Intent;
use anteroom_proto::key::Hash;
use anteroom_proto::rollout::Rollout;

use super::*;
use crate::testkit::intent;

/// The leaf in which two persons decide on the one device.
fn leaf(mode: Mode) -> Intent {
    let mut intent = intent(GATEWAY, mode);
    intent.devices[0].two_person = true;
    intent
}

/// The same with approvals to enforce it, in revision `at`, by the operators with these seeds.
fn approved(at: u64, seeds: &[u8]) -> Intent {
    let mut intent = leaf(Mode::Enforce);
    let device = &mut intent.devices[0];
    let step = Step::Enforce { trial: None };
    let approval = Approval {
        organisation: ORGANISATION,
        member: device.member.id,
        step,
        at: Place::new(0, at),
        signed_at: UnixMillis(1),
    };
    let approvals = seeds.iter().map(|seed| Signed::sign(&approval, &key(*seed))).collect();
    device.rollout = Rollout { approvals, ..Rollout::default() };
    intent
}

/// Ana, whose key has the seed 10, and ben with 20.
fn two_operators(world: &mut World) {
    world.organisation.extend(|next| {
        next.operators.push(Operator { name: "ben".parse().unwrap(), key: key(20).public() });
    });
}

async fn answer(world: &World, session: &mut Session, intent: &Intent, number: u64) -> Applied {
    session.send(view_message(world.organisation.view_of(intent, number, number))).await;
    session.hear_applied().await
}

/// The mode of the one device that is in force last, by the data plane, and what it is told of the view.
fn in_force(world: &World) -> Mode {
    let told = world.plane.0.lock().unwrap();
    told.views.last().unwrap().intent.devices[0].member.mode
}

async fn begin(world: &World) -> Session {
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    session
}

#[tokio::test]
async fn one_operator_and_any_controller_enforce_nothing_that_two_must_approve_of() {
    let mut world = World::new();
    two_operators(&mut world);
    let mut session = begin(&world).await;
    let watched = answer(&world, &mut session, &leaf(Mode::Protect), 1).await;
    assert_eq!((watched.refused, watched.problems), (None, Vec::new()));

    let mut number = 1;
    for (what, bad) in [
        ("nobody's approval", leaf(Mode::Enforce)),
        ("one operator's", approved(2, &[10])),
        ("the same one's twice", approved(3, &[10, 10])),
        ("one operator's and a stranger's", approved(4, &[10, 77])),
        ("both of an earlier revision", approved(1, &[10, 20])),
        ("both of a later revision", approved(99, &[10, 20])),
        ("the demand dropped", intent(GATEWAY, Mode::Enforce)),
        ("the demand dropped first", intent(GATEWAY, Mode::Protect)),
    ] {
        number += 1;
        let held_back = answer(&world, &mut session, &bad, number).await;
        // The rest of it is in force.
        assert_eq!((held_back.revision, held_back.refused), (number, None), "{what}");
        assert_eq!(in_force(&world), Mode::Protect, "{what}");
        let why = held_back.problems.first().unwrap_or_else(|| panic!("{what} was taken"));
        assert!(why.contains("two operators must approve"), "{what}: {why}");
    }

    let both = answer(&world, &mut session, &approved(20, &[20, 10]), 20).await;
    assert_eq!((both.revision, both.refused, both.problems), (20, None, Vec::new()));
    assert_eq!(in_force(&world), Mode::Enforce);
    // Taken back by one, and there again with what two signed then: that was for another time.
    answer(&world, &mut session, &leaf(Mode::Protect), 21).await;
    let replayed = answer(&world, &mut session, &approved(20, &[20, 10]), 22).await;
    assert_eq!(in_force(&world), Mode::Protect, "{replayed:?}");
    answer(&world, &mut session, &approved(23, &[20, 10]), 23).await;
    assert_eq!(in_force(&world), Mode::Enforce);
    // Ben leaves: what he approved of stands, and what he approves of from now on doesn't.
    let root = RootId { incarnation: 0, number: 23, hash: Hash::ZERO };
    world.organisation.extend(|next| {
        next.operators.truncate(1);
        next.root = Some(root);
    });
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    let stands = answer(&world, &mut session, &approved(23, &[20, 10]), 24).await;
    assert_eq!((stands.revision, stands.problems), (24, Vec::new()));
    assert_eq!(in_force(&world), Mode::Enforce);
    answer(&world, &mut session, &leaf(Mode::Protect), 25).await;
    let alone = answer(&world, &mut session, &approved(26, &[20, 10]), 26).await;
    assert_eq!(in_force(&world), Mode::Protect, "{alone:?}");
    world.finish().await;
}

#[tokio::test]
async fn what_two_approved_of_is_in_force_after_a_restart_and_nothing_else() {
    let mut world = World::new();
    two_operators(&mut world);
    let mut session = begin(&world).await;
    answer(&world, &mut session, &approved(3, &[20, 10]), 3).await;
    let held = |world: &World| Held::load(&world.state).unwrap().enrolled.unwrap();
    let on_disk = |world: &World| {
        let device = held(world).view.expect("the view on disk holds").intent.devices[0].clone();
        (device.two_person, device.member.mode)
    };
    assert_eq!(on_disk(&world), (true, Mode::Enforce));
    answer(&world, &mut session, &leaf(Mode::Protect), 4).await;
    answer(&world, &mut session, &approved(3, &[20, 10]), 5).await;
    assert_eq!(on_disk(&world), (true, Mode::Protect), "replayed");
    answer(&world, &mut session, &intent(GATEWAY, Mode::Enforce), 6).await;
    assert_eq!(on_disk(&world), (true, Mode::Protect), "the demand dropped");
    // Without what it remembered it goes by what was signed: nothing opens by that.
    std::fs::write(world.state.path().join("demands"), "nothing").unwrap();
    assert_eq!(on_disk(&world), (false, Mode::Enforce));
    assert_eq!(Held::load(&world.state).unwrap().problems.len(), 1);
    world.finish().await;
}
