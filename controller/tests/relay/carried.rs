//! What a relay does for gateways that keep to the rules.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anteroom_controller_core::relay::Dropped;
use anteroom_proto::key::Hash;
use anteroom_proto::relay::packet::{self, Datagram};
use anteroom_proto::relay::{FromRelay, RefusalCode, ToRelay};
use anteroom_transport::link::Carrier;
use tokio::net::UdpSocket;

use crate::support::{Bed, CONTROLLER, Gateway, code, key, pass, signed, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn packets_and_probes_travel_and_ends_are_told() {
    let bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2, 3]).await;
    let mut b = Gateway::connect(&bed, 2, 2, &[1]).await;
    assert_eq!(a.welcome.observed.ip(), bed.address.ip());
    let (to_b, to_a) = (a.meet(2).await, b.meet(1).await);
    assert_eq!(a.deliver(to_b, 7, 148, &b).await, (to_a, 148));
    assert_eq!(b.deliver(to_a, 8, 1100, &a).await, (to_b, 1100));
    // A probe says how far the relay is.
    let probing = async {
        loop {
            a.link.connection().send_datagram(packet::probe([9; 8]).into()).unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let answered = soon("the answer to a probe", async {
        loop {
            let datagram = a.link.connection().read_datagram().await.unwrap();
            if packet::parse(&datagram) == Some(Datagram::Answer([9; 8])) {
                return;
            }
        }
    });
    tokio::select! {
        () = answered => {}
        () = probing => {}
    }
    // With a newer pass one more peer is there, and the one before goes on.
    let mut c = Gateway::connect(&bed, 3, 3, &[1, 2]).await;
    let newer = signed(&pass(2, 4, &[1, 3]));
    b.writer.send(&ToRelay::Pass(Box::new(newer))).await.unwrap();
    assert!(matches!(b.hear().await, Some(FromRelay::PassTaken(number)) if number.sequence == 4));
    let to_c = b.meet(3).await;
    c.meet(2).await;
    b.deliver(to_c, 9, 100, &c).await;
    assert_eq!(a.deliver(to_b, 10, 100, &b).await, (to_a, 100), "its name is as before");
    b.leave().await;
    a.hear_of(2, |room| room.is_none()).await;
    let counts = bed.relay().service().counts();
    assert!(counts.packets >= 4 && counts.dropped_in_all() == 0, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_over_tcp_is_one_like_the_others() {
    let mut bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2, 3]).await;
    bed.carrier = Carrier::Tcp;
    let mut b = Gateway::connect(&bed, 2, 2, &[1, 3]).await;
    let mut c = Gateway::connect(&bed, 3, 3, &[1, 2]).await;
    let (to_b, to_a) = (a.meet(2).await, b.meet(1).await);
    let (to_c, from_b) = (b.meet(3).await, c.meet(2).await);
    for len in [32, 148, 1100] {
        assert_eq!(a.deliver(to_b, 7, len, &b).await, (to_a, len));
        assert_eq!(b.deliver(to_a, 8, len, &a).await, (to_b, len));
        assert_eq!(b.deliver(to_c, 9, len, &c).await, (from_b, len));
    }
    // A newer connection, over QUIC, takes the older one's place.
    bed.carrier = Carrier::Quic;
    let mut newer = Gateway::connect(&bed, 2, 2, &[1, 3]).await;
    let closed = soon("the older one to end", b.link.connection().closed()).await;
    assert!(closed.is_by_peer(), "{closed}");
    let (to_b, to_a) = (a.meet(2).await, newer.meet(1).await);
    assert_eq!(a.deliver(to_b, 10, 148, &newer).await, (to_a, 148));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_comes_back_is_reached_at_its_newer_connection() {
    let bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2]).await;
    let mut old = Gateway::connect(&bed, 2, 2, &[1]).await;
    let to_a = old.meet(1).await;
    let mut new = Gateway::connect(&bed, 2, 2, &[1]).await;
    // What it sends by the other until it knows of this one arrives.
    old.send(to_a, 6, 100);
    let (_, mark, len) = a.receive().await;
    assert_eq!((mark, len), (6, 100));
    match old.hear().await {
        Some(FromRelay::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Replaced),
        other => panic!("{other:?}"),
    }
    new.meet(1).await;
    let to_b = a.meet(2).await;
    a.deliver(to_b, 5, 100, &new).await;
    soon("the older one to be closed", old.link.connection().closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_learns_the_authority_chain_from_gateways_and_keeps_it() {
    let mut bed = Bed::new("");
    let first = Gateway::connect(&bed, 1, 1, &[]).await;
    assert!(first.asked, "it knew nothing but a hash");
    assert_eq!(first.welcome.authority, 2);
    assert!(!Gateway::connect(&bed, 2, 2, &[]).await.asked, "it knows by now");
    bed.stop().await;
    bed.start();
    assert!(!Gateway::connect(&bed, 2, 2, &[]).await.asked, "it was kept");
    for _ in 0..3 {
        bed.decree(|_, _| {});
    }
    assert!(Gateway::connect(&bed, 1, 1, &[]).await.asked);
    let behind = Gateway::greet(&bed, 2, signed(&pass(2, 2, &[])), &bed.chain[..2]).await;
    assert_eq!(
        behind.map(|gateway| gateway.welcome.authority),
        Ok(5),
        "it hears that it is behind"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_operators_dont_name_or_take_out_serves_nobody() {
    let mut bed = Bed::made("");
    bed.start();
    let greeted = Gateway::greet(&bed, 1, signed(&pass(1, 1, &[])), &bed.chain).await;
    assert_eq!(code(greeted), RefusalCode::Organisation);
    let mut bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2]).await;
    bed.decree(|_, next| next.relays.clear());
    let greeted = Gateway::greet(&bed, 2, signed(&pass(2, 2, &[1])), &bed.chain).await;
    assert_eq!(code(greeted), RefusalCode::Organisation);
    match a.hear().await {
        Some(FromRelay::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Organisation),
        other => panic!("{other:?}"),
    }
    until("everyone is sent away", || {
        let here = bed.relay().service().gateways();
        (here == 0, here)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_controllers_passes_let_nobody_in_any_more() {
    let mut bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2]).await;
    let mut b = Gateway::connect(&bed, 2, 2, &[1]).await;
    let to_b = a.meet(2).await;
    b.meet(1).await;
    bed.decree(|_, next| next.controllers[0].key = key(CONTROLLER + 1).public());
    let stolen = Gateway::greet(&bed, 3, signed(&pass(3, 99, &[1, 2])), &bed.chain).await;
    assert_eq!(code(stolen), RefusalCode::Pass);
    a.hear_of(2, |room| room.is_none()).await;
    // One of the two with a pass of the new controller is enough to go on.
    let fresh = anteroom_proto::cose::Signed::sign(&pass(2, 5, &[1]), &key(CONTROLLER + 1));
    b.writer.send(&ToRelay::Pass(Box::new(fresh))).await.unwrap();
    a.meet(2).await;
    a.deliver(to_b, 3, 100, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_or_damaged_chain_on_disk_is_named() {
    let mut bed = Bed::new("");
    Gateway::connect(&bed, 1, 1, &[]).await;
    bed.stop().await;
    let directory = anteroom_controller::directory::Directory::new(&bed.path());
    let file = bed.path().join("authority.chain");
    let good = std::fs::read(&file).unwrap();
    for (bytes, words) in [(&good[..good.len() - 1], "cut short"), (&[0x80][..], "empty")] {
        std::fs::write(&file, bytes).unwrap();
        let error = anteroom_controller::relay::standalone::start(directory.clone()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("authority.chain") && error.contains(words), "{error}");
    }
    std::fs::write(&file, &good).unwrap();
    let config = bed.path().join("relay.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let pin = bed.chain[0].hash().to_string();
    let other = Hash::of("anteroom test", &[b"another organisation"]).to_string();
    std::fs::write(&config, text.replace(&pin, &other)).unwrap();
    let error = anteroom_controller::relay::standalone::start(directory).unwrap_err().to_string();
    assert!(error.contains("another organisation"), "{error}");
}

/// Forwards datagrams of up to `limit` bytes between one client and `to`; longer ones get lost, as on a path that
/// doesn't carry them. Gives where the client finds it.
async fn narrow_path(to: SocketAddr, limit: usize) -> SocketAddr {
    let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    inside.connect(to).await.unwrap();
    let address = outside.local_addr().unwrap();
    let client = Arc::new(std::sync::Mutex::new(None));
    let (there, back) =
        ((outside.clone(), inside.clone(), client.clone()), (inside, outside, client));
    tokio::spawn(async move {
        let (from, to, client) = there;
        let mut buffer = vec![0; 65_536];
        while let Ok((len, address)) = from.recv_from(&mut buffer).await {
            *client.lock().unwrap() = Some(address);
            if len <= limit {
                let _ = to.send(&buffer[..len]).await;
            }
        }
    });
    tokio::spawn(async move {
        let (from, to, client) = back;
        let mut buffer = vec![0; 65_536];
        while let Ok(len) = from.recv(&mut buffer).await {
            let client: Option<SocketAddr> = *client.lock().unwrap();
            if let Some(client) = client.filter(|_| len <= limit) {
                let _ = to.send_to(&buffer[..len], client).await;
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peers_path_carries_is_told_and_longer_packets_are_counted() {
    let mut bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2, 3]).await;
    let straight = bed.address;
    let mut wide = Gateway::connect(&bed, 3, 2, &[1]).await;
    bed.address = narrow_path(straight, 1300).await;
    let mut narrow = Gateway::connect(&bed, 2, 3, &[1]).await;
    let to_wide = a.hear_of(3, |room| room.is_some_and(|room| room > 1350)).await;
    let to_narrow =
        a.hear_of(2, |room| room.is_some_and(|room| (1200..=1270).contains(&room))).await;
    wide.meet(1).await;
    narrow.meet(1).await;
    // Both know the same of their own path. Losses that look like a narrow path are forgotten in time.
    let wide_enough = || {
        let own = a.link.connection().max_datagram_size();
        (own.is_some_and(|own| own > 1350), own)
    };
    until("the straight path's size", wide_enough).await;
    a.deliver(to_wide, 1, 1350, &wide).await;
    until("a packet that is too long for the other", || {
        a.send(to_narrow, 2, 1350);
        let counts = bed.relay().service().counts();
        (counts.dropped(Dropped::TooLong) > 0, counts)
    })
    .await;
    let room = a.peers.values().find(|state| state.number == to_narrow).unwrap().room.unwrap();
    a.deliver(to_narrow, 3, usize::from(room), &narrow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_gateways_reach_each_other() {
    const ALL: u16 = 200;
    const PACKETS: usize = 30;
    let bed = Arc::new(Bed::new(""));
    let mut gateways = Vec::new();
    for n in 0..ALL {
        let peers = [(n + 1) % ALL, (n + ALL - 1) % ALL];
        gateways.push(Gateway::connect(&bed, 1000 + n, 1, &peers.map(|peer| 1000 + peer)).await);
    }
    // Each sends until all have heard enough: what the machine loses is no matter, whom it reaches is.
    let content = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for (n, mut gateway) in (0u16..).zip(gateways) {
        let content = content.clone();
        tasks.push(tokio::spawn(async move {
            let next = gateway.meet(1000 + (n + 1) % ALL).await;
            let before = gateway.meet(1000 + (n + ALL - 1) % ALL).await;
            let receiving = async {
                let mut marks = Vec::new();
                while marks.len() < PACKETS {
                    let (from, mark, _) = gateway.receive().await;
                    assert_eq!(from, before);
                    marks.push(mark);
                }
                content.fetch_add(1, Ordering::Relaxed);
                marks
            };
            let sending = async {
                let mut mark = 0;
                while content.load(Ordering::Relaxed) < usize::from(ALL) {
                    gateway.send(next, mark, 500);
                    mark += 1;
                    tokio::time::sleep(Duration::from_millis(60)).await;
                }
            };
            let (marks, ()) = tokio::join!(receiving, sending);
            (marks, gateway)
        }));
    }
    let mut stay = Vec::new();
    for task in tasks {
        let (marks, gateway) = soon("all packets", task).await.unwrap();
        assert!(marks.is_sorted_by(|a, b| a < b), "out of order or twice: {marks:?}");
        stay.push(gateway);
    }
    let counts = bed.relay().service().counts();
    // A machine that stands still for a moment may cost some.
    let slow = counts.dropped(Dropped::Late) + counts.dropped(Dropped::Unread);
    assert_eq!(counts.dropped_in_all(), slow, "{counts:?}");
}
