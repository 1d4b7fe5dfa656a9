//! Who comes to the operators' port: operators, and gateways too where both share it. The first word of TLS tells them
//! apart, before anything is said to them.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use anteroom_transport::tcp::offers_ours;
use axum_server::accept::Accept;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::serve::Tls;
use super::slots::{Slot, Slots};
use crate::agents::Newcomer;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Sorting {
    /// Of those who haven't said yet which protocol they want, so that gateways don't queue among operators.
    newcomers: Slots,
    slots: Slots,
    tls: Tls,
    gateways: Option<mpsc::Sender<Newcomer>>,
}

impl Sorting {
    pub(super) fn new(slots: Slots, tls: Tls, gateways: Option<mpsc::Sender<Newcomer>>) -> Self {
        Self { newcomers: slots.beside(), slots, tls, gateways }
    }

    async fn handshake(self, slot: Slot) -> io::Result<TlsStream<Slot>> {
        let started = LazyConfigAcceptor::new(Acceptor::default(), slot).await?;
        let gateways = self.gateways.filter(|_| offers_ours(&started.client_hello()));
        let config = gateways.is_none().then(|| self.tls.fitting(&started.client_hello()));
        let StartHandshake { accepted, io, .. } = started;
        let gateways = match (gateways, config) {
            (Some(gateways), _) => gateways,
            (None, Some(config)) => {
                let slot = self.slots.place(io.into_stream())?;
                return StartHandshake::from_parts(accepted, slot).into_stream(config).await;
            }
            (None, None) => return Err(io::ErrorKind::Unsupported.into()),
        };
        let started = StartHandshake::from_parts(accepted, io.into_stream());
        let handed = gateways.try_send(Newcomer::Started(Box::new(started)));
        Err(io::Error::other(match handed {
            Ok(()) => "a gateway, served elsewhere",
            Err(_) => "too many gateways come at once",
        }))
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Sorting {
    type Stream = TlsStream<Slot>;
    type Service = S;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, S)>> + Send + 'static>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let slot = self.newcomers.place(stream);
        let sorting = self.clone();
        Box::pin(async move {
            let handshake = timeout(HANDSHAKE, sorting.handshake(slot?)).await;
            Ok((handshake.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??, service))
        })
    }
}
