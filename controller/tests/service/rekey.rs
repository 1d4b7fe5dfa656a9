//! Identity keys that are replaced in their place.

use anteroom_proto::api::{
    AuditEntry, GatewayStatus, RekeyAnswer, RekeyDoubt, RekeyRequest, RekeyState, paths,
};
use anteroom_proto::cose::Signed;
use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_proto::rekey::{CAPABILITY, MAX_AHEAD, RekeyOffer, RekeyOrder};
use anteroom_proto::v1::{RefusalCode, ToAgent, ToController};
use anteroom_proto::view::{SignedView, View};

use crate::distribution::hospital;
use crate::support::{Agent, Connected, Desk, ORGANISATION, Service, first_words, refusal, until};

fn order(desk: &Desk, agent: &Agent, number: u64, withdraw: bool) -> RekeyRequest {
    let order = RekeyOrder { organisation: ORGANISATION, gateway: agent.gateway, number, withdraw };
    let order = Signed::sign(&order, &desk.key);
    RekeyRequest { order, reason: Some("a disk went missing".into()) }
}

async fn ask(desk: &Desk, agent: &Agent, number: u64) -> RekeyAnswer {
    desk.client.post(paths::REKEYS, &order(desk, agent, number, false)).await
}

/// What it is ordered next; the rest is passed over.
async fn ordered(connected: &mut Connected) -> RekeyOrder {
    loop {
        if let ToAgent::Rekey(order) = connected.next().await {
            return order.verify_self_named().unwrap().into_document();
        }
    }
}

/// What `agent` offers with `new` upon order `number`.
fn offer(agent: &Agent, new: &IdentityKey, number: u64) -> RekeyOffer {
    let who = (ORGANISATION, agent.gateway, number);
    RekeyOffer::new(who, &agent.identity, new, vec![with(agent, new).binding_of(agent)])
}

/// The same gateway with another identity key.
fn with(agent: &Agent, key: &IdentityKey) -> Agent {
    let mut other = Agent::new(agent.gateway.as_bytes()[0]);
    other.identity = key.clone();
    other.capabilities.clone_from(&agent.capabilities);
    other.applied.clone_from(&agent.applied);
    other.floor = agent.floor;
    other
}

async fn send(connected: &mut Connected, offer: RekeyOffer) {
    connected.writer.send(&ToController::Rekey(Box::new(offer))).await.unwrap();
}

async fn state(desk: &Desk, agent: &Agent) -> Option<RekeyState> {
    let all: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
    all.into_iter().find(|status| status.gateway == agent.gateway).unwrap().rekey
}

async fn offered(desk: &Desk, agent: &Agent, wanted: &RekeyOffer) {
    until("the offer is shown", async || {
        (state(desk, agent).await?.offer.as_ref() == Some(wanted)).then_some(())
    })
    .await;
}

async fn approve(desk: &Desk, agent: &Agent, new: PublicKey) {
    let (name, old) =
        (desk.base().await.0.gateways[&agent.gateway].name.clone(), agent.identity.public());
    desk.change(|model| {
        model.rekey_gateway(name.as_str(), old, new).unwrap();
    })
    .await;
}

async fn restart(service: &mut Service, desk: &mut Desk) {
    service.stop().await;
    service.start().await;
    let token = desk.client.token.take();
    desk.client = service.client();
    desk.client.token = token;
}

/// The next view in which `peer` has the identity `key`.
async fn view_with(
    desk: &Desk,
    agent: &mut Agent,
    connected: &mut Connected,
    peer: &Agent,
    key: PublicKey,
) -> (SignedView, View) {
    loop {
        let ToAgent::View(signed) = connected.next().await else { continue };
        let view = agent.take(connected, &desk.authority(), &signed).await;
        assert!(view.left_out.is_empty(), "{:?}", view.left_out);
        let found = view.peers.iter().find(|found| found.gateway.gateway == peer.gateway).unwrap();
        if found.gateway.identity == key {
            return (*signed, view);
        }
    }
}

