//! Sealed packets over one QUIC connection to a peer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anteroom_agent_core::target::{RelayId, Through};
use anteroom_proto::direct::{LEAVES, PEER};
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::packet::{self, Datagram, HEADER_LEN};
use anteroom_transport::datagrams;
use anteroom_transport::link::{Carrier, Connection as Counted, SendDatagramError};
use bytes::Bytes;
use quinn::{Connection, VarInt};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::dataplane::relayed::{Inlet, Outgoing};
use crate::looks::Looks;
use crate::relay::Table;
use crate::task::Task;
use crate::text::plain;

/// A connection by which nothing came for so long is dead: QUIC of either end says something each 2 s.
const SILENCE: Duration = Duration::from_secs(5);
/// Most packets that are handed to the data plane at once.
const BATCH: usize = 64;
/// How often round trip and room are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// A connection, as the keeper knows it.
pub(super) struct Active {
    pub(super) id: RelayId,
    pub(super) identity: PublicKey,
    pub(super) dialled: bool,
    pub(super) since: Instant,
    pub(super) connection: Connection,
    /// How many datagrams have come, and since when it is so many.
    pub(super) heard: (u64, Instant),
    /// True while another has its place.
    pub(super) leaves: watch::Sender<bool>,
    /// Whether it is let go for good, so that nothing comes back to it.
    pub(super) parted: bool,
    /// Whether the peer has to be told so.
    pub(super) tells: bool,
    pub(super) carrying: Task,
}

impl Active {
    /// Whether nothing has come for long.
    pub(super) fn is_silent(&mut self, now: Instant) -> bool {
        let count = self.connection.stats().udp_rx.datagrams;
        if count != self.heard.0 {
            self.heard = (count, now);
        }
        now.saturating_duration_since(self.heard.1) >= SILENCE
    }

    /// Tells the peer, where it has to be told, that this end sends by other ways. What tells it may be lost: it is told again.
    pub(super) fn tell(&self) {
        if self.tells {
            // One that can't be sent on is at its end.
            let _ = self.connection.send_datagram(Bytes::from_static(&LEAVES));
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

/// One connection, while it is the way to a peer.
pub(super) struct Link {
    pub(super) id: RelayId,
    pub(super) peer: GatewayId,
    pub(super) connection: Counted,
    pub(super) dropped: AtomicU64,
    /// Whether another has its place: what the peer sends is still taken.
    pub(super) leaves: watch::Receiver<bool>,
}

impl Link {
    /// Carries packets until the connection ends, and says why it did. `carries` is told once the data plane can know of it,
    /// `left` when the peer says that it sends by other ways.
    pub(super) async fn run(
        self,
        table: &Table,
        carries: impl AsyncFnOnce(),
        left: impl AsyncFnOnce(),
    ) -> String {
        let Some((outgoing, inlet)) = table.opened(self.id, Carrier::Quic).await else {
            return "the data plane has stopped".into();
        };
        tokio::select! {
            () = self.look(table, carries) => {}
            () = self.take_packets(outgoing) => {}
            () = self.bring_packets(&inlet, left) => {}
        }
        plain(&self.connection.closed().await.to_string())
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    async fn look(&self, table: &Table, carries: impl AsyncFnOnce()) {
        let mut look = Looks::every(LOOK);
        let mut carries = Some(carries);
        let mut leaves = self.leaves.clone();
        loop {
            tokio::select! {
                () = look.next() => {}
                Ok(()) = leaves.changed() => {}
            }
            let mut rooms = HashMap::from([(self.peer, self.connection.sealed_room())]);
            if *leaves.borrow_and_update() {
                rooms.clear();
            }
            let dropped = self.dropped.load(Ordering::Relaxed) + self.connection.lost().in_all();
            table.found(self.id, rooms, self.connection.rtt(), dropped);
            if let Some(carries) = carries.take() {
                carries().await;
            }
        }
    }

    /// Takes what the data plane has for the peer, until the connection ends.
    async fn take_packets(&self, mut outgoing: Outgoing) {
        while let Some(mut packet) = outgoing.next().await {
            let Some(head) = packet.bytes.get_mut(..HEADER_LEN).filter(|_| packet.to == self.peer)
            else {
                self.drop_one();
                continue;
            };
            head.copy_from_slice(&packet::header(PEER, false));
            match self.connection.send_datagram_wait(packet.bytes.freeze()).await {
                Ok(()) => {}
                Err(SendDatagramError::TooLarge) => self.drop_one(),
                Err(_) => break,
            }
        }
        self.connection.closed().await;
    }

    /// Brings the data plane what the peer has for it, until the connection ends.
    async fn bring_packets(&self, inlet: &Inlet, left: impl AsyncFnOnce()) {
        let from = Through { relay: self.id, peer: self.peer };
        let mut left = Some(left);
        let mut batch = Vec::new();
        while datagrams::read(&self.connection, BATCH, &mut batch).await.is_ok() {
            let before = batch.len();
            batch.retain(|datagram: &Bytes| datagram[..] != LEAVES);
            let leaves = batch.len() < before;
            inlet.bring(batch.iter().filter_map(|datagram| match packet::parse(datagram) {
                Some(Datagram::Packet { peer: PEER, sealed, .. }) => Some((from, sealed)),
                _ => {
                    self.drop_one();
                    None
                }
            }));
            batch.clear();
            if let Some(left) = left.take_if(|_| leaves) {
                left().await;
            }
        }
    }
}
