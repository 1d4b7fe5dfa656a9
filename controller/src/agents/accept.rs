//! Taking connections in, over QUIC and over TCP, as far as there is room for them.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use anteroom_proto::key::IdentityKey;
use anteroom_transport::endpoint::{TransportError, nothing_in_common};
use anteroom_transport::exchange;
use anteroom_transport::link::{Carrier, Connection};
use anteroom_transport::tcp::{AcceptError, Acceptor, Tcp};
use anteroom_transport::tls::Protocol;
use quinn::{Endpoint, Incoming};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_rustls::StartHandshake;

use super::FIRST_MESSAGE;
use super::admission::{Admission, Permit};
use crate::online::CloseCode;

/// How often it is logged that connections were turned away, at most.
const NEWS: Duration = Duration::from_secs(60);
/// How long connections may take to end at shutdown.
const SHUTDOWN: Duration = Duration::from_secs(3);
/// Newcomers over TCP that wait to be looked at.
const QUEUE: usize = 64;
/// How long until it is tried again to listen where something else does.
const AGAIN: Duration = Duration::from_secs(5);
/// How long to wait where the system has no room for another connection.
const FULL: Duration = Duration::from_millis(100);

/// What is told who has to go for others.
const PUSHED_OUT: &str = "others need the place of who doesn't say who it is";

/// Somebody who came over TCP.
pub(crate) enum Newcomer {
    /// Who hasn't been listened to yet.
    Fresh(TcpStream),
    /// Whose first word in TLS was read elsewhere.
    Started(Box<StartHandshake<TcpStream>>),
}

/// By which ways gateways come in.
#[derive(Debug)]
pub(crate) struct Doors {
    endpoint: Endpoint,
    newcomers: mpsc::Receiver<Newcomer>,
    acceptor: Acceptor,
    closing: watch::Receiver<Option<String>>,
}

/// Shuts the doors.
#[derive(Debug)]
pub(crate) struct Key {
    endpoint: Endpoint,
    closing: watch::Sender<Option<String>>,
}

impl Key {
    /// Takes nobody in any more, and tells those who are here that it ends, and why.
    pub(crate) fn shut(&self, reason: &str) {
        self.closing.send_replace(Some(reason.to_owned()));
        self.endpoint.close(CloseCode::Shutdown.into(), reason.as_bytes());
    }
}

impl Doors {
    /// Doors at `endpoint`, and for whoever is handed in as having come over TCP.
    ///
    /// # Errors
    /// [`TransportError`] where the key isn't taken.
    pub(crate) fn new(
        endpoint: Endpoint,
        identity: &IdentityKey,
        protocols: &[Protocol],
    ) -> Result<(Self, Key, mpsc::Sender<Newcomer>), TransportError> {
        let (sender, newcomers) = mpsc::channel(QUEUE);
        let (closing, shut) = watch::channel(None);
        let key = Key { endpoint: endpoint.clone(), closing };
        let acceptor = Acceptor::new(identity, protocols)?;
        Ok((Self { endpoint, newcomers, acceptor, closing: shut }, key, sender))
    }

    /// Listens for TCP at `address`, until the doors are shut. Where that can't be done, it is logged and tried again:
    /// those who come over QUIC are served meanwhile.
    pub(crate) fn listen(&self, address: SocketAddr, newcomers: mpsc::Sender<Newcomer>) {
        let mut closing = self.closing.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = listen(address, newcomers) => {}
                _ = closing.wait_for(Option::is_some) => {}
            }
        });
    }
}

async fn listen(address: SocketAddr, newcomers: mpsc::Sender<Newcomer>) {
    let mut said = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(
                        "TCP {address}: {error}: gateways whose networks pass no UDP can't come in; trying again. Free the port, or set `tcp = false` beside `listen`"
                    );
                }
                sleep(AGAIN).await;
            }
        }
    };
    tracing::info!(%address, "serving over TCP too");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if newcomers.send(Newcomer::Fresh(stream)).await.is_err() {
                    return;
                }
            }
            // One that has gone already, or no room for another file.
            Err(error) => {
                tracing::debug!(%error, "nobody taken in over TCP");
                sleep(FULL).await;
            }
        }
    }
}

