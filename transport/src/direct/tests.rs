//! Two gateways over real QUIC on loopback, and strangers who look for them.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
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
    Direct::open(socket, &identity(seed), listens, None).unwrap()
}

fn callers(seeds: &[u8]) -> Vec<Caller> {
    let home = vec![IpAddr::from([127, 0, 0, 1])];
    let caller = |seed: &u8| Caller { key: identity(*seed).public(), addresses: home.clone() };
    seeds.iter().map(caller).collect()
}

/// Who comes next. One that gave up before may have left a last word, which comes to nothing.
async fn guest(direct: &Direct) -> Connection {
    soon("a peer", async {
        loop {
            if let Some(connection) = direct.accept().await.expect("it listens").greet().await {
                return connection;
            }
        }
    })
    .await
}

/// Has a listener take whoever comes, so that whatever it would answer is answered.
fn taking(listener: Direct) -> (Arc<Direct>, UnboundedReceiver<Connection>) {
    let (sender, came) = unbounded_channel();
    let listener = Arc::new(listener);
    let taker = listener.clone();
    tokio::spawn(async move {
        while let Some(guest) = taker.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Some(connection) = guest.greet().await {
                    let _ = sender.send(connection);
                }
            });
        }
    });
    (listener, came)
}

#[tokio::test]
async fn peers_connect_both_ways_and_carry_datagrams() {
    let (a, b) = (open(1, true), open(2, true));
    a.set_peers(&callers(&[2]));
    b.set_peers(&callers(&[1]));
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
    listener.set_peers(&callers(&[2]));
    dialler.set_peers(&callers(&[1]));
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
    let (listener, mut came) = taking(open(1, true));
    listener.set_peers(&callers(&[2]));
    let address = listener.local_address().unwrap();
    // A gateway of the same organisation that isn't a peer, QUIC as anybody speaks it, and a peer that is no more.
    let (stranger, key) = (open(3, false), identity(1).public());
    unanswered(&listener, stranger.connect(address, &key)).await;
    let keys = [key];
    for protocol in [Protocol::Direct, Protocol::Relay] {
        let who = identity(2);
        unanswered(&listener, endpoint::connect_for(address, &who, &keys, protocol)).await;
    }
    listener.set_peers(&callers(&[]));
    let peer = open(2, false);
    unanswered(&listener, peer.connect(address, &key)).await;
    // It is heard again as soon as it is a peer again.
    listener.set_peers(&callers(&[2]));
    let (here, there) = tokio::join!(peer.connect(address, &key), came.recv());
    here.unwrap();
    assert!(there.is_some());
}

