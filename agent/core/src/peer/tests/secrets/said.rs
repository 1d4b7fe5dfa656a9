//! What a peer says of keys, true or not, and what is said again.

use super::*;

/// What a peer may say that has nothing good in mind, or is late.
fn parts(pair: [Hash; 2], fill: u8) -> Vec<Message> {
    let bytes = vec![fill; CIPHERTEXT_LEN];
    let of = Blob(Sha256::digest(&bytes)[..8].to_vec());
    let pair = Blob([&pair[0].as_bytes()[..8], &pair[1].as_bytes()[..8]].concat());
    let parts = bytes.chunks(CIPHERTEXT_LEN / 4).zip(0..);
    let part = |(bytes, number): (&[u8], u8)| {
        let bytes = Blob(bytes.to_vec());
        Message::SecretPart(SecretPart { pair: pair.clone(), of: of.clone(), number, bytes })
    };
    parts.map(part).collect()
}

#[test]
fn nothing_that_a_peer_says_of_keys_cuts_what_lives() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    test.world.run(Duration::from_secs(1));
    let of = |number| binding(secret(number).public());
    let psk = test.psk(1);
    let held = |pair: &[u8], proof: &[u8]| {
        let (pair, proof) = (Blob(pair.to_vec()), Blob(proof.to_vec()));
        Message::SecretHeld(SecretHeld { pair, of: None, proof })
    };
    let known = [of(1), of(2)];
    let mut messages = parts(known, 1);
    messages.extend(parts([of(2), of(1)], 2));
    messages.extend(parts([of(1), of(9)], 3));
    messages.extend(parts([of(9), of(2)], 4));
    messages.push(held(&[], &[]));
    messages.push(held(&[&of(1).as_bytes()[..8], &of(2).as_bytes()[..8]].concat(), &[0; 8]));
    for (at, broken) in parts(known, 5).into_iter().enumerate() {
        let Message::SecretPart(part) = broken else { unreachable!() };
        messages.push(Message::SecretPart(SecretPart { number: 200, ..part.clone() }));
        messages.push(Message::SecretPart(SecretPart { of: Blob(vec![1; at]), ..part.clone() }));
        messages.push(Message::SecretPart(SecretPart { pair: Blob(vec![1; at]), ..part.clone() }));
        messages.push(Message::SecretPart(SecretPart { bytes: Blob(vec![1; at]), ..part }));
    }
    for message in messages {
        for from in [0, 1] {
            let to = test.world.sides[1 - from].gateway;
            let side = &mut test.world.sides[from];
            side.peers.tell(to, &message, &mut side.sent);
            test.world.settle();
        }
        test.ping_for(Duration::from_millis(50));
    }
    test.ping_for(Duration::from_secs(20));
    test.assert_none_lost();
    test.assert_quantum();
    assert_eq!((test.psk(0), test.psk(1)), (psk.clone(), psk));
}

#[test]
fn a_copy_of_what_was_agreed_on_earlier_changes_nothing() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    test.world.run(Duration::from_secs(1));
    let copies: Vec<_> = test.world.delivered.clone();
    for round in 0..2 {
        test.make(round);
        test.tell(round);
        test.ping_for(Duration::from_secs(15));
        assert!(test.retire(round));
        test.tell(round);
    }
    let psk = test.psk(1);
    for (to, from, datagram) in copies {
        let now = test.world.now;
        test.world.sides[to].deliver(from, &datagram, now);
        test.world.settle();
        test.ping_for(Duration::from_millis(20));
    }
    test.ping_for(Duration::from_secs(5));
    test.assert_none_lost();
    test.assert_quantum();
    assert_eq!(test.psk(1), psk);
}

#[test]
fn initiations_for_a_key_that_is_lost_are_answered_by_few_of_our_own() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    test.world.run(Duration::from_secs(1));
    let from = test.world.sides[0].at;
    let other = test.world.sides[1].gateway;
    // Made for a pre-shared key, which the one who gets it has not.
    let slot = test.world.sides[0].peers.slot(other).unwrap();
    assert!(slot.number() < 10);
    test.restart(1, 90);
    test.world.run(Duration::from_secs(30));
    let now = test.world.now;
    test.world.sides[1].peers.forget_agreements_for_tests(now);
    let mut own = 0;
    for step in 0..100_u64 {
        let now = now + Duration::from_millis(step * 10);
        let datagram = test.world.sides[0].peers.initiation_for_tests(other);
        test.world.sides[1].sent.datagrams.clear();
        let dropped = test.world.sides[1].deliver(from, &datagram, now);
        assert_ne!(dropped, None);
        let sent = test.world.sides[1].sent.datagrams.iter();
        own += sent.filter(|(_, _, datagram)| datagram[0] == 1).count();
    }
    assert!(own <= 1, "{own}");
}