#[tokio::test]
async fn peers_are_never_without_keys_and_the_old_identity_is_refused_at_once() {
    let mut service = Service::new().await;
    let (mut desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(CAPABILITY.into());
    let new = IdentityKey::from_seed(&[77; 32]);
    let mut first = agents[0].connect(&service).await;
    let mut second = agents[1].connect(&service).await;
    let view = second.view().await;
    agents[1].take(&mut second, &desk.authority(), &view).await;
    assert_eq!(ask(&desk, &agents[1], 1).await, RekeyAnswer::Unable, "an agent that can't");
    assert_eq!(state(&desk, &agents[1]).await, None);
    assert_eq!(ask(&desk, &agents[0], 5).await, RekeyAnswer::Asked);
    assert_eq!(ordered(&mut first).await.number, 5);

    // Nothing that the gateway didn't offer can be signed in.
    let (mut model, base) = desk.base().await;
    model.rekey_gateway("imaging", agents[0].identity.public(), new.public()).unwrap();
    let update = desk.update(&model, &desk.root(&model, base.as_ref()));
    assert_eq!(desk.client.post_status(paths::MODEL, &update).await, 409);
    let stranger = IdentityKey::from_seed(&[78; 32]);
    let mut forged = offer(&agents[0], &new, 5);
    forged.by_old = offer(&with(&agents[0], &stranger), &new, 5).by_old;
    let mut grabbed = offer(&agents[0], &new, 5);
    grabbed.keys = vec![with(&agents[0], &new).binding_of(&agents[1])];
    for bad in [forged, grabbed, offer(&agents[0], &new, 4)] {
        send(&mut first, bad).await;
    }
    let good = offer(&agents[0], &new, 5);
    send(&mut first, good.clone()).await;
    offered(&desk, &agents[0], &good).await;

    // The controller starts anew: the offer is kept, and the order given again.
    drop((first, second));
    restart(&mut service, &mut desk).await;
    offered(&desk, &agents[0], &good).await;
    let mut first = agents[0].connect(&service).await;
    assert_eq!(ordered(&mut first).await.number, 5);
    let mut second = agents[1].connect(&service).await;

    approve(&desk, &agents[0], new.public()).await;
    let gateway = with(&agents[0], &agents[0].identity);
    let (signed, view) =
        view_with(&desk, &mut agents[1], &mut second, &gateway, new.public()).await;
    assert_eq!(view.peers[0].keys.len(), 1, "with keys that the new identity vouches for");
    loop {
        if let ToAgent::Refused(refusal) = first.next().await {
            assert_eq!(refusal.code, RefusalCode::Unknown, "{refusal:?}");
            assert!(refusal.message.contains("another identity key"), "{refusal:?}");
            break;
        }
    }
    // Another order doesn't take away what was approved before the gateway has come with it.
    let again = order(&desk, &agents[0], 6, false);
    assert_eq!(desk.client.post_status(paths::REKEYS, &again).await, 409);

    // Also over a restart in between.
    drop((first, second));
    restart(&mut service, &mut desk).await;
    let mut second = agents[1].connect(&service).await;
    second.is_quiet(&agents[1], 1).await;
    let held = View::verify(&signed, agents[1].gateway, &desk.authority(), &agents[1].floor);
    assert_eq!(held.unwrap().peers, view.peers);
    for first in [
        ToController::Hello(Box::new(agents[0].hello())),
        ToController::AskAuthority { organisation: ORGANISATION, gateway: agents[0].gateway },
        ToController::Enrol(Box::new(agents[0].enrolment(agents[0].identity.public()))),
    ] {
        let refusal = refusal(first_words(&service, &agents[0].identity, &first).await);
        assert_eq!(refusal.code, RefusalCode::Unknown, "{refusal:?}");
    }

    let mut renewed = with(&agents[0], &new);
    let mut first = renewed.connect(&service).await;
    assert!(first.welcome.approved);
    let view = first.view().await;
    let view = renewed.take(&mut first, &desk.authority(), &view).await;
    assert_eq!(view.intent.identity, Some(new.public()));
    assert_eq!(state(&desk, &agents[0]).await, None, "it is done");
    let audit: Vec<AuditEntry> = desk.client.get(&format!("{}?after=0", paths::AUDIT)).await;
    let entry = audit.iter().find(|entry| entry.action == "gateway rekey ask").unwrap();
    assert_eq!(entry.reason.as_deref(), Some("a disk went missing"), "{entry:?}");
    let changed = audit.last().unwrap();
    let of = |key: PublicKey| format!("identity {}", key.fingerprint());
    assert!(changed.before.as_ref().unwrap().contains(&of(agents[0].identity.public())));
    assert!(changed.after.as_ref().unwrap().contains(&of(new.public())), "{changed:?}");

    // Twice in a row; the first key isn't good for going back to.
    let third = IdentityKey::from_seed(&[79; 32]);
    assert_eq!(ask(&desk, &agents[0], 7).await, RekeyAnswer::Asked);
    assert_eq!(ordered(&mut first).await.number, 7);
    send(&mut first, offer(&renewed, &agents[0].identity, 7)).await;
    let good = offer(&renewed, &third, 7);
    send(&mut first, good.clone()).await;
    offered(&desk, &agents[0], &good).await;
    approve(&desk, &renewed, third.public()).await;
    view_with(&desk, &mut agents[1], &mut second, &gateway, third.public()).await;
    for key in [&agents[0].identity, &new] {
        let hello = ToController::Hello(Box::new(with(&agents[0], key).hello()));
        let refusal = refusal(first_words(&service, key, &hello).await);
        assert_eq!(refusal.code, RefusalCode::Unknown, "{refusal:?}");
    }
    assert!(with(&agents[0], &third).connect(&service).await.welcome.approved);
    service.stop().await;
}

#[tokio::test]
async fn orders_are_an_operators_wait_for_the_gateway_and_can_be_taken_back() {
    let service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(CAPABILITY.into());
    let mut forged = order(&desk, &agents[0], 1, false);
    let stranger = IdentityKey::from_seed(&[78; 32]);
    forged.order =
        Signed::sign(&forged.order.verify_self_named().unwrap().into_document(), &stranger);
    assert_eq!(desk.client.post_status(paths::REKEYS, &forged).await, 400);
    let nobody = order(&desk, &Agent::new(99), 1, false);
    assert_eq!(desk.client.post_status(paths::REKEYS, &nobody).await, 400);

    assert_eq!(ask(&desk, &agents[0], 3).await, RekeyAnswer::Offline);
    let mut first = agents[0].connect(&service).await;
    assert_eq!(ordered(&mut first).await.number, 3);
    let good = offer(&agents[0], &IdentityKey::from_seed(&[77; 32]), 3);
    send(&mut first, good.clone()).await;
    offered(&desk, &agents[0], &good).await;
    let older = order(&desk, &agents[0], 3, false);
    assert_eq!(desk.client.post_status(paths::REKEYS, &older).await, 409, "not a newer one");

    // Replaced by another, then taken back: neither can be approved any more.
    assert_eq!(ask(&desk, &agents[0], 4).await, RekeyAnswer::Asked);
    assert_eq!(ordered(&mut first).await.number, 4);
    assert_eq!(state(&desk, &agents[0]).await.unwrap().offer, None);
    let withdrawn: RekeyAnswer =
        desk.client.post(paths::REKEYS, &order(&desk, &agents[0], 5, true)).await;
    assert_eq!(withdrawn, RekeyAnswer::Asked);
    assert!(ordered(&mut first).await.withdraw);
    for number in [3, 4, 5] {
        send(&mut first, offer(&agents[0], &IdentityKey::from_seed(&[77; 32]), number)).await;
    }
    // What was sent before this is read before it.
    first.is_quiet(&agents[0], 1).await;
    assert_eq!(state(&desk, &agents[0]).await.unwrap().offer, None);
    let (mut model, base) = desk.base().await;
    let new = IdentityKey::from_seed(&[77; 32]).public();
    model.rekey_gateway("imaging", agents[0].identity.public(), new).unwrap();
    let update = desk.update(&model, &desk.root(&model, base.as_ref()));
    assert_eq!(desk.client.post_status(paths::MODEL, &update).await, 409);
}

#[tokio::test]
async fn two_keys_upon_one_order_are_noticed_and_numbers_ahead_of_time_refused() {
    let service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(CAPABILITY.into());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let ahead = u64::try_from(now).unwrap() + 2 * MAX_AHEAD;
    for (number, withdraw) in [(ahead, false), (u64::MAX, false), (u64::MAX, true)] {
        let order = order(&desk, &agents[0], number, withdraw);
        assert_eq!(desk.client.post_status(paths::REKEYS, &order).await, 400, "{number}");
    }
    assert_eq!(ask(&desk, &agents[0], 3).await, RekeyAnswer::Offline);
    let mut first = agents[0].connect(&service).await;
    assert_eq!(ordered(&mut first).await.number, 3);
    let good = offer(&agents[0], &IdentityKey::from_seed(&[77; 32]), 3);
    send(&mut first, good.clone()).await;
    send(&mut first, good.clone()).await;
    offered(&desk, &agents[0], &good).await;
    let held = state(&desk, &agents[0]).await.unwrap();
    assert_eq!((held.doubt, held.unable), (None, false));
    for _ in 0..3 {
        send(&mut first, offer(&agents[0], &IdentityKey::from_seed(&[78; 32]), 3)).await;
    }
    let doubted = until("it is doubted", async || {
        state(&desk, &agents[0]).await.filter(|state| state.doubt.is_some())
    })
    .await;
    assert_eq!(doubted.doubt, Some(RekeyDoubt::Rival));
    assert_eq!(doubted.offer, Some(good), "the first is kept");
    let audit: Vec<AuditEntry> = desk.client.get(&format!("{}?after=0", paths::AUDIT)).await;
    let doubts: Vec<_> =
        audit.iter().filter(|entry| entry.action == "gateway rekey doubted").collect();
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    // The next order begins anew.
    assert_eq!(ask(&desk, &agents[0], 4).await, RekeyAnswer::Asked);
    let state = state(&desk, &agents[0]).await.unwrap();
    assert_eq!((state.offer, state.doubt), (None, None));

    // An agent that was put back to an older version says so.
    drop(first);
    agents[0].capabilities.clear();
    let _first = agents[0].connect(&service).await;
    until("it is unable", async || self::state(&desk, &agents[0]).await?.unable.then_some(()))
        .await;
}

#[tokio::test]
async fn no_revision_forgets_a_key_that_was_replaced() {
    let service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(CAPABILITY.into());
    let new = IdentityKey::from_seed(&[77; 32]);
    let mut first = agents[0].connect(&service).await;
    assert_eq!(ask(&desk, &agents[0], 3).await, RekeyAnswer::Asked);
    assert_eq!(ordered(&mut first).await.number, 3);
    let good = offer(&agents[0], &new, 3);
    send(&mut first, good.clone()).await;
    offered(&desk, &agents[0], &good).await;
    let refused = async |former: Vec<PublicKey>, revoke: bool| {
        let (mut model, base) = desk.base().await;
        let gateway = model.gateways.get_mut(&agents[0].gateway).unwrap();
        (gateway.identity, gateway.former) = (new.public(), former);
        if revoke {
            model.revoke_gateway("imaging").unwrap();
        }
        let update = desk.update(&model, &desk.root(&model, base.as_ref()));
        assert_eq!(desk.client.post_status(paths::MODEL, &update).await, 400);
    };
    let other = IdentityKey::from_seed(&[79; 32]).public();
    refused(vec![], false).await;
    refused(vec![other, agents[0].identity.public()], false).await;
    approve(&desk, &agents[0], new.public()).await;
    refused(vec![], false).await;
    refused(vec![other], false).await;
    refused(vec![], true).await;
}
