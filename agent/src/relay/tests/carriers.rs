//! Relays that are reached over QUIC, over TCP where that doesn't get through, and over QUIC again.

use anteroom_transport::tcp::Acceptor;

use super::*;
use crate::testkit::Front;

/// A gateway's relay behind a network that may be cut, reached over QUIC, and what the gateway has for it.
async fn behind_a_front() -> (Bed, Front, Acceptor, Guest, Queues) {
    let relay = FakeRelay::new(40);
    let front = Front::new(relay.endpoint.local_addr().unwrap());
    let named = Relay { addresses: vec![front.address.to_string()], ..relay.named() };
    let mut bed = Bed::with(relay, named);
    let acceptor = Acceptor::new(&IdentityKey::from_seed(&[40; 32]), &[Protocol::Relay]).unwrap();
    bed.give_pass(1);
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    let queues = bed.opened().await;
    guest.tell(&[(5, 0, Some(1_100))]).await;
    bed.told(5, &[1_100]).await;
    bed.until("over QUIC", |relay| relay.connected && !relay.over_tcp).await;
    (bed, front, acceptor, guest, queues)
}

/// The next gateway that says hello over TCP.
async fn over_tcp(front: &Front, acceptor: &Acceptor) -> Guest {
    soon("a gateway over TCP", async {
        loop {
            let (stream, _) = front.listener.accept().await.unwrap();
            let Ok(connection) = acceptor.accept(stream).await else { continue };
            if let Some(guest) = FakeRelay::hear(Connection::Tcp(connection)).await {
                return guest;
            }
        }
    })
    .await
}

/// How often a test tries anew that comes too late, on a machine so slow that QUIC gives itself up meanwhile.
const TRIES: usize = 10;

#[tokio::test]
async fn what_waits_for_a_silent_connection_goes_by_tcp_without_a_hole() {
    const PACKETS: u32 = 350;
    let numbered = |number: u32| {
        let mut bytes = vec![0; 1_000];
        bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
        bytes[4..8].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    for _ in 0..TRIES {
        let (mut bed, front, acceptor, _before, queues) = behind_a_front().await;
        let ends = bed.ends();
        front.cut();
        // More than QUIC sends without an answer, and than its buffer holds.
        (0..PACKETS).for_each(|number| queues.put(peer(5), &numbered(number)));
        let comes = async {
            let mut guest = over_tcp(&front, &acceptor).await;
            guest.welcome().await;
            // It calls the peer something else.
            guest.tell(&[(5, 7, Some(1_100))]).await;
            let mut came = Vec::new();
            while came.last() != Some(&(PACKETS - 1)) {
                let datagram = guest.connection.read_datagram().await.unwrap();
                let Some(Datagram::Packet { peer, sealed, .. }) = packet::parse(&datagram) else {
                    continue;
                };
                assert_eq!(peer, number(7));
                came.push(u32::from_be_bytes(*sealed[4..].first_chunk().unwrap()));
            }
            (guest, came)
        };
        let (_guest, came) = tokio::select! {
            came = soon("the last packet", comes) => came,
            () = ends => continue,
        };
        bed.until("silent", |relay| relay.over_tcp && relay.silences == 1).await;
        println!("the first over TCP is {}", came[0]);
        assert!(came.iter().copied().eq(came[0]..PACKETS), "a hole: {came:?}");
        return;
    }
    panic!("each time QUIC had given itself up before");
}

#[tokio::test]
async fn where_quic_is_greeted_and_then_dies_the_relay_is_reached_over_tcp() {
    for _ in 0..TRIES {
        let (mut bed, front, acceptor, _before, _queues) = behind_a_front().await;
        let ends = bed.ends();
        front.cut();
        // Others still shake hands, and hear nothing more.
        let endpoint = bed.relay.endpoint.clone();
        let _shaking = Task(tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                held.push(incoming.await);
            }
        }));
        let mut guest = over_tcp(&front, &acceptor).await;
        guest.welcome().await;
        // To the data plane it was never away, so only what is new is told.
        guest.tell(&[(5, 0, Some(800))]).await;
        tokio::select! {
            _ = bed.told(5, &[800]) => {}
            () = ends => continue,
        }
        bed.until("over TCP", |relay| relay.connected && relay.over_tcp).await;
        bed.until("silent", |relay| relay.silences == 1).await;
        return;
    }
    panic!("each time QUIC had given itself up before");
}

