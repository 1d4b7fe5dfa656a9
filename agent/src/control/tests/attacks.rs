//! A stolen controller: its key, its store and its address are the attacker's. It may withhold and close; whatever it
//! tries beyond that is refused, and stays in the agent's status and in what the next controller is told.

use anteroom_proto::api::Login;
use anteroom_proto::authority::Authority;
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cbor::{self, Blob};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{ExternalId, GatewayId, RuleId};
use anteroom_proto::intent::{Endpoint, External, Intent, IntentRoot, PeerGateway, Rule};
use anteroom_proto::key::TunnelSecret;
use anteroom_proto::merkle::{self, Proof, leaf_hash};
use anteroom_proto::operation::{Operation, PeerOperation, ViewNumber};
use anteroom_proto::overlay::gateway_address;

use super::*;
use crate::testkit::intent;

const REVOKED: GatewayId = GatewayId::from_bytes([66; 16]);

/// The genuine view with parts that the attacker made.
struct Forgery {
    view: SignedView,
    controller: IdentityKey,
}

impl Forgery {
    fn of(organisation: &Organisation, view: SignedView) -> Self {
        Self { view, controller: organisation.controller.clone() }
    }

    /// Puts another leaf into the view, under the root that operators signed.
    fn leaf(mut self, change: impl FnOnce(&mut Intent)) -> Self {
        let mut intent: Intent = cbor::decode(&self.view.intent.0, 1 << 20).unwrap();
        change(&mut intent);
        self.view.intent = Blob(cbor::encode(&intent));
        self
    }

    /// Makes a root over the leaf, and signs it with the key that it has.
    fn root(mut self, signer: &IdentityKey, change: impl FnOnce(&mut IntentRoot)) -> Self {
        let leaves = [leaf_hash(&self.view.intent.0)];
        let mut root = self.view.root.verify_self_named().unwrap().into_document();
        root.root = merkle::root(&leaves);
        root.number += 1;
        change(&mut root);
        self.view.proof = Proof::new(&leaves, 0).unwrap();
        self.view.root = Signed::sign(&root, signer);
        self.operation(|operation| operation.revision = root.number)
    }

    /// The operation part is the controller's to sign.
    fn operation(mut self, change: impl FnOnce(&mut Operation)) -> Self {
        let mut operation = self.view.operation.verify_self_named().unwrap().into_document();
        operation.number.sequence += 1000;
        change(&mut operation);
        self.view.operation = Signed::sign(&operation, &self.controller);
        self
    }
}

fn observed(intent: &mut Intent) {
    for device in &mut intent.devices {
        device.member.mode = Mode::Observe;
    }
}

fn opened(intent: &mut Intent) {
    let external = ExternalId::of("anywhere");
    intent.externals.push(External { id: external, prefixes: vec!["0.0.0.0/0".parse().unwrap()] });
    intent.rules.push(Rule {
        id: RuleId::of("out"),
        from: Endpoint::Member(intent.devices[0].member.id),
        to: Endpoint::External(external),
        services: vec!["tcp/1-65535".parse().unwrap()],
        clear: true,
        essential: false,
        conditions: Vec::new(),
    });
}

fn with_peer(intent: &mut Intent) {
    intent.peers.push(PeerGateway {
        gateway: REVOKED,
        identity: key(66).public(),
        overlay: gateway_address(ORGANISATION, REVOKED),
    });
}

fn moved(intent: &mut Intent) {
    let mut member = intent.devices[0].member.clone();
    member.gateway = REVOKED;
    intent.devices.clear();
    intent.members.push(member);
    with_peer(intent);
}

