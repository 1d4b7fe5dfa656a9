//! Revisions: what is taken, and each kind of wrong one that isn't.

use std::collections::BTreeMap;

use anteroom_controller_core::model::{Client, Gateway, Model};
use anteroom_proto::api::{AuditEntry, ModelRevision, ModelUpdate, RevisionInfo, paths};
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{MemberId, OrganisationId};
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::key::{Hash, IdentityKey, PublicKey, TunnelPublicKey, TunnelSecret};
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{RefusalCode, ToController};

use crate::support::{Desk, Service, first_words, refusal};

#[tokio::test]
async fn only_what_follows_and_compiles_to_what_was_signed_is_taken() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let (agent, other) = (desk.invites(1, "imaging").await, desk.invites(2, "ward").await);
    agent.enrol(&service).await;
    other.enrol(&service).await;
    let accepted = desk.approve(&agent, "imaging").await;
    assert_eq!((accepted.number, accepted.affected), (1, vec![agent.gateway]));

    let (model, base) = desk.base().await;
    let good = desk.root(&model, base.as_ref());
    assert_eq!(good.number, 2);
    let stranger = IdentityKey::from_seed(&[99; 32]);
    let wrong = |change: &dyn Fn(&mut IntentRoot)| {
        let mut root = good.clone();
        change(&mut root);
        desk.update(&model, &root)
    };
    let forged = Hash::of("anteroom test", &[b"forged"]);
    let mut by_stranger = desk.update(&model, &good);
    by_stranger.revision.root = Signed::sign(&good, &stranger);
    let mut altered = desk.update(&model, &good);
    let mut bytes = altered.revision.root.as_bytes().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    altered.revision.root = Signed::from_bytes(bytes);
    let mut other_model = desk.update(&model, &good);
    other_model.revision.model = Blob(b"not a model".to_vec());
    let mut long = desk.update(&model, &good);
    long.reason = Some("x".repeat(1001));
    let mut control = desk.update(&model, &good);
    control.action = "policy\u{1b}[2J".into();
    let never = {
        let mut model = model.clone();
        let stranger = crate::support::Agent::new(9);
        model.gateways.insert(stranger.gateway, stranger.approved("ghost"));
        desk.update(&model, &desk.root(&model, base.as_ref()))
    };
    let other_key = {
        let mut model = model.clone();
        let gateway = Gateway { identity: stranger.public(), ..other.approved("ward") };
        model.gateways.insert(other.gateway, gateway);
        desk.update(&model, &desk.root(&model, base.as_ref()))
    };
    let replaced = |former: Vec<PublicKey>| {
        let mut model = model.clone();
        let gateway = model.gateways.get_mut(&agent.gateway).unwrap();
        (gateway.identity, gateway.former) = (stranger.public(), former);
        desk.update(&model, &desk.root(&model, base.as_ref()))
    };
    let (forgotten, unoffered) = (replaced(vec![]), replaced(vec![agent.identity.public()]));
    let cases: Vec<(&str, ModelUpdate, u16, &str)> = vec![
        ("number too high", wrong(&|root| root.number = 3), 409, "newest revision is 1"),
        ("number again", wrong(&|root| root.number = 1), 409, "newest revision is 1"),
        ("number zero", wrong(&|root| root.number = 0), 409, "newest revision is 1"),
        ("wrong base", wrong(&|root| root.previous = forged), 409, "newest revision is 1"),
        ("other authority", wrong(&|root| root.authority = 2), 409, "authority document"),
        ("other incarnation", wrong(&|root| root.incarnation = 9), 400, "incarnation"),
        ("other model hash", wrong(&|root| root.model = forged), 400, "isn't the model"),
        ("other root", wrong(&|root| root.root = forged), 400, "something else than was signed"),
        (
            "other organisation",
            wrong(&|root| root.organisation = OrganisationId::from_bytes([2; 16])),
            400,
            "revision.root: ",
        ),
        ("a stranger's", by_stranger, 400, "may not sign"),
        ("altered", altered, 400, "altered"),
        ("another model", other_model, 400, "isn't the model"),
        ("long reason", long, 400, "reason: "),
        ("control characters", control, 400, "action: "),
        ("never enrolled", never, 400, "never enrolled"),
        ("another identity", other_key, 400, "enrolled with another identity key"),
        ("a replaced identity is forgotten", forgotten, 400, "aren't kept as such"),
        ("an identity that wasn't offered", unoffered, 409, "offers no other identity key"),
    ];
    for (what, update, expected, words) in cases {
        let (status, error) = desk.client.post_error(paths::MODEL, &update).await;
        assert_eq!(status, expected, "{what}: {error}");
        assert!(error.message.contains(words), "{what}: {error}");
    }
    let newest: ModelRevision = desk.client.get(paths::MODEL).await;
    assert_eq!(Some(&newest.root), base.as_ref(), "nothing was changed");

    // A policy that doesn't compile is refused with its problems, signed or not.
    let mut broken = model.clone();
    broken.policy = "format = 1\n[rule.x]\nfrom = \"nobody\"\n".into();
    let root = IntentRoot { model: Hash::ZERO, ..good.clone() };
    let root = IntentRoot {
        model: anteroom_controller_core::model::Model::hash(&broken.encode()),
        ..root
    };
    let (status, error) = desk.client.post_error(paths::MODEL, &desk.update(&broken, &root)).await;
    assert_eq!(status, 400);
    assert!(error.message.contains("revision.model: "), "{error}");

    let accepted = desk.change(|_| ()).await;
    assert_eq!(
        (accepted.number, accepted.affected.len()),
        (2, 0),
        "nothing is affected by nothing"
    );
    let history: Vec<RevisionInfo> = desk.client.get(paths::REVISIONS).await;
    assert_eq!(history.iter().map(|info| info.number).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(history[0].operator, desk.key.public());
    let first: ModelRevision = desk.client.get("/v1/model/1").await;
    assert_eq!(Some(first.root), base);
    service.stop().await;
}

