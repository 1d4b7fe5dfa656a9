//! What a connection's own queues of datagrams threw away.
//!
//! QUIC's are bounded, and let go without a word: of what came, the oldest, where nobody reads as fast; of what is to be sent,
//! what no longer fits a path that has changed. So what was handed in and out is held against what was on the wire.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use quinn::{ConnectionError, SendDatagramError};

/// How many datagrams were thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lost {
    /// Those that came faster than they were read.
    pub unread: u64,
    /// Those that were taken to be sent and weren't: newer ones pushed them out, or the path has become too small for them.
    pub unsent: u64,
}

impl Lost {
    /// All of them.
    #[must_use]
    pub const fn in_all(self) -> u64 {
        self.unread.saturating_add(self.unsent)
    }
}

/// A connection over QUIC whose datagrams are counted: those that are read and sent by this one and its clones.
#[derive(Debug, Clone)]
pub struct Tallied {
    connection: quinn::Connection,
    tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    /// Free bytes where nothing waits to be sent: the most that was ever seen.
    space: AtomicUsize,
    read: AtomicU64,
    sent: AtomicU64,
    unread: AtomicU64,
    unsent: AtomicU64,
}

impl From<quinn::Connection> for Tallied {
    fn from(connection: quinn::Connection) -> Self {
        let tally = Tally::default();
        tally.space.store(connection.datagram_send_buffer_space(), Ordering::Relaxed);
        Self { connection, tally: Arc::new(tally) }
    }
}

impl Deref for Tallied {
    type Target = quinn::Connection;

    fn deref(&self) -> &quinn::Connection {
        &self.connection
    }
}

impl Tallied {
    pub(crate) fn send_datagram(&self, datagram: Bytes) -> Result<(), SendDatagramError> {
        self.connection.send_datagram(datagram)?;
        self.tally.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) async fn send_datagram_wait(
        &self,
        datagram: Bytes,
    ) -> Result<(), SendDatagramError> {
        self.connection.send_datagram_wait(datagram).await?;
        self.tally.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        let datagram = self.connection.read_datagram().await?;
        self.tally.read.fetch_add(1, Ordering::Relaxed);
        Ok(datagram)
    }

    /// How many datagrams have come.
    pub(crate) fn arrived(&self) -> u64 {
        self.connection.stats().frame_rx.datagram
    }

    /// None waited to be read after `arrived` had come: those that weren't read by now never will be.
    pub(crate) fn all_read(&self, arrived: u64) {
        let unread = arrived.saturating_sub(self.tally.read.load(Ordering::Relaxed));
        self.tally.unread.fetch_max(unread, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) -> Lost {
        let tally = &self.tally;
        let sent = tally.sent.load(Ordering::Relaxed);
        let free = self.connection.datagram_send_buffer_space();
        let over = self.connection.close_reason().is_some();
        if free >= tally.space.fetch_max(free, Ordering::Relaxed) || over {
            // Of those that were counted before none waits, so each is on its way or gone.
            let unsent = sent.saturating_sub(self.connection.stats().frame_tx.datagram);
            tally.unsent.fetch_max(unsent, Ordering::Relaxed);
        }
        Lost {
            unread: tally.unread.load(Ordering::Relaxed),
            unsent: tally.unsent.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests;
