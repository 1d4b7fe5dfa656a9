//! The agent's side of the control connection: find a controller, say hello, take views, send reports.
//!
//! Nothing here is needed for traffic to flow: without a controller the view on disk stays in force.

mod alarm;
mod backoff;
mod classic;
mod clock;
pub(crate) mod dial;
mod farewell;
mod fitted;
mod greet;
mod keep;
mod outbox;
mod places;
mod rekey;
mod rotate;
mod session;
mod take;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::report::DoubtedTime;
use anteroom_proto::approval::Demands;
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::IdentityKey;
use anteroom_proto::rekey::RekeyOrder;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{Applied, PortInfo, Reachable, Rotate};
use anteroom_proto::view::{Floor, KnownKeys, View};
use anteroom_transport::egress;
use anteroom_transport::link::Carrier;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::again::Again;
use crate::config::Rotate as Rotating;
use crate::keys::{KeyStatus, Ring};
use crate::looks::Looks;
use crate::plane::{Plane, PlaneError};
use crate::relay::{Known, RelayStatus};
use crate::state::{Enrolled, Enrolment, StateError};
use clock::Clock;
use dial::{Candidates, DialError};
use greet::{Greeted, SAYS_NOTHING};
pub(crate) use keep::Disk;
use keep::Keeping;
use outbox::Outbox;
use places::Places;
use rekey::Identities;
use session::End;

#[cfg(test)]
mod tests;

pub use alarm::Alarm;
pub(crate) use backoff::Backoff;
pub(crate) use classic::{withheld, without_psk};
pub(crate) use clock::system_time;
pub(crate) use session::newer_authority;
pub(crate) use take::applied_of;

/// How long after a refusal that is said to be for good it is tried again all the same: somebody may have mended
/// the controller.
const AFTER_FATAL: Duration = Duration::from_secs(300);

/// Where peers and the controller find this gateway: what may change while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reach {
    /// Addresses of the tunnel's socket, best first.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// The device ports.
    pub(crate) ports: Vec<PortInfo>,
}

/// How it stands with the controller, for `status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ControlStatus {
    /// The controller that the agent is connected to.
    pub connected: Option<SocketAddr>,
    /// Whether that takes TCP, since UDP doesn't get through.
    #[serde(default)]
    pub over_tcp: bool,
    /// How often one over QUIC was left for one over TCP as soon as nothing got through it, and not when QUIC gave it up.
    #[serde(default)]
    pub silences: u64,
    /// Since when it is connected, or isn't. By this gateway's clock.
    pub since: UnixMillis,
    /// Whether an operator has approved the gateway. None until a controller has said.
    pub approved: Option<bool>,
    /// Number of the newest authority document held.
    pub authority: u64,
    /// What is in force, and the last view that was refused.
    pub applied: Option<Applied>,
    /// Reports that the controller hasn't stored yet.
    pub unstored_reports: usize,
    /// What went wrong last, if nothing has gone right since.
    pub last_error: Option<String>,
    /// This gateway's tunnel keys, newest first, once that was looked at.
    #[serde(default)]
    pub keys: Vec<KeyStatus>,
    /// Whether another one is due, and waits for a controller that would tell peers of it.
    #[serde(default)]
    pub new_key_waits: bool,
    /// What was refused since the agent started, though a controller or whoever passes for one wanted it.
    pub alarms: Vec<Alarm>,
}

