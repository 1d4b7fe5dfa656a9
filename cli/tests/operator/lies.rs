//! A controller that lies: nothing that it serves may open anything, and each lie is called one.

use anteroom_controller_core::model::Model;
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::invite::{IdentityClaim, Invite};
use anteroom_proto::key::IdentityKey;
use anteroom_proto::mode::Mode;

use crate::controller::Controller;
use crate::person::Person;

const MAC: &str = "02:00:00:00:01:0a";

fn hospital() -> (Controller, Person) {
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    ana.gateway(&controller, "imaging", 1);
    controller.see("imaging", MAC, "10.20.1.10");
    ana.run(&["device", "confirm", MAC, "--name", "ct-1", "--yes"]).ok();
    ana.run(&["device", "label", "ct-1", "class=ct", "--yes"]).ok();
    (controller, ana)
}

/// A change that must fail, and leave the controller with as many revisions as it had.
#[track_caller]
fn refused(controller: &Controller, ana: &Person) -> String {
    let before = controller.state().revisions.len();
    let ran = ana.run(&["device", "mode", "ct-1", "protect", "--yes"]);
    let text = ran.fails(1).to_owned();
    assert_eq!(controller.state().revisions.len(), before, "something was signed: {text}");
    text
}

#[test]
fn an_older_model_is_a_rollback() {
    let (controller, ana) = hospital();
    controller.state().revisions.pop();
    assert_eq!(
        refused(&controller, &ana),
        "error: the controller serves revision 2 as the newest, but this machine has seen revision 3: it was set back. Nothing was changed. If it was restored from a backup, an operator must say so in the authority document; if not, treat it as stolen"
    );
    controller.state().revisions.clear();
    assert!(refused(&controller, &ana).contains("serves revision 0 as the newest"));
}

#[test]
fn an_altered_model_isnt_signed_on() {
    let (controller, ana) = hospital();
    {
        let mut state = controller.state();
        let mut model = state.model();
        model.set_mode("ct-1", Mode::Enforce, 3).unwrap();
        state.revisions.last_mut().unwrap().0.model = Blob(model.encode());
    }
    let text = refused(&controller, &ana);
    assert!(
        text.starts_with("error: the controller serves a model for revision 3 that isn't the one "),
        "{text}"
    );
    assert!(text.ends_with("Treat this controller as stolen until you know better"), "{text}");
}

#[test]
fn a_revision_that_a_stranger_signed_is_refused() {
    let (controller, ana) = hospital();
    let stranger = IdentityKey::from_seed(&[66; 32]);
    {
        let mut state = controller.state();
        let body = state.revise(&stranger, |model| {
            model.set_policy("p", "format = 1\n").unwrap();
        });
        let (mut revision, mut info) = state.revisions.last().unwrap().clone();
        revision.root = body.root;
        revision.model = body.model;
        info.number += 1;
        state.revisions.push((revision, info));
    }
    let print = stranger.public().fingerprint();
    assert_eq!(
        refused(&controller, &ana),
        format!(
            "error: the controller serves a newest revision, but anteroom/intent-root: signed by {print}, who may not sign it. Nothing was changed. Only operators can sign revisions: treat this controller as stolen until you know better"
        )
    );
}

#[test]
fn another_history_of_the_same_length_is_a_split() {
    let (controller, ana) = hospital();
    let key = anteroom::home::Home::locate(Some(&ana.home())).unwrap().key().unwrap();
    {
        let mut state = controller.state();
        state.revisions.pop();
        // Signed by a true operator, as on a second machine that was shown another history.
        let body = state.revise(&key, |model| {
            model.set_mode("ct-1", Mode::Protect, 3).unwrap();
        });
        let (mut revision, mut info) = state.revisions.last().unwrap().clone();
        revision.root = body.root;
        revision.model = body.model;
        info.number += 1;
        state.revisions.push((revision, info));
    }
    let text = refused(&controller, &ana);
    assert!(text.contains("a revision 3 that doesn't continue the revision 3 that this machine has seen: the history was split"), "{text}");
}

