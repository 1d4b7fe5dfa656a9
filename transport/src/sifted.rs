//! A QUIC socket with something before it that looks at what comes in, and takes out what isn't QUIC's to see.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// What looks at received datagrams before QUIC does.
pub(crate) trait Sift: Send + Sync + 'static {
    /// Takes out of a buffer what QUIC isn't to see, and shortens `meta.len` accordingly. The buffer holds `meta.len` bytes:
    /// merged datagrams of `meta.stride` bytes each, the last of which may be shorter.
    fn sift(&self, buffer: &mut [u8], meta: &mut RecvMeta);

    /// Puts what came for QUIC by another way into the buffers, and returns how many that were. Where more comes so later, it
    /// wakes `cx`.
    fn bring(
        &self,
        _cx: &mut Context<'_>,
        _bufs: &mut [IoSliceMut<'_>],
        _meta: &mut [RecvMeta],
    ) -> usize {
        0
    }
}

/// The socket.
pub(crate) struct Sifted<S> {
    socket: Arc<dyn AsyncUdpSocket>,
    by: Arc<S>,
}

impl<S: Sift> Sifted<S> {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>, by: Arc<S>) -> Self {
        Self { socket, by }
    }
}

impl<S> fmt::Debug for Sifted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sifted").field(&self.socket).finish()
    }
}

impl<S: Sift> AsyncUdpSocket for Sifted<S> {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let brought = self.by.bring(cx, bufs, meta);
        if brought > 0 {
            return Poll::Ready(Ok(brought));
        }
        let received = self.socket.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &received {
            for (buffer, meta) in bufs.iter_mut().zip(meta).take(*count) {
                self.by.sift(buffer, meta);
            }
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
