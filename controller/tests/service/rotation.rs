//! Tunnel keys that operators want replaced, and what peers are told of keys.

use anteroom_proto::api::{AuditEntry, GatewayStatus, RotateAnswer, RotateRequest, paths};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::key::TunnelSecret;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{ROTATES, Reachable, Rotate, ToAgent, ToController};

use crate::distribution::hospital;
use crate::support::{Agent, Connected, ORGANISATION, Service, empty_report, until};

fn key(agent: &Agent, seed: u8, serial: u64) -> Signed<TunnelKeyBinding> {
    let binding = TunnelKeyBinding {
        organisation: ORGANISATION,
        gateway: agent.gateway,
        x25519: TunnelSecret::from_bytes([seed; 32]).public(),
        ml_kem_768: None,
        serial,
        not_before: UnixMillis(0),
    };
    Signed::sign(&binding, &agent.identity)
}

/// What it is asked next; views and the rest are passed over.
async fn asked(connected: &mut Connected) -> Rotate {
    loop {
        if let ToAgent::Rotate(rotate) = connected.next().await {
            return rotate;
        }
    }
}

async fn offer(connected: &mut Connected, agent: &Agent, keys: &[Signed<TunnelKeyBinding>]) {
    let reachable = Reachable { keys: keys.to_vec(), ..agent.reachable() };
    connected.writer.send(&ToController::Reachable(reachable)).await.unwrap();
}

#[tokio::test]
async fn gateways_are_asked_for_new_keys_until_they_have_them() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(ROTATES.into());
    agents[2].capabilities.push(ROTATES.into());
    let mut first = agents[0].connect(&service).await;
    let _old = agents[1].connect(&service).await;
    drop(agents[2].connect(&service).await);
    until("it is seen to be gone", async || {
        let all: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
        let found = all.into_iter().find(|status| status.gateway == agents[2].gateway)?;
        (!found.online && found.last_seen.is_some()).then_some(())
    })
    .await;
    let request = RotateRequest {
        gateways: agents.iter().map(|agent| agent.gateway).collect(),
        now: false,
        reason: Some("a spare went missing".into()),
    };
    let answer: RotateAnswer = desk.client.post(paths::ROTATIONS, &request).await;
    assert_eq!(answer.asked, [agents[0].gateway]);
    assert_eq!(answer.unable, [agents[1].gateway], "an agent that can't");
    assert_eq!(answer.offline, [agents[2].gateway]);
    assert_eq!(asked(&mut first).await, Rotate { up_to: 1, now: false });
    let audit: Vec<AuditEntry> = desk.client.get(&format!("{}?after=0", paths::AUDIT)).await;
    let entry = audit.iter().find(|entry| entry.action == "gateway rotate").unwrap();
    assert_eq!(entry.reason.as_deref(), Some("a spare went missing"), "{entry:?}");
    assert!(entry.subject.contains("all 3"), "{entry:?}");

    // It breaks off before it did so, and the controller starts anew: it is asked again.
    drop(first);
    service.stop().await;
    service.start().await;
    let mut first = agents[0].connect(&service).await;
    assert_eq!(asked(&mut first).await, Rotate { up_to: 1, now: false });
    let keys = [key(&agents[0], 51, 2), key(&agents[0], 1, 1)];
    offer(&mut first, &agents[0], &keys).await;
    // One that comes back later is asked then.
    let mut third = agents[2].connect(&service).await;
    assert_eq!(asked(&mut third).await.up_to, 1);
}

