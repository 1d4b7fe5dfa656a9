//! Views: who gets one, when, and with what in it.

use std::time::{Duration, Instant};

use anteroom_controller_core::model::{Attachment, Device, Model};
use anteroom_proto::api::{GatewayStatus, Progress, paths};
use anteroom_proto::id::MemberId;
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{Applied, RefusalCode, ToController};

use crate::support::{Agent, Connected, Desk, Service, refusal, soon, until};

pub(crate) fn device(agent: &Agent, name: &str, last: u8) -> Device {
    Device {
        name: name.parse().unwrap(),
        attachment: Attachment {
            gateway: agent.gateway,
            port: "port1".parse().unwrap(),
            vlan: None,
            mac: MacAddr([2, 0, 0, 0, 0, last]),
        },
        addresses: vec![format!("10.20.{last}.7/32").parse().unwrap()],
        prefix_len: Some(24),
        router: None,
        labels: std::collections::BTreeMap::new(),
        mode: Mode::Protect,
        mode_since: 1,
        confirmed_at: UnixMillis(1),
        quarantined: false,
        on_failure: OnFailure::Default,
        rollout: anteroom_proto::rollout::Rollout::default(),
    }
}

const POLICY: &str = "format = 1
[rule.ct-to-pacs]
from = \"ct-1\"
to = \"pacs-1\"
services = [\"dicom\"]
";

/// Gateways 1 and 2 with a device each and a rule between them; gateway 3 with nothing.
pub(crate) async fn hospital(service: &Service) -> (Desk, Vec<Agent>) {
    let desk = service.claimed().await;
    let mut agents = Vec::new();
    for (n, name) in [(1, "imaging"), (2, "server-room"), (3, "ward")] {
        let agent = desk.invites(n, name).await;
        agent.enrol(service).await;
        agents.push(agent);
    }
    let fill = |model: &mut Model| {
        for (agent, name) in agents.iter().zip(["imaging", "server-room", "ward"]) {
            model.gateways.insert(agent.gateway, agent.approved(name));
        }
        model.devices.insert(MemberId::from_bytes([1; 16]), device(&agents[0], "ct-1", 1));
        model.devices.insert(MemberId::from_bytes([2; 16]), device(&agents[1], "pacs-1", 2));
        model.policy = POLICY.into();
    };
    desk.change(fill).await;
    (desk, agents)
}

/// Connects and takes the view that comes.
async fn in_force(service: &Service, desk: &Desk, agent: &mut Agent) -> Connected {
    let mut connected = agent.connect(service).await;
    assert!(connected.welcome.approved);
    let view = connected.view().await;
    agent.take(&mut connected, &desk.authority(), &view).await;
    connected
}

async fn status(desk: &Desk, agent: &Agent) -> GatewayStatus {
    let all: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
    all.into_iter().find(|status| status.gateway == agent.gateway).unwrap()
}

#[tokio::test]
async fn approval_pushes_a_view_that_the_agent_believes() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let mut agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    let mut connected = agent.connect(&service).await;
    assert!(!connected.welcome.approved);
    connected.is_quiet(&agent, 1).await;
    let accepted = desk.approve(&agent, "imaging").await;
    let signed = connected.view().await;
    let progress: Progress = desk.client.get("/v1/progress/1").await;
    assert!(!progress.gateways[0].applied && progress.gateways[0].online, "{progress:?}");
    let lag = status(&desk, &agent).await;
    assert!(lag.behind_since.is_some() && lag.wanted == 1 && lag.revision.is_none(), "{lag:?}");
    let view = agent.take(&mut connected, &desk.authority(), &signed).await;
    assert_eq!((view.revision, view.operation.number.to_string()), (accepted.number, "1.1".into()));
    let progress = until("the acknowledgement", async || {
        let progress: Progress = desk.client.get("/v1/progress/1").await;
        progress.gateways[0].applied.then_some(progress)
    })
    .await;
    assert!(progress.gateways[0].applied_at.is_some());
    let now = status(&desk, &agent).await;
    assert_eq!((now.revision, now.behind_since, now.online), (Some(1), None, true));
    service.stop().await;
}

