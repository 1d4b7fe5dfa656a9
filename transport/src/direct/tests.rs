//! Two gateways over real QUIC on loopback, and strangers who look for them.

use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::endpoint::peer_key;

const DEADLINE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited for {what} in vain"))
}

fn identity(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

fn open(seed: u8, listens: bool) -> Direct {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    Direct::open(socket, &identity(seed), listens).unwrap()
}

/// Who comes next. One that gave up before may have left a last word, which comes to nothing.
async fn guest(direct: &Direct) -> Connection {
    soon("a peer", async {
        loop {
            if let Ok(connection) = direct.accept().await.expect("it listens").await {
                return connection;
            }
        }
    })
    .await
}

#[tokio::test]
async fn peers_connect_both_ways_and_carry_datagrams() {
    let (a, b) = (open(1, true), open(2, true));
    a.set_peers(&[identity(2).public()]);
    b.set_peers(&[identity(1).public()]);
    for (from, to, dialler, listener) in [(&a, &b, 1, 2), (&b, &a, 2, 1)] {
        let address = to.local_address().unwrap();
        let key = identity(listener).public();
        let (here, there) = tokio::join!(from.connect(address, &key), guest(to));
        let here = here.unwrap();
        assert_eq!(peer_key(&there), Some(identity(dialler).public()));
        assert_eq!(peer_key(&here), Some(key));
        assert_eq!(crate::endpoint::protocol(&there), Some(Protocol::Direct));
        for (one, other) in [(&here, &there), (&there, &here)] {
            one.send_datagram(vec![7; 1_150].into()).unwrap();
            let heard = soon("a datagram", other.read_datagram()).await.unwrap();
            assert_eq!(heard.len(), 1_150);
        }
        // Nothing is said there.
        let opened = timeout(Duration::from_millis(50), here.open_bi()).await;
        assert!(opened.is_err(), "a stream was opened");
    }
    assert_eq!((a.turned_away(), b.turned_away()), (0, 0));
}

#[tokio::test]
async fn one_that_only_dials_is_taken_and_takes_nobody() {
    let (listener, dialler) = (open(1, true), open(2, false));
    listener.set_peers(&[identity(2).public()]);
    dialler.set_peers(&[identity(1).public()]);
    let address = listener.local_address().unwrap();
    let key = identity(1).public();
    let (here, _there) = tokio::join!(dialler.connect(address, &key), guest(&listener));
    here.unwrap();
    let key = identity(2).public();
    let back = listener.connect(dialler.local_address().unwrap(), &key);
    assert!(timeout(Duration::from_millis(500), back).await.is_err(), "it answered");
}

#[tokio::test]
async fn whoever_is_no_peer_gets_no_answer() {
    let listener = open(1, true);
    listener.set_peers(&[identity(2).public()]);
    let address = listener.local_address().unwrap();
    // A gateway of the same organisation that isn't a peer, a peer that is no more, and QUIC as anybody speaks it.
    let stranger = open(3, false);
    let patience = Duration::from_millis(700);
    let answer = timeout(patience, stranger.connect(address, &identity(1).public())).await;
    assert!(answer.is_err(), "{answer:?}");
    let keys = [identity(1).public()];
    for protocol in [Protocol::Direct, Protocol::Relay] {
        let who = identity(2);
        let connecting = endpoint::connect_for(address, &who, &keys, protocol);
        let answer = timeout(patience, connecting).await;
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(listener.turned_away() >= 3, "{}", listener.turned_away());
    listener.set_peers(&[]);
    let peer = open(2, false);
    let answer = timeout(patience, peer.connect(address, &identity(1).public())).await;
    assert!(answer.is_err(), "{answer:?}");
    // It is heard again as soon as it is a peer again.
    listener.set_peers(&[identity(2).public()]);
    let key = identity(1).public();
    let (here, _there) = tokio::join!(peer.connect(address, &key), guest(&listener));
    here.unwrap();
}

/// What a recorder on the way has of a connection's first datagram, and of one later.
#[tokio::test]
async fn what_was_recorded_gets_no_answer_when_it_is_played_back() {
    let (listener, peer) = (open(1, true), open(2, false));
    listener.set_peers(&[identity(2).public()]);
    let address = listener.local_address().unwrap();
    // A recorder that hands on both ways.
    let tap = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tapped = tap.local_addr().unwrap();
    let (recorded, mut records) = tokio::sync::mpsc::unbounded_channel();
    let recorder = tokio::spawn(async move {
        let (mut buffer, mut dialler) = ([0; 2048], None);
        while let Ok((len, from)) = tap.recv_from(&mut buffer).await {
            let to = if from == address { dialler } else { Some(address) };
            if from != address {
                dialler = Some(from);
                let _ = recorded.send(buffer[..len].to_vec());
            }
            if let Some(to) = to {
                let _ = tap.send_to(&buffer[..len], to).await;
            }
        }
    });
    let key = identity(1).public();
    let (here, there) = tokio::join!(peer.connect(tapped, &key), guest(&listener));
    let here = here.unwrap();
    here.send_datagram(vec![1; 100].into()).unwrap();
    soon("a datagram", there.read_datagram()).await.unwrap();
    let mut all = Vec::new();
    while let Ok(datagram) = records.try_recv() {
        all.push(datagram);
    }
    assert!(all.len() >= 2 && all[0].len() >= 1200, "{} datagrams", all.len());
    let prober = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for datagram in &all {
        prober.send_to(datagram, address).await.unwrap();
    }
    let mut buffer = [0; 2048];
    let answer = timeout(Duration::from_millis(700), prober.recv_from(&mut buffer)).await;
    assert!(answer.is_err(), "{answer:?}");
    // The connection didn't mind.
    here.send_datagram(vec![2; 100].into()).unwrap();
    soon("a datagram", there.read_datagram()).await.unwrap();
    recorder.abort();
}

#[tokio::test]
async fn somebody_else_at_a_peers_address_is_refused() {
    let (a, b) = (open(1, true), open(2, false));
    a.set_peers(&[identity(2).public()]);
    // It knocks as at another, so nothing answers; and one that knew the knock has another key.
    let address = a.local_address().unwrap();
    let wrong =
        timeout(Duration::from_millis(700), b.connect(address, &identity(9).public())).await;
    assert!(wrong.is_err(), "{wrong:?}");
}
