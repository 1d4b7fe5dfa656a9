//! Passes for relays, and the relay in the controller.

use std::collections::HashMap;

use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::packet::{self, Datagram, PeerNumber};
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::relay::{
    CAPABILITY, FromRelay, Hello, MAX_FROM_RELAY, PeerState, Refusal, RefusalCode, ToRelay,
    VERSIONS,
};
use anteroom_proto::v1::ToAgent;
use anteroom_transport::endpoint::{self, Link};
use anteroom_transport::message::{MessageReader, MessageWriter};
use anteroom_transport::tls::Protocol;

use crate::distribution::hospital;
use crate::support::{Agent, Connected, Desk, ORGANISATION, Service, soon};

/// The next pass that comes, past whatever else does.
async fn pass(connected: &mut Connected) -> Signed<RelayPass> {
    loop {
        if let ToAgent::Pass(pass) = connected.next().await {
            return *pass;
        }
    }
}

fn read(desk: &Desk, agent: &Agent, pass: &Signed<RelayPass>) -> RelayPass {
    RelayPass::verify(pass, &desk.authority(), agent.identity.public()).unwrap().into_document()
}

/// A gateway at the controller's relay.
struct Relayed {
    link: Link,
    reader: MessageReader<FromRelay>,
    _writer: MessageWriter<ToRelay>,
    peers: HashMap<GatewayId, PeerState>,
}

async fn relayed(
    service: &Service,
    agent: &Agent,
    pass: &Signed<RelayPass>,
) -> Result<Relayed, Refusal> {
    let (address, servers) = (service.running().quic().unwrap(), [service.code.controller]);
    let link = endpoint::connect_for(address, &agent.identity, &servers, Protocol::Relay);
    let link = soon("a connection", link).await.unwrap();
    let (send, receive) = link.connection().open_bi().await.unwrap();
    let mut writer = MessageWriter::new(send);
    let mut reader = MessageReader::<FromRelay>::new(receive, MAX_FROM_RELAY);
    let pass = Box::new(pass.clone());
    let hello = Hello { versions: VERSIONS, organisation: ORGANISATION, authority: 1, pass };
    writer.send(&ToRelay::Hello(Box::new(hello))).await.unwrap();
    match soon("a welcome", reader.next()).await.unwrap() {
        Some(FromRelay::Welcome(_)) => {
            Ok(Relayed { link, reader, _writer: writer, peers: HashMap::new() })
        }
        Some(FromRelay::Refused(refusal)) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

impl Relayed {
    /// Waits until `peer` is here, or isn't.
    async fn hear_of(&mut self, peer: &Agent, here: bool) -> PeerNumber {
        loop {
            let known = self.peers.get(&peer.gateway).filter(|known| known.room.is_some() == here);
            if let Some(known) = known {
                return known.number;
            }
            match soon("news of a peer", self.reader.next()).await {
                Ok(Some(FromRelay::Peers(states))) => {
                    self.peers.extend(states.into_iter().map(|state| (state.gateway, state)));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn gateways_that_share_a_view_are_relayed_and_a_revoked_one_no_longer() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    for agent in &mut agents {
        agent.capabilities = vec![CAPABILITY.into()];
    }
    let mut control = Vec::new();
    let mut passes = Vec::new();
    for agent in &agents {
        let mut connected = agent.connect(&service).await;
        passes.push(pass(&mut connected).await);
        control.push(connected);
    }
    let said: Vec<RelayPass> =
        agents.iter().zip(&passes).map(|(agent, pass)| read(&desk, agent, pass)).collect();
    assert_eq!(said[0].peers, [agents[1].gateway]);
    assert_eq!(said[1].peers, [agents[0].gateway]);
    assert_eq!(said[2].peers, [], "it shares a rule with nobody");
    assert!(said.is_sorted_by_key(|pass| pass.number) && said[0].number < said[1].number);
    let mut a = relayed(&service, &agents[0], &passes[0]).await.ok().unwrap();
    let mut b = relayed(&service, &agents[1], &passes[1]).await.ok().unwrap();
    let (to_b, from_a) = (a.hear_of(&agents[1], true).await, b.hear_of(&agents[0], true).await);
    let mut datagram = packet::header(to_b, false).to_vec();
    datagram.extend_from_slice(&[4, 0, 0, 0]);
    datagram.resize(200, 9);
    // A relay throws away what waited, and QUIC sends no datagram again.
    let sending = async {
        loop {
            a.link.connection().send_datagram(datagram.clone().into()).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let came = tokio::select! {
        came = soon("a packet", b.link.connection().read_datagram()) => came.unwrap(),
        () = sending => unreachable!("it sends for ever"),
    };
    let sealed = &datagram[packet::HEADER_LEN..];
    let expected = Datagram::Packet { peer: from_a, bulk: false, sealed };
    assert_eq!(packet::parse(&came), Some(expected));
    // Revoked: off the relay at once, and named in nobody's next pass.
    desk.revoke(&agents[1]).await;
    match soon("a refusal", b.reader.next()).await {
        Ok(Some(FromRelay::Refused(refusal))) => assert_eq!(refusal.code, RefusalCode::Revoked),
        other => panic!("{other:?}"),
    }
    a.hear_of(&agents[1], false).await;
    let again = relayed(&service, &agents[1], &passes[1]).await;
    assert_eq!(again.map(|_| ()).unwrap_err().code, RefusalCode::Revoked);
    let newer = read(&desk, &agents[0], &pass(&mut control[0]).await);
    assert_eq!(newer.peers, []);
    assert!(newer.number > said[2].number);
    service.stop().await;
}

#[tokio::test]
async fn who_doesnt_ask_for_passes_gets_none_and_numbers_go_on_after_a_restart() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let mut plain = agents[1].connect(&service).await;
    plain.view().await;
    plain.is_quiet(&agents[1], 1).await;
    agents[0].capabilities = vec!["something else".into(), CAPABILITY.into()];
    let first = pass(&mut agents[0].connect(&service).await).await;
    service.stop().await;
    service.start().await;
    let second = pass(&mut agents[0].connect(&service).await).await;
    let number = |pass| read(&desk, &agents[0], pass).number;
    assert!(number(&first) < number(&second));
    service.stop().await;
}
