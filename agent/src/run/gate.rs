//! The data plane behind a gate: open from the start, or shut until there is a view.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anteroom_agent_core::bypass::LoadedBypass;
use anteroom_agent_core::config::{PortConfig, TunnelIdentity};
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::lane;
use anteroom_agent_core::peer::{KeyUse, OwnKey};
use anteroom_agent_core::report::{EngineReport, Explanation, FlowInfo, Learned, Question};
use anteroom_agent_core::trial::{TrialState, effective};
use anteroom_proto::inventory::DeviceHints;
use anteroom_proto::key::{IdentityKey, TunnelSecret};
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::View;
use tokio::sync::watch;

use crate::config::{Classic, Config};
use crate::dataplane::{self, Handle, Seen, Setup, SetupError, Status, Stopped};
use crate::net::wiring::{self, Wiring};
use crate::plane::{Plane, PlaneError};

/// Devices whose hints go into one round of reports at most.
const HINTS_AT_ONCE: usize = 32;

/// What a data plane is started with.
pub(super) struct Opener {
    pub(super) config: Config,
    pub(super) identity: TunnelIdentity,
    /// The key of its lanes: of this run, and kept nowhere.
    pub(super) lanes: TunnelSecret,
    pub(super) learned: Learned,
    /// The highest time that was signed or confirmed before this start.
    pub(super) floor: UnixMillis,
}

/// The data plane, once it is open.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) handle: Handle,
    /// The device ports with their interfaces' addresses.
    pub(super) ports: Vec<PortConfig>,
}

/// Starts the data plane with the first view at the latest.
#[derive(Clone)]
pub(super) struct Gate {
    opener: Arc<Opener>,
    /// Held while it opens, and while something is told that is also remembered for an engine that starts later: what
    /// is told meanwhile mustn't fall in between.
    opening: Arc<tokio::sync::Mutex<()>>,
    open: Arc<watch::Sender<Option<Open>>>,
    time: Arc<Mutex<Option<Time>>>,
    /// Bypass orders from files, for an engine that starts later.
    bypasses: Arc<Mutex<Vec<LoadedBypass>>>,
    /// Trials of an earlier run, for an engine that starts later.
    trials: Arc<Mutex<Vec<TrialState>>>,
    /// The tunnel keys, for an engine that starts later.
    own_keys: Arc<Mutex<Vec<OwnKey>>>,
    /// The identity key, where it was replaced since the start, for an engine that starts later.
    identity: Arc<Mutex<Option<IdentityKey>>>,
    /// Number of the newest authority document, for an engine that starts later.
    authority: Arc<AtomicU64>,
    /// The view in force, or about to be.
    view: Arc<watch::Sender<Option<Arc<View>>>>,
}

/// What was last said about the time, for an engine that starts later.
#[derive(Clone, Copy)]
struct Time {
    wall: UnixMillis,
    confirmed: bool,
    at: Instant,
}

impl From<Stopped> for PlaneError {
    fn from(error: Stopped) -> Self {
        Self::Stopped(error.to_string())
    }
}

impl From<SetupError> for PlaneError {
    fn from(error: SetupError) -> Self {
        Self::Stopped(error.to_string())
    }
}

impl Gate {
    pub(super) fn new(opener: Opener) -> Self {
        Self {
            opener: Arc::new(opener),
            opening: Arc::default(),
            open: Arc::new(watch::channel(None).0),
            time: Arc::default(),
            authority: Arc::default(),
            bypasses: Arc::default(),
            trials: Arc::default(),
            own_keys: Arc::default(),
            identity: Arc::default(),
            view: Arc::new(watch::channel(None).0),
        }
    }

    /// The view in force, or about to be, as it changes.
    pub(super) fn views(&self) -> watch::Receiver<Option<Arc<View>>> {
        self.view.subscribe()
    }

    /// The data plane, as it opens.
    pub(super) fn opened(&self) -> watch::Receiver<Option<Open>> {
        self.open.subscribe()
    }

    /// Tells the trials of an earlier run, before it opens.
    pub(super) fn restore_trials(&self, trials: Vec<TrialState>) {
        *self.trials.lock().unwrap_or_else(PoisonError::into_inner) = trials;
    }

    /// The trials that the view in force orders.
    pub(super) async fn trials(&self) -> Result<Vec<TrialState>, PlaneError> {
        Ok(self.get()?.trials().await?)
    }

