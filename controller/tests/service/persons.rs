//! What two operators must approve of: the controller stores nothing else, whoever signs it.

use anteroom_controller_core::model::Model;
use anteroom_proto::api::paths;
use anteroom_proto::approval::{Approval, Place, Step};
use anteroom_proto::authority::Operator;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::MemberId;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;

use crate::distribution::device;
use crate::support::{Desk, ORGANISATION, Service};

const CT: MemberId = MemberId::from_bytes([1; 16]);
const POLICY: &str = "format = 1
[segment.ct]
match = { label.class = \"ct\" }
two_person = true
";

fn ben() -> IdentityKey {
    IdentityKey::from_seed(&[21; 32])
}

/// The number that the next revision has.
async fn next(desk: &Desk) -> u64 {
    let (_, root) = desk.base().await;
    root.map_or(0, |root| root.verify_self_named().unwrap().number) + 1
}

/// Approvals for the revision with this number.
fn approvals(step: Step, number: u64, keys: &[&IdentityKey]) -> Vec<Signed<Approval>> {
    let at = Place::new(1, number);
    let approval =
        Approval { organisation: ORGANISATION, member: CT, step, at, signed_at: UnixMillis(1) };
    keys.iter().map(|key| Signed::sign(&approval, key)).collect()
}

/// Hands a changed model in that ana has signed. Gives what the controller has against it.
async fn refused(desk: &Desk, change: impl FnOnce(&mut Model)) -> String {
    let (mut model, base) = desk.base().await;
    change(&mut model);
    let mut root = desk.root(&model, base.as_ref());
    root.authority = desk.chain().await.newest().number;
    let (status, error) = desk.client.post_error(paths::MODEL, &desk.update(&model, &root)).await;
    assert_eq!(status, 400, "{error}");
    error.message
}

#[tokio::test]
async fn one_operator_with_a_program_of_their_own_enforces_nothing_that_two_must_approve_of() {
    let service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    desk.approve(&agent, "imaging").await;
    let mut ct = device(&agent, "ct-1", 1);
    ct.labels.insert("class".parse().unwrap(), "ct".into());
    desk.change(|model| {
        model.devices.insert(CT, ct);
        model.policy = POLICY.into();
    })
    .await;
    let add = Operator { name: "ben".parse().unwrap(), key: ben().public() };
    desk.decree("operator add", |next| next.operators.push(add)).await;

    let step = Step::Enforce { trial: None };
    let enforce = |model: &mut Model, approvals: Vec<Signed<Approval>>| {
        let device = model.devices.get_mut(&CT).unwrap();
        device.mode = Mode::Enforce;
        device.rollout.approvals = approvals;
    };
    let number = next(&desk).await;
    let both = [&desk.key, &ben()];
    for bad in [
        Vec::new(),
        approvals(step, number, &[&desk.key]),
        approvals(step, number, &[&desk.key, &desk.key]),
        approvals(step, number - 1, &both),
        approvals(step, number + 1, &both),
        approvals(Step::Waive {}, number, &both),
    ] {
        let why = refused(&desk, |model| enforce(model, bad)).await;
        assert!(why.contains("device ct-1: two operators must approve to enforce it"), "{why}");
    }
    let good = approvals(step, number, &both);
    desk.change(|model| enforce(model, good.clone())).await;
    // Back is one's. There again is two's, and not by what they signed then, whatever the model says of its age.
    desk.change(|model| {
        let device = model.devices.get_mut(&CT).unwrap();
        device.mode = Mode::Protect;
        device.rollout = Default::default();
    })
    .await;
    let why = refused(&desk, |model| {
        enforce(model, good.clone());
        model.devices.get_mut(&CT).unwrap().mode_since = number;
    })
    .await;
    assert!(why.contains("two operators must approve to enforce it"), "{why}");

    // No demand goes by one: by the policy, by a label, or with the device; nor where its gateway is revoked first.
    for revoked in [false, true] {
        if revoked {
            desk.revoke(&agent).await;
        }
        let drop: [&dyn Fn(&mut Model); 3] = [
            &|model| model.policy = POLICY.replace("two_person = true\n", ""),
            &|model| model.devices.get_mut(&CT).unwrap().labels.clear(),
            &|model| drop(model.devices.remove(&CT)),
        ];
        for drop in drop {
            let why = refused(&desk, drop).await;
            assert!(why.contains("let one operator decide"), "{why}");
        }
    }
    let number = next(&desk).await;
    let waived = approvals(Step::Waive {}, number, &both);
    desk.change(|model| {
        let device = model.devices.get_mut(&CT).unwrap();
        device.labels.clear();
        device.rollout.approvals.clone_from(&waived);
    })
    .await;
    // Demanded again, the waiver of then is none of now.
    desk.change(|model| {
        let device = model.devices.get_mut(&CT).unwrap();
        device.labels.insert("class".parse().unwrap(), "ct".into());
    })
    .await;
    let why = refused(&desk, |model| {
        let device = model.devices.get_mut(&CT).unwrap();
        device.labels.clear();
        device.rollout.approvals.clone_from(&waived);
    })
    .await;
    assert!(why.contains("let one operator decide"), "{why}");
}
