//! Gateways whose networks pass nothing but TCP, and strangers at that door.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anteroom_controller::run;
use anteroom_proto::api::{ControllerInfo, GatewayStatus, paths};
use anteroom_proto::v1::{ToAgent, frame};
use anteroom_transport::link::Carrier;
use anteroom_transport::message::MessageReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Agent, Desk, Service, soon, until};

/// Whether the controller says of the one gateway that it is here, over this.
async fn is_here(desk: &Desk, agent: &Agent, carrier: Carrier) {
    until("the gateway to be here", async || {
        let all: Vec<GatewayStatus> = desk.client.get(paths::GATEWAYS).await;
        let status = all.into_iter().find(|status| status.gateway == agent.gateway)?;
        (status.online && status.over_tcp == (carrier == Carrier::Tcp)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn gateways_are_served_over_tcp_and_quic_takes_its_place() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    service.carrier = Carrier::Tcp;
    assert!(matches!(agent.enrol(&service).await, ToAgent::Enrolled { .. }));
    desk.approve(&agent, "imaging").await;
    let over_tcp = agent.connect(&service).await;
    is_here(&desk, &agent, Carrier::Tcp).await;

    service.carrier = Carrier::Quic;
    let _over_quic = agent.connect(&service).await;
    let closed = soon("the older one to end", over_tcp.link.connection().closed()).await;
    assert!(closed.is_by_peer(), "{closed}");
    is_here(&desk, &agent, Carrier::Quic).await;

    // Who is here over TCP is told when the controller ends.
    service.carrier = Carrier::Tcp;
    let last = agent.connect(&service).await;
    let connection = last.link.connection().clone();
    service.stop().await;
    let closed = soon("the end", connection.closed()).await.to_string();
    assert!(closed.contains("the controller ends"), "{closed}");
}

/// Both listeners at one port that is free.
async fn at_one_port(service: &mut Service) -> SocketAddr {
    service.stop().await;
    let file = service.directory().config();
    let text = std::fs::read_to_string(&file).unwrap();
    soon("a port that stays free", async {
        loop {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = tcp.local_addr().unwrap();
            let free = UdpSocket::bind(address).is_ok();
            drop(tcp);
            let listen = format!("listen = \"{address}\"");
            std::fs::write(&file, text.replace("listen = \"127.0.0.1:0\"", &listen)).unwrap();
            if free && let Ok(running) = run::start(service.directory(), false).await {
                service.running = Some(running);
                return address;
            }
        }
    })
    .await
}

#[tokio::test]
async fn operators_and_gateways_share_one_port_and_strangers_learn_nothing_there() {
    let mut service = Service::new().await;
    let address = at_one_port(&mut service).await;
    assert_eq!((service.running().https(), service.running().quic().unwrap()), (address, address));
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    service.carrier = Carrier::Tcp;
    assert!(matches!(agent.enrol(&service).await, ToAgent::Enrolled { .. }));
    let _: ControllerInfo = service.client().get(paths::CONTROLLER).await;

    // Garbage is answered by an alert at most; half a first word is cut off.
    for (bytes, rest) in [(&b"SSH-2.0-x\r\n"[..], 7), (&[0x16, 3, 1, 2, 0, 1, 0, 1][..], 0)] {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        stranger.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("the end", stranger.read_to_end(&mut answer)).await;
        assert!(answer.len() <= rest, "{bytes:?}: {answer:?}");
    }
    // Whoever holds a key but says nothing, too.
    let silent = service.connect(&agent.identity).await;
    let closed = soon("the silent one to be cut off", silent.connection().closed()).await;
    assert!(closed.to_string().contains("say who you are"), "{closed}");
    // And whoever announces more than is read of a stranger.
    let greedy = service.connect(&agent.identity).await;
    let (mut send, receive) = greedy.connection().open_bi().await.unwrap();
    send.write_all(&[0, 1, 0, 1]).await.unwrap();
    let mut reader = MessageReader::<ToAgent>::new(receive, frame::MAX_TO_AGENT);
    let answer = soon("a refusal", reader.next()).await.unwrap();
    assert!(matches!(answer, Some(ToAgent::Refused(_))), "{answer:?}");
    service.stop().await;
}

#[tokio::test]
async fn one_address_cant_keep_others_from_the_door_over_tcp() {
    let mut service = Service::new().await;
    service.stop().await;
    let file = service.directory().config();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("# unknown = 256", "unknown = 16")).unwrap();
    service.start().await;
    let desk = service.claimed().await;
    let agent = desk.invites(1, "imaging").await;
    service.carrier = Carrier::Tcp;
    // An eighth of 16 from one address, of those who haven't said who they are.
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(service.connect(&agent.identity).await);
    }
    let address = service.running().quic().unwrap();
    let mut turned = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let began = std::time::Instant::now();
    let _ = soon("to be turned away", turned.read_to_end(&mut answer)).await;
    let took = began.elapsed();
    // Whoever is let in and says nothing is let go after five seconds.
    assert!(answer.is_empty() && took < Duration::from_secs(3), "{answer:?} after {took:?}");
    drop(silent);
    // Their places are free again before long.
    soon("room", async {
        loop {
            let enrolled =
                tokio::time::timeout(Duration::from_secs(5), agent.enrol(&service)).await;
            if matches!(enrolled, Ok(ToAgent::Enrolled { .. })) {
                return;
            }
        }
    })
    .await;
    service.stop().await;
}