#[tokio::test]
async fn only_whom_a_change_affects_hears_of_it() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let mut links = Vec::new();
    for agent in &mut agents {
        links.push(in_force(&service, &desk, agent).await);
    }
    // Each peer that connects changes what the others are told of tunnel ends.
    let view = links[0].view().await;
    let view = agents[0].take(&mut links[0], &desk.authority(), &view).await;
    assert_eq!(view.peers.len(), 1);
    assert_eq!(view.peers[0].endpoints, agents[1].endpoints);
    assert_eq!(view.peers[0].keys.len(), 1);
    assert!(view.left_out.is_empty(), "{:?}", view.left_out);

    let accepted = desk
        .change(|model| model.policy = model.policy.replace("\"dicom\"", "\"dicom\", \"hl7\""))
        .await;
    assert_eq!(accepted.affected, [agents[0].gateway, agents[1].gateway]);
    for n in [0, 1] {
        let view = links[n].view().await;
        let view = agents[n].take(&mut links[n], &desk.authority(), &view).await;
        assert_eq!(view.revision, 2);
    }
    links[2].is_quiet(&agents[2], 1).await;
    let lag = status(&desk, &agents[2]).await;
    assert_eq!((lag.revision, lag.wanted, lag.behind_since), (Some(1), 1, None));
    let progress: Progress = desk.client.get("/v1/progress/2").await;
    assert_eq!(progress.gateways.len(), 2);
    service.stop().await;
}

#[tokio::test]
async fn a_peer_that_moves_is_found_again() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let mut pacs = in_force(&service, &desk, &mut agents[1]).await;
    let mut ct = in_force(&service, &desk, &mut agents[0]).await;
    let seen = pacs.view().await;
    agents[1].take(&mut pacs, &desk.authority(), &seen).await;
    agents[1].endpoints = vec!["10.20.4.99:51820".parse().unwrap()];
    let moved = agents[1].reachable();
    pacs.writer.send(&ToController::Reachable(moved.clone())).await.unwrap();
    let signed = ct.view().await;
    let view = agents[0].take(&mut ct, &desk.authority(), &signed).await;
    assert_eq!(view.peers[0].endpoints, agents[1].endpoints);
    // The same once more is no news, and neither is a port that goes down.
    let mut same = moved;
    same.ports[0].up = false;
    pacs.writer.send(&ToController::Reachable(same)).await.unwrap();
    pacs.is_quiet(&agents[1], 1).await;
    ct.is_quiet(&agents[0], 1).await;
    assert!(!status(&desk, &agents[1]).await.ports[0].up);
    // A key that isn't its own is refused.
    let mut foreign = agents[1].reachable();
    foreign.keys = agents[2].reachable().keys;
    pacs.writer.send(&ToController::Reachable(foreign)).await.unwrap();
    assert_eq!(refusal(pacs.next().await).code, RefusalCode::Protocol);
    service.stop().await;
}