    /// Has ports be what they are to be while no agent runs, after devices went back. Says what couldn't be done.
    pub(super) async fn wire_again(&self) -> Vec<String> {
        let view = self.view.borrow().clone();
        match (self.get(), view) {
            (Ok(handle), Some(view)) => handle.wire(&view).await.unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn get(&self) -> Result<Handle, PlaneError> {
        let open = self.open.borrow();
        open.as_ref().map(|open| open.handle.clone()).ok_or(PlaneError::Closed)
    }

    fn time(&self) -> Option<Time> {
        *self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the gate. The engine has `view` before it sees its first frame. Says what this machine can't do.
    pub(super) async fn open(&self, view: Option<Arc<View>>) -> Result<Vec<String>, PlaneError> {
        let _alone = self.opening.lock().await;
        if view.is_some() {
            self.view.send_replace(view.clone());
        }
        if let Ok(handle) = self.get() {
            return match view {
                Some(view) => Ok(handle.apply(view).await?),
                None => Ok(Vec::new()),
            };
        }
        let (config, gateway) = (&self.opener.config, self.opener.identity.gateway);
        let trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut setup = match &config.host {
            Some(host) => Setup::prepare_host(config, host, gateway).await?,
            None => {
                let now = view.as_deref().map(|view| effective(view, &trials));
                Setup::prepare(config, Wiring::of(config, now.as_deref())).await?
            }
        };
        let warnings = setup.warnings().to_vec();
        let config = setup.engine_config();
        let ports = config.ports.clone();
        let mut identity = self.opener.identity.clone();
        if let Some(newer) = self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            identity.identity = newer;
        }
        let mut engine = Engine::new(config, identity, Instant::now());
        if self.opener.config.offloads.lanes {
            let runner = setup.run_lanes()?;
            engine.use_lanes(&self.opener.lanes, lane::USUAL, runner, Instant::now());
        }
        if self.opener.config.keys.classic == Classic::Never {
            engine.refuse_classic();
        }
        engine.restore(self.opener.learned.clone());
        engine.hold_time(self.opener.floor, Instant::now());
        if let Some(time) = self.time() {
            engine.set_time(time.wall, time.confirmed, time.at);
        }
        engine.set_authority(self.authority.load(Ordering::Relaxed), Instant::now());
        let own_keys = self.own_keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !own_keys.is_empty() {
            engine.set_own_keys(&own_keys, Instant::now());
        }
        let bypasses = self.bypasses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        engine.set_bypasses(bypasses, Instant::now());
        engine.restore_trials(trials);
        if let Some(view) = &view {
            engine.apply(view.clone(), Instant::now());
        }
        let handle = dataplane::spawn(setup, engine)?;
        if let Some(view) = &view {
            handle.route(view).await;
        }
        self.open.send_replace(Some(Open { handle, ports }));
        Ok(warnings)
    }

    /// Ends the data plane, if there is one.
    pub(super) async fn shutdown(&self) {
        let open = self.open.send_replace(None);
        if let Some(open) = open {
            // One that has ended already has nothing left to end.
            let _ = open.handle.shutdown().await;
        }
    }
}

impl Plane for Gate {
    async fn apply(&self, view: Arc<View>) -> Result<Vec<String>, PlaneError> {
        match self.get() {
            Ok(handle) => {
                // Before the packet filter is waited for: who is cut off is cut off at once.
                let before = self.view.send_replace(Some(view.clone()));
                let applied = handle.apply(view).await;
                if applied.is_err() {
                    // Nobody may connect by a view that isn't in force.
                    self.view.send_replace(before);
                }
                Ok(applied?)
            }
            Err(_) => self.open(Some(view)).await,
        }
    }

    fn shortcomings(&self, view: &View) -> Vec<String> {
        wiring::unplaced(&self.opener.config, view)
    }

    async fn hindrances(&self) -> Vec<String> {
        match self.get() {
            Ok(handle) => handle.host_problems().await,
            Err(_) => Vec::new(),
        }
    }

    async fn set_time(&self, wall: UnixMillis, confirmed: bool) -> Result<(), PlaneError> {
        let time = Time { wall, confirmed, at: Instant::now() };
        let _alone = self.opening.lock().await;
        *self.time.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
        match self.get() {
            Ok(handle) => Ok(handle.set_time(wall, confirmed).await?),
            Err(_) => Ok(()),
        }
    }

    async fn set_authority(&self, number: u64) -> Result<(), PlaneError> {
        let _alone = self.opening.lock().await;
        self.authority.store(number, Ordering::Relaxed);
        match self.get() {
            Ok(handle) => Ok(handle.set_authority(number).await?),
            Err(_) => Ok(()),
        }
    }

    async fn set_own_keys(&self, keys: Vec<OwnKey>) -> Result<(), PlaneError> {
        let _alone = self.opening.lock().await;
        self.own_keys.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&keys);
        match self.get() {
            Ok(handle) => Ok(handle.set_own_keys(keys).await?),
            Err(_) => Ok(()),
        }
    }

    async fn set_identity(&self, identity: IdentityKey) -> Result<(), PlaneError> {
        let _alone = self.opening.lock().await;
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = Some(identity.clone());
        match self.get() {
            Ok(handle) => Ok(handle.set_identity(identity).await?),
            Err(_) => Ok(()),
        }
    }

    async fn key_use(&self) -> Result<Vec<KeyUse>, PlaneError> {
        Ok(self.get()?.key_use().await?)
    }

    async fn set_bypasses(&self, loaded: Vec<LoadedBypass>) -> Result<(), PlaneError> {
        let _alone = self.opening.lock().await;
        self.bypasses.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&loaded);
        match self.get() {
            Ok(handle) => Ok(handle.set_bypasses(loaded).await?),
            Err(_) => Ok(()),
        }
    }

