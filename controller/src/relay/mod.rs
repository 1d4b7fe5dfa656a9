//! Relaying: sealed packets between gateways that have no better way to each other.
//!
//! [`Service`] serves the connections: inside a controller, which hands it the authority chain, and in a program of its
//! own ([`standalone`]), which follows the chain that gateways bring. What may pass, and whose turn it is, is
//! decided in `anteroom_controller_core::relay`; `docs/relay.md` says why so.

mod chain;
pub mod config;
mod session;
pub mod standalone;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anteroom_controller_core::relay::{Counts, Dropped, Limits, Relay, SessionId};
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::cose::Verified;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::relay::{
    FromRelay, Hello, MAX_TO_RELAY, Refusal, RefusalCode, ToRelay, VERSIONS,
};
use anteroom_transport::link::Connection;
use anteroom_transport::message::{MessageReader, MessageWriter};
use arc_swap::ArcSwapOption;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{sleep_until, timeout, timeout_at};

use crate::agents::admission::Permit;
use crate::agents::{LAST_WORD, refuse_datagrams};
use crate::online::CloseCode;
use chain::Following;
use session::Live;

/// How often it is logged what was carried and what wasn't, at most.
const NEWS: Duration = Duration::from_secs(60);
/// How long who came with an identity key that was replaced may stay, if no connection by the new one ends that.
const LEAVE: Duration = Duration::from_secs(60);
/// How long packets may come yet by a connection that a newer one has replaced.
const LINGER: Duration = Duration::from_secs(1);

/// Serves gateways that want to be relayed.
#[derive(Debug)]
pub struct Service {
    /// The relay's own key: the newest authority document must name it.
    own: PublicKey,
    core: Mutex<Relay>,
    live: RwLock<HashMap<SessionId, Arc<Live>>>,
    chain: ArcSwapOption<AuthorityChain>,
    /// How the chain goes on, where gateways bring it.
    following: Option<Following>,
    /// Held while documents are taken: they come one after another.
    extending: Arc<AsyncMutex<()>>,
    told: Mutex<(Option<Instant>, Counts)>,
    /// Whether somebody waits for what the core has due.
    waiting: AtomicBool,
}

type Reader = MessageReader<ToRelay>;
type Writer = MessageWriter<FromRelay>;

fn protocol(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::Protocol, message)
}

impl Service {
    /// A service that takes the authority chain from [`Self::set_authority`] alone.
    #[must_use]
    pub fn new(own: PublicKey, limits: Limits) -> Arc<Self> {
        Arc::new(Self::build(own, limits, None))
    }

    fn build(own: PublicKey, limits: Limits, following: Option<Following>) -> Self {
        Self {
            own,
            core: Mutex::new(Relay::new(limits)),
            live: RwLock::default(),
            chain: ArcSwapOption::empty(),
            following,
            extending: Arc::default(),
            told: Mutex::default(),
            waiting: AtomicBool::default(),
        }
    }

    fn core(&self) -> MutexGuard<'_, Relay> {
        // The core doesn't panic half-way; if it did, going on is better than leaving everyone without.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes by this chain from now on. Where its newest document doesn't name this relay, everyone is sent away.
    pub fn set_authority(self: &Arc<Self>, chain: Arc<AuthorityChain>) {
        let newest = chain.newest();
        let named = newest.relay_keys().contains(&self.own);
        self.core().set_authority(newest, Instant::now());
        self.wake();
        let number = newest.number;
        self.chain.store(Some(chain));
        if !named {
            tracing::warn!(number, "the newest authority document doesn't name this relay");
            let everyone: Vec<_> = self.all().into_iter().map(|(_, live)| live).collect();
            for live in everyone {
                live.end(self.not_named(number));
            }
        }
    }

    /// Keeps these gateways out from now on.
    pub fn set_barred(self: &Arc<Self>, barred: BTreeSet<GatewayId>) {
        let out = self.core().set_barred(barred);
        for session in out {
            let message = "operators have taken this gateway out of the organisation";
            self.end(session, Refusal::new(RefusalCode::Revoked, message));
        }
        self.wake();
    }