#[test]
fn an_edited_authority_is_refused() {
    let (controller, ana) = hospital();
    let eve = IdentityKey::from_seed(&[66; 32]);
    let honest = controller.state().chain.clone();
    // A chain of its own, that begins with the stranger.
    let mut forged = honest[0].verify_self_named().unwrap().into_document();
    forged.operators[0].key = eve.public();
    controller.state().chain = vec![Signed::sign(&forged, &eve)];
    let text = refused(&controller, &ana);
    assert!(text.starts_with("error: the controller serves an authority chain that can't be trusted: the first authority document isn't the one that was pinned"), "{text}");
    // The true beginning, continued by the stranger.
    let mut next = honest[0].verify_self_named().unwrap().into_document();
    next.number = 2;
    next.previous = honest[0].hash();
    next.operators.push(anteroom_proto::authority::Operator {
        name: "eve".parse().unwrap(),
        key: eve.public(),
    });
    let forged = vec![honest[0].clone(), Signed::sign(&next, &eve)];
    controller.lie("/v1/authority", move |_, body| *body = serde_json::to_value(&forged).unwrap());
    controller.state().chain = honest.clone();
    let text = refused(&controller, &ana);
    assert!(text.contains("authority document 2: anteroom/authority: signed by "), "{text}");
    // Nothing at all.
    controller.lie("/v1/authority", |_, body| *body = serde_json::json!([]));
    assert!(refused(&controller, &ana).contains("is empty or longer than"));
    // A true second document, and then the chain without it.
    let key = anteroom::home::Home::locate(Some(&ana.home())).unwrap().key().unwrap();
    controller.be_honest();
    controller.state().chain = vec![honest[0].clone(), Signed::sign(&next, &key)];
    ana.run(&["operator", "list"]).ok();
    controller.state().chain = honest;
    let text = refused(&controller, &ana);
    assert!(text.contains("doesn't contain document 2, which is already held"), "{text}");
}

#[test]
fn the_fingerprint_at_approval_must_be_the_one_that_was_read_out() {
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    let invite = ana.invite("imaging");
    let thief = controller.enrol(&invite, 66).fingerprint();
    let own = IdentityKey::from_seed(&[1; 32]).public().fingerprint().to_string();
    let ran = ana.run(&["gateway", "approve", "imaging", "--fingerprint", &own, "--yes"]);
    assert_eq!(
        ran.fails(4),
        format!(
            "error: the gateway that used the invite for imaging has the fingerprint {thief}, not {own}: it isn't the one you are looking at. Nothing was changed. If the other one is the right one, somebody else used its invite: find out who, and invite it again"
        )
    );
    assert!(controller.state().revisions.is_empty());
}

#[test]
fn papers_that_dont_hold_are_never_approved() {
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    let invite = ana.invite("imaging");
    controller.enrol(&invite, 1);
    let honest = controller.state().pending.clone();
    let eve = IdentityKey::from_seed(&[66; 32]);
    let true_invite: Invite = honest[0].invite.verify_self_named().unwrap().into_document();
    let claim = |invite: &Invite, key: &IdentityKey| {
        let claim = IdentityClaim {
            organisation: invite.organisation,
            invite: invite.invite,
            gateway: invite.gateway,
            identity: eve.public(),
        };
        Signed::sign(&claim, key)
    };
    // An invite that the controller made up.
    let made_up = Invite { key: eve.public(), ..true_invite.clone() };
    let mut forged = honest.clone();
    forged[0].invite = Signed::sign(&made_up, &eve);
    forged[0].claim = claim(&made_up, &eve);
    controller.state().pending = forged;
    let ran = ana.run(&["gateway", "approve", "imaging", "--yes"]);
    assert!(ran.fails(1).contains("no operator made its invite"), "{ran:#?}");
    // A true invite with an identity that its key didn't sign.
    let mut forged = honest.clone();
    forged[0].claim = claim(&true_invite, &eve);
    controller.state().pending = forged;
    let ran = ana.run(&["gateway", "approve", "imaging", "--yes"]);
    assert!(
        ran.fails(1).contains("its identity isn't vouched for by the invite for imaging"),
        "{ran:#?}"
    );
    let ran = ana.run(&["gateway", "pending"]).ok();
    assert!(ran.out.contains("DON'T APPROVE: its identity isn't vouched for"), "{ran:#?}");
    // The claim of another invite.
    let other = ana.invite("ward");
    controller.state().pending.clear();
    controller.enrol(&other, 2);
    let other = controller.state().pending[0].clone();
    let mut forged = honest;
    forged[0].claim = other.claim;
    controller.state().pending = forged;
    let ran = ana.run(&["gateway", "approve", "imaging", "--yes"]);
    assert!(ran.fails(1).contains("its identity isn't vouched for"), "{ran:#?}");
    assert!(controller.state().revisions.is_empty());
}