#[tokio::test]
async fn a_stolen_controller_opens_moves_and_brings_back_nothing() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let organisation = &world.organisation;
    let mut friends = intent(GATEWAY, Mode::Enforce);
    with_peer(&mut friends);
    let before = organisation.view_of(&friends, 3, 6);
    session.send(view_message(before.clone())).await;
    assert_eq!(session.hear_applied().await.refused, None);
    // An operator revokes the peer.
    let genuine = organisation.view(4, 7, Mode::Enforce);
    session.send(view_message(genuine.clone())).await;
    assert_eq!(session.hear_applied().await.refused, None);

    let stolen = organisation.controller.clone();
    let forge = || Forgery::of(organisation, genuine.clone());
    let again = || Forgery::of(organisation, before.clone());
    let foreign = organisation.view_for(REVOKED, 5, 9, Mode::Observe);
    let login =
        Login { organisation: ORGANISATION, controller: stolen.public(), nonce: Blob(vec![1]) };
    let login: Signed<Login> = Signed::sign(&login, &organisation.operator);
    let mut signed_in = forge().operation(|_| {}).view;
    signed_in.root = Signed::from_bytes(login.as_bytes().to_vec());
    let attacks: Vec<(&str, SignedView, &str)> = vec![
        (
            "observe, under the operators' root",
            forge().leaf(observed).operation(|_| {}).view,
            "isn't part of revision 4",
        ),
        (
            "observe, under a root of its own",
            forge().leaf(observed).root(&stolen, |_| {}).view,
            "may not sign it",
        ),
        (
            "observe, by an operator that it made up",
            forge().leaf(observed).root(&key(99), |_| {}).view,
            "may not sign it",
        ),
        ("an external opened", forge().leaf(opened).root(&stolen, |_| {}).view, "may not sign it"),
        (
            "an external opened, under the operators' root",
            forge().leaf(opened).operation(|_| {}).view,
            "isn't part of revision 4",
        ),
        (
            "an address moved to another gateway",
            forge().leaf(moved).root(&stolen, |_| {}).view,
            "may not sign it",
        ),
        ("another gateway's leaf", foreign, "it is for gw-4242"),
        ("the revoked peer, by the old view", before.clone(), "view 0.6 is older than 0.7"),
        (
            "the revoked peer, by the old root",
            again().operation(|_| {}).view,
            "revision 3 is older than 4",
        ),
        (
            "the revoked peer, in a leaf of its own",
            forge().leaf(with_peer).operation(|_| {}).view,
            "isn't part of revision 4",
        ),
        (
            "the old root in an incarnation that it made up",
            again()
                .operation(|operation| {
                    operation.number = ViewNumber { incarnation: 9, sequence: 1 }
                })
                .view,
            "for incarnation 9, its intent is of incarnation 0",
        ),
        ("an operator's log-in as a root", signed_in, "found \"anteroom/login\""),
    ];
    for (what, view, problem) in &attacks {
        session.send(view_message(view.clone())).await;
        let applied = session.hear_applied().await;
        let refused = applied.refused.clone().unwrap_or_else(|| panic!("{what}: it was taken"));
        assert!(refused.contains(problem), "{what}: {refused}");
        assert_eq!((applied.revision, applied.number.sequence), (4, 7), "{what}: still in force");
        let alarms = world.status.borrow().alarms.clone();
        assert!(alarms.iter().any(|alarm| alarm.what == refused), "{what}: no trace in {alarms:?}");
    }
    assert_eq!(world.plane.told(|told| told.views.len()), 2, "nothing of it reached the engine");
    // Whoever runs the controller next is told.
    session.connection.close(0u32.into(), b"found out");
    let session = world.session().await;
    let told = session.hello.applied.clone().unwrap().problems;
    assert!(told.iter().any(|text| text.starts_with("alarm: view refused: ")), "{told:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_stolen_controller_may_close() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let mut friends = intent(GATEWAY, Mode::Enforce);
    with_peer(&mut friends);
    let genuine = world.organisation.view_of(&friends, 3, 6);
    let closed = Forgery::of(&world.organisation, genuine.clone())
        .operation(|operation| operation.suspended = vec![REVOKED]);
    for (view, peers) in [(genuine, 1), (closed.view, 0)] {
        session.send(view_message(view)).await;
        assert_eq!(session.hear_applied().await.refused, None);
        assert_eq!(world.plane.told(|told| told.views.last().unwrap().peers.len()), peers);
    }
    assert!(world.status.borrow().alarms.is_empty());
    world.finish().await;
}