    /// Keeps out whoever has one of these identity keys from now on. Those who are here with one have a minute: a gateway
    /// comes with its new key within that, and no packet of it is lost meanwhile.
    pub fn set_former(self: &Arc<Self>, former: BTreeSet<PublicKey>) {
        let out = self.core().set_former(former);
        if out.is_empty() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let service = self.clone();
        runtime.spawn(async move {
            tokio::time::sleep(LEAVE).await;
            for session in out {
                let message = "operators have replaced the identity key of this connection";
                service.end(session, Refusal::new(RefusalCode::Pass, message));
            }
        });
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.core().counts()
    }

    /// Gateways that are here.
    #[must_use]
    pub fn gateways(&self) -> usize {
        self.core().gateways()
    }

    /// Number of the newest authority document; 0 for none.
    #[must_use]
    pub fn authority(&self) -> u64 {
        self.chain.load().as_ref().map_or(0, |chain| chain.newest().number)
    }

    /// Whether that document names this relay.
    #[must_use]
    pub fn is_named(&self) -> bool {
        let chain = self.chain.load();
        chain.as_ref().is_some_and(|chain| chain.newest().relay_keys().contains(&self.own))
    }

    /// How many bytes a second each gateway may send.
    fn rate(&self) -> Option<u64> {
        self.core().limits().rate.map(|rate| rate.bytes_per_second)
    }

    fn not_named(&self, number: u64) -> Refusal {
        Refusal::new(
            RefusalCode::Organisation,
            format!(
                "authority document {number} names no relay with the key {}: an operator must add it, or it was taken out",
                self.own.fingerprint()
            ),
        )
    }

