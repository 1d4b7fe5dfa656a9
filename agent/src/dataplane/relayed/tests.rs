use std::net::Ipv4Addr;

use super::*;

const TO: Through = Through { relay: RelayId(3), peer: GatewayId::from_bytes([9; 16]) };

fn fill(len: usize, with: u8) -> impl FnOnce(&mut [u8]) -> usize {
    move |buffer| {
        buffer[..len].fill(with);
        len
    }
}

fn device(n: u8) -> Whose {
    Whose::Device(Ipv4Addr::new(10, 0, 0, n).into())
}

fn opened() -> (Relays, Outgoing) {
    let mut relays = Relays::default();
    let (queues, outgoing) = queues();
    relays.open(TO.relay, queues);
    (relays, outgoing)
}

#[tokio::test]
async fn a_full_queue_turns_packets_away_and_keeps_what_is_urgent_apart() {
    let mut none = Relays::default();
    assert_eq!(none.put(TO, device(1), 100, fill(100, 1)), Put::Gone);
    let (mut relays, mut outgoing) = opened();
    for _ in 0..WAITING {
        assert_eq!(relays.put(TO, device(1), 100, fill(90, 1)), Put::Waits);
    }
    assert_eq!(relays.flush(), (WAITING / 2) as u64, "one device has half of it");
    assert_eq!(relays.put(TO, Whose::Gateways, 100, fill(40, 2)), Put::Waits);
    assert_eq!(relays.put(TO, Whose::Gateways, 100, fill(0, 2)), Put::Nothing);
    let long = *SEALED_LEN.end() + 1;
    assert_eq!(relays.put(TO, Whose::Gateways, long, fill(long, 2)), Put::TooBig);
    assert_eq!(relays.flush(), 0);
    let first = outgoing.next().await.expect("what is urgent");
    assert_eq!((first.to, first.bytes.len()), (TO.peer, HEADER_LEN + 40));
    assert!(first.bytes[HEADER_LEN..].iter().all(|byte| *byte == 2), "{first:?}");
    for _ in 0..WAITING / 2 {
        assert_eq!(outgoing.next().await.expect("the rest").bytes.len(), HEADER_LEN + 90);
    }
    relays.close(TO.relay);
    assert!(outgoing.next().await.is_none());
}

#[tokio::test]
async fn a_device_that_floods_takes_no_room_and_no_turn_of_its_neighbours() {
    let (mut relays, mut outgoing) = opened();
    for n in 0..3_000 {
        relays.put(TO, device(1), 1_400, fill(1_400, 1));
        if n % 100 == 0 {
            relays.put(TO, device(2), 200, fill(200, 2));
        }
        // The mark that a device gives its packets isn't looked at: it can't get into what is urgent.
        if n % 1_000 == 0 {
            relays.put(TO, Whose::Gateways, 148, fill(148, 3));
        }
    }
    let turned_away = relays.flush();
    let mut batch = Vec::new();
    let (mut order, mut quiet) = (Vec::new(), 0);
    while order.len() < 64 {
        assert!(outgoing.take(usize::MAX, &mut batch).await);
        order.extend(batch.drain(..).map(|packet| packet.bytes[HEADER_LEN]));
    }
    assert_eq!(order[..3], [3, 3, 3], "what keeps tunnels up goes first");
    quiet += order.iter().filter(|mark| **mark == 2).count();
    assert_eq!(quiet, 30, "all of the neighbour's are among the first: {order:?}");
    assert!(turned_away >= 2_000, "{turned_away} of the flood were turned away");
}

#[tokio::test]
async fn a_peer_that_is_answered_without_end_takes_no_room_and_no_turn_of_other_peers() {
    let (mut relays, mut outgoing) = opened();
    for _ in 0..2_000 {
        relays.put(TO, Whose::Gateways, 400, fill(400, 1));
    }
    for n in 0..20 {
        let to = Through { peer: GatewayId::from_bytes([100 + n; 16]), ..TO };
        for _ in 0..2 {
            relays.put(to, Whose::Gateways, 148, fill(148, 2));
        }
    }
    assert_eq!(relays.flush(), 2_000 - (URGENT / 2) as u64, "what is too much is the one peer's");
    let mut order = Vec::new();
    while order.len() < 60 {
        assert!(outgoing.take(usize::MAX, &mut order).await);
    }
    let others = order[..60].iter().filter(|packet| packet.to != TO.peer).count();
    assert_eq!(others, 40, "all of the others' are among the first");
}

#[tokio::test]
async fn no_more_is_taken_than_the_connection_has_room_for() {
    let (mut relays, mut outgoing) = opened();
    for _ in 0..10 {
        relays.put(TO, device(1), 1_000, fill(1_000, 1));
    }
    relays.flush();
    for (room, taken) in [(0, 1), (1_500, 2), (usize::MAX, 7)] {
        let mut batch = Vec::new();
        assert!(outgoing.take(room, &mut batch).await);
        assert_eq!(batch.len(), taken, "with room for {room} bytes");
    }
    drop(relays);
    assert!(!outgoing.take(1, &mut Vec::new()).await);
}

#[test]
fn the_worker_is_woken_once_and_what_is_too_much_is_counted() {
    let wake = Arc::new(EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap());
    let (inlet, delivery) = Inlet::new(wake.clone());
    let sealed = [1; 50];
    for _ in 0..INCOMING {
        inlet.bring([(TO, &sealed[..])]);
    }
    assert_eq!(inlet.turned_away(), (INCOMING / 2) as u64);
    // Another peer's packets find room, and their turn.
    let other = Through { peer: GatewayId::from_bytes([8; 16]), ..TO };
    inlet.bring((0..10).map(|_| (other, &sealed[..40])));
    assert_eq!(inlet.turned_away(), (INCOMING / 2) as u64);
    assert_eq!(wake.read(), Ok(1));
    let mut batch = Vec::new();
    assert!(delivery.take(256, &mut batch));
    assert_eq!(batch.iter().filter(|packet| packet.from == other).count(), 10);
    assert_eq!((batch[0].from, batch[0].bytes.len()), (TO, 50));
    while delivery.take(INCOMING, &mut batch) {}
    assert_eq!(batch.len(), INCOMING / 2 + 10);
    inlet.bring([(TO, &sealed[..])]);
    assert_eq!(wake.read(), Ok(1), "woken again for what comes after");
}