#[tokio::test]
async fn old_forked_and_forged_authority_leaves_a_trace() {
    let mut world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let first = world.organisation.chain.clone();
    world.organisation.extend(|_| {});
    let newest = world.organisation.chain.clone();
    session.send(ToAgent::Authority(newest.clone())).await;
    world.until("the second document", |status| status.authority == 2).await;
    let forged = |signer: &IdentityKey| {
        let last = newest.last().unwrap();
        let mut next = last.verify_self_named().unwrap().next(last);
        next.operators[0].key = key(99).public();
        let mut chain: Vec<Signed<Authority>> = newest.clone();
        chain.push(Signed::sign(&next, signer));
        chain
    };
    let stolen = world.organisation.controller.clone();
    for (what, chain, problem) in [
        ("the old chain", first, "doesn't contain document 2"),
        ("operators by the controller's word", forged(&stolen), "may not sign it"),
        ("operators by their own word", forged(&key(99)), "may not sign it"),
        ("nothing", Vec::new(), "is empty"),
    ] {
        session.send(ToAgent::Authority(chain)).await;
        world
            .until(what, |status| status.alarms.iter().any(|alarm| alarm.what.contains(problem)))
            .await;
        assert_eq!(world.status.borrow().authority, 2, "{what}");
    }
    assert_eq!(world.plane.told(|told| told.authorities.clone()), [1, 2], "what peers are told");
    world.finish().await;
}

#[tokio::test]
async fn a_removed_operators_root_is_refused_whatever_it_says() {
    let mut world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let ben = key(77);
    world.organisation.extend(|next| {
        let name = "ben".parse().unwrap();
        next.operators.push(anteroom_proto::authority::Operator { name, key: ben.public() });
    });
    world.organisation.extend(|next| next.operators.truncate(1));
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    for authority in [1, 2, 3] {
        let view = Forgery::of(&world.organisation, world.organisation.view(4, 7, Mode::Enforce))
            .leaf(observed)
            .root(&ben, |root| root.authority = authority)
            .view;
        session.send(view_message(view)).await;
        let refused = session.hear_applied().await.refused.unwrap();
        assert!(refused.contains("may not sign it"), "{refused}");
    }
    assert!(world.plane.told(|told| told.views.is_empty()));
    world.finish().await;
}

#[tokio::test]
async fn a_peer_that_knows_a_newer_authority_gives_a_withholding_controller_away() {
    let mut world = World::new();
    let mut session = world.session().await;
    world.plane.told(|told| {
        told.tunnels = vec![TunnelState {
            gateway: REVOKED,
            client: false,
            live: true,
            round_trip: None,
            revision: Some(4),
            authority: Some(5),
            endpoint: None,
            path_mtu: None,
            relay: None,
            path: None,
            shut_off: false,
            secrecy: None,
        }];
    });
    session.welcome(50, 5).await;
    world
        .until("held back", |status| {
            status.alarms.iter().any(|alarm| {
                alarm.what.contains("holds authority document 5, and this gateway was given 1")
            })
        })
        .await;
    // It came soon, so nobody held it back: the controller was out of reach, perhaps.
    while world.organisation.chain.len() < 5 {
        world.organisation.extend(|_| {});
    }
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    world.until("taken back", |status| status.alarms.is_empty()).await;
    world.finish().await;
}

#[tokio::test]
async fn an_incarnation_that_goes_on_from_an_older_revision_leaves_a_trace() {
    let mut world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let seen = world.organisation.view(9, 7, Mode::Enforce);
    session.send(view_message(seen.clone())).await;
    assert_eq!(session.hear_applied().await.refused, None);
    world.organisation.extend(|next| {
        next.incarnation = 1;
        let hash = seen.root.hash();
        next.root = Some(anteroom_proto::authority::RootId { incarnation: 0, number: 8, hash });
    });
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    world
        .until("told", |status| {
            status.alarms.iter().any(|alarm| {
                alarm.what.contains("goes on from revision 8, but this gateway holds revision 9")
            })
        })
        .await;
    world.finish().await;
}

