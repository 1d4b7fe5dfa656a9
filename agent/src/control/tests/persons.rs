//! Devices that are enforced only if two operators have approved of it, whatever one of them signs or a controller passes on.

use anteroom_proto::approval::{Approval, Step};
use anteroom_proto::authority::Operator;
use anteroom_proto::intent::Intent;
use anteroom_proto::rollout::Rollout;

use super::*;
use crate::testkit::intent;

/// The leaf in which two persons decide on the one device.
fn leaf(mode: Mode) -> Intent {
    let mut intent = intent(GATEWAY, mode);
    intent.devices[0].two_person = true;
    intent
}

/// The same with approvals to enforce it by the operators with these seeds.
fn approved(seeds: &[u8]) -> Intent {
    let mut intent = leaf(Mode::Enforce);
    let device = &mut intent.devices[0];
    let step = Step::Enforce { since: device.member.mode_since, trial: None };
    let approval = Approval {
        organisation: ORGANISATION,
        member: device.member.id,
        step,
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

#[tokio::test]
async fn one_operator_and_any_controller_enforce_nothing_that_two_must_approve_of() {
    let mut world = World::new();
    two_operators(&mut world);
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    let watched = answer(&world, &mut session, &leaf(Mode::Protect), 1).await;
    assert_eq!(watched.refused, None);

    let mut number = 1;
    for (what, bad) in [
        ("nobody's approval", leaf(Mode::Enforce)),
        ("one operator's", approved(&[10])),
        ("the same one's twice", approved(&[10, 10])),
        ("one operator's and a stranger's", approved(&[10, 77])),
        ("the demand dropped", intent(GATEWAY, Mode::Enforce)),
        ("the demand dropped first", intent(GATEWAY, Mode::Protect)),
    ] {
        number += 1;
        let refused = answer(&world, &mut session, &bad, number).await;
        assert_eq!(refused.revision, 1, "{what} is in force");
        let why = refused.refused.unwrap_or_else(|| panic!("{what} was taken"));
        assert!(why.contains("two operators must approve"), "{what}: {why}");
    }

    let both = answer(&world, &mut session, &approved(&[20, 10]), 20).await;
    assert_eq!((both.revision, both.refused), (20, None));
    // Ben leaves: what he approved of stands, and what he approves of from now on doesn't.
    world.organisation.extend(|next| next.operators.truncate(1));
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    let stands = answer(&world, &mut session, &approved(&[20, 10]), 21).await;
    assert_eq!((stands.revision, stands.refused), (21, None));
    let mut again = approved(&[20, 10]);
    again.devices[0].member.mode_since = 22;
    let refused = answer(&world, &mut session, &again, 22).await;
    assert_eq!(refused.revision, 21, "{:?}", refused.refused);
    world.finish().await;
}

#[tokio::test]
async fn what_two_approved_of_is_in_force_after_a_restart() {
    let mut world = World::new();
    two_operators(&mut world);
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    let both = answer(&world, &mut session, &approved(&[20, 10]), 3).await;
    assert_eq!(both.refused, None);
    let held = Held::load(&world.state).unwrap();
    let view = held.enrolled.unwrap().view.expect("the view on disk holds");
    assert!(view.intent.devices[0].two_person);
    world.finish().await;
}