#[tokio::test]
async fn a_try_for_quic_that_comes_to_nothing_leaves_the_connection_over_tcp_as_it_is() {
    let mut bed = Bed::new();
    let address = bed.relay.endpoint.local_addr().unwrap();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let acceptor = Acceptor::new(&IdentityKey::from_seed(&[40; 32]), &[Protocol::Relay]).unwrap();
    bed.give_pass(1);
    // Handshakes over QUIC are refused, so the gateway comes over TCP.
    let mut guest = soon("a gateway over TCP", async {
        loop {
            tokio::select! {
                incoming = bed.relay.endpoint.accept() => incoming.unwrap().refuse(),
                accepted = listener.accept() => {
                    let connection = acceptor.accept(accepted.unwrap().0).await.unwrap();
                    if let Some(guest) = FakeRelay::hear(Connection::Tcp(connection)).await {
                        return guest;
                    }
                }
            }
        }
    })
    .await;
    guest.welcome().await;
    let queues = bed.opened().await;
    guest.tell(&[(5, 0, Some(900))]).await;
    bed.told(5, &[900]).await;
    bed.until("over TCP", |relay| relay.connected && relay.over_tcp).await;
    // A handshake gets through, and nothing behind it.
    let quic = soon("a try for QUIC", bed.relay.endpoint.accept()).await.unwrap().await.unwrap();
    let (mut during, mut after) = (0_u32, 0_u32);
    while after < 10 {
        let mark = 1 + during + after;
        let wanted = sealed(u8::try_from(mark % 200).unwrap());
        queues.put(peer(5), &wanted);
        let what = format!("packet {mark}, {during} of them while the try was under way");
        let got = soon(&what, async {
            loop {
                let datagram = guest.connection.read_datagram().await.unwrap();
                if let Some(Datagram::Packet { sealed, .. }) = packet::parse(&datagram) {
                    return sealed.to_vec();
                }
            }
        })
        .await;
        assert_eq!(got, wanted, "{what}");
        match quic.close_reason() {
            None => during += 1,
            Some(_) => after += 1,
        }
        // The next one goes at once where the try ends.
        let _ = timeout(Duration::from_millis(100), quic.closed()).await;
    }
    assert!(during > 3, "packets were held up for as long as the try was under way: {during}");
    assert_eq!(guest.connection.close_reason().map(|why| why.to_string()), None);
    bed.until("over TCP as before", |relay| relay.connected && relay.over_tcp).await;

    // The next is greeted. The relay ends the connection over TCP for it, before it says so by the new one.
    let again = soon("another try", bed.relay.endpoint.accept()).await.unwrap();
    let mut better = soon("a hello", FakeRelay::hello(again)).await.unwrap();
    guest.say(FromRelay::Refused(Refusal::new(RefusalCode::Replaced, "by a newer one"))).await;
    guest.connection.close(1_u32.into(), b"replaced");
    queues.put(peer(5), &sealed(200));
    tokio::time::sleep(Duration::from_millis(100)).await;
    better.welcome().await;
    better.tell(&[(5, 3, Some(900))]).await;
    bed.until("over QUIC", |relay| relay.connected && !relay.over_tcp).await;
    let datagram = soon("what waited", better.connection.read_datagram()).await.unwrap();
    let wanted = Datagram::Packet { peer: number(3), bulk: false, sealed: &sealed(200) };
    assert_eq!(packet::parse(&datagram), Some(wanted), "the first by the new one");
}