/// Hands what comes in by `doors` to `serve`, one task each, until they are shut; and then waits until every
/// connection has ended, for a few seconds at most. What is handed over has until the given time for its first message.
/// What `serve` gives back of a permit is held until nothing is left of the connection.
pub(crate) async fn accept_all<S, F>(doors: Doors, admission: &Admission, serve: S)
where
    S: Fn(Connection, Permit, Instant) -> F + Clone + Send + 'static,
    F: Future<Output = Permit> + Send + 'static,
{
    let Doors { endpoint, newcomers, acceptor, closing } = doors;
    let news = async {
        let mut news = interval(NEWS);
        news.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            news.tick().await;
            admission.log_news();
        }
    };
    let (shut, served) = (closing.clone(), serve.clone());
    let over_quic = async {
        accept_quic(&endpoint, admission, served).await;
        // The listener ends by itself when its socket fails, for good. Whoever goes on without it looks well and isn't:
        // this ends, and with it the program, which is started anew.
        if shut.borrow().is_some() { Ok(()) } else { Err(Broken) }
    };
    let over_tcp = async {
        accept_tcp(newcomers, acceptor, closing, admission, serve).await;
        Ok(())
    };
    tokio::select! {
        served = async { tokio::try_join!(over_quic, over_tcp) } => if served.is_err() {
            tracing::error!(
                address = ?endpoint.local_addr().ok(),
                "the UDP socket for gateways failed; what the system said of it stands above. Nobody is served here any more"
            );
        },
        () = news => {}
    }
}

/// The listener over QUIC has ended, though nobody shut it.
struct Broken;

/// Where many haven't said who they are, in all or of one network, an address must first show that it can be reached: a
/// first packet in somebody else's name holds a place for as long as a real one.
async fn accept_quic<S, F>(endpoint: &Endpoint, admission: &Admission, serve: S)
where
    S: Fn(Connection, Permit, Instant) -> F + Clone + Send + 'static,
    F: Future<Output = Permit> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        let address = incoming.remote_address();
        if !incoming.remote_address_validated() && admission.must_be_proved(address.ip()) {
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
            continue;
        }
        match admission.admit(address.ip(), Carrier::Quic) {
            Ok(mut permit) => {
                let serve = serve.clone();
                connections.spawn(async move {
                    let deadline = Instant::now() + FIRST_MESSAGE;
                    let mut pushed_out = pin!(permit.pushed_out());
                    let handshake = tokio::select! {
                        handshake = timeout_at(deadline, handshake(incoming)) => handshake,
                        () = &mut pushed_out => return tracing::debug!(from = %address, "{PUSHED_OUT}"),
                    };
                    match handshake {
                        Ok(Ok(connection)) => {
                            let mut serving = pin!(serve(connection.clone().into(), permit, deadline));
                            tokio::select! {
                                permit = &mut serving => return drop(permit),
                                () = pushed_out => tracing::debug!(from = %address, "{PUSHED_OUT}"),
                            }
                            connection.close(CloseCode::Refused.into(), PUSHED_OUT.as_bytes());
                            drop(serving.await);
                        }
                        Ok(Err(error)) if nothing_in_common(&error) => {
                            tracing::debug!(from = %address, "no handshake: {}", exchange::NOT_OFFERED);
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(from = %address, %error, "no handshake");
                        }
                        Err(_) => tracing::debug!(from = %address, "the handshake took too long"),
                    }
                });
            }
            Err(why) => {
                tracing::debug!(%address, %why, "turned away");
                incoming.refuse();
            }
        }
    }
    end(connections).await;
}

async fn handshake(incoming: Incoming) -> Result<quinn::Connection, quinn::ConnectionError> {
    incoming.accept()?.await
}

