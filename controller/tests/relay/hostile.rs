//! What a relay does about those who don't keep to the rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anteroom_controller_core::relay::Dropped;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::relay::packet::PeerNumber;
use anteroom_proto::relay::pass::{PassNumber, RelayPass};
use anteroom_proto::relay::{FromRelay, RefusalCode, ToRelay};
use anteroom_proto::time::UnixMillis;
use anteroom_transport::endpoint;
use anteroom_transport::tls::Protocol;

use crate::support::{Bed, CONTROLLER, Gateway, code, key, pass, sealed, signed, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn forged_borrowed_and_old_passes_let_nobody_in() {
    let bed = Bed::new("");
    let good = pass(1, 5, &[2]);
    for by in [1, 2, CONTROLLER + 1] {
        let forged = Signed::sign(&good, &key(by));
        assert_eq!(
            code(Gateway::greet(&bed, 1, forged, &bed.chain).await),
            RefusalCode::Pass,
            "{by}"
        );
    }
    let borrowed = Gateway::greet(&bed, 9, signed(&good), &bed.chain).await;
    assert_eq!(code(borrowed), RefusalCode::Pass);
    let organisation = OrganisationId::from_bytes([9; 16]);
    let foreign = signed(&RelayPass { organisation, ..good.clone() });
    assert_eq!(code(Gateway::greet(&bed, 1, foreign, &bed.chain).await), RefusalCode::Pass);
    let number = PassNumber { incarnation: 1, sequence: 1 };
    let ahead = signed(&RelayPass { number, ..good.clone() });
    assert_eq!(code(Gateway::greet(&bed, 1, ahead, &bed.chain).await), RefusalCode::Pass);
    let mut altered = signed(&good).as_bytes().to_vec();
    let at = altered.len() / 2;
    altered[at] ^= 1;
    let altered = Gateway::greet(&bed, 1, Signed::from_bytes(altered), &bed.chain).await;
    assert_eq!(code(altered), RefusalCode::Pass);
    // Its own, of before: shown again on the same connection and on a new one.
    let mut gateway = Gateway::greet(&bed, 1, signed(&good), &bed.chain).await.ok().unwrap();
    let old = signed(&pass(1, 4, &[2, 3]));
    gateway.writer.send(&ToRelay::Pass(Box::new(old.clone()))).await.unwrap();
    match gateway.hear().await {
        Some(FromRelay::PassRefused(refusal)) => assert_eq!(refusal.code, RefusalCode::Superseded),
        other => panic!("{other:?}"),
    }
    gateway.leave().await;
    assert_eq!(code(Gateway::greet(&bed, 1, old, &bed.chain).await), RefusalCode::Superseded);
    let counts = bed.relay().service().counts();
    assert!(counts.refused >= 2, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sends_to_whom_the_other_pass_doesnt_name() {
    let bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2, 3]).await;
    let _b = Gateway::connect(&bed, 2, 2, &[3]).await;
    let mut c = Gateway::connect(&bed, 3, 3, &[1, 2]).await;
    a.meet(3).await;
    c.meet(1).await;
    assert_eq!(a.peers.len(), 1, "it isn't even told of the other");
    let before = bed.relay().service().counts();
    // Every number that there is, whether it was told or not, in rounds until enough were judged.
    let dropped = |reason| bed.relay().service().counts().dropped(reason) - before.dropped(reason);
    let mut rounds = 0;
    until("all were judged", || {
        rounds += 1;
        for number in 0..40 {
            a.send(PeerNumber::new(number).unwrap(), 1, 100);
        }
        let counts = bed.relay().service().counts();
        let judged = [dropped(Dropped::NotShared), dropped(Dropped::Unknown), counts.packets];
        (judged[0] >= 1 && judged[1] >= 38 && judged[2] >= 1, judged)
    })
    .await;
    assert_eq!(c.receive().await.1, 1);
    let counts = bed.relay().service().counts();
    assert!(counts.packets <= rounds, "one number of all leads to somebody: {counts:?}");
    assert!(dropped(Dropped::NotShared) <= rounds, "and one to whom it isn't shared: {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stale_passes_open_nothing_once_newer_ones_had_their_time() {
    let bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2]).await;
    let mut b = Gateway::connect(&bed, 2, 2, &[1]).await;
    let to_b = a.meet(2).await;
    b.meet(1).await;
    // As if the controller's clock had been set.
    let shown = Instant::now();
    let later = RelayPass { issued_at: UnixMillis(u64::MAX / 2), ..pass(3, 3, &[]) };
    let _c = Gateway::greet(&bed, 3, signed(&later), &bed.chain).await.ok().unwrap();
    // Nobody sends anything: the relay sees to it by itself.
    a.hear_of(2, |room| room.is_none()).await;
    b.hear_of(1, |room| room.is_none()).await;
    assert!(shown.elapsed() >= Duration::from_secs(30), "closed after {:?}", shown.elapsed());
    until("it to be refused", || {
        a.send(to_b, 1, 100);
        let counts = bed.relay().service().counts();
        (counts.dropped(Dropped::NotShared) > 0 && counts.packets == 0, counts)
    })
    .await;
    let renewed = RelayPass { issued_at: later.issued_at, ..pass(2, 4, &[1]) };
    b.writer.send(&ToRelay::Pass(Box::new(signed(&renewed)))).await.unwrap();
    a.meet(2).await;
    a.deliver(to_b, 2, 100, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_isnt_said_by_the_rules_ends_one_connection_and_no_other() {
    let bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2]).await;
    let mut b = Gateway::connect(&bed, 2, 2, &[1]).await;
    let to_b = a.meet(2).await;
    b.meet(1).await;
    let mut odd = Gateway::connect(&bed, 3, 3, &[]).await;
    for junk in [vec![], vec![1], vec![0xff; 900], vec![0; 900]] {
        let before = bed.relay().service().counts().dropped(Dropped::Malformed);
        until("junk is counted", || {
            odd.link.connection().send_datagram(junk.clone().into()).unwrap();
            let counts = bed.relay().service().counts();
            (counts.dropped(Dropped::Malformed) > before, counts)
        })
        .await;
    }
    odd.writer.send(&ToRelay::Authority(vec![])).await.unwrap();
    match odd.hear().await {
        Some(FromRelay::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Protocol),
        other => panic!("{other:?}"),
    }
    // Authority documents that don't follow.
    let mut chain = bed.chain.clone();
    chain.push(chain[0].clone());
    let greeted = Gateway::greet(&bed, 4, signed(&pass(4, 4, &[])), &chain).await;
    assert_eq!(code(greeted), RefusalCode::Authority);
    a.deliver(to_b, 5, 100, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_packets_dont_shut_a_quiet_pair_out() {
    const FLOOD: u64 = 2_000;
    let bed = Bed::new("");
    // All flood the very gateway that the quiet one speaks with.
    let mut victim = Gateway::connect(&bed, 2, 1, &[1, 11, 12, 13]).await;
    let mut quiet = Gateway::connect(&bed, 1, 2, &[2]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut floods = Vec::new();
    for n in [11, 12, 13] {
        let mut flooder = Gateway::connect(&bed, n, 3, &[2]).await;
        let to = flooder.meet(2).await;
        let stop = stop.clone();
        floods.push(tokio::spawn(async move {
            let packet = bytes::Bytes::from(sealed(to, u32::MAX, 1100));
            while !stop.load(Ordering::Relaxed) {
                // As fast as QUIC takes them.
                if flooder.link.connection().send_datagram_wait(packet.clone()).await.is_err() {
                    break;
                }
            }
            flooder.leave().await;
        }));
    }
    let to_victim = quiet.meet(2).await;
    let from_quiet = victim.meet(1).await;
    // How large a share arrives, the core's own tests say, which need no machine that keeps up.
    let (mut marks, mut others) = (Vec::new(), 0u64);
    let sending = async {
        for mark in 0.. {
            quiet.send(to_victim, mark, 200);
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    };
    let receiving = async {
        while marks.len() < 100 || others < FLOOD {
            match victim.receive().await {
                (from, mark, _) if from == from_quiet => marks.push(mark),
                _ => others += 1,
            }
        }
    };
    soon("a hundred quiet packets beside the floods", async {
        tokio::select! {
            () = receiving => {}
            () = sending => {}
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let receiving = async { while victim.link.connection().read_datagram().await.is_ok() {} };
    tokio::select! {
        () = receiving => panic!("the connection of the one who was flooded ended"),
        () = async {
            for flood in floods {
                soon("the end of a flood", flood).await.unwrap();
            }
        } => {}
    }
    assert!(marks.is_sorted_by(|a, b| a < b), "out of order or twice: {marks:?}");
}

/// Sends numbered packets from `a` to `b`, one in 4 ms, until `count` have arrived and `enough` says so.
async fn steady(a: &Gateway, b: &Gateway, to: PeerNumber, count: usize, enough: impl Fn() -> bool) {
    let sending = async {
        for mark in 0.. {
            a.send(to, mark, 200);
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    };
    let receiving = async {
        let mut marks = Vec::new();
        while marks.len() < count || !enough() {
            marks.push(b.receive().await.1);
        }
        marks
    };
    tokio::select! {
        marks = receiving => {
            assert!(marks.is_sorted_by(|a, b| a < b), "out of order or twice: {marks:?}");
        }
        () = sending => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_churn_dont_disturb_those_who_are_here() {
    let bed = Arc::new(Bed::new("unknown = 32"));
    let mut a = Gateway::connect(&bed, 1, 1, &[2]).await;
    let mut b = Gateway::connect(&bed, 2, 2, &[1]).await;
    let to_b = a.meet(2).await;
    b.meet(1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (strangers, churned) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut crowd = Vec::new();
    for n in 0..8u16 {
        let (bed, stop, strangers) = (bed.clone(), stop.clone(), strangers.clone());
        crowd.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                strangers.fetch_add(1, Ordering::Relaxed);
                let (identity, servers) = (key(500 + n), [bed.key]);
                let connecting =
                    endpoint::connect_for(bed.address, &identity, &servers, Protocol::Relay);
                // A stranger that says nothing, or goes away in the middle of it.
                let patience = Duration::from_millis(u64::from(n) * 20 + 5);
                if let Ok(Ok(link)) = tokio::time::timeout(patience, connecting).await {
                    tokio::time::sleep(patience).await;
                    drop(link);
                }
            }
        }));
    }
    // Gateways that come and go without end.
    {
        let (bed, stop, churned) = (bed.clone(), stop.clone(), churned.clone());
        crowd.push(tokio::spawn(async move {
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                Gateway::connect(&bed, 700 + turns % 50, 9, &[1, 2]).await.leave().await;
                turns += 1;
                churned.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    soon("a steady pair, strangers and churn", async {
        steady(&a, &b, to_b, 500, || count(&strangers) > 20 && count(&churned) > 0).await;
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for task in crowd {
        soon("the end of the crowd", task).await.unwrap();
    }
    a.leave().await;
    b.leave().await;
    until("nobody is left", || {
        let here = bed.relay().service().gateways();
        (here == 0, here)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_before_the_welcome_end_the_connection() {
    let bed = Bed::new("");
    let link = soon("a connection", async {
        loop {
            let (identity, servers) = (key(1), [bed.key]);
            let link = endpoint::connect_for(bed.address, &identity, &servers, Protocol::Relay);
            if let Ok(link) = link.await {
                return link;
            }
        }
    })
    .await;
    let sending = async {
        loop {
            let _ = link.connection().send_datagram(vec![4; 40].into());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let closed = tokio::select! {
        closed = soon("the end", link.connection().closed()) => closed,
        () = sending => unreachable!("it sends for ever"),
    };
    // A machine that stands still for 5 s ends it for another reason.
    let why = closed.to_string();
    assert!(closed.is_by_peer() && (why.contains("datagrams") || why.contains("say who")), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_go_on_while_passes_wait_for_their_time() {
    let bed = Bed::new("");
    let mut a = Gateway::connect(&bed, 1, 1, &[2]).await;
    let mut b = Gateway::connect(&bed, 2, 2, &[1]).await;
    let to = a.meet(2).await;
    b.meet(1).await;
    // Each good, and far more than are looked at in the time that the packet takes.
    for sequence in 10..60 {
        a.writer.send(&ToRelay::Pass(Box::new(signed(&pass(1, sequence, &[2]))))).await.unwrap();
    }
    a.deliver(to, 7, 300, &b).await;
    for _ in 10..60 {
        match a.hear().await {
            Some(FromRelay::PassTaken(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_messages_is_sent_away_however_it_goes_on_sending() {
    let bed = Bed::new("");
    let mut deaf = Gateway::connect(&bed, 1, 1, &[2, 3]).await;
    let mut b = Gateway::connect(&bed, 2, 2, &[1]).await;
    let to_b = deaf.meet(2).await;
    b.meet(1).await;
    deaf.deliver(to_b, 1, 300, &b).await;
    // Who drops the end that is read from tells the relay to stop writing. Then there is something to be told.
    let Gateway { link, reader, writer: _writer, .. } = deaf;
    drop(reader);
    let _c = Gateway::connect(&bed, 3, 3, &[1]).await;
    let sending = async {
        loop {
            let _ = link.connection().send_datagram(sealed(to_b, 2, 300).into());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let closed = tokio::select! {
        closed = soon("the end", link.connection().closed()) => closed.to_string(),
        () = sending => unreachable!("it sends for ever"),
    };
    assert!(closed.contains("takes no messages"), "{closed}");
    b.hear_of(1, |room| room.is_none()).await;
}
