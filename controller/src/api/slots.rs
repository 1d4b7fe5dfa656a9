//! How many operators' connections there may be at once: in all, and from one address, so that one machine can't
//! keep the others out.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One address may hold this part of all connections.
const SHARE: usize = 16;

/// Lets so many connections in at once and drops the others.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    total: usize,
    per_address: usize,
}

impl Slots {
    /// Room for `total` connections.
    pub(super) fn new(total: usize) -> Self {
        Self { taken: Arc::default(), total, per_address: (total / SHARE).max(1) }
    }

    /// As much room beside it, for those of whom it isn't known yet what they want.
    pub(super) fn beside(&self) -> Self {
        Self::new(self.total)
    }

    fn take(&self, address: IpAddr) -> io::Result<Permit> {
        let mut taken = lock(&self.taken);
        let here = taken.get(&address).copied().unwrap_or_default();
        if here >= self.per_address {
            return Err(io::Error::other(format!("{address} holds as many connections as it may")));
        }
        if taken.values().sum::<usize>() >= self.total {
            return Err(io::Error::other("there are as many connections as there may be"));
        }
        taken.insert(address, here + 1);
        Ok(Permit { taken: Arc::clone(&self.taken), address })
    }
}

/// A count can't be left half-changed, so what a panicking holder left is good.
fn lock(taken: &Mutex<HashMap<IpAddr, usize>>) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place among those that there may be, given back when dropped.
#[derive(Debug)]
struct Permit {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        match taken.get_mut(&self.address) {
            Some(here) if *here > 1 => *here -= 1,
            _ => {
                taken.remove(&self.address);
            }
        }
    }
}

impl Slots {
    /// Gives a connection its place, if there is one.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) fn place(&self, stream: TcpStream) -> io::Result<Slot> {
        let permit = self.take(stream.peer_addr()?.ip().to_canonical())?;
        stream.set_nodelay(true)?;
        Ok(Slot { stream, _permit: permit })
    }
}

/// A connection and its place.
#[derive(Debug)]
pub(super) struct Slot {
    stream: TcpStream,
    _permit: Permit,
}

impl Slot {
    /// The connection, which has no place any more.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Slot {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Slot {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_the_others_and_gives_back_what_it_took() {
        let slots = Slots::new(32);
        let (greedy, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held: Vec<_> = (0..2).map(|_| slots.take(greedy).unwrap()).collect();
        assert!(slots.take(greedy).is_err(), "{slots:?}");
        let neighbour = slots.take(other).unwrap();
        drop(held);
        drop(neighbour);
        assert!(lock(&slots.taken).is_empty(), "{slots:?}");
        assert!(slots.take(greedy).is_ok());
    }

    #[test]
    fn all_addresses_together_have_a_bound() {
        let slots = Slots::new(32);
        let held: Vec<_> =
            (0..32).map(|n| slots.take(IpAddr::from([10, 0, 0, n])).unwrap()).collect();
        assert!(slots.take(IpAddr::from([10, 0, 1, 0])).is_err(), "{} held", held.len());
    }
}