    fn all(&self) -> Vec<(SessionId, Arc<Live>)> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.iter().map(|(id, live)| (*id, live.clone())).collect()
    }

    fn live(&self, id: SessionId) -> Option<Arc<Live>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn end(&self, id: SessionId, why: Refusal) {
        if let Some(live) = self.live(id) {
            live.end(why);
        }
    }

    /// Tells everyone for whom there is news, and sees to it that what the core has due is done in time.
    fn wake(self: &Arc<Self>) {
        let (woken, due) = {
            let mut core = self.core();
            (core.woken(), core.due())
        };
        if let Some(due) = due {
            self.wait_for(due);
        }
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        for id in woken {
            if let Some(live) = live.get(&id) {
                live.news.notify_one();
            }
        }
    }

    /// Whatever is due later than what is waited for is seen then.
    fn wait_for(self: &Arc<Self>, due: Instant) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.waiting.swap(true, Ordering::Relaxed) {
            return;
        }
        let service = self.clone();
        runtime.spawn(async move {
            sleep_until(due.into()).await;
            service.waiting.store(false, Ordering::Relaxed);
            service.core().turn(Instant::now());
            service.wake();
        });
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        connection: Connection,
        permit: &mut Permit,
        deadline: tokio::time::Instant,
    ) {
        let from = connection.remote_address();
        let Some(key) = connection.peer_key() else {
            return connection.close(CloseCode::Refused.into(), b"no identity key");
        };
        let opened = timeout_at(deadline, connection.accept_bi()).await;
        let Ok(Ok((send, receive))) = opened else {
            tracing::debug!(%from, "no first message to the relay");
            return connection
                .close(CloseCode::Refused.into(), b"say who you are within 5 seconds");
        };
        let mut reader = Reader::new(receive, MAX_TO_RELAY);
        let mut writer = Writer::new(send);
        let greeted = tokio::select! {
            greeted = timeout_at(deadline, self.greet(key, &mut reader, &mut writer)) => greeted,
            // Before the welcome nobody reads any: they would hold on to memory.
            () = refuse_datagrams(connection.clone()) => return,
        };
        let (pass, version) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(refusal)) => {
                tracing::info!(%from, code = ?refusal.code, message = %refusal.message, "not relayed");
                return say_last(&connection, writer, refusal).await;
            }
            Err(_) => {
                tracing::debug!(%from, "the first message to the relay took too long");
                let reason = b"say who you are within 5 seconds";
                return connection.close(CloseCode::Refused.into(), reason);
            }
        };
        // For as long as the connection lasts: one that was replaced takes a moment to end.
        if let Err(why) = permit.relayed() {
            tracing::debug!(%from, %why, "turned away");
            let refusal = Refusal::new(RefusalCode::Busy, why.to_string());
            return say_last(&connection, writer, refusal).await;
        }
        session::run(self, connection, key, &pass, version, (reader, writer), permit).await;
        self.log_news();
    }

    /// The first words: who it is, and with whom it shares a view.
    async fn greet(
        self: &Arc<Self>,
        key: PublicKey,
        reader: &mut Reader,
        writer: &mut Writer,
    ) -> Result<(Verified<RelayPass>, u16), Refusal> {
        let hello: Hello = match reader.next().await {
            Ok(Some(ToRelay::Hello(hello))) => *hello,
            Ok(Some(_)) => return Err(protocol("the first message must be a hello")),
            Ok(None) => return Err(protocol("the stream ended before its first message")),
            Err(error) => return Err(protocol(error.to_string())),
        };
        let (low, high) = (hello.versions.0.max(VERSIONS.0), hello.versions.1.min(VERSIONS.1));
        if low > high {
            return Err(Refusal::new(
                RefusalCode::Version,
                format!(
                    "this relay speaks versions {} to {}, the agent {} to {}: bring both to the same release",
                    VERSIONS.0, VERSIONS.1, hello.versions.0, hello.versions.1
                ),
            ));
        }
        let chain = self.catch_up(hello.authority, reader, writer).await?;
        let authority = chain.newest();
        if hello.organisation != authority.organisation {
            let message = "this relay serves another organisation";
            return Err(Refusal::new(RefusalCode::Organisation, message));
        }
        if !authority.relay_keys().contains(&self.own) {
            return Err(self.not_named(authority.number));
        }
        let pass = RelayPass::verify(&hello.pass, authority, key)
            .map_err(|error| Refusal::new(RefusalCode::Pass, error.to_string()))?;
        Ok((pass, high))
    }

    /// Logs what was carried and what wasn't, if that changed and it wasn't done lately.
    fn log_news(&self) {
        let counts = self.counts();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = told.0.is_some_and(|at| at.elapsed() < NEWS);
        if lately || told.1 == counts {
            return;
        }
        *told = (Some(Instant::now()), counts);
        let dropped: Vec<String> = Dropped::ALL
            .into_iter()
            .filter(|reason| counts.dropped(*reason) > 0)
            .map(|reason| format!("{} {}", reason.name(), counts.dropped(reason)))
            .collect();
        let Counts { packets, bytes, refused, .. } = counts;
        tracing::info!(
            packets,
            bytes,
            refused,
            dropped = dropped.join(", "),
            "relayed since the start"
        );
    }
}

/// What a connection is closed with.
const fn close_code(refusal: &Refusal) -> CloseCode {
    match refusal.code {
        RefusalCode::Replaced => CloseCode::Replaced,
        _ => CloseCode::Refused,
    }
}

/// Sends the last message and closes, once it has arrived or a moment has passed.
async fn say_last(connection: &Connection, mut writer: Writer, refusal: Refusal) {
    let code = close_code(&refusal);
    let said = async {
        if writer.send(&FromRelay::Refused(refusal)).await.is_ok() {
            writer.finish().await;
        }
    };
    let _ = timeout(LAST_WORD, said).await;
    linger(connection, code).await;
    connection.close(code.into(), b"");
}

/// Leaves a connection that a newer one has replaced what time it needs: packets are under way by it until the gateway has heard
/// of that, which hears it by the newer one.
async fn linger(connection: &Connection, code: CloseCode) {
    if code == CloseCode::Replaced {
        let _ = timeout(LINGER, connection.closed()).await;
    }
}