#[tokio::test]
async fn who_was_revoked_stays_so() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    desk.approve(&agent, "imaging").await;
    desk.revoke(&agent).await;
    let (revoked, base) = desk.base().await;
    let mut forgotten = revoked.clone();
    forgotten.revoked.clear();
    let mut again = revoked.clone();
    again.gateways.insert(agent.gateway, agent.approved("imaging"));
    for (what, model, words) in
        [("forgotten", forgotten, "must stay so"), ("approved again", again, "was revoked")]
    {
        let update = desk.update(&model, &desk.root(&model, base.as_ref()));
        let (status, error) = desk.client.post_error(paths::MODEL, &update).await;
        assert_eq!(status, 400, "{what}: {error}");
        assert!(error.message.contains(words), "{what}: {error}");
    }
    let refused = refusal(agent.enrol(&service).await);
    assert!(refused.message.contains("revoked"), "{refused:?}");
    service.stop().await;
}

fn laptop(site: Name) -> Client {
    Client {
        name: "laptop-7".parse().unwrap(),
        site,
        key: TunnelSecret::from_bytes([7; 32]).public(),
        address: "10.20.9.7".parse().unwrap(),
        labels: BTreeMap::new(),
        added_at: UnixMillis(1),
    }
}

#[tokio::test]
async fn a_client_is_audited_and_once_revoked_stays_so() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    desk.approve(&agent, "imaging").await;
    let (model, _) = desk.base().await;
    let client = laptop(model.gateways[&agent.gateway].site.clone());
    let id = MemberId::from_bytes([7; 16]);
    desk.change(|model| model.add_client(id, client.clone()).unwrap()).await;
    desk.change(|model| assert!(model.revoke_client("laptop-7").is_ok())).await;
    let (revoked, base) = desk.base().await;
    let mut forgotten = revoked.clone();
    forgotten.former_clients.clear();
    let mut again = revoked.clone();
    again.clients.insert(id, client);
    for (what, model) in [("forgotten", forgotten), ("again", again)] {
        let number = base.as_ref().unwrap().verify_self_named().unwrap().into_document();
        let root = match what {
            "forgotten" => desk.root(&model, base.as_ref()),
            // It doesn't compile, so that whoever signs it signs nonsense.
            _ => IntentRoot {
                number: number.number + 1,
                previous: base.as_ref().unwrap().hash(),
                model: Hash::of("anteroom model", &[&model.encode()]),
                ..number
            },
        };
        let (status, error) =
            desk.client.post_error(paths::MODEL, &desk.update(&model, &root)).await;
        assert_eq!(status, 400, "{what}: {error}");
        assert!(error.message.contains("client laptop-7"), "{what}: {error}");
    }
    let log: Vec<AuditEntry> = desk.client.get(paths::AUDIT).await;
    let told = |text: &str| {
        log.iter().any(|entry| entry.after.as_deref().is_some_and(|after| after.contains(text)))
    };
    assert!(told("client laptop-7: site") && told("revoked client laptop-7"), "{log:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_gateways_key_is_no_clients_and_a_clients_no_gateways() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let (agent, thief) = (desk.invites(1, "imaging").await, desk.invites(2, "ward").await);
    for (agent, name) in [(&agent, "imaging"), (&thief, "ward")] {
        agent.enrol(&service).await;
        desk.approve(agent, name).await;
    }
    let connected = agent.connect(&service).await;
    let (model, base) = desk.base().await;
    let add = |model: &Model, key: TunnelPublicKey| {
        let client = Client { key, ..laptop(model.gateways[&agent.gateway].site.clone()) };
        let mut model = model.clone();
        model.add_client(MemberId::from_bytes([7; 16]), client).unwrap();
        model
    };
    let gateways_own = agent.reachable().keys[0].verify_self_named().unwrap().x25519;
    let theirs = TunnelSecret::from_bytes([77; 32]).public();
    let wrong = add(&model, gateways_own);
    let update = desk.update(&wrong, &desk.root(&wrong, base.as_ref()));
    let (status, error) = desk.client.post_error(paths::MODEL, &update).await;
    assert_eq!(status, 400, "{error}");
    let words = format!(
        "client laptop-7: gateway imaging names the WireGuard key {}",
        gateways_own.to_wireguard()
    );
    assert!(error.message.contains(&words), "{error}");
    drop(connected);

    let claim = async |service: &Service| {
        let mut hello = thief.hello();
        hello.reachable.keys = vec![thief.binding(theirs)];
        let first = ToController::Hello(Box::new(hello));
        let refused = refusal(first_words(service, &thief.identity, &first).await);
        assert_eq!(refused.code, RefusalCode::Protocol);
        assert!(refused.message.contains("is a client's"), "{refused:?}");
    };
    desk.change(|model| *model = add(model, theirs)).await;
    claim(&service).await;
    // Once revoked, and after a restart, it is nobody else's either.
    desk.change(|model| assert!(model.revoke_client("laptop-7").is_ok())).await;
    service.stop().await;
    service.start().await;
    claim(&service).await;
    let desk = Desk::new(&service).log_in().await;
    let log: Vec<AuditEntry> = desk.client.get(paths::AUDIT).await;
    let refused: Vec<_> =
        log.iter().filter(|entry| entry.action == "gateway tunnel key refused").collect();
    assert_eq!(refused.len(), 2, "once in each run of the controller: {refused:?}");
    assert_eq!(refused[0].after.as_deref(), Some("unchanged: the key is a client's"));
    drop(thief.connect(&service).await);
    service.stop().await;
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_with_what_was_before() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    desk.approve(&agent, "imaging").await;
    desk.change(|model| model.policy.push_str("# a word\n")).await;
    desk.revoke(&agent).await;
    let log: Vec<AuditEntry> = desk.client.get(paths::AUDIT).await;
    let actions: Vec<&str> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["claim", "gateway invite", "gateway enrol", "a test", "a test", "a test"]);
    let (mut number, mut previous) = (0, Hash::ZERO);
    for entry in &log {
        anteroom_controller::audit::check_entry(number, previous, entry).unwrap();
        (number, previous) = (entry.number, entry.hash);
    }
    let approve = &log[3];
    assert!(approve.actor.starts_with("ana ("), "{approve:?}");
    assert_eq!((approve.reason.as_deref(), approve.revision), (Some("to see"), Some(1)));
    let first: ModelRevision = desk.client.get("/v1/model/1").await;
    assert_eq!(approve.root, Some(first.root.hash()));
    assert!(approve.after.as_ref().unwrap().contains("gateway imaging"), "{approve:?}");
    let revoke = &log[5];
    assert!(revoke.before.as_ref().unwrap().contains("gateway imaging"), "{revoke:?}");
    assert!(revoke.after.as_ref().unwrap().contains("revoked gateway imaging"), "{revoke:?}");
    let rest: Vec<AuditEntry> = desk.client.get("/v1/audit?after=4&limit=1").await;
    assert_eq!(rest, log[4..5]);
    service.stop().await;
}
