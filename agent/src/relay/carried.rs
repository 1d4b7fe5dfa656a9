//! What a connection to a relay carries, both ways, and how it makes way for a better one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anteroom_agent_core::target::{RelayId, Through};
use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::packet::{self, Datagram, HEADER_LEN, PROBE_LEN};
use anteroom_transport::datagrams;
use anteroom_transport::link::{Connection, SendDatagramError};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::peers::Peers;
use crate::dataplane::relayed::{Inlet, Outgoing, Packet};

/// How long what was sent may take to arrive before a better connection is taken.
pub(super) const BARRIER: Duration = Duration::from_millis(500);
/// How long the relay may take to say what peers are called before packets are taken all the same.
const WORD: Duration = Duration::from_secs(1);
/// What is sent behind all that has to arrive first, and comes back.
const MARK: [u8; PROBE_LEN] = *b"all sent";
/// Packets of a relay that are handed to the worker at once.
const BATCH: usize = 64;

/// What the tasks of one connection share.
pub(super) struct Shared {
    pub(super) connection: Connection,
    /// This gateway's identity key that the relay knows it by.
    pub(super) identity: PublicKey,
    peers: Mutex<Peers>,
    /// The relay has said how it stands with peers.
    pub(super) heard: Notify,
    /// What was sent before [`MARK`] has arrived.
    arrived: Notify,
    /// How far the change to a better connection has come.
    pub(super) change: watch::Sender<Change>,
    pub(super) dropped: AtomicU64,
}

/// How far the change to a better connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// There is none. Packets go by the connection so far.
    None,
    /// There is one to be greeted, once the relay has all that was sent.
    Asked,
    /// The relay has all that was sent. More waits.
    Ready,
    /// The relay takes its time. Packets go by the connection so far again.
    Slow,
}

impl Shared {
    pub(super) fn new(connection: Connection, identity: PublicKey) -> Self {
        Self {
            connection,
            identity,
            peers: Mutex::default(),
            heard: Notify::new(),
            arrived: Notify::new(),
            change: watch::Sender::new(Change::None),
            dropped: AtomicU64::new(0),
        }
    }

    /// Waits until the change to a better connection has come so far.
    pub(super) async fn reach(&self, far: impl Fn(Change) -> bool) {
        // It is told from here, so that there is always somebody who tells.
        let _ = self.change.subscribe().wait_for(|change| far(*change)).await;
    }

    /// Waits until the relay has all that was sent, for a moment at most.
    async fn all_sent(&self) {
        let sent = async {
            let mark = packet::probe(MARK).into();
            if self.connection.send_datagram_wait(mark).await.is_ok() {
                self.arrived.notified().await;
            }
        };
        let _ = timeout(BARRIER, sent).await;
    }

    pub(super) fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes in front of packets for whom they are; those for nobody who is here are dropped.
    fn address(&self, batch: &mut Vec<Packet>) {
        let peers = self.peers();
        batch.retain_mut(|packet| {
            let number = peers.numbers.get(&packet.to).map(|state| state.number);
            let (Some(number), Some(head)) = (number, packet.bytes.get_mut(..HEADER_LEN)) else {
                self.drop_one();
                return false;
            };
            head.copy_from_slice(&packet::header(number, false));
            true
        });
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The longest sealed packet that this end can send now.
    pub(super) fn room(&self) -> u16 {
        self.connection.sealed_room()
    }
}

/// Takes what the data plane has for the relay, until the connection ends. While the relay is asked to take a better one,
/// packets wait for that, for a moment: those sent by this one behind the question would be lost.
pub(super) async fn take_packets(shared: &Shared, outgoing: &mut Outgoing) {
    let mut batch = Vec::new();
    // Until the relay has said what peers are called, nothing can be sent. What was taken before would be lost.
    let _ = timeout(WORD, shared.heard.notified()).await;
    'connection: loop {
        let space = shared.connection.datagram_send_buffer_space();
        let more = tokio::select! {
            biased;
            () = shared.reach(|change| change == Change::Ready) => {
                shared.reach(|change| matches!(change, Change::None | Change::Slow)).await;
                continue;
            }
            () = shared.reach(|change| change == Change::Asked) => {
                shared.all_sent().await;
                shared.change.send_if_modified(|change| {
                    let asked = *change == Change::Asked;
                    if asked {
                        *change = Change::Ready;
                    }
                    asked
                });
                shared.reach(|change| matches!(change, Change::None | Change::Slow)).await;
                continue;
            }
            more = outgoing.take(space, &mut batch) => more,
        };
        if !more {
            break;
        }
        shared.address(&mut batch);
        for packet in batch.drain(..) {
            match shared.connection.send_datagram_wait(packet.bytes.freeze()).await {
                Ok(()) => {}
                Err(SendDatagramError::TooLarge) => shared.drop_one(),
                Err(SendDatagramError::Gone) => break 'connection,
            }
        }
    }
    shared.connection.closed().await;
}

/// Brings the data plane what the relay has for it, until the connection ends.
pub(super) async fn bring_packets(shared: &Shared, relay: RelayId, inlet: &Inlet) {
    let mut batch = Vec::new();
    while datagrams::read(&shared.connection, BATCH, &mut batch).await.is_ok() {
        let peers = shared.peers();
        inlet.bring(batch.iter().filter_map(|datagram| match packet::parse(datagram) {
            Some(Datagram::Packet { peer, sealed, .. }) => {
                let peer = peers.names.get(&peer).copied();
                if peer.is_none() {
                    shared.drop_one();
                }
                Some((Through { relay, peer: peer? }, sealed))
            }
            Some(Datagram::Answer(MARK)) => {
                shared.arrived.notify_one();
                None
            }
            // The connection measures the round trip by itself.
            Some(Datagram::Probe(_) | Datagram::Answer(_)) => None,
            None => {
                shared.drop_one();
                None
            }
        }));
        drop(peers);
        batch.clear();
    }
}
