//! QUIC and TCP take turns.

use anteroom_transport::tcp::Acceptor;
use anteroom_transport::tls::Protocol;

use super::*;
use crate::testkit::Front;

/// Longer than all that has to time out here, one after the other.
const PATIENCE: Duration = Duration::from_secs(120);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited for {what} in vain"))
}

/// A world whose controller is looked for behind a front, at which it takes TCP.
fn world() -> (World, Front, Acceptor) {
    let endpoint = listen("127.0.0.1:0".parse().unwrap(), &key(11)).unwrap();
    let front = Front::new(endpoint.local_addr().unwrap());
    let world = World::of(endpoint, front.address, |state| state, |_, _| {});
    (world, front, Acceptor::new(&key(11), &[Protocol::Control]).unwrap())
}

/// The next that says hello over TCP.
async fn over_tcp(front: &Front, acceptor: &Acceptor) -> Session {
    loop {
        let (stream, _) = front.listener.accept().await.unwrap();
        let Ok(connection) = acceptor.accept(stream).await else { continue };
        if let Some(session) = Session::hello(Connection::Tcp(connection)).await {
            return session;
        }
    }
}

/// How often a test tries anew that comes too late, on a machine so slow that QUIC gives itself up meanwhile.
const TRIES: usize = 10;

#[tokio::test]
async fn where_quic_is_greeted_and_then_dies_tcp_is_taken_before_it_is_given_up() {
    for _ in 0..TRIES {
        let (world, front, acceptor) = world();
        let mut session = soon("a hello over QUIC", world.session()).await;
        session.welcome(50, 5).await;
        world.until("over QUIC", |status| status.connected.is_some() && !status.over_tcp).await;
        front.cut();
        // Others still shake hands, and hear nothing more.
        let endpoint = world.endpoint.clone();
        let shaking = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                held.push(incoming.await);
            }
        });
        let mut session = soon("a hello over TCP", over_tcp(&front, &acceptor)).await;
        session.welcome(50, 5).await;
        world.until("over TCP", |status| status.connected.is_some() && status.over_tcp).await;
        let silences = world.status.borrow().silences;
        shaking.abort();
        world.finish().await;
        if silences == 1 {
            return;
        }
    }
    panic!("each time QUIC had given itself up before");
}

#[tokio::test]
async fn where_quic_shakes_hands_and_says_nothing_tcp_is_taken_and_goes_on_while_quic_is_tried() {
    let (world, front, acceptor) = world();
    // Handshakes get through, and nothing behind them.
    let (shaken, mut hands) = tokio::sync::mpsc::unbounded_channel();
    let endpoint = world.endpoint.clone();
    let shaking = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            if let Ok(connection) = incoming.await {
                let _ = shaken.send(connection);
            }
        }
    });
    let held = soon("a handshake", hands.recv()).await.unwrap();
    let mut session = soon("a hello over TCP", over_tcp(&front, &acceptor)).await;
    soon("its end", held.closed()).await;
    session.welcome(50, 5).await;
    world.until("over TCP", |status| status.connected.is_some() && status.over_tcp).await;

    // Nothing comes of the next either. Meanwhile all goes on by the one that there is.
    let held = loop {
        let hand = soon("another handshake", hands.recv()).await.unwrap();
        if hand.close_reason().is_none() {
            break hand;
        }
    };
    let moved: Vec<SocketAddr> = vec!["192.0.2.7:51820".parse().unwrap()];
    world.reach.send_modify(|reach| reach.endpoints = moved.clone());
    let mut told = false;
    let mut reports = 0;
    while held.close_reason().is_none() {
        match soon("a message", session.hear()).await {
            ToController::Report(report) => {
                reports += 1;
                let (boot, sequence) = (report.boot, report.sequence);
                session.send(ToAgent::Reported { boot, sequence }).await;
            }
            ToController::Reachable(reachable) => told |= reachable.endpoints == moved,
            _ => {}
        }
    }
    assert!(told && reports > 10, "the connection over TCP stood still: {told}, {reports} reports");
    assert!(world.status.borrow().over_tcp && world.status.borrow().connected.is_some());
    assert_eq!(session.connection.close_reason(), None);

    // The next is greeted. The controller ends the other for it, before it says so.
    let better = soon("a third handshake", hands.recv()).await.unwrap();
    let mut better = soon("a hello", Session::hello(better.into())).await.unwrap();
    assert_eq!(better.hello.reachable.endpoints, moved, "as it is now");
    session.connection.close(2_u32.into(), b"replaced");
    tokio::time::sleep(Duration::from_millis(100)).await;
    better.welcome(50, 5).await;
    world.until("over QUIC", |status| status.connected.is_some() && !status.over_tcp).await;
    assert_eq!(world.status.borrow().last_error, None, "it was never gone");
    soon("a report", better.hear_report()).await;
    shaking.abort();
    world.finish().await;
}
