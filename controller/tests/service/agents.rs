//! Gateways: enrolment, greetings, reports, and what isn't let in.

use anteroom_proto::api::{
    AuditEntry, Edge, GatewayStatus, HistoryPage, PendingGateway, SightingRecord, SightingsPage,
    paths,
};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::{EdgeDelta, MAX_RELAYS, RelayAway, Sighting};
use anteroom_proto::v1::{Hello, RefusalCode, ToAgent, ToController, frame};
use anteroom_proto::verdict::Verdict;
use anteroom_transport::message::MessageReader;

use crate::support::{Agent, Service, empty_report, first_words, refusal, soon, until};

#[tokio::test]
async fn an_invite_enrols_one_identity_as_often_as_it_asks() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    for _ in 0..2 {
        let ToAgent::Enrolled { authority } = agent.enrol(&service).await else {
            panic!("not enrolled")
        };
        assert_eq!(authority, vec![desk.claim().authority]);
    }
    let second = IdentityKey::from_seed(&[77; 32]);
    let enrol = agent.enrolment(second.public());
    for _ in 0..2 {
        let first = ToController::Enrol(Box::new(enrol.clone()));
        let refused = refusal(first_words(&service, &second, &first).await);
        assert_eq!((refused.code, refused.fatal), (RefusalCode::InviteUsed, true));
    }
    let pending: Vec<PendingGateway> = desk.client.get(paths::PENDING).await;
    assert_eq!(pending.len(), 1);
    let invite = pending[0].invite.verify_self_named().unwrap();
    let claim = pending[0].claim.verify(invite.organisation, &[invite.key]).unwrap();
    assert_eq!(claim.identity, agent.identity.public());
    let log: Vec<AuditEntry> = desk.client.get(paths::AUDIT).await;
    let actions: Vec<&str> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["claim", "gateway invite", "gateway enrol", "gateway enrol refused"]);
    service.stop().await;
}

#[tokio::test]
async fn claims_that_do_not_hold_enrol_nobody() {
    let mut service = Service::new().await;
    let unclaimed = Agent::new(1);
    assert_eq!(refusal(unclaimed.enrol(&service).await).code, RefusalCode::Unknown);
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    let unknown = Agent::new(5);
    assert_eq!(refusal(unknown.enrol(&service).await).code, RefusalCode::Invite);
    let key = agent.identity.public();
    let other = IdentityKey::from_seed(&[66; 32]);
    let mut by_other = agent.enrolment(key);
    by_other.claim = Signed::sign(&agent.claim(key), &other);
    let mut for_other = agent.enrolment(key);
    let mut claim = agent.claim(key);
    claim.gateway = unknown.gateway;
    for_other.claim = Signed::sign(&claim, &IdentityKey::from_seed(&[1 ^ 0xf0; 32]));
    let not_own = agent.enrolment(other.public());
    for (what, enrol) in
        [("another key's", by_other), ("another gateway's", for_other), ("not its own", not_own)]
    {
        let first = ToController::Enrol(Box::new(enrol));
        let refused = refusal(first_words(&service, &agent.identity, &first).await);
        assert_eq!(refused.code, RefusalCode::Invite, "{what}: {refused:?}");
    }
    assert!(desk.client.get::<Vec<PendingGateway>>(paths::PENDING).await.is_empty());
    service.stop().await;
}

#[tokio::test]
async fn only_gateways_are_greeted() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    let hello = |change: &dyn Fn(&mut Hello)| {
        let mut hello = agent.hello();
        change(&mut hello);
        ToController::Hello(Box::new(hello))
    };
    let say = async |identity: &IdentityKey, first: ToController| {
        refusal(first_words(&service, identity, &first).await)
    };
    let own = &agent.identity;
    assert_eq!(say(own, hello(&|_| ())).await.code, RefusalCode::Unknown, "not enrolled");
    agent.enrol(&service).await;
    let other = IdentityKey::from_seed(&[66; 32]);
    assert_eq!(say(&other, hello(&|_| ())).await.code, RefusalCode::Unknown, "another key");
    let elsewhere = hello(&|hello| hello.organisation = OrganisationId::from_bytes([2; 16]));
    assert_eq!(say(own, elsewhere).await.code, RefusalCode::Unknown);
    let refused = say(own, hello(&|hello| hello.versions = (7, 9))).await;
    assert_eq!(refused.code, RefusalCode::Version);
    assert!(refused.message.contains("7 to 9"), "{refused:?}");
    let many = hello(&|hello| hello.reachable.endpoints = vec!["10.0.0.1:1".parse().unwrap(); 17]);
    assert_eq!(say(own, many).await.code, RefusalCode::Protocol);
    let nowhere = hello(&|hello| hello.reachable.endpoints = vec!["0.0.0.0:1".parse().unwrap()]);
    assert_eq!(say(own, nowhere).await.code, RefusalCode::Protocol);
    let foreign = Agent::new(2).reachable().keys;
    let borrowed = hello(&|hello| hello.reachable.keys.clone_from(&foreign));
    let refused = say(own, borrowed).await;
    assert!(refused.message.starts_with("tunnel key: "), "{refused:?}");
    let report = ToController::Report(Box::new(empty_report(agent.boot, 1)));
    assert_eq!(say(own, report).await.code, RefusalCode::Protocol, "out of turn");
    let connected = agent.connect(&service).await;
    assert!(!connected.welcome.approved);
    assert_eq!(connected.welcome.authority, None, "it has the newest");
    service.stop().await;
}

