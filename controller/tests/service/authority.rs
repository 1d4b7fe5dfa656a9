//! Authority documents: operators who come and go, the recovery key, and what doesn't follow.

use anteroom_proto::api::{AuditEntry, AuthorityUpdate, LoginRequest, PendingGateway, paths};
use anteroom_proto::authority::{Authority, Operator};
use anteroom_proto::cose::Signed;
use anteroom_proto::key::{Hash, IdentityKey};
use anteroom_proto::v1::{RefusalCode, ToAgent, ToController};

use crate::support::{Desk, Service, refusal, soon, until};

fn operator(name: &str, seed: u8) -> Operator {
    Operator { name: name.parse().unwrap(), key: IdentityKey::from_seed(&[seed; 32]).public() }
}

async fn heard(connected: &mut crate::support::Connected) -> Vec<Signed<Authority>> {
    match connected.next().await {
        ToAgent::Authority(chain) => chain,
        other => panic!("no authority but {other:?}"),
    }
}

#[tokio::test]
async fn a_second_operator_comes_and_goes_and_gateways_follow() {
    let mut service = Service::new().await;
    let ana = service.claimed().await;
    let mut agent = ana.invites(1, "imaging").await;
    agent.enrol(&service).await;
    ana.approve(&agent, "imaging").await;
    let mut connected = agent.connect(&service).await;
    let view = connected.view().await;
    agent.take(&mut connected, &ana.authority(), &view).await;

    let two = ana.decree("operator add", |next| next.operators.push(operator("ben", 22))).await;
    assert_eq!(heard(&mut connected).await.len(), 2);
    let ben = Desk::of(&service, 22).log_in_as("ben").await;
    ben.change(|model| {
        model.gateways.get_mut(&agent.gateway).unwrap().site = "south".parse().unwrap();
    })
    .await;
    let view = connected.view().await;
    assert_eq!(agent.take(&mut connected, &two, &view).await.revision, 2);

    let three = ana.decree("operator remove", |next| next.operators.truncate(1)).await;
    assert_eq!(heard(&mut connected).await.len(), 3);
    let (status, error) = ben.client.get_error(paths::GATEWAYS).await;
    assert_eq!((status, error.code.as_str()), (401, "unauthorised"), "{error}");
    let login = ben.login(ben.challenge().await.nonce);
    let request = LoginRequest { login: Signed::sign(&login, &ben.key) };
    assert_eq!(ben.client.post_status(paths::LOGIN, &request).await, 401);
    // What he signs from now on is taken from nobody.
    let (model, base) = ana.base().await;
    let mut root = ana.root(&model, base.as_ref());
    root.authority = 3;
    let mut update = ana.update(&model, &root);
    update.revision.root = Signed::sign(&root, &ben.key);
    let (status, error) = ana.client.post_error(paths::MODEL, &update).await;
    assert!(status == 400 && error.message.contains("may not sign it"), "{error}");
    // What he signed before still reaches a gateway that lost its own: operators vouch for it.
    connected.link.close("lost").await;
    agent.applied = None;
    let mut connected = agent.connect(&service).await;
    let view = connected.view().await;
    assert_eq!(agent.take(&mut connected, &three, &view).await.revision, 2);
    assert_eq!(connected.welcome.authority.as_ref().map(Vec::len), Some(3), "its hello said 1");

    let log: Vec<AuditEntry> = ana.client.get(paths::AUDIT).await;
    let removal = log.iter().find(|entry| entry.action == "operator remove").unwrap();
    assert!(removal.actor.starts_with("ana ("), "{removal:?}");
    assert_eq!(removal.reason.as_deref(), Some("to see"));
    assert!(removal.before.as_ref().unwrap().contains("operator ben ("), "{removal:?}");
    assert!(!removal.after.as_ref().unwrap().contains("ben"), "{removal:?}");
    service.stop().await;
    service.start().await;
    let ana = Desk::new(&service).log_in().await;
    assert_eq!(ana.chain().await.newest().number, 3, "a restart forgets nothing of it");
    service.stop().await;
}

#[tokio::test]
async fn documents_that_dont_follow_are_refused_and_change_nothing() {
    let mut service = Service::new().await;
    let ana = service.claimed().await;
    let agent = ana.invites(1, "imaging").await;
    agent.enrol(&service).await;
    ana.approve(&agent, "imaging").await;
    let stranger = IdentityKey::from_seed(&[99; 32]);
    let good = ana.next(|next| next.operators.push(operator("ben", 22))).await;
    let wrong = |change: &dyn Fn(&mut Authority)| {
        let mut next = good.clone();
        change(&mut next);
        ana.authority_update(&next, "a test")
    };
    let by = |key: &IdentityKey| AuthorityUpdate {
        document: Signed::sign(&good, key),
        ..ana.authority_update(&good, "a test")
    };
    let forged = Hash::of("anteroom test", &[b"forged"]);
    let cases: Vec<(&str, AuthorityUpdate, u16, &str)> = vec![
        ("a stranger's", by(&stranger), 400, "may not sign it"),
        ("the controller's", by(&controller_key(&service)), 400, "may not sign it"),
        ("the recovery key's, in ana's name", by(&recovery()), 403, "somebody else signed it"),
        ("number again", wrong(&|next| next.number = 1), 409, "newest authority document is 1"),
        ("number too high", wrong(&|next| next.number = 3), 400, "isn't the next one"),
        ("another base", wrong(&|next| next.previous = forged), 400, "doesn't name the document"),
        ("no operator", wrong(&|next| next.operators.clear()), 400, "names no operator"),
        (
            "another controller",
            wrong(&|next| next.controllers[0].key = IdentityKey::from_seed(&[9; 32]).public()),
            400,
            "doesn't name this controller's key",
        ),
        (
            "a new incarnation, unasked",
            wrong(&|next| next.incarnation = 2),
            409,
            "neither restored",
        ),
        ("no root", wrong(&|next| next.root = None), 409, "newest revision is 1"),
        (
            "another root",
            wrong(&|next| next.root.as_mut().unwrap().hash = forged),
            409,
            "newest revision is 1",
        ),
        (
            "a root to come",
            wrong(&|next| next.root.as_mut().unwrap().number = 9),
            409,
            "revision is 1",
        ),
    ];
    for (what, update, expected, words) in cases {
        let (status, error) = ana.client.post_error(paths::AUTHORITY, &update).await;
        assert_eq!(status, expected, "{what}: {error}");
        assert!(error.message.contains(words), "{what}: {error}");
    }
    assert_eq!(ana.chain().await.newest().number, 1);
    service.stop().await;
}

