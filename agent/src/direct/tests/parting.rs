//! Connections that are let go while packets are under way on them.

use anteroom_proto::direct::{LEAVES, PEER};
use anteroom_proto::relay::packet;
use bytes::Bytes;

use super::*;

/// A packet as it travels on a connection.
fn datagram(mark: u8) -> Bytes {
    [&packet::header(PEER, false)[..], &sealed(mark)].concat().into()
}

impl Alone {
    /// Waits until the only connection carries packets, and has queues for it.
    async fn carries(&mut self) -> (RelayId, Queues) {
        let opened = soon("queues", async {
            loop {
                if let Told::Opened(relay, queues) = self.worker.told().await {
                    return (relay, queues);
                }
            }
        })
        .await;
        let event = soon("it to carry packets", self.happened.recv()).await.unwrap();
        let Event::Carries(_, id) = event else { panic!("another event") };
        assert_eq!(id, opened.0);
        self.keeper.take(event).await;
        assert!(self.keeper.links.len() == 1 && self.keeper.leaving.is_empty());
        opened
    }

    /// Packets go no more by the connection with this peer, but what is under way on it both ways still arrives, until it ends.
    async fn parted(&mut self, (relay, queues): (RelayId, Queues), there: &Connection) {
        assert!(self.keeper.links.is_empty(), "packets would still go there");
        let peer = self.keeper.leaving.first().expect("it is kept for a while").1;
        there.send_datagram(datagram(1)).unwrap();
        let brought = soon("what was under way", self.worker.brought()).await;
        assert_eq!(brought, (Through { relay, peer }, sealed(1)));
        queues.put(peer, &sealed(2));
        let came = async {
            loop {
                let came = there.read_datagram().await.unwrap();
                if came[..] != LEAVES {
                    return came;
                }
            }
        };
        assert_eq!(soon("what had been queued", came).await, datagram(2));

        self.keeper.end_the_left(Instant::now()).await;
        assert_eq!(self.keeper.leaving.len(), 1, "the other may not know yet");
        assert!(!self.keeper.goes_back(peer), "it is let go for good");
        self.keeper.end_the_left(Instant::now() + PARTING).await;
        assert!(self.keeper.leaving.is_empty());
        soon("its end", there.closed()).await;
    }
}

/// A gateway to which a peer has connected, and the peer's end.
async fn taken(port: u16) -> (Alone, Connection, (RelayId, Queues)) {
    let mut alone = Alone::new(1, Some(port), vec![peer(2, None)]).await;
    let maker = raw(2, None, &[]);
    let (at, key) = (SocketAddr::from((address(1), port)), identity(1).public());
    let there = soon("a connection", maker.connect(at, &key)).await.unwrap();
    let came = soon("it to be taken", alone.happened.recv()).await.unwrap();
    alone.keeper.take(came).await;
    let carries = alone.carries().await;
    (alone, there, carries)
}

#[tokio::test]
async fn a_peer_is_told_that_another_uplink_is_used_and_nothing_under_way_is_lost() {
    let (mut alone, there, carries) = taken(4445).await;
    alone.keeper.follow_uplink(0, false).await;
    assert_eq!(alone.keeper.links.len(), 1, "the uplink is the same");
    alone.keeper.follow_uplink(1, false).await;
    let told = soon("word of it", there.read_datagram()).await.unwrap();
    assert_eq!(told[..], LEAVES);
    // That may be lost.
    alone.keeper.end_the_left(Instant::now()).await;
    let again = soon("word of it again", there.read_datagram()).await.unwrap();
    assert_eq!(again[..], LEAVES);
    alone.parted(carries, &there).await;
}

#[tokio::test]
async fn one_whose_peer_sends_by_other_ways_does_so_too_and_takes_what_is_under_way() {
    const PORT: u16 = 4446;
    let (mut came, _taking) = taking(1, PORT, &[2]);
    let mut alone = Alone::new(2, None, vec![peer(1, Some(PORT))]).await;
    alone.keeper.dial(&peer(1, Some(PORT)));
    let dialled = soon("a connection", alone.happened.recv()).await.unwrap();
    alone.keeper.take(dialled).await;
    let carries = alone.carries().await;
    let there = soon("its other end", came.recv()).await.unwrap();
    for _ in 0..2 {
        there.send_datagram(Bytes::from_static(&LEAVES)).unwrap();
    }
    let left = soon("word of it", alone.happened.recv()).await.unwrap();
    let Event::Left(..) = &left else { panic!("another event") };
    alone.keeper.take(left).await;
    alone.keeper.tell();
    let status = alone.keeper.status.borrow().clone();
    assert!(last_error(&status).contains("by other ways"), "{status:?}");
    let now = Instant::now();
    let mut need = alone.keeper.needs[&gateway(1)];
    need.note(false, now);
    assert!(
        !need.dials(true, now + plan::PATIENCE) && need.dials(true, now + LOOK * 10),
        "a peer that says so again and again would be dialled without end: {need:?}"
    );
    alone.parted(carries, &there).await;
}

#[tokio::test]
async fn what_is_under_way_by_an_identity_key_that_is_replaced_is_taken() {
    let (mut alone, there, carries) = taken(4447).await;
    alone.keeper.prepare_anew();
    assert!(alone.keeper.anew.is_some());
    alone.parted(carries, &there).await;

    let (mut alone, there, carries) = taken(4448).await;
    let mut other = peer(2, None);
    other.gateway.identity = identity(7).public();
    alone.keeper.follow(view(vec![other])).await;
    alone.parted(carries, &there).await;

    // One that is no peer any more has no time.
    let (mut alone, there, _carries) = taken(4449).await;
    alone.keeper.follow(view(Vec::new())).await;
    assert!(alone.keeper.links.is_empty() && alone.keeper.leaving.is_empty());
    soon("its end", there.closed()).await;
}