/// Everything that the control connection needs.
pub(crate) struct Client<P> {
    keeping: Keeping,
    plane: P,
    enrolment: Enrolment,
    identities: Identities,
    /// An order to replace the identity key that has to wait.
    rekey_later: Option<Signed<RekeyOrder>>,
    ring: Ring,
    /// As the keys are offered now.
    bindings: Vec<Signed<TunnelKeyBinding>>,
    places: Places,
    /// What the controller asked for and isn't done yet.
    asked_to_rotate: Option<Rotate>,
    /// Keys that are being written down.
    writing: Option<(Ring, JoinHandle<Result<(), StateError>>)>,
    /// Whether those in use are to be written down as they are now.
    keys_unwritten: bool,
    /// Until when no keys are written down, since that failed.
    keys_rest: Option<Instant>,
    /// Whether it was told that the newest one has no ML-KEM key.
    told_bare: bool,
    /// Since when the newest one is used.
    in_use: rotate::InUse,
    /// Peers of which an alarm says that they hold on to an old tunnel key, while the newest has this serial.
    held_on: (u64, BTreeSet<GatewayId>),
    /// How old a tunnel key gets, and this run's share of how much earlier it is replaced.
    rotate_every: Duration,
    jitter: u32,
    /// Peers that should have a pre-shared key and have none.
    classic: classic::Classic,
    /// What stands in the way of what is in force.
    hindrances: Vec<String>,
    /// What the controller was told, beside what is in force.
    told: alarm::Told,
    /// That a controller holds documents back.
    accusations: alarm::Accusations,
    /// What the controller reads in reports beyond the basics.
    reads: fitted::Reads,
    disk: Arc<dyn Disk>,
    keys: KnownKeys,
    chain: Option<AuthorityChain>,
    floor: Floor,
    /// The view in force.
    view: Option<Arc<View>>,
    /// On which devices two operators decide, with it or from before it was lost.
    demands: Demands,
    /// What was acknowledged last.
    applied: Option<Applied>,
    boot: BootId,
    outbox: Outbox,
    /// Whether reports of a run before this one are still on disk.
    reports_on_disk: bool,
    /// Whether the outbox has all that there will be.
    told_the_last: bool,
    /// That they are being taken off the disk.
    forgetting: Option<JoinHandle<()>>,
    clock: Clock,
    /// What was on disk at the start, and the time since: what it is at the least, whoever says what.
    least: Clock,
    /// Peers' words of the time that alarms were raised of.
    doubted: Vec<DoubtedTime>,
    reach: watch::Receiver<Reach>,
    status: watch::Sender<ControlStatus>,
    stop: watch::Receiver<bool>,
    /// Who connects to relays, if anybody does.
    relays: Option<watch::Sender<Known>>,
    /// QUIC or TCP.
    again: Again,
    /// Tells where the network may be another one.
    moves: watch::Receiver<u64>,
    /// How they stand.
    relay_status: watch::Receiver<Vec<RelayStatus>>,
    /// The newest document that the data plane was told of by whoever connects to relays; none while nobody does.
    heeded: watch::Receiver<Option<u64>>,
    /// The UDP port where peers' QUIC connections are taken, if they are.
    quic: Option<u16>,
}

