//! The handle through which the rest of the agent speaks with the worker.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anteroom_agent_core::bypass::LoadedBypass;
use anteroom_agent_core::engine::{Prepared, Retired};
use anteroom_agent_core::peer::{KeyUse, OwnKey, Silence};
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::report::{EngineReport, Explanation, FlowInfo, Learned, Question};
use anteroom_agent_core::target::{RelayId, RelayPath};
use anteroom_agent_core::trial::{TrialState, effective, trial_of};
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::View;
use anteroom_transport::direct::shared::Shared;
use nix::sys::eventfd::EventFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::config::Config;
use crate::dataplane::one_port::{NoSocket, OnePort};
use crate::dataplane::relayed::{Inlet, Queues};
use crate::dataplane::sensing::{Findings, Seen};
use crate::dataplane::status::{Offloads, Status};
use crate::dataplane::underlays::{Mirrors, Told};
use crate::net::defence::Defence;
use crate::net::host::Network;
use crate::net::packet::PacketSocket;
use crate::net::sentry::Sentry;
use crate::net::wiring::Wiring;

#[cfg(test)]
pub(crate) mod fake;

/// Commands that wait for the worker at most; more make the caller wait.
pub(super) const COMMANDS: usize = 64;

/// The worker turns its loop at least this often, so that a longer silence means that it hangs.
pub(super) const LONGEST_TURN: Duration = Duration::from_secs(1);

/// Silence of the worker after which it counts as hung.
const HUNG: Duration = Duration::from_secs(5);

/// How long a view may wait for the packet filter, which may itself wait for as long as others change it. Nothing else
/// waits for it: not the next view, nor a stop.
const WIRING: Duration = Duration::from_secs(1);

/// How long the keeper of interfaces has to put things in order at the end.
const KEPT: Duration = Duration::from_secs(1);

/// The data plane has ended, so it can't answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data plane has stopped")]
pub struct Stopped;

/// What the worker is asked.
pub(super) enum Command {
    Apply(Box<Prepared>, oneshot::Sender<()>),
    SetTime(UnixMillis, bool),
    SetBypasses(Vec<LoadedBypass>, oneshot::Sender<()>),
    SetAuthority(u64),
    SetOwnKeys(Vec<OwnKey>, oneshot::Sender<()>),
    SetIdentity(Box<IdentityKey>, oneshot::Sender<()>),
    KeyUse(oneshot::Sender<Vec<KeyUse>>),
    Trials(oneshot::Sender<Vec<TrialState>>),
    SetOwnAddresses(Vec<IpAddr>),
    SetUnderlayMtu(u16),
    Report(oneshot::Sender<EngineReport>),
    Status(oneshot::Sender<Status>),
    Peers(oneshot::Sender<Vec<SocketAddr>>),
    Flows(usize, oneshot::Sender<Vec<FlowInfo>>),
    Explain(Question, oneshot::Sender<Explanation>),
    Learned(oneshot::Sender<Learned>),
    PortOpened(PortId, Box<PacketSocket>),
    Offloads(PortId, Offloads),
    SetRelays(GatewayId, Vec<RelayPath>),
    OpenRelay(RelayId, Queues),
    CloseRelay(RelayId),
    SetMirror(RelayId, Option<SocketAddr>),
    ForgetRelays { relays: Vec<RelayId>, addresses: Vec<IpAddr>, document: u64 },
    Silence(oneshot::Sender<Silence>),
    Owing(Instant),
    Moved,
    Indirect(oneshot::Sender<Vec<GatewayId>>),
    Shutdown(oneshot::Sender<()>),
}

/// When the worker last turned its loop.
pub(super) struct Heartbeat {
    start: Instant,
    millis: AtomicU64,
}

impl Heartbeat {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), millis: AtomicU64::new(0) }
    }

    pub(super) fn beat(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.start).as_millis();
        self.millis.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.millis.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }
}

/// Sends commands and wakes the worker.
#[derive(Clone)]
pub(super) struct Commander {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) wake: Arc<EventFd>,
}

impl Commander {
    pub(super) async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)?;
        // A full counter (EAGAIN) wakes the worker just as well.
        let _ = self.wake.write(1);
        Ok(())
    }

    /// Sends what may be left out where there is no room.
    fn try_send(&self, command: Command) {
        if self.commands.try_send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }

    /// Where packets are sent to now.
    pub(super) async fn peers(&self) -> Result<Vec<SocketAddr>, Stopped> {
        let (sender, answer) = oneshot::channel();
        self.send(Command::Peers(sender)).await?;
        answer.await.map_err(|_| Stopped)
    }
}

