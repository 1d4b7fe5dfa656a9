use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anteroom_proto::key::IdentityKey;
use quinn::Endpoint;
use tokio::time::{sleep, timeout};

use super::*;
use crate::datagrams;
use crate::endpoint::{connect_for, listen_for};
use crate::link::{Connection, Link};
use crate::tls::Protocol;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const DEADLINE: Duration = Duration::from_secs(60);
const LEN: usize = 1_000;

/// Two ends that have met. The first is at the listener.
async fn pair() -> (Endpoint, Connection, Link) {
    let [server, client] = [1, 2].map(|seed| IdentityKey::from_seed(&[seed; 32]));
    let listener = listen_for(LOOPBACK, &server, &[Protocol::Relay]).unwrap();
    let (at, servers) = (listener.local_addr().unwrap(), [server.public()]);
    loop {
        let connecting = connect_for(at, &client, &servers, Protocol::Relay);
        let accepting = async { listener.accept().await.unwrap().await };
        if let (Ok(link), Ok(connection)) = tokio::join!(connecting, accepting) {
            return (listener, connection.into(), link);
        }
    }
}

/// Waits until `holds`.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("waited for {what} in vain"));
}

#[tokio::test]
async fn what_comes_faster_than_it_is_read_is_counted() {
    let (_listener, server, link) = pair().await;
    let Connection::Quic(quic) = &server else { panic!("{server:?}") };
    // More than waits for whoever reads, however many of them the network itself loses.
    let sending = async {
        while quic.arrived() < 500 {
            let _ = link.connection().send_datagram_wait(vec![0; LEN].into()).await;
        }
    };
    timeout(DEADLINE, sending).await.expect("they come");
    assert_eq!(server.lost(), Lost::default(), "nobody has looked yet");
    // The rest comes while it is read.
    let mut read = 0;
    let (mut batch, reading) = (Vec::new(), tokio::time::Instant::now());
    while server.lost().unread == 0 || quic.arrived() != read + server.lost().unread {
        assert!(reading.elapsed() < DEADLINE, "{read} of {}: {:?}", quic.arrived(), server.lost());
        datagrams::read_more(&server, 64, &mut batch);
        read += batch.drain(..).len() as u64;
        sleep(Duration::from_millis(1)).await;
    }
    assert!(read < 500 && server.lost().unread > 100, "{read} read, {:?}", server.lost());
    // What is read as it comes is no loss.
    let before = server.lost();
    let more = async {
        for _ in 0..100 {
            link.connection().send_datagram(vec![0; LEN].into()).unwrap();
            let came = timeout(Duration::from_secs(1), datagrams::read(&server, 64, &mut batch));
            let _ = came.await;
        }
    };
    timeout(DEADLINE * 2, more).await.expect("they are read");
    assert_eq!((server.lost().unread, link.connection().lost()), (before.unread, Lost::default()));
}

#[tokio::test]
async fn what_is_pushed_out_before_it_is_sent_is_counted_and_what_is_sent_is_not() {
    let (_listener, server, link) = pair().await;
    let ours = link.connection();
    let Connection::Quic(quic) = ours else { panic!("{ours:?}") };
    for _ in 0..20 {
        ours.send_datagram_wait(vec![0; LEN].into()).await.unwrap();
    }
    until("all to be sent", || quic.stats().frame_tx.datagram == 20).await;
    assert_eq!(ours.lost(), Lost::default());
    // Without a word in between nothing leaves: most of these are thrown away.
    for _ in 0..1_000 {
        ours.send_datagram(vec![0; LEN].into()).unwrap();
    }
    until("the rest to be sent", || ours.lost().unsent > 0).await;
    let sent = quic.stats().frame_tx.datagram;
    assert_eq!(ours.lost(), Lost { unread: 0, unsent: 1_020 - sent });
    drop(server);
}
