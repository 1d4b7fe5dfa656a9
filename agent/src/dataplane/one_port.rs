//! One UDP port for tunnels and peers' QUIC: what the data plane does for that. Without it there is none of this.

use std::io;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use anteroom_agent_core::batch::RxDatagram;
use anteroom_transport::direct::shared::{Shared, is_quic, retain};
use nix::sys::eventfd::EventFd;

/// Why QUIC doesn't have the tunnels' port.
#[derive(Debug, thiserror::Error)]
pub enum NoSocket {
    /// The kernel doesn't steer.
    #[error("QUIC can't be told from the tunnels on one port: {0}. Take another port, as in 443")]
    Unsteered(String),
    /// The data plane has ended, and the port is free.
    #[error("the data plane has ended")]
    Ended,
    /// What the system says.
    #[error("no UDP socket there: {0}")]
    System(#[from] io::Error),
}

/// QUIC's socket on the tunnels' port, and what is handed over between the two.
#[derive(Debug)]
pub(super) struct OnePort {
    /// None once the data plane has ended: the port is free then.
    socket: Mutex<Option<UdpSocket>>,
    pub(super) shared: Arc<Shared>,
}

/// Wakes the worker.
struct Bell(Arc<EventFd>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // A full counter (EAGAIN) wakes it just as well.
        let _ = self.0.write(1);
    }
}

impl OnePort {
    /// `worker`: by which the worker is woken when something is handed over to it.
    pub(super) fn new(socket: UdpSocket, worker: Arc<EventFd>) -> Self {
        let shared = Arc::new(Shared::default());
        shared.others.wake(&Waker::from(Arc::new(Bell(worker))));
        Self { socket: Mutex::new(Some(socket)), shared }
    }

    /// The socket, as long as the data plane runs.
    pub(super) fn socket(&self) -> Result<UdpSocket, NoSocket> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(socket.as_ref().ok_or(NoSocket::Ended)?.try_clone()?)
    }

    pub(super) fn close(&self) {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Hands QUIC's datagrams over, and gives the rest of what came.
pub(super) fn sort<'a, 'b>(
    shared: &Shared,
    messages: &'a mut [RxDatagram<'b>],
) -> &'a mut [RxDatagram<'b>] {
    let mut kept = 0;
    for at in 0..messages.len() {
        let Some(message) = messages.get_mut(at) else { break };
        let bytes = std::mem::take(&mut message.bytes);
        let was_empty = bytes.is_empty();
        let own = retain(bytes, message.segment, |datagram| {
            let quic = is_quic(datagram);
            if quic {
                shared.quic.put(message.from, datagram);
            }
            !quic
        });
        message.bytes = bytes.split_at_mut(own).0;
        if own > 0 || was_empty {
            messages.swap(kept, at);
            kept += 1;
        }
    }
    messages.split_at_mut(kept).0
}

#[cfg(test)]
mod tests;