/// Waits until `listener` has turned away `many`.
async fn turns_away(listener: &Direct, many: u64) {
    soon("strangers to be turned away", async {
        while listener.turned_away() < many {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Whoever calls `listener` so is turned away, and hears nothing.
async fn unanswered<T: std::fmt::Debug>(listener: &Direct, calling: impl Future<Output = T>) {
    let before = listener.turned_away();
    let mut calling = std::pin::pin!(calling);
    tokio::select! {
        answer = &mut calling => panic!("{answer:?}"),
        () = turns_away(listener, before + 1) => {}
    }
    // An answer would have been sent by now.
    let answer = timeout(Duration::from_millis(200), calling).await;
    assert!(answer.is_err(), "{answer:?}");
}

/// Somebody on the way to `to`, who hands on both ways and gives whatever the dialler sends. Where it can be reached.
async fn tap(
    to: SocketAddr,
) -> (SocketAddr, UnboundedReceiver<Vec<u8>>, tokio::task::JoinHandle<()>) {
    tap_that_turns(tokio::sync::watch::channel(to).1).await
}

async fn tap_that_turns(
    to: tokio::sync::watch::Receiver<SocketAddr>,
) -> (SocketAddr, UnboundedReceiver<Vec<u8>>, tokio::task::JoinHandle<()>) {
    let tap = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tapped = tap.local_addr().unwrap();
    let (recorded, records) = unbounded_channel();
    let recorder = tokio::spawn(async move {
        let (mut buffer, mut dialler) = ([0; 2048], None);
        while let Ok((len, from)) = tap.recv_from(&mut buffer).await {
            let to = *to.borrow();
            let next = if from == to { dialler } else { Some(to) };
            if from != to {
                dialler = Some(from);
            }
            if let Some(next) = next {
                let _ = tap.send_to(&buffer[..len], next).await;
            }
            // What wasn't handed on would be news when it is played back.
            if from != to {
                let _ = recorded.send(buffer[..len].to_vec());
            }
        }
    });
    (tapped, records, recorder)
}

/// Nothing comes back for any of these from `listener`.
async fn no_answer_to(datagrams: &[Vec<u8>], listener: &Direct) {
    let to = listener.local_address().unwrap();
    let prober = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let before = listener.turned_away();
    for datagram in datagrams {
        prober.send_to(datagram, to).await.unwrap();
    }
    // Once as many again and one more were turned away, one of those behind them was: so they have been looked at.
    let behind = async {
        loop {
            prober.send_to(&[0x40; 40], to).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = turns_away(listener, before + datagrams.len() as u64 + 1) => {}
        () = behind => unreachable!("it sends for ever"),
    }
    let mut buffer = [0; 2048];
    let answer = timeout(Duration::from_millis(200), prober.recv_from(&mut buffer)).await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test]
async fn what_was_recorded_gets_no_answer_when_it_is_played_back() {
    let (listener, mut came) = taking(open(1, true));
    let peer = open(2, false);
    listener.set_peers(&callers(&[2]));
    let address = listener.local_address().unwrap();
    let (tapped, mut records, recorder) = tap(address).await;
    let key = identity(1).public();
    let (here, there) = tokio::join!(peer.connect(tapped, &key), came.recv());
    let (here, there) = (here.unwrap(), there.unwrap());
    here.send_datagram(vec![1; 100].into()).unwrap();
    soon("a datagram", there.read_datagram()).await.unwrap();
    recorder.abort();
    let _ = recorder.await;
    let mut all = Vec::new();
    while let Ok(datagram) = records.try_recv() {
        all.push(datagram);
    }
    // What is under way to the listener arrives. The first datagram of all isn't counted there.
    soon("all that was sent", async {
        while there.stats().udp_rx.datagrams + 1 < all.len() as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(all.len() >= 2 && all[0].len() >= 1200, "{} datagrams", all.len());
    no_answer_to(&all, &listener).await;
    // Nor when the connection has ended.
    there.close(VarInt::from_u32(0), b"");
    soon("the end", listener.endpoint.wait_idle()).await;
    no_answer_to(&all, &listener).await;
    drop(here);
}

/// A client that knocks as `knocker` does, or with any other id, and shows the TLS key of `shows`.
fn impostor(id: Vec<u8>, shows: u8) -> quinn::ClientConfig {
    let pin = ServerPin::new(vec![identity(1).public()]);
    let tls = tls::client_config(&identity(shows), &pin, Protocol::Direct).unwrap();
    let mut config = endpoint::client_config(tls, Protocol::Direct).unwrap();
    config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&id)));
    config
}

#[tokio::test]
async fn an_id_of_the_listeners_begins_no_connection() {
    let (listener, mut came) = taking(open(1, true));
    let peer = open(2, false);
    listener.set_peers(&callers(&[2]));
    let address = listener.local_address().unwrap();
    let (tapped, mut records, recorder) = tap(address).await;
    let key = identity(1).public();
    let (here, there) = tokio::join!(peer.connect(tapped, &key), came.recv());
    let (here, there) = (here.unwrap(), there.unwrap());
    here.send_datagram(vec![1; 100].into()).unwrap();
    soon("a datagram", there.read_datagram()).await.unwrap();
    // The id stands behind the first byte of short packets.
    let id = soon("a short packet", async {
        loop {
            let datagram = records.recv().await.unwrap();
            if datagram[0] & 0x80 == 0 {
                return datagram[1..=guard::ID_LEN].to_vec();
            }
        }
    })
    .await;
    recorder.abort();
    let patience = Duration::from_millis(700);
    // By anybody, and by the one whose it was, while the connection lives, after its end, and as no peer any more.
    for stage in 0..3 {
        if stage == 1 {
            there.close(VarInt::from_u32(0), b"");
            soon("the end", listener.endpoint.wait_idle()).await;
        }
        if stage == 2 {
            listener.set_peers(&[]);
        }
        for shows in [2, 3] {
            let client = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            let connecting = client.connect_with(impostor(id.clone(), shows), address, NAME);
            let answer = timeout(patience, connecting.unwrap()).await;
            assert!(answer.is_err(), "{stage}, {shows}: {answer:?}");
        }
    }
    drop(here);
}

#[tokio::test]
async fn whoever_knocks_as_a_peer_and_has_another_key_is_let_go() {
    let listener = open(1, true);
    listener.set_peers(&callers(&[2, 3]));
    let address = listener.local_address().unwrap();
    // Another peer, and nobody's.
    for shows in [3, 9] {
        let knock = Knock::at(&identity(2), &identity(1).public()).unwrap();
        let config = impostor(knock.with([shows; 8]).to_vec(), shows);
        let client = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = client.connect_with(config, address, NAME).unwrap();
        let (came, here) = tokio::join!(
            async {
                let guest = soon("a guest", listener.accept()).await.unwrap();
                assert_eq!(guest.peer(), identity(2).public());
                guest.greet().await
            },
            connecting
        );
        assert!(came.is_none(), "{shows}: {came:?}");
        if let Ok(here) = here {
            soon("the end", here.closed()).await;
        }
        // Its next knock has to wait.
        tokio::time::sleep(Duration::from_millis(2_100)).await;
    }
}

/// How a connection ends whose other end was started anew meanwhile.
async fn ends_after_a_restart() -> quinn::ConnectionError {
    let run = |number| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        Direct::open_in(number, socket, &identity(1), true, None).unwrap()
    };
    let (before, after, peer) = (run([0, 1]), run([0, 2]), open(2, false));
    for run in [&before, &after] {
        run.set_peers(&callers(&[2]));
    }
    let (turn, to) = tokio::sync::watch::channel(before.local_address().unwrap());
    let (tapped, _records, recorder) = tap_that_turns(to).await;
    let key = identity(1).public();
    let (here, _there) = tokio::join!(peer.connect(tapped, &key), guest(&before));
    let here = here.unwrap();
    peer.set_live([tapped].into_iter());
    turn.send_replace(after.local_address().unwrap());
    let ended = soon("the end", async {
        loop {
            let _ = here.send_datagram(vec![1; 100].into());
            if let Ok(ended) = timeout(Duration::from_millis(50), here.closed()).await {
                return ended;
            }
        }
    })
    .await;
    recorder.abort();
    ended
}

#[tokio::test]
async fn a_peer_whose_connection_is_of_an_earlier_run_is_told_so_at_its_next_word() {
    let mut ends = Vec::new();
    // A test that is kept from running for long finds that time is up first.
    while ends.len() < 3 {
        match ends_after_a_restart().await {
            quinn::ConnectionError::Reset => return,
            other => ends.push(other),
        }
    }
    panic!("it was never told: {ends:?}");
}

#[tokio::test]
async fn whoever_stops_says_so() {
    let (listener, peer) = (open(1, true), open(2, false));
    listener.set_peers(&callers(&[2]));
    let address = listener.local_address().unwrap();
    let key = identity(1).public();
    let (here, _there) = tokio::join!(peer.connect(address, &key), guest(&listener));
    listener.close("stopping", DEADLINE).await;
    let ended = soon("the end", here.unwrap().closed()).await;
    assert!(matches!(ended, quinn::ConnectionError::ApplicationClosed(_)), "{ended}");
}

#[tokio::test]
async fn on_a_port_that_tunnels_have_too_what_came_to_the_wrong_side_is_handed_over() {
    let shared = Arc::new(Shared::default());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listener = Direct::open(socket, &identity(1), true, Some(shared.clone())).unwrap();
    listener.set_peers(&callers(&[2]));
    let address = listener.local_address().unwrap();
    // All that the peer sends comes to the tunnels' socket.
    let tunnels = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = tunnels.local_addr().unwrap();
    let wrong = tokio::spawn({
        let shared = shared.clone();
        async move {
            let (mut buffer, mut dialler) = ([0; 2048], None);
            while let Ok((len, from)) = tunnels.recv_from(&mut buffer).await {
                if from == address {
                    // As if the port were one.
                    let Some(dialler) = dialler else { continue };
                    let _ = tunnels.send_to(&buffer[..len], dialler).await;
                } else {
                    dialler = Some(from);
                    assert!(shared::is_quic(&buffer[..len]));
                    shared.quic.put(at, &buffer[..len]);
                }
            }
        }
    });
    let (peer, key) = (open(2, false), identity(1).public());
    let (here, there) = tokio::join!(peer.connect(at, &key), guest(&listener));
    let here = here.unwrap();
    here.send_datagram(vec![1; 100].into()).unwrap();
    soon("a datagram", there.read_datagram()).await.unwrap();
    let (passed, turned_away) = shared.quic.counts();
    assert!(passed >= 4 && turned_away == 0, "{passed}, {turned_away}");
    // And what is the tunnels'.
    let tunnel = UdpSocket::bind("127.0.0.1:0").unwrap();
    for first in [1, 2, 3, 4, 5, 8, 0x80] {
        tunnel.send_to(&[first, 0, 0, 0, 9], address).unwrap();
    }
    for first in [1, 2, 3, 4, 5, 8, 0x80] {
        let stray = soon("a stray", async {
            loop {
                match shared.others.take() {
                    Some(stray) => return stray,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await;
        assert_eq!((stray.from, stray.bytes[0]), (tunnel.local_addr().unwrap(), first));
    }
    wrong.abort();
}

#[tokio::test]
async fn somebody_else_at_a_peers_address_is_refused() {
    // It answers whoever comes, so it needs no knock.
    let at = "127.0.0.1:0".parse().unwrap();
    let other = endpoint::listen_for(at, &identity(9), &[Protocol::Direct]).unwrap();
    let address = other.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        while let Some(incoming) = other.accept().await {
            let _ = incoming.await;
        }
    });
    let dialler = open(2, false);
    let answer = soon("an answer", dialler.connect(address, &identity(1).public())).await;
    let theirs = identity(9).public();
    assert!(
        matches!(&answer, Err(TransportError::WrongKey { key, .. }) if *key == theirs),
        "{answer:?}"
    );
    answering.abort();
}

#[tokio::test]
async fn a_socket_keeps_the_buffers_that_it_has() {
    use nix::sys::socket::getsockopt;
    use nix::sys::socket::sockopt::{RcvBuf, SndBuf};

    let sizes = |socket: &UdpSocket| {
        (getsockopt(socket, RcvBuf).unwrap(), getsockopt(socket, SndBuf).unwrap())
    };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let other = socket.try_clone().unwrap();
    let system = sizes(&socket);
    endpoint::enlarge_buffers(&socket, 2 * endpoint::SOCKET_BUFFER);
    let before = sizes(&socket);
    assert!(before.0 >= system.0 && before.1 >= system.1);
    for listens in [false, true] {
        let socket = other.try_clone().unwrap();
        let _direct = Direct::open(socket, &identity(1), listens, None).unwrap();
        assert_eq!(sizes(&other), before);
    }
}
