//! Taking connections in, as far as there is room for them.

use std::time::Duration;

use quinn::{Endpoint, Incoming};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::admission::{Admission, Permit};

/// How often it is logged that connections were turned away, at most.
const NEWS: Duration = Duration::from_secs(60);
/// How long connections may take to end at shutdown.
const SHUTDOWN: Duration = Duration::from_secs(3);

/// Hands what comes to `endpoint` to `serve`, one task each, until the endpoint is closed; and then waits until every
/// connection has ended, for a few seconds at most. Where many haven't said who they are, an address must first show
/// that it can be reached.
pub(crate) async fn accept_all<S, F>(endpoint: &Endpoint, admission: &Admission, serve: S)
where
    S: Fn(Incoming, Permit) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut news = interval(NEWS);
    news.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            _ = news.tick() => {
                admission.log_news();
                continue;
            }
        };
        let Some(incoming) = incoming else { break };
        while connections.try_join_next().is_some() {}
        let address = incoming.remote_address();
        if admission.is_crowded() && !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
            continue;
        }
        match admission.admit(address.ip()) {
            Ok(permit) => {
                connections.spawn(serve(incoming, permit));
            }
            Err(why) => {
                tracing::debug!(%address, %why, "turned away");
                incoming.refuse();
            }
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(SHUTDOWN, all).await.is_err() {
        tracing::warn!("some gateways' connections didn't end in time");
    }
}

/// The handshake.
pub(crate) async fn handshake(
    incoming: Incoming,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    incoming.accept()?.await
}