/// Answers questions for the authority with `chain` until an agent says hello.
async fn answer(endpoint: &quinn::Endpoint, chain: &[Signed<Authority>]) -> (Session, usize) {
    let mut asked = 0;
    let greeting = async {
        loop {
            let Ok(connection) = endpoint.accept().await.expect("open").await else { continue };
            let Ok((send, receive)) = connection.accept_bi().await else { continue };
            let mut reader = MessageReader::new(receive, MAX_TO_CONTROLLER);
            let mut writer = MessageWriter::new(send);
            match reader.next().await {
                Ok(Some(ToController::AskAuthority { organisation, gateway })) => {
                    assert_eq!((organisation, gateway), (ORGANISATION, GATEWAY));
                    asked += 1;
                    writer.send(&ToAgent::Authority(chain.to_vec())).await.unwrap();
                    connection.closed().await;
                }
                Ok(Some(ToController::Hello(hello))) => {
                    return Session {
                        connection: connection.into(),
                        reader,
                        writer,
                        hello: *hello,
                    };
                }
                _ => {}
            }
        }
    };
    let session = timeout(DEADLINE, greeting).await.expect("a hello");
    (session, asked)
}

#[tokio::test]
async fn a_controller_with_another_key_is_followed_by_the_chain() {
    let mut world = World::on(&key(50), |state| state, |_, _| {});
    world.organisation.extend(|next| {
        next.controllers[0].key = key(50).public();
        next.incarnation = 1;
    });
    world.organisation.controller = key(50);
    let chain = world.organisation.chain.clone();
    let (mut session, asked) = answer(&world.endpoint, &chain).await;
    assert_eq!((asked, session.hello.authority), (1, 2));
    session.welcome(60_000, 5).await;
    session.send(view_message(world.organisation.view(4, 7, Mode::Observe))).await;
    assert_eq!(session.hear_applied().await.refused, None);
    assert!(world.status.borrow().alarms.is_empty(), "{:?}", world.status.borrow());
    // The old key's views count no more.
    world.organisation.controller = key(11);
    session.send(view_message(world.organisation.view(5, 8, Mode::Observe))).await;
    assert!(session.hear_applied().await.refused.unwrap().contains("may not sign it"));
    world.finish().await;
}

#[tokio::test]
async fn whoever_has_another_key_and_no_document_for_it_gets_no_hello() {
    let world = World::on(&key(51), |state| state, |_, _| {});
    // A chain by the impostor's own hand, and then the true one, which doesn't name it.
    let last = world.organisation.chain[0].verify_self_named().unwrap();
    let mut next = last.next(last.signed());
    next.controllers[0].key = key(51).public();
    let forged = vec![world.organisation.chain[0].clone(), Signed::sign(&next, &key(51))];
    let endpoint = world.endpoint.clone();
    let greeted = tokio::spawn(async move { answer(&endpoint, &forged).await });
    let fingerprint = key(51).public().fingerprint().to_string();
    world
        .until("told", |status| {
            let has = |text: &str| status.alarms.iter().any(|alarm| alarm.what.contains(text));
            has("authority documents refused: ") && has(&fingerprint)
        })
        .await;
    assert!(!greeted.is_finished(), "it was greeted");
    greeted.abort();
    assert_eq!(world.status.borrow().authority, 1);
    world.finish().await;
}

/// The revoked peer's tunnel key number `serial`, as it signed it while it was one.
fn bound(serial: u64) -> Signed<TunnelKeyBinding> {
    let byte = u8::try_from(serial).unwrap();
    let binding = TunnelKeyBinding {
        organisation: ORGANISATION,
        gateway: REVOKED,
        x25519: TunnelSecret::from_bytes([byte; 32]).public(),
        ml_kem_768: None,
        serial,
        not_before: UnixMillis(0),
    };
    Signed::sign(&binding, &key(66))
}