/// Speaks with the worker. Cheap to clone; the worker ends with [`Handle::shutdown`].
#[derive(Clone)]
pub struct Handle {
    pub(super) commander: Commander,
    pub(super) inlet: Inlet,
    pub(super) heartbeat: Arc<Heartbeat>,
    /// The lane threads'.
    pub(super) lane_heartbeats: Arc<[Arc<Heartbeat>]>,
    pub(super) endpoints: watch::Receiver<Vec<SocketAddr>>,
    pub(super) open: watch::Receiver<Vec<bool>>,
    /// None on a host, as the next.
    pub(super) sentry: Option<Sentry>,
    pub(super) defences: Vec<Defence>,
    /// A host's TUN device.
    pub(super) network: Option<Arc<Network>>,
    /// Ends with the keeper.
    pub(super) keeps: watch::Receiver<()>,
    /// Relays that may be asked how this machine looks.
    pub(super) mirrors: Mirrors,
    /// Which of two underlays is used.
    pub(super) underlays: watch::Receiver<Option<Told>>,
    pub(super) config: Arc<Config>,
    /// What the seeds of views' tables grow from.
    pub(super) seed: [u8; 32],
    /// Where peers' QUIC shares the tunnels' port, and the kernel tells them apart; else why it doesn't.
    pub(super) one_port: Result<Arc<OnePort>, String>,
    /// What the sensor found, where it is on.
    pub(super) findings: Option<Findings>,
}

/// Waits for what views made void and drops it, so that the worker needn't.
pub(super) async fn bury(mut retired: mpsc::Receiver<Retired>) {
    while let Some(retired) = retired.recv().await {
        // A blocking thread's panic is of no concern here: there is nothing left to save.
        let _ = tokio::task::spawn_blocking(move || drop(retired)).await;
    }
}