#[test]
fn a_rewritten_audit_log_is_found_out() {
    let (controller, ana) = hospital();
    ana.run(&["audit", "verify"]).ok();
    let honest = controller.state().audit.clone();
    let verify = || ana.run(&["audit", "verify"]).fails(1).to_owned();

    controller.state().audit[1].reason = Some("nothing to see".into());
    assert_eq!(
        verify(),
        "error: the audit log is broken at entry 2: what it says isn't what its hash covers: it was altered. Keep a copy of the controller's data as it is, and treat the controller as stolen until you know better"
    );
    // Altered, with all hashes made anew.
    let mut rewritten = honest.clone();
    rewritten[1].reason = Some("nothing to see".into());
    controller.state().audit.clear();
    for entry in rewritten {
        controller.state().log(entry);
    }
    assert!(
        verify()
            .contains("at entry 3: this machine has seen another entry there: it was rewritten")
    );
    controller.state().audit = honest[..2].to_vec();
    assert!(verify().contains("this machine has seen entry 3: it was cut short"));
    controller.state().audit = [&honest[..1], &honest[2..]].concat();
    assert!(verify().contains("at entry 2: entry 3 stands in its place"));
    let mut swapped = honest.clone();
    swapped.swap(1, 2);
    controller.state().audit = swapped;
    assert!(verify().contains("at entry 2: entry 3 stands in its place"));
    // Reordered, with numbers and hashes made anew.
    let mut swapped = honest.clone();
    swapped.swap(1, 2);
    controller.state().audit.clear();
    for entry in swapped {
        controller.state().log(entry);
    }
    assert!(verify().contains("at entry 2: it made revision 3, but 2 comes next"));
    // A log that never knew of a revision.
    controller.state().audit = honest.clone();
    std::fs::remove_file(ana.path("home/audit.json")).unwrap();
    controller.state().audit.pop();
    assert!(verify().contains("it knows of revision 2, but 3 is in force"));
    // A revision in the middle that isn't what operators signed.
    controller.state().audit = honest;
    let mut model = Model::decode(&controller.state().revisions[1].0.model.0).unwrap();
    model.set_mode("ct-1", Mode::Enforce, 2).unwrap();
    controller.state().revisions[1].0.model = Blob(model.encode());
    assert!(
        verify().contains(
            "at entry 2: the controller serves a model for revision 2 that isn't the one"
        )
    );
}

#[test]
fn a_revision_that_names_an_unserved_authority_is_refused() {
    let (controller, ana) = hospital();
    let key = anteroom::home::Home::locate(Some(&ana.home())).unwrap().key().unwrap();
    {
        let mut state = controller.state();
        let chain = state.chain.clone();
        state.chain.push(chain[0].clone());
        let body = state.revise(&key, |_| {});
        state.chain = chain;
        let (mut revision, mut info) = state.revisions.last().unwrap().clone();
        revision.root = body.root;
        info.number += 1;
        state.revisions.push((revision, info));
    }
    assert!(
        refused(&controller, &ana)
            .contains("it names an authority document that the controller doesn't serve")
    );
}

#[test]
fn a_challenge_is_never_a_document_to_sign() {
    let (controller, ana) = hospital();
    let root = controller.state().revisions[0].0.root.verify_self_named().unwrap();
    let bytes = anteroom_proto::cbor::encode(&root.into_document());
    let logins = controller.state().logins;
    controller.state().tokens.clear();
    controller.lie("/v1/login/challenge", move |_, body| {
        let challenge = anteroom_proto::api::Challenge { nonce: Blob(bytes.clone()) };
        *body = serde_json::to_value(challenge).unwrap();
    });
    let text = refused(&controller, &ana);
    assert!(text.contains("a challenge is never that long: nothing was signed"), "{text}");
    assert_eq!(controller.state().logins, logins);
}

#[test]
fn a_newest_revision_older_than_operators_vouch_for_is_a_rollback_for_who_never_saw_it() {
    let (controller, ana) = hospital();
    let key = anteroom::home::Home::locate(Some(&ana.home())).unwrap().key().unwrap();
    {
        let mut state = controller.state();
        let newest = state.revisions.last().unwrap().0.root.clone();
        let known = newest.verify_self_named().unwrap();
        let last = state.chain.last().unwrap().clone();
        let mut next = last.verify_self_named().unwrap().next(&last);
        next.root = Some(anteroom_proto::authority::RootId {
            incarnation: known.incarnation,
            number: known.number,
            hash: newest.hash(),
        });
        state.chain.push(Signed::sign(&next, &key));
        state.revisions.pop();
    }
    // As on a machine that has seen nothing yet.
    for file in ["home/seen.json", "home/newest.json"] {
        std::fs::remove_file(ana.path(file)).unwrap();
    }
    assert!(
        refused(&controller, &ana)
            .contains("serves revision 2 as the newest, but this machine has seen revision 3")
    );
}