#[tokio::test]
async fn garbage_and_silence_are_cut_off() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    for bytes in [
        vec![0xff; 64],
        vec![0, 0, 0, 3, 1, 2, 3],
        vec![0, 1, 0, 1],
        vec![0, 0, 0, 0],
        [frame::encode(&1), vec![0; 9]].concat(),
    ] {
        let link = service.connect(&agent.identity).await;
        let (mut send, receive) = link.connection().open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let mut reader = MessageReader::<ToAgent>::new(receive, frame::MAX_TO_AGENT);
        let both = async { tokio::join!(reader.next(), send.finish()).0 };
        let answer = soon("a refusal", both).await.unwrap().unwrap();
        assert_eq!(refusal(answer).code, RefusalCode::Protocol, "{bytes:?}");
    }
    // Who says nothing at all is cut off too.
    let link = service.connect(&agent.identity).await;
    let (_send, _receive) = link.connection().open_bi().await.unwrap();
    let reason = soon("the silent one to be cut off", link.connection().closed()).await;
    assert!(reason.is_by_peer(), "{reason}");
    // An agent that ends its stream after a good greeting has gone.
    let connected = agent.connect(&service).await;
    let link = connected.link;
    drop(connected.writer);
    soon("the connection to end", link.connection().closed()).await;
    let again = agent.connect(&service).await;
    assert!(!again.welcome.approved, "the gateway itself isn't harmed");
    service.stop().await;
}

#[tokio::test]
async fn a_newer_connection_of_the_same_gateway_replaces_the_older() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    let first = agent.connect(&service).await;
    let mut second = agent.connect(&service).await;
    let reason = soon("the older to be closed", first.link.connection().closed()).await;
    assert!(reason.to_string().contains("connected again"), "{reason}");
    second.is_quiet(&agent, 1).await;
    let online = async || {
        let pending: Vec<PendingGateway> = desk.client.get(paths::PENDING).await;
        pending[0].online
    };
    assert!(online().await);
    second.link.close("done").await;
    until("it to be offline", async || (!online().await).then_some(())).await;
    service.stop().await;
}

fn sighting() -> Sighting {
    Sighting {
        port: "port1".parse().unwrap(),
        mac: MacAddr([2, 0, 0, 0, 0, 7]),
        vlan: None,
        addresses: vec!["10.20.1.7".parse().unwrap(); 20],
        prefix_len: Some(24),
        router: None,
        member: None,
        held: false,
        kinds: vec!["broadcast".into(), "<script>".into()],
        claim: None,
        first_seen: UnixMillis(5),
        last_seen: UnixMillis(6),
    }
}

fn edge() -> EdgeDelta {
    EdgeDelta {
        mac: MacAddr([2, 0, 0, 0, 0, 7]),
        member: None,
        local: "10.20.1.7".parse().unwrap(),
        remote: "10.20.4.11".parse().unwrap(),
        remote_member: None,
        outbound: true,
        protocol: 6,
        port: 104,
        verdict: Verdict::Clear,
        rule: None,
        flows: 1,
        packets_out: 2,
        packets_in: 3,
        bytes_out: 4,
        bytes_in: 5,
        first: UnixMillis(5),
        last: UnixMillis(6),
    }
}

