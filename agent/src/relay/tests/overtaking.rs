//! Packets that come before the relay's word whose they are.

use bytes::Bytes;

use super::*;

#[tokio::test]
async fn packets_that_overtake_the_word_whose_they_are_are_brought_once_it_is_there() {
    let mut bed = Bed::new();
    bed.give_pass(1);
    let mut guest = bed.relay.greet().await;
    guest.welcome().await;
    bed.opened().await;
    let packet = |from, mark| {
        Bytes::from([packet::header(number(from), false).as_slice(), &sealed(mark)].concat())
    };
    for (from, mark) in [(4, 1), (9, 2), (4, 3)] {
        guest.connection.send_datagram(packet(from, mark)).unwrap();
    }
    // They are there before the word is: one that was sent behind them has come.
    guest.tell(&[(6, 0, Some(900))]).await;
    bed.told(6, &[900]).await;
    guest.connection.send_datagram(packet(0, 4)).unwrap();
    let (through, first) = soon("a packet", bed.worker.brought()).await;
    assert_eq!((through.peer, first), (peer(6), sealed(4)));
    guest.tell(&[(5, 4, Some(900))]).await;
    for mark in [1, 3] {
        let (through, next) = soon("a packet", bed.worker.brought()).await;
        assert_eq!((through.peer, next), (peer(5), sealed(mark)));
    }
}