impl<P: Plane> Client<P> {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        plane: P,
        held: Enrolled,
        boot: BootId,
        reach: watch::Receiver<Reach>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let Enrolled { enrolment, identity, nexts, ring, chain, view, demands, floor, keys } = held;
        let applied = view.as_deref().map(|view| applied_of(view, &plane));
        for problem in applied.iter().flat_map(|applied| &applied.problems) {
            warn!("the view on disk: {problem}");
        }
        let (clock, least) = (Clock::new(floor.time), Clock::least(floor.time));
        // Where it ended between a new identity key and the tunnel keys that are to follow.
        let overdue = ring.newest().made.0 < nexts.done;
        let up_to = ring.newest().serial;
        let mut outbox = Outbox::new(boot);
        match disk.left_reports(enrolment.gateway) {
            Ok(left) => outbox.take_left(left),
            Err(error) => warn!("{error}"),
        }
        let place = disk.left_place().unwrap_or_else(|error| {
            warn!("{error}");
            None
        });
        let (status, _) = watch::channel(ControlStatus {
            since: clock.now(),
            authority: chain.as_ref().map_or(0, |chain| chain.newest().number),
            applied: applied.clone(),
            ..ControlStatus::default()
        });
        Self {
            bindings: ring.bindings(&enrolment, &identity),
            ring,
            places: Places::new(place, Instant::now()),
            asked_to_rotate: overdue.then_some(Rotate { up_to, now: false }),
            writing: None,
            keys_unwritten: false,
            keys_rest: None,
            told_bare: false,
            in_use: rotate::InUse::before(),
            held_on: (0, BTreeSet::new()),
            rotate_every: Rotating::default().every(),
            jitter: random(),
            classic: classic::Classic::default(),
            hindrances: Vec::new(),
            told: alarm::Told::default(),
            accusations: alarm::Accusations::default(),
            reads: fitted::Reads::default(),
            disk: disk.clone(),
            keys,
            reports_on_disk: outbox.has_left(),
            outbox,
            told_the_last: false,
            forgetting: None,
            keeping: Keeping::new(disk, floor),
            plane,
            enrolment,
            identities: Identities::new(identity, nexts),
            rekey_later: None,
            chain,
            floor,
            view,
            demands,
            applied,
            boot,
            clock,
            least,
            doubted: Vec::new(),
            reach,
            status,
            stop,
            relays: None,
            again: Again::default(),
            moves: egress::moves(),
            relay_status: watch::channel(Vec::new()).1,
            heeded: watch::channel(None).1,
            quic: None,
        }
    }

    /// Has peers told of an authority document only once `heeded` says that the data plane knows which relays it takes out.
    #[must_use]
    pub(crate) fn heeding(mut self, heeded: watch::Receiver<Option<u64>>) -> Self {
        self.heeded = heeded;
        self
    }

    /// Has peers told where their QUIC connections are taken.
    #[must_use]
    pub(crate) const fn with_quic(mut self, port: Option<u16>) -> Self {
        self.quic = port;
        self
    }

    /// Asks controllers for passes for relays from now on, and tells them there, with the authority chain. Controllers are
    /// told which relays are connected, by `status`.
    pub(crate) fn with_relays(
        mut self,
        relays: watch::Sender<Known>,
        status: watch::Receiver<Vec<RelayStatus>>,
    ) -> Self {
        self.relays = Some(relays);
        self.relay_status = status;
        self.tell_relays();
        self
    }

    /// Tells whoever connects to relays which there are.
    fn tell_relays(&self) {
        let Some(relays) = &self.relays else { return };
        let chain = self.chain.clone().map(Arc::new);
        relays.send_modify(|known| known.chain = chain);
    }

    /// The same, with tunnel keys that get this old.
    #[must_use]
    pub(crate) const fn rotating(mut self, every: Duration) -> Self {
        self.rotate_every = every;
        self
    }

    /// This gateway's identity key, as it changes.
    pub(crate) fn identity(&self) -> watch::Receiver<IdentityKey> {
        self.identities.own()
    }

    /// How it stands, as it changes.
    pub(crate) fn status(&self) -> watch::Receiver<ControlStatus> {
        self.status.subscribe()
    }

    /// Stays connected until it is told to stop.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub(crate) async fn run(mut self) -> Result<(), PlaneError> {
        let ended = self.stay_connected().await;
        if ended.is_ok() {
            self.keep_the_rest().await;
        }
        self.keeping.end().await;
        ended
    }

    async fn stay_connected(&mut self) -> Result<(), PlaneError> {
        self.plane.set_time(self.clock.now(), false).await?;
        let authority = self.chain.as_ref().map_or(0, |chain| chain.newest().number);
        self.plane.set_authority(authority).await?;
        let mut backoff = Backoff::default();
        let mut better: Option<Box<Greeted>> = None;
        loop {
            if self.moves.has_changed().is_ok_and(|changed| changed) {
                self.moves.mark_unchanged();
                self.again.moved();
            }
            let ended = match better.take() {
                Some(greeted) => Ok(self.go_on(*greeted).await),
                None => {
                    let candidates = Candidates::of(&self.enrolment, self.chain.as_ref());
                    let (identity, first) = (self.identities.shown().clone(), self.again.first());
                    let dialling = dial::dial(&candidates, &identity, first);
                    let Some(dialled) = self.meanwhile(dialling).await? else { return Ok(()) };
                    match dialled {
                        Ok((link, address)) => Ok(self.session(link, address).await),
                        Err(error) => Err(error),
                    }
                }
            };
            let wait = match ended {
                Err(error) => {
                    if let DialError::WrongKey { address, key, .. } = error
                        && self.ask_authority(address, key).await?
                    {
                        // It is named by now, or somebody else is.
                        continue;
                    }
                    if matches!(error, DialError::WrongKey { .. }) {
                        self.alarm(&error.to_string());
                    }
                    self.failed(&error.to_string());
                    backoff.next(random())
                }
                Ok(end) => {
                    if end.greeted {
                        backoff.reset();
                    }
                    match end.why {
                        End::Stopped => return Ok(()),
                        End::Plane(error) => return Err(error),
                        End::Better(greeted) => {
                            self.again.tried();
                            better = Some(greeted);
                            continue;
                        }
                        End::Silent => {
                            self.failed(SAYS_NOTHING);
                            backoff.next(random())
                        }
                        End::Rekeyed => continue,
                        End::Lost(problem) => {
                            self.failed(&problem);
                            backoff.next(random())
                        }
                        End::Refused(refusal) => {
                            self.failed(&refusal.to_string());
                            if refusal.unwanted && self.try_another_identity() {
                                continue;
                            }
                            match (refusal.fatal, refusal.unwanted) {
                                (true, _) => AFTER_FATAL,
                                (false, true) => backoff.unwanted(random()),
                                (false, false) => backoff.next(random()),
                            }
                        }
                    }
                }
            };
            self.note_time().await;
            if self.meanwhile(sleep(wait)).await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Does what needs no controller until something is done. None where the agent is to stop.
    async fn meanwhile<T>(
        &mut self,
        what: impl Future<Output = T>,
    ) -> Result<Option<T>, PlaneError> {
        let mut stop = self.stop.clone();
        let mut what = std::pin::pin!(what);
        let mut looks = Looks::every(rotate::LOOK);
        loop {
            tokio::select! {
                done = &mut what => return Ok(Some(done)),
                () = looks.next() => {
                    self.note_places();
                    self.tend_keys_alone().await?;
                }
                () = stopped(&mut stop) => return Ok(None),
            }
        }
    }

    /// Notes what went wrong. The log has it once, and again when it changes.
    fn failed(&self, problem: &str) {
        let now = self.clock.now();
        let news = self.status.borrow().last_error.as_deref() != Some(problem);
        if news {
            warn!("controller: {problem}; the view in force stays, trying again");
        } else {
            debug!("controller: {problem}");
        }
        self.status.send_modify(|status| {
            if status.connected.take().is_some() {
                status.since = now;
            }
            status.last_error = Some(problem.to_owned());
        });
    }

    /// Keeps what was refused for people to find. The log has it once.
    fn alarm(&self, what: &str) {
        let now = self.clock.now();
        self.status.send_modify(|status| {
            if alarm::raise(&mut status.alarms, what, now) {
                warn!("alarm: {what}");
            }
        });
    }

    fn connected(&mut self, address: SocketAddr, carrier: Carrier, approved: bool) {
        self.again.greeted(carrier);
        let now = self.clock.now();
        info!(
            "connected to the controller at {address} over {carrier}{}",
            if approved { "" } else { "; waiting for an operator's approval" }
        );
        self.status.send_modify(|status| {
            status.connected = Some(address);
            status.over_tcp = carrier == Carrier::Tcp;
            status.since = now;
            status.approved = Some(approved);
            status.last_error = None;
        });
    }

    fn reachable(&mut self) -> Reachable {
        let reach = self.reach.borrow_and_update().clone();
        Reachable {
            endpoints: reach.endpoints,
            keys: self.bindings.clone(),
            ports: reach.ports,
            quic: None,
        }
    }
}

fn random() -> u32 {
    // Without random bytes gateways come back in step, which is no reason not to come back.
    getrandom::u32().unwrap_or_default()
}

/// Returns once the agent is to stop, or whoever would say so is gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