fn with_keys(
    organisation: &Organisation,
    sequence: u64,
    keys: Vec<Signed<TunnelKeyBinding>>,
) -> SignedView {
    let mut friends = intent(GATEWAY, Mode::Enforce);
    with_peer(&mut friends);
    let view = organisation.view_of(&friends, 3, sequence);
    let peer = PeerOperation { gateway: REVOKED, endpoints: Vec::new(), keys, quic: None };
    let forgery = Forgery::of(organisation, view).operation(|operation| {
        operation.number.sequence = sequence;
        operation.peers = vec![peer];
    });
    forgery.view
}

#[tokio::test]
async fn a_stolen_controller_brings_back_no_tunnel_key_that_was_replaced() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    for (sequence, serial) in [(6, 40), (7, 41)] {
        let view = with_keys(&world.organisation, sequence, vec![bound(serial)]);
        session.send(view_message(view)).await;
        assert_eq!(session.hear_applied().await.problems, [""; 0]);
    }
    // The key with serial 40 was replaced because somebody else has it. He has the controller as well now.
    for (sequence, keys) in
        [(8, vec![bound(40)]), (9, vec![bound(41), bound(40)]), (10, vec![bound(39), bound(40)])]
    {
        session.send(view_message(with_keys(&world.organisation, sequence, keys))).await;
        let applied = session.hear_applied().await;
        assert_eq!((applied.refused, applied.number.sequence), (None, sequence));
        let told = applied.problems.join("; ");
        assert!(told.contains("serial 40: it was replaced by one with serial 41"), "{told}");
        let view = world.plane.told(|told| told.views.last().unwrap().clone());
        let used: Vec<u64> = view.peers[0].keys.iter().map(|key| key.serial).collect();
        assert_eq!(used, [41], "view {sequence}");
    }
    let alarms = world.status.borrow().alarms.clone();
    assert!(alarms.iter().any(|alarm| alarm.what.contains("serial 40")), "{alarms:?}");
    let state = world.state.clone();
    let World { agent, stop, _parent: parent, .. } = world;
    stop.send_replace(true);
    timeout(DEADLINE, agent).await.expect("it stops").unwrap().unwrap();

    // A restart makes it forget nothing, and neither does the loss of the view.
    for lost in ["", "view"] {
        if !lost.is_empty() {
            std::fs::remove_file(state.path().join(lost)).unwrap();
        }
        let mut held = Held::load(&state).unwrap().enrolled.unwrap();
        if let Some(view) = &held.view {
            assert_eq!(view.peers[0].keys[0].serial, 41);
        }
        let organisation = Organisation::new(&[]);
        let old = with_keys(&organisation, 11, vec![bound(40)]);
        let mut old = organisation.verified(&old);
        assert_eq!(held.keys.hold(&mut old).len(), 1, "without {lost:?}");
        assert_eq!(old.peers[0].keys[0].serial, 41);
    }
    drop(parent);
}

#[tokio::test]
async fn a_gateway_that_lost_its_tunnel_keys_counts_on_from_the_confirmed_time() {
    let world = World::new();
    let mut session = world.session().await;
    let identity = world.state.identity().unwrap().unwrap().public();
    let first = check_binding(&session.hello.reachable.keys[0], identity);
    // By the time that the controller knows the lost keys' serials were lower.
    let time = (first.serial + 1_000_000) * 1000;
    session.welcome(60_000, time).await;
    let named = loop {
        if let ToController::Reachable(reachable) = session.hear().await {
            break check_binding(&reachable.keys[0], identity);
        }
    };
    assert_eq!(named.x25519, first.x25519, "the same key");
    assert_eq!(named.serial, first.serial + 1_000_000);
    world.finish().await;
}