async fn accept_tcp<S, F>(
    mut newcomers: mpsc::Receiver<Newcomer>,
    acceptor: Acceptor,
    mut closing: watch::Receiver<Option<String>>,
    admission: &Admission,
    serve: S,
) where
    S: Fn(Connection, Permit, Instant) -> F + Clone + Send + 'static,
    F: Future<Output = Permit> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let shut = closing.clone();
    loop {
        let newcomer = tokio::select! {
            Some(newcomer) = newcomers.recv() => newcomer,
            _ = closing.wait_for(Option::is_some) => break,
        };
        while connections.try_join_next().is_some() {}
        let address = match &newcomer {
            Newcomer::Fresh(stream) => stream.peer_addr(),
            Newcomer::Started(started) => started.io.peer_addr(),
        };
        // Without an address it has gone already.
        let Ok(address) = address else { continue };
        match admission.admit(address.ip(), Carrier::Tcp) {
            Ok(mut permit) => {
                let (acceptor, serve, mut shut) = (acceptor.clone(), serve.clone(), shut.clone());
                connections.spawn(async move {
                    let deadline = Instant::now() + FIRST_MESSAGE;
                    let accepting = accept(&acceptor, newcomer);
                    let mut pushed_out = pin!(permit.pushed_out());
                    let accepted = tokio::select! {
                        accepted = timeout_at(deadline, accepting) => accepted,
                        () = &mut pushed_out => return tracing::debug!(from = %address, "{PUSHED_OUT}"),
                    };
                    let connection = match accepted {
                        Ok(Ok(connection)) => connection,
                        Ok(Err(error)) => {
                            return tracing::debug!(from = %address, %error, "no handshake over TCP");
                        }
                        Err(_) => {
                            return tracing::debug!(from = %address, "the handshake over TCP took too long");
                        }
                    };
                    let serving = serve(Connection::Tcp(connection.clone()), permit, deadline);
                    let mut serving = pin!(serving);
                    let over = tokio::select! {
                        permit = &mut serving => Ok(permit),
                        reason = shut.wait_for(Option::is_some) => {
                            let reason = reason.ok().and_then(|why| why.clone()).unwrap_or_default();
                            Err((CloseCode::Shutdown, reason))
                        }
                        () = pushed_out => Err((CloseCode::Refused, PUSHED_OUT.to_owned())),
                    };
                    let permit = match over {
                        Ok(permit) => permit,
                        Err((code, reason)) => {
                            connection.close(code as u32, reason.as_bytes());
                            serving.await
                        }
                    };
                    // Whoever doesn't read holds its socket for a while yet, and its place with it.
                    connection.close(0, b"");
                    connection.gone().await;
                    drop(permit);
                });
            }
            Err(why) => tracing::debug!(%address, %why, "turned away"),
        }
    }
    end(connections).await;
}

async fn accept(acceptor: &Acceptor, newcomer: Newcomer) -> Result<Tcp, AcceptError> {
    match newcomer {
        Newcomer::Fresh(stream) => acceptor.accept(stream).await,
        Newcomer::Started(started) => acceptor.go_on(*started).await,
    }
}

async fn end(mut connections: JoinSet<()>) {
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(SHUTDOWN, all).await.is_err() {
        tracing::warn!("some gateways' connections didn't end in time");
    }
}

#[cfg(test)]
mod tests {
    use anteroom_transport::endpoint::listen_for;

    use super::*;
    use crate::config::ConnectionLimits;

    const LOOPBACK: &str = "127.0.0.1:0";

    /// Waits until nobody is taken in any more, after `shut`.
    async fn ends(shut: impl FnOnce(&Endpoint, &Key)) {
        let identity = IdentityKey::from_seed(&[1; 32]);
        let protocols = [Protocol::Control];
        let endpoint = listen_for(LOOPBACK.parse().unwrap(), &identity, &protocols).unwrap();
        let (doors, key, newcomers) = Doors::new(endpoint.clone(), &identity, &protocols).unwrap();
        let admission = Admission::new(ConnectionLimits::default());
        let serving = accept_all(doors, &admission, |_, permit, _| async { permit });
        let mut serving = std::pin::pin!(serving);
        assert!(now(serving.as_mut()).is_none(), "it serves");
        shut(&endpoint, &key);
        timeout(Duration::from_secs(60), serving).await.expect("it didn't end");
        drop(newcomers);
    }

    fn now<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn a_listener_over_quic_that_ends_by_itself_ends_that_over_tcp_too() {
        ends(|endpoint, _| endpoint.close(0u32.into(), b"as if its socket had failed")).await;
    }

    #[tokio::test]
    async fn whoever_has_the_key_shuts_both() {
        ends(|_, key| key.shut("a test")).await;
    }
}