fn recovery() -> IdentityKey {
    IdentityKey::from_seed(&[12; 32])
}

fn controller_key(service: &Service) -> IdentityKey {
    service.directory().load_identity().unwrap()
}

#[tokio::test]
async fn the_recovery_key_names_new_operators_and_does_nothing_else() {
    let mut service = Service::new().await;
    let ana = service.claimed().await;
    let agent = ana.invites(1, "imaging").await;
    agent.enrol(&service).await;
    ana.approve(&agent, "imaging").await;
    let safe = Desk::of(&service, 12).log_in_as("recovery-key").await;
    for path in [paths::GATEWAYS, paths::AUDIT, paths::INVITES, paths::PENDING] {
        let (status, error) = safe.client.get_error(path).await;
        assert_eq!((status, error.code.as_str()), (403, "forbidden"), "{path}: {error}");
    }
    let (model, base) = safe.base().await;
    let update = safe.update(&model, &safe.root(&model, base.as_ref()));
    assert_eq!(safe.client.post_status(paths::MODEL, &update).await, 403);
    safe.decree("operator recover", |next| {
        next.operators = vec![operator("zoe", 33)];
        next.recovery = IdentityKey::from_seed(&[44; 32]).public();
    })
    .await;
    for gone in [&ana, &safe] {
        assert_eq!(gone.client.get_error(paths::AUTHORITY).await.0, 401);
    }
    let zoe = Desk::of(&service, 33).log_in_as("zoe").await;
    zoe.change(|model| model.policy.push_str("# zoe was here\n")).await;
    let log: Vec<AuditEntry> = zoe.client.get(paths::AUDIT).await;
    let entry = log.iter().find(|entry| entry.action == "operator recover").unwrap();
    assert!(entry.actor.starts_with("recovery-key ("), "{entry:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_tunnel_key_that_another_gateway_has_is_refused_and_audited_once() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let (owner, thief) = (desk.invites(1, "imaging").await, desk.invites(2, "ward").await);
    for agent in [&owner, &thief] {
        agent.enrol(&service).await;
    }
    drop(owner.connect(&service).await);
    let stolen = thief.binding_of(&owner);
    let mut hello = thief.hello();
    hello.reachable.keys = vec![stolen.clone()];
    for _ in 0..2 {
        let first = ToController::Hello(Box::new(hello.clone()));
        let refused = refusal(crate::support::first_words(&service, &thief.identity, &first).await);
        assert_eq!(refused.code, RefusalCode::Protocol);
        assert!(refused.message.contains("is another gateway's"), "{refused:?}");
    }
    // Later, in the middle of a session, and after a restart of the controller as well.
    service.stop().await;
    service.start().await;
    let desk = Desk::new(&service).log_in().await;
    let mut connected = thief.connect(&service).await;
    let mut reachable = thief.reachable();
    reachable.keys = vec![stolen];
    connected.writer.send(&ToController::Reachable(reachable)).await.unwrap();
    assert_eq!(refusal(connected.next().await).code, RefusalCode::Protocol);
    let log: Vec<AuditEntry> = desk.client.get(paths::AUDIT).await;
    let refused: Vec<_> =
        log.iter().filter(|entry| entry.action == "gateway tunnel key refused").collect();
    assert_eq!(refused.len(), 2, "once in each run of the controller: {refused:?}");
    let again = owner.connect(&service).await;
    assert!(!again.welcome.approved, "the owner isn't harmed");
    service.stop().await;
}

#[tokio::test]
async fn a_flood_of_enrolments_is_bounded_and_keeps_nobody_else_out() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    let (mut busy, mut taken) = (0, 0);
    for n in 0..150u16 {
        let [high, low] = n.to_be_bytes();
        let mut seed = [7; 32];
        (seed[0], seed[1]) = (high, low);
        let flooder = IdentityKey::from_seed(&seed);
        let enrol = agent.enrolment(flooder.public());
        let first = ToController::Enrol(Box::new(enrol));
        match refusal(crate::support::first_words(&service, &flooder, &first).await).code {
            RefusalCode::Busy => busy += 1,
            RefusalCode::InviteUsed => taken += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(busy > 0 && taken >= 50, "{busy} busy, {taken} taken");
    let log: Vec<AuditEntry> = desk.client.get(paths::AUDIT).await;
    let noted = log.iter().filter(|entry| entry.action == "gateway enrol refused").count();
    assert_eq!(noted, 16, "the audit log can't be filled by strangers");
    let connected = soon("the gateway's turn", agent.connect(&service)).await;
    until("it to be online", async || {
        let pending: Vec<PendingGateway> = desk.client.get(paths::PENDING).await;
        pending[0].online.then_some(())
    })
    .await;
    drop(connected);
    service.stop().await;
}