    async fn report(&self) -> Result<EngineReport, PlaneError> {
        Ok(self.get()?.report().await?)
    }

    fn hints(&self) -> (Vec<DeviceHints>, u64) {
        let Ok(handle) = self.get() else { return (Vec::new(), 0) };
        let (seen, away) = handle.hints(HINTS_AT_ONCE);
        let view = self.view.borrow().clone();
        let devices = view.iter().flat_map(|view| &view.intent.devices);
        // A confirmed device is at the port that operators signed. Whoever shows its address elsewhere says nothing of it.
        let told = seen.into_iter().filter_map(|seen: Seen| {
            let port: Name = self.opener.config.ports.get(seen.port)?.name.clone();
            let device = devices
                .clone()
                .find(|device| (device.member.mac, device.member.vlan) == (seen.mac, seen.vlan));
            if device.is_some_and(|device| device.port != port) {
                return None;
            }
            let member = device.map(|device| device.member.id);
            Some(DeviceHints { port, mac: seen.mac, vlan: seen.vlan, member, hints: seen.hints })
        });
        (told.collect(), away)
    }

    async fn settled(&self, patience: Duration) {
        if let Ok(handle) = self.get() {
            handle.settled(patience).await;
        }
    }

    async fn status(&self) -> Result<Status, PlaneError> {
        Ok(self.get()?.status().await?)
    }

    async fn flows(&self, limit: usize) -> Result<Vec<FlowInfo>, PlaneError> {
        Ok(self.get()?.flows(limit).await?)
    }

    async fn explain(&self, question: Question) -> Result<Explanation, PlaneError> {
        Ok(self.get()?.explain(question).await?)
    }

    async fn learned(&self) -> Result<Learned, PlaneError> {
        Ok(self.get()?.learned().await?)
    }

    fn alive(&self) -> bool {
        self.get().is_ok_and(|handle| handle.alive()) || self.open.borrow().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anteroom_lab::namespace::in_private_network;
    use anteroom_lab::topology;
    use anteroom_proto::id::GatewayId;
    use anteroom_proto::mode::Mode;

    use super::*;
    use crate::testkit::{GATEWAY, Organisation};

    fn gate() -> Gate {
        let text = "[uplink]\ninterface = \"up0\"\n[underlay]\nlisten = \"0.0.0.0:51820\"\n\
                    [[port]]\nname = \"port1\"\ninterface = \"p1\"\n";
        Gate::new(Opener {
            config: Config::parse(Path::new("test.toml"), text).unwrap(),
            identity: TunnelIdentity {
                gateway: GATEWAY,
                secret: TunnelSecret::from_bytes([1; 32]),
                identity: IdentityKey::from_seed(&[2; 32]),
                seed: [3; 32],
            },
            lanes: TunnelSecret::from_bytes([4; 32]),
            learned: Learned::default(),
            floor: UnixMillis(0),
        })
    }

    fn order(gateway: GatewayId, now: Instant) -> LoadedBypass {
        let counted = now.checked_add(std::time::Duration::from_secs(3_600));
        LoadedBypass { gateway, serial: 1, until: Some(UnixMillis(u64::MAX)), counted }
    }

    #[test]
    fn nothing_that_is_told_while_it_opens_is_lost() {
        if !in_private_network("run::gate::tests::nothing_that_is_told_while_it_opens_is_lost") {
            return;
        }
        for interface in ["up0", "p1"] {
            topology::ip(&format!("link add {interface} type veth peer name {interface}-far"))
                .unwrap();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let gate = gate();
            // Another opens it.
            let other = gate.opening.clone().lock_owned().await;
            let now = Instant::now();
            let mut told = std::pin::pin!(gate.set_bypasses(vec![order(GATEWAY, now)]));
            tokio::select! {
                biased;
                told = &mut told => panic!("told to nobody: {told:?}"),
                () = std::future::ready(()) => {}
            }
            drop(other);
            told.await.unwrap();
            gate.open(None).await.unwrap();
            assert!(gate.status().await.unwrap().engine.view.is_none());
            let organisation = Organisation::new(&[]);
            let view = Arc::new(organisation.verified(&organisation.view(4, 1, Mode::Observe)));
            gate.open(Some(view)).await.unwrap();
            let status = gate.status().await.unwrap().engine;
            assert_eq!(status.view.map(|view| view.revision), Some(4), "a view came second");
            assert_eq!(status.bypasses.len(), 1);
            gate.shutdown().await;
        });
    }
}