impl Handle {
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (sender, answer) = oneshot::channel();
        self.commander.send(command(sender)).await?;
        answer.await.map_err(|_| Stopped)
    }

    /// Puts a view in force; returns once it is, for the time when no agent runs too. Says what couldn't be done, or
    /// isn't yet.
    ///
    /// # Errors
    /// After [`Handle::shutdown`], as with every call here.
    pub async fn apply(&self, view: Arc<View>) -> Result<Vec<String>, Stopped> {
        let ports: Vec<_> = self.config.ports.iter().map(|port| port.name.clone()).collect();
        let seed = self.seed;
        // No packet waits for what takes long with many rules.
        let shared = view.clone();
        let preparing = move || Box::new(Prepared::new(&shared, &ports, &seed));
        let prepared = tokio::task::spawn_blocking(preparing).await.map_err(|_| Stopped)?;
        // The engine first: what closes doesn't wait for the packet filter.
        self.ask(|answer| Command::Apply(prepared, answer)).await?;
        self.wire(&view).await
    }

    /// Has ports be what `view` asks for while no agent runs, in the modes that devices are in. Says what couldn't be
    /// done, or isn't yet.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub(crate) async fn wire(&self, view: &View) -> Result<Vec<String>, Stopped> {
        let Some(sentry) = &self.sentry else {
            self.route(view).await;
            return Ok(Vec::new());
        };
        let on_trial = view.intent.devices.iter().any(|device| trial_of(device).is_some());
        let trials = if on_trial { self.trials().await? } else { Vec::new() };
        let wiring = Wiring::of(&self.config, Some(&effective(view, &trials)));
        let wired = timeout(WIRING, sentry.wire(wiring)).await;
        Ok(wired
            .unwrap_or_else(|_| Err("the packet filter is busy; it goes on trying".into()))
            .err()
            .map(|error| format!("on_failure isn't in force yet: {error}"))
            .into_iter()
            .collect())
    }

    /// Gives a host's TUN device the address and the routes that `view` asks for. What the kernel refuses is among [`Handle::host_problems`], for as
    /// long as it does.
    pub(crate) async fn route(&self, view: &View) {
        if let Some(network) = &self.network {
            network.follow(view).await;
        }
    }

    /// Tells the wall clock. `confirmed`: a controller has said so, and not only the machine's own clock.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn set_time(&self, wall: UnixMillis, confirmed: bool) -> Result<(), Stopped> {
        self.commander.send(Command::SetTime(wall, confirmed)).await
    }

    /// Tells the number of the newest authority document held, which peers are told.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn set_authority(&self, number: u64) -> Result<(), Stopped> {
        self.commander.send(Command::SetAuthority(number)).await
    }

    /// Has these tunnel keys used, newest first, and no others; returns once they are.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn set_own_keys(&self, keys: Vec<OwnKey>) -> Result<(), Stopped> {
        self.ask(|answer| Command::SetOwnKeys(keys, answer)).await
    }

    /// Has claims signed with another identity key from now on; returns once they are.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn set_identity(&self, identity: IdentityKey) -> Result<(), Stopped> {
        self.ask(|answer| Command::SetIdentity(Box::new(identity), answer)).await
    }

    /// The trials that the view in force orders.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub(crate) async fn trials(&self) -> Result<Vec<TrialState>, Stopped> {
        self.ask(Command::Trials).await
    }

    /// Who still needs which tunnel key.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn key_use(&self) -> Result<Vec<KeyUse>, Stopped> {
        self.ask(Command::KeyUse).await
    }

    /// Tells the bypass orders that were loaded from files, all of them; returns once they are followed.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn set_bypasses(&self, loaded: Vec<LoadedBypass>) -> Result<(), Stopped> {
        self.ask(|answer| Command::SetBypasses(loaded, answer)).await
    }

    /// Takes out what happened since the last report, the shell's own drops included.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn report(&self) -> Result<EngineReport, Stopped> {
        self.ask(Command::Report).await
    }

    /// What at most `most` devices let be seen of themselves, where it is new or was last told a day ago; and how many hints found no
    /// room since the last time. Nothing where the sensor is off.
    #[must_use]
    pub fn hints(&self, most: usize) -> (Vec<Seen>, u64) {
        self.findings.as_ref().map_or_else(Default::default, |findings| findings.take(most))
    }

    /// Waits until the sensor has read all frames that it was given so far, though not for longer than `patience`.
    pub async fn settled(&self, patience: Duration) {
        if let Some(findings) = &self.findings {
            findings.settled(patience).await;
        }
    }

    /// On a host, what stands in the way of its address and routes. On a gateway nothing ever does.
    pub async fn host_problems(&self) -> Vec<String> {
        match &self.network {
            Some(network) => network.problems().await,
            None => Vec::new(),
        }
    }

    /// Engine, interfaces and underlay at a glance.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn status(&self) -> Result<Status, Stopped> {
        let status = self.ask(Command::Status).await?;
        let underlays = self.underlays.borrow().as_ref().map(Told::status);
        let sensor = self.findings.as_ref().map(Findings::status);
        let outside_tunnel = match &self.network {
            Some(network) => network.turned_away().await,
            None => None,
        };
        let host_problems = self.host_problems().await;
        Ok(Status { underlays, sensor, outside_tunnel, host_problems, ..status })
    }

    /// At most `limit` flows, the most recently used first.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn flows(&self, limit: usize) -> Result<Vec<FlowInfo>, Stopped> {
        self.ask(|answer| Command::Flows(limit, answer)).await
    }

    /// What would become of a flow, and why.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn explain(&self, question: Question) -> Result<Explanation, Stopped> {
        self.ask(|answer| Command::Explain(question, answer)).await
    }

    /// What is worth keeping over a restart.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn learned(&self) -> Result<Learned, Stopped> {
        self.ask(Command::Learned).await
    }

    /// Tells by which relays a gateway is reached now, nearest first.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn set_relays(
        &self,
        gateway: GatewayId,
        relays: Vec<RelayPath>,
    ) -> Result<(), Stopped> {
        self.commander.send(Command::SetRelays(gateway, relays)).await
    }

    /// Gives queues for packets that go through a relay.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn open_relay(&self, relay: RelayId, queues: Queues) -> Result<(), Stopped> {
        self.commander.send(Command::OpenRelay(relay, queues)).await
    }

    /// Tells where a relay may be asked how the tunnels look from outside, as long as it is open.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn set_mirror(&self, relay: RelayId, at: SocketAddr) -> Result<(), Stopped> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner).insert(relay, at);
        self.commander.send(Command::SetMirror(relay, Some(at))).await
    }

    /// Tells that a connection to a relay has waited for an answer since then, so that others are asked at once. It is told again
    /// soon where that goes on, so a worker that has no time for it isn't waited for.
    pub(crate) fn note_owing(&self, since: Instant) {
        self.commander.try_send(Command::Owing(since));
    }

    /// Takes the queues for a relay away.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn close_relay(&self, relay: RelayId) -> Result<(), Stopped> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner).remove(&relay);
        self.commander.send(Command::CloseRelay(relay)).await
    }

    /// Tells that the authority document of this number took these relays out, and the `addresses` of all that ever were, the
    /// oldest first, those aside where one is now: what was found with their help is found anew.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn forget_relays(
        &self,
        relays: Vec<RelayId>,
        addresses: Vec<IpAddr>,
        document: u64,
    ) -> Result<(), Stopped> {
        self.commander.send(Command::ForgetRelays { relays, addresses, document }).await
    }

    /// The gateways whose packets don't go directly, as WireGuard has it.
    ///
    /// # Errors
    /// As [`Handle::apply`].
    pub async fn indirect(&self) -> Result<Vec<GatewayId>, Stopped> {
        self.ask(Command::Indirect).await
    }

    /// Which of two underlays is used, as it changes.
    #[must_use]
    pub(crate) fn underlays(&self) -> watch::Receiver<Option<Told>> {
        self.underlays.clone()
    }

    /// The socket for peers' QUIC on the tunnels' own port, and what is handed over between the two.
    ///
    /// # Errors
    /// Where that isn't configured, the kernel can't tell the two apart, or the data plane has ended.
    pub fn quic_socket(&self) -> Result<(UdpSocket, Arc<Shared>), NoSocket> {
        let port = self.one_port.as_ref().map_err(|why| NoSocket::Unsteered(why.clone()))?;
        Ok((port.socket()?, port.shared.clone()))
    }

    /// Where packets that relays brought go.
    #[must_use]
    pub fn inlet(&self) -> Inlet {
        self.inlet.clone()
    }

    /// Where peers can send to: what the configuration advertises, or else the underlay interface's addresses with
    /// the tunnels' port. Changes as those addresses do.
    #[must_use]
    pub fn endpoints(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.endpoints.clone()
    }

    /// Whether frames can flow at the uplink and at the ports, in the configuration's order. Changes as interfaces come
    /// and go, and ends with the worker.
    #[must_use]
    pub fn open(&self) -> watch::Receiver<Vec<bool>> {
        self.open.clone()
    }

    /// Whether the worker and all lane threads turned their loops lately, and somebody keeps the packet filter. For the
    /// watchdog: false means that the agent has to be started anew.
    #[must_use]
    pub fn alive(&self) -> bool {
        let mut threads = std::iter::once(&self.heartbeat).chain(&*self.lane_heartbeats);
        threads.all(|heartbeat| heartbeat.silence() < HUNG)
            && self.sentry.as_ref().is_none_or(Sentry::alive)
    }

    /// Ends the worker. Ports that are a wire are the kernel's from then on, the others closed; all stay isolated. An
    /// uplink that was off to show a dead port is on again.
    ///
    /// # Errors
    /// Where it has ended already.
    pub async fn shutdown(&self) -> Result<(), Stopped> {
        let ended = self.ask(Command::Shutdown).await;
        if let Ok(port) = &self.one_port {
            port.close();
        }
        for defence in &self.defences {
            defence.end().await;
        }
        let mut keeps = self.keeps.clone();
        let kept = async { while keeps.changed().await.is_ok() {} };
        if timeout(KEPT, kept).await.is_err() {
            tracing::warn!("the interfaces are left as they are: the kernel doesn't answer");
        }
        if let Some(sentry) = &self.sentry {
            sentry.end().await;
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::mode::Mode;

    use super::*;
    use crate::testkit::Organisation;

    #[tokio::test]
    async fn a_view_is_in_force_though_the_packet_filter_is_kept_busy() {
        let (commands, mut receiver) = mpsc::channel(COMMANDS);
        let wake = Arc::new(EventFd::new().unwrap());
        let (_, handle) = fake::FakeWorker::new();
        let handle = Handle { commander: Commander { commands, wake }, ..handle };
        let organisation = Organisation::new(&[]);
        let view = Arc::new(organisation.verified(&organisation.view(1, 1, Mode::Observe)));
        let worker = tokio::spawn(async move {
            let Some(Command::Apply(_, answer)) = receiver.recv().await else { return false };
            answer.send(()).is_ok()
        });
        let applied = timeout(Duration::from_secs(60), handle.apply(view)).await;
        let problems = applied.expect("nothing else waits for the packet filter").unwrap();
        assert!(worker.await.unwrap(), "the engine has it");
        assert!(problems.len() == 1 && problems[0].contains("isn't in force yet"), "{problems:?}");
    }
}