#[tokio::test]
async fn reports_of_an_unapproved_gateway_count_and_count_once() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    let mut report = empty_report(agent.boot, 1);
    report.sightings = vec![sighting()];
    report.edges = vec![edge()];
    report.drops = [("no-rule".into(), 7), ("made-up".into(), 7)].into();
    let message = ToController::Report(Box::new(report));
    let stored = ToAgent::Reported { boot: agent.boot, sequence: 1 };
    let mut connected = agent.connect(&service).await;
    for _ in 0..2 {
        connected.writer.send(&message).await.unwrap();
        assert_eq!(connected.next().await, stored);
    }
    // An agent that never heard the answer sends it again, to a controller that was restarted.
    service.stop().await;
    service.start().await;
    let desk = crate::support::Desk::new(&service).log_in().await;
    let mut connected = agent.connect(&service).await;
    connected.writer.send(&message).await.unwrap();
    assert_eq!(connected.next().await, stored);
    let edges: Vec<Edge> = desk.client.get(paths::EDGES).await;
    assert_eq!(edges.len(), 1);
    assert_eq!((edges[0].flows, edges[0].bytes_in), (1, 5));
    let page: HistoryPage = desk.client.get(paths::HISTORY).await;
    assert_eq!((&page.edges, page.next), (&edges, None));
    assert_eq!(edges[0].rhythm.days().collect::<Vec<_>>(), [0], "the first day of 1970");
    // A full page tells where to go on, and there is nothing more there.
    let page: HistoryPage = desk.client.get("/v1/history?limit=1").await;
    let next = page.next.unwrap();
    let page: HistoryPage = desk.client.get(&format!("/v1/history?limit=1&after={next}")).await;
    assert_eq!((page.edges.len(), page.next), (0, None));
    let seen: Vec<SightingRecord> = desk.client.get(paths::SIGHTINGS).await;
    let page: SightingsPage = desk.client.get(paths::SIGHTINGS_PAGE).await;
    assert_eq!((&page.sightings, &page.next), (&seen, &None));
    let first: SightingsPage = desk.client.get(&format!("{}?limit=1", paths::SIGHTINGS_PAGE)).await;
    let after = first.next.expect("a full page may have another behind it");
    let query = format!("{}?limit=1&after={after}", paths::SIGHTINGS_PAGE);
    let behind: SightingsPage = desk.client.get(&query).await;
    assert_eq!(behind, SightingsPage::default(), "there was one alone");
    assert_eq!((seen.len(), seen[0].gateway), (1, agent.gateway));
    assert_eq!(seen[0].sighting.addresses.len(), 8);
    assert_eq!(seen[0].sighting.kinds, ["broadcast"]);
    assert!(desk.client.get::<Vec<GatewayStatus>>(paths::GATEWAYS).await.is_empty());
    desk.approve(&agent, "imaging").await;
    let status: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
    assert_eq!(status[0].drops, [("no-rule".to_owned(), 7)].into());
    assert_eq!(status[0].agent_version.as_deref(), Some("0.1.0-test"));
    assert_eq!(status[0].ports.len(), 1);
    service.stop().await;
}

#[tokio::test]
async fn relays_that_a_gateway_tries_in_vain_are_told_as_its_newest_report_says() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    let mut connected = agent.connect(&service).await;
    let key = IdentityKey::from_seed(&[90; 32]).public();
    let error = format!("timed\u{1b}[2J out{}", "!".repeat(RelayAway::MAX_ERROR));
    let mut report = empty_report(agent.boot, 1);
    report.relays_away = vec![RelayAway { key, seconds: 90, error }; MAX_RELAYS + 1];
    connected.writer.send(&ToController::Report(Box::new(report))).await.unwrap();
    assert_eq!(connected.next().await, ToAgent::Reported { boot: agent.boot, sequence: 1 });
    desk.approve(&agent, "imaging").await;
    let status: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
    let away = &status[0].relays_away;
    assert_eq!((away.len(), away[0].key, away[0].seconds), (MAX_RELAYS, key, 90));
    let said = &away[0].error;
    assert!(said.starts_with("timed[2J out!!"), "{said:?} steers a terminal, or says less");
    assert_eq!(said.chars().count(), RelayAway::MAX_ERROR);
    // It reached them.
    let report = empty_report(agent.boot, 2);
    connected.writer.send(&ToController::Report(Box::new(report))).await.unwrap();
    while connected.next().await != (ToAgent::Reported { boot: agent.boot, sequence: 2 }) {}
    let status: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
    assert_eq!(status[0].relays_away, []);
    service.stop().await;
}

#[tokio::test]
async fn first_words_come_once() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    agent.enrol(&service).await;
    let mut connected = agent.connect(&service).await;
    let hello = ToController::Hello(Box::new(agent.hello()));
    connected.writer.send(&hello).await.unwrap();
    assert_eq!(refusal(connected.next().await).code, RefusalCode::Protocol);
    let mut second = agent.connect(&service).await;
    let stream = second.link.connection().open_bi();
    let other = tokio::time::timeout(std::time::Duration::from_millis(300), stream).await;
    assert!(other.is_err(), "a connection has one stream");
    second.is_quiet(&agent, 1).await;
    service.stop().await;
}