#[tokio::test]
async fn a_gateway_put_back_from_an_older_image_is_asked_for_a_key_that_peers_take() {
    let mut service = Service::new().await;
    let (_desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(ROTATES.into());
    let mut first = agents[0].connect(&service).await;
    let keys = [key(&agents[0], 51, 9), key(&agents[0], 1, 1)];
    offer(&mut first, &agents[0], &keys).await;
    // It is taken in by the time when the second of two reports is answered; views come in between.
    let report = empty_report(agents[0].boot, 7);
    first.writer.send(&ToController::Report(Box::new(report))).await.unwrap();
    let stored = ToAgent::Reported { boot: agents[0].boot, sequence: 7 };
    while first.next().await != stored {}
    drop(first);
    service.stop().await;
    service.start().await;
    // The image has the key of serial 1 alone.
    let mut first = agents[0].connect(&service).await;
    assert_eq!(asked(&mut first).await, Rotate { up_to: 9, now: false });
    // Cut off before it did so, it is asked again: the key that it lost isn't forgotten.
    drop(first);
    let mut first = agents[0].connect(&service).await;
    assert_eq!(asked(&mut first).await, Rotate { up_to: 9, now: false });
}

/// As after a restore: the controller knows neither's key, and hears the thief first.
#[tokio::test]
async fn the_owner_of_a_key_that_a_thief_named_first_is_served_and_asked_for_another() {
    let service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(ROTATES.into());
    let mut thief = agents[1].connect(&service).await;
    let stolen = agents[1].binding_of(&agents[0]);
    offer(&mut thief, &agents[1], &[stolen]).await;
    let report = empty_report(agents[1].boot, 7);
    thief.writer.send(&ToController::Report(Box::new(report))).await.unwrap();
    let stored = ToAgent::Reported { boot: agents[1].boot, sequence: 7 };
    while thief.next().await != stored {}
    let mut owner = agents[0].connect(&service).await;
    assert_eq!(asked(&mut owner).await, Rotate { up_to: 1, now: false });
    // The agent names both, as at any change of keys.
    offer(&mut owner, &agents[0], &[key(&agents[0], 51, 2), key(&agents[0], 1, 1)]).await;
    until("the new key is shown, and the other nowhere", async || {
        let all: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
        let found = all.into_iter().find(|status| status.gateway == agents[0].gateway)?;
        let serials: Vec<u64> =
            found.tunnel_keys.iter().map(|key| key.verify_self_named().unwrap().serial).collect();
        (serials == [2]).then_some(())
    })
    .await;
    let audit: Vec<AuditEntry> = desk.client.get(&format!("{}?after=0", paths::AUDIT)).await;
    let of = |entry: &&AuditEntry| entry.action == "gateway tunnel key refused";
    assert_eq!(audit.iter().filter(of).count(), 1, "{audit:?}");
}

#[tokio::test]
async fn in_an_emergency_one_that_still_offers_the_old_key_is_asked_again() {
    let service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(ROTATES.into());
    let mut first = agents[0].connect(&service).await;
    for (now, wanted) in [(true, true), (false, true)] {
        let request = RotateRequest { gateways: vec![agents[0].gateway], now, reason: None };
        let answer: RotateAnswer = desk.client.post(paths::ROTATIONS, &request).await;
        assert_eq!(answer.asked, [agents[0].gateway]);
        assert_eq!(asked(&mut first).await.up_to, 1);
        drop(first);
        first = agents[0].connect(&service).await;
        // That it was to go at once isn't taken back by a later, milder wish.
        assert_eq!(asked(&mut first).await, Rotate { up_to: 1, now: wanted });
    }
    let nobody = RotateRequest { gateways: vec![], now: false, reason: None };
    assert_eq!(desk.client.post_status(paths::ROTATIONS, &nobody).await, 400);
}

#[tokio::test]
async fn peers_hear_of_new_keys_at_once_and_never_of_those_for_clients() {
    let service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let mut first = agents[0].connect(&service).await;
    let mut second = agents[1].connect(&service).await;
    let view = second.view().await;
    agents[1].take(&mut second, &desk.authority(), &view).await;
    let keys = [
        key(&agents[0], 51, 2),
        key(&agents[0], 1, 1),
        key(&agents[0], 1, TunnelKeyBinding::FOR_CLIENTS),
    ];
    offer(&mut first, &agents[0], &keys).await;
    let mut serials = Vec::new();
    while serials != [2, 1] {
        let signed = second.view().await;
        let operation = signed.operation.verify_self_named().unwrap();
        let peer = operation.peers.iter().find(|peer| peer.gateway == agents[0].gateway).unwrap();
        let of = |key: &Signed<TunnelKeyBinding>| key.verify_self_named().unwrap().serial;
        serials = peer.keys.iter().map(of).collect();
        agents[1].take(&mut second, &desk.authority(), &signed).await;
    }
    // Operators are shown all of them: clients' configurations name one.
    until("all three are shown", async || {
        let all: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
        let found = all.into_iter().find(|status| status.gateway == agents[0].gateway)?;
        (found.tunnel_keys.len() == 3).then_some(())
    })
    .await;
    // Another gateway doesn't get hold of the clients' key either.
    let stolen = agents[1].binding_of(&agents[0]);
    offer(&mut second, &agents[1], &[stolen]).await;
    loop {
        if let ToAgent::Refused(refusal) = second.next().await {
            assert!(refusal.message.contains("another gateway's"), "{}", refusal.message);
            break;
        }
    }
}