#[tokio::test]
async fn revocation_cuts_off_and_tells_the_peers() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let mut pacs = in_force(&service, &desk, &mut agents[1]).await;
    let mut ct = in_force(&service, &desk, &mut agents[0]).await;
    let seen = pacs.view().await;
    agents[1].take(&mut pacs, &desk.authority(), &seen).await;
    let started = Instant::now();
    let accepted = desk.revoke(&agents[0]).await;
    assert_eq!(accepted.affected, [agents[1].gateway], "the revoked one has nothing to apply");
    let last = refusal(ct.next().await);
    assert_eq!((last.code, last.fatal), (RefusalCode::Revoked, false));
    soon("the connection to be closed", ct.link.connection().closed()).await;
    let cut_off = started.elapsed();
    let signed = pacs.view().await;
    let view = agents[1].take(&mut pacs, &desk.authority(), &signed).await;
    assert!(view.peers.is_empty(), "{:?}", view.peers);
    let hello = ToController::Hello(Box::new(agents[0].hello()));
    let again = crate::support::first_words(&service, &agents[0].identity, &hello).await;
    assert_eq!(refusal(again).code, RefusalCode::Revoked);
    println!("revoked and cut off after {cut_off:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_refused_view_is_shown_and_not_sent_again_and_again() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let mut connected = agents[2].connect(&service).await;
    let signed = connected.view().await;
    let verified = anteroom_proto::view::View::verify(
        &signed,
        agents[2].gateway,
        &desk.authority(),
        &agents[2].floor,
    )
    .unwrap();
    let refused = Applied {
        number: verified.operation.number,
        revision: 1,
        intent_hash: verified.intent_hash,
        refused: Some("the disk\u{7} is full".into()),
        problems: vec![],
    };
    connected.writer.send(&ToController::Applied(refused)).await.unwrap();
    connected.is_quiet(&agents[2], 1).await;
    let shown = status(&desk, &agents[2]).await;
    assert_eq!(shown.refused.as_deref(), Some("the disk is full"));
    assert_eq!((shown.revision, shown.behind_since.is_some()), (None, true));
    let progress: Progress = desk.client.get("/v1/progress/1").await;
    let ward = progress.gateways.iter().find(|at| at.gateway == agents[2].gateway).unwrap();
    assert!(!ward.applied && ward.refused.is_some(), "{ward:?}");
    // When it connects again, it gets another try, under a new number.
    connected.link.close("again").await;
    let connected = in_force(&service, &desk, &mut agents[2]).await;
    assert_eq!(agents[2].applied.as_ref().unwrap().number.to_string(), "1.2");
    until("the refusal to be gone", async || {
        status(&desk, &agents[2]).await.refused.is_none().then_some(())
    })
    .await;
    drop(connected);
    service.stop().await;
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let connected = in_force(&service, &desk, &mut agents[0]).await;
    until("the acknowledgement", async || {
        (status(&desk, &agents[0]).await.revision == Some(1)).then_some(())
    })
    .await;
    service.stop().await;
    let reason = soon("the agent to hear of it", connected.link.connection().closed()).await;
    assert!(reason.to_string().contains("connect again"), "{reason}");
    service.start().await;
    let desk = Desk::new(&service).log_in().await;
    // What it has is what it should have: nothing is sent.
    let mut connected = agents[0].connect(&service).await;
    assert!(connected.welcome.approved);
    connected.is_quiet(&agents[0], 1).await;
    // A change goes on counting.
    desk.change(|model| model.policy = model.policy.replace("\"dicom\"", "\"hl7\"")).await;
    let signed = connected.view().await;
    let view = agents[0].take(&mut connected, &desk.authority(), &signed).await;
    assert_eq!((view.revision, view.operation.number.to_string()), (2, "1.2".into()));
    // An agent that lost its disk gets the view again, under a higher number than any before.
    connected.link.close("lost").await;
    agents[0].applied = None;
    let _connected = in_force(&service, &desk, &mut agents[0]).await;
    assert_eq!(agents[0].applied.as_ref().unwrap().number.to_string(), "1.3");
    service.stop().await;
}

#[tokio::test]
async fn a_change_reaches_gateways_at_once() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let mut connected = in_force(&service, &desk, &mut agents[2]).await;
    let mut took = Vec::new();
    for n in 0..20u32 {
        let (mut model, base) = desk.base().await;
        model.policy = format!("{POLICY}[infrastructure.north]\nntp = [\"10.20.0.{}\"]\n", n + 1);
        let update = desk.update(&model, &desk.root(&model, base.as_ref()));
        let started = Instant::now();
        let accepted = desk.client.post_status(paths::MODEL, &update).await;
        assert_eq!(accepted, 200);
        let signed = connected.view().await;
        took.push(started.elapsed());
        agents[2].take(&mut connected, &desk.authority(), &signed).await;
    }
    took.sort();
    println!("POST to view at the agent: median {:?}, slowest {:?}", took[10], took[19]);
    // What a busy machine adds is no fault; a queue that waits for its next round is.
    assert!(took[10] < Duration::from_secs(5), "{took:?}");
    // One view a change, and no more.
    connected.is_quiet(&agents[2], 1).await;
    service.stop().await;
}

#[tokio::test]
async fn a_port_for_quic_is_told_to_peers_that_know_what_it_is() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    agents[0].capabilities.push(anteroom_proto::direct::CAPABILITY.into());
    agents[0].quic = Some(8443);
    agents[1].quic = Some(443);
    let mut first = in_force(&service, &desk, &mut agents[0]).await;
    let mut second = agents[1].connect(&service).await;
    let view = second.view().await;
    let view = agents[1].take(&mut second, &desk.authority(), &view).await;
    assert_eq!(view.peers[0].quic, None, "an older agent would refuse the view");
    let view = first.view().await;
    let view = agents[0].take(&mut first, &desk.authority(), &view).await;
    assert_eq!(view.peers[0].quic, Some(443));

    // What is said later of addresses and keys says nothing of it.
    let moved: std::net::SocketAddr = "10.20.9.9:51820".parse().unwrap();
    agents[1].endpoints = vec![moved];
    let reachable = ToController::Reachable(agents[1].reachable());
    second.writer.send(&reachable).await.unwrap();
    let view = first.view().await;
    let view = agents[0].take(&mut first, &desk.authority(), &view).await;
    assert_eq!((view.peers[0].endpoints.clone(), view.peers[0].quic), (vec![moved], Some(443)));
    service.stop().await;
}
