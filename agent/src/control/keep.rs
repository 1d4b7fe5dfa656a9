//! What was taken over, on its way to the disk.
//!
//! A view comes into force first, is written down next and acknowledged last. What closes mustn't wait for a disk,
//! which may take seconds; and what is acknowledged is kept over a restart. A power cut between the two leaves the
//! view before it on disk: the gateway is then as one that was switched off during the change, refuses nothing less
//! than it would have, and hears of the newest view as soon as a controller is in sight. Nobody was told otherwise.
//!
//! An authority chain is written before the view that came after it, and while it can't be, no view is: what is on
//! disk always has its signers there too.
//!
//! Only the newest is written: a view that is outdated before the disk has taken it is never acknowledged. What can't
//! be written is in force all the same, is told, and is tried again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::approval::Demands;
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::Applied;
use anteroom_proto::v1::telemetry::Report;
use anteroom_proto::view::{Floor, KnownKeys, SignedView};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, info};

use super::clock::Clock;
use crate::keys::Ring;
use crate::state::{Nexts, StateDir, StateError};

/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// How often the confirmed time is written down. Power off and on turns it back by no more.
const TIME: Duration = Duration::from_secs(60);

/// How long an end waits for the disk.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where it is kept.
pub(crate) trait Disk: Send + Sync + 'static {
    /// Writes an authority chain down.
    fn keep_chain(&self, chain: &AuthorityChain) -> Result<(), StateError>;
    /// Writes down on which devices two operators decide, as it is with the view that is written next.
    fn keep_demands(&self, demands: &Demands) -> Result<(), StateError>;
    /// Writes a view down, and before it the marker if it is one that leaves it.
    fn keep_view(&self, view: &SignedView, marks: bool) -> Result<(), StateError>;
    /// Writes down what no view may be below.
    fn keep_floor(&self, floor: &Floor) -> Result<(), StateError>;
    /// Writes this gateway's tunnel keys down.
    fn keep_ring(&self, ring: &Ring) -> Result<(), StateError>;
    /// Writes down the tunnel keys that were seen of peers.
    fn keep_keys(&self, keys: &KnownKeys) -> Result<(), StateError>;
    /// Writes down the identity keys that are offered.
    fn keep_nexts(&self, nexts: &Nexts) -> Result<(), StateError>;
    /// Puts the offered identity key with this public half in the place of the one before, which goes.
    fn keep_identity(&self, identity: PublicKey) -> Result<(), StateError>;
    /// Writes down reports that no controller has stored, in place of those before.
    fn keep_reports(&self, gateway: GatewayId, reports: &[Report]) -> Result<(), StateError>;
    /// Those that were written down.
    fn left_reports(&self, gateway: GatewayId) -> Result<Vec<Report>, StateError>;
    /// Writes down where clients' configurations name this gateway.
    fn keep_place(&self, place: SocketAddr) -> Result<(), StateError>;
    /// Where that was.
    fn left_place(&self) -> Result<Option<SocketAddr>, StateError>;
}

impl Disk for StateDir {
    fn keep_chain(&self, chain: &AuthorityChain) -> Result<(), StateError> {
        self.write_authority(chain)
    }

    fn keep_demands(&self, demands: &Demands) -> Result<(), StateError> {
        self.write_demands(demands)
    }

    fn keep_view(&self, view: &SignedView, marks: bool) -> Result<(), StateError> {
        if marks {
            self.mark_enforced()?;
        }
        self.write_view(view)
    }

    fn keep_floor(&self, floor: &Floor) -> Result<(), StateError> {
        self.write_floor(floor)
    }

    fn keep_ring(&self, ring: &Ring) -> Result<(), StateError> {
        self.write_tunnel_keys(ring)
    }

    fn keep_keys(&self, keys: &KnownKeys) -> Result<(), StateError> {
        self.write_known_keys(keys)
    }

    fn keep_nexts(&self, nexts: &Nexts) -> Result<(), StateError> {
        self.write_next_identities(nexts)
    }

    fn keep_identity(&self, identity: PublicKey) -> Result<(), StateError> {
        self.adopt_identity(identity)
    }

    fn keep_reports(&self, gateway: GatewayId, reports: &[Report]) -> Result<(), StateError> {
        self.write_reports(gateway, reports)
    }

    fn left_reports(&self, gateway: GatewayId) -> Result<Vec<Report>, StateError> {
        self.reports(gateway)
    }

    fn keep_place(&self, place: SocketAddr) -> Result<(), StateError> {
        self.write_client_place(place)
    }

    fn left_place(&self) -> Result<Option<SocketAddr>, StateError> {
        self.client_place()
    }
}

/// A view in force.
pub(super) struct Taken {
    pub(super) signed: SignedView,
    /// On which devices two operators decide, with it.
    pub(super) demands: Demands,
    /// Whether it leaves the marker.
    pub(super) marks: bool,
    /// The floor once it is held.
    pub(super) floor: Floor,
    /// The tunnel keys that were seen of peers by then.
    pub(super) keys: KnownKeys,
    /// This gateway's identity key, where the view names it: the one before goes once the view is written.
    pub(super) identity: Option<PublicKey>,
    /// What the controller is told once it is written.
    pub(super) applied: Applied,
}

/// What is to be on disk. The numbers tell one from the next.
#[derive(Clone, Default)]
struct Wanted {
    chain: (u64, Option<Arc<AuthorityChain>>),
    view: (u64, Option<Arc<Taken>>),
    clock: Option<Clock>,
    place: Option<SocketAddr>,
    end: bool,
}

/// Writes down what is taken over, in the background.
pub(super) struct Keeping {
    wanted: watch::Sender<Wanted>,
    /// What is acknowledged: the newest view that was written, or couldn't be.
    pub(super) kept: watch::Receiver<Option<Applied>>,
    task: JoinHandle<()>,
}

impl Keeping {
    /// Begins, with the floor that is on disk. Runs inside a tokio runtime.
    pub(super) fn new(disk: Arc<dyn Disk>, floor: Floor) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let (kept, kept_receiver) = watch::channel(None);
        let task = Task {
            disk,
            wanted: receiver,
            kept,
            floor,
            demands: None,
            keys: None,
            identity: None,
            place: None,
            done: (0, 0),
            told: 0,
            failing: false,
            next_time: Instant::now(),
        };
        Self { wanted, kept: kept_receiver, task: tokio::spawn(task.run()) }
    }

    pub(super) fn chain(&self, chain: AuthorityChain) {
        self.wanted.send_modify(|wanted| {
            wanted.chain = (wanted.chain.0 + 1, Some(Arc::new(chain)));
        });
    }

    pub(super) fn view(&self, taken: Taken) {
        self.wanted.send_modify(|wanted| {
            wanted.view = (wanted.view.0 + 1, Some(Arc::new(taken)));
        });
    }

    /// Notes a clock that a controller or a signature has confirmed.
    pub(super) fn time(&self, clock: Clock) {
        self.wanted.send_modify(|wanted| wanted.clock = Some(clock));
    }

    /// Notes where clients' configurations name this gateway from now on.
    pub(super) fn place(&self, place: SocketAddr) {
        self.wanted.send_modify(|wanted| wanted.place = Some(place));
    }

    /// Writes down what is left.
    pub(super) async fn end(self) {
        self.wanted.send_modify(|wanted| wanted.end = true);
        if timeout(LAST_WORDS, self.task).await.is_err() {
            error!(
                "the disk is too slow for what was taken over last; a controller will send it again"
            );
        }
    }
}

struct Task {
    disk: Arc<dyn Disk>,
    wanted: watch::Receiver<Wanted>,
    kept: watch::Sender<Option<Applied>>,
    /// The floor on disk.
    floor: Floor,
    /// The demands on disk, once they were written.
    demands: Option<Demands>,
    /// The peers' tunnel keys on disk, once they were written.
    keys: Option<KnownKeys>,
    /// The identity key on disk, once a view named it.
    identity: Option<PublicKey>,
    /// Where clients' configurations name this gateway, once that was written.
    place: Option<SocketAddr>,
    /// Numbers of the chain and the view on disk.
    done: (u64, u64),
    /// Number of the newest view that the controller is told of.
    told: u64,
    failing: bool,
    next_time: Instant,
}

impl Task {
    async fn run(mut self) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            // The chain first: a start finds no signer for a view whose authority document isn't on disk.
            let whole = match self.chain(&wanted).await {
                Ok(()) => self.view(&wanted).await,
                Err(problem) => {
                    self.unkept(&wanted, &problem);
                    false
                }
            };
            let whole = self.place(wanted.place).await && whole;
            if whole && self.failing {
                info!("the state on disk is up to date again");
            }
            self.failing = !whole;
            self.time(&wanted).await;
            if wanted.end {
                return;
            }
            let wake = if whole { self.next_time } else { Instant::now() + AGAIN };
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep_until(wake), if !whole || wanted.clock.is_some() => {}
            }
        }
    }

    async fn chain(&mut self, wanted: &Wanted) -> Result<(), String> {
        let (number, Some(chain)) = wanted.chain.clone() else { return Ok(()) };
        if number == self.done.0 {
            return Ok(());
        }
        let written = self.on_disk(move |disk| disk.keep_chain(&chain)).await;
        match &written {
            Ok(()) => self.done.0 = number,
            Err(problem) if !self.failing => {
                error!("{problem}. The authority is followed until the next start all the same");
            }
            Err(_) => {}
        }
        written
    }

    async fn view(&mut self, wanted: &Wanted) -> bool {
        let (number, Some(taken)) = wanted.view.clone() else { return true };
        if number == self.done.1 {
            return self.identity(taken.identity).await;
        }
        let view = taken.clone();
        let written = match self.demands(&taken.demands).await {
            Ok(()) => self.on_disk(move |disk| disk.keep_view(&view.signed, view.marks)).await,
            Err(problem) => Err(problem),
        };
        match written {
            Ok(()) => {
                self.done.1 = number;
                self.tell(number, taken.applied.clone());
                // After the view: a floor above the view on disk would shut that out at the next start.
                let anew = taken.floor.revision.0 > self.floor.revision.0;
                let least = if anew { UnixMillis(0) } else { self.floor.time };
                self.floor(Floor { time: taken.floor.time.max(least), ..taken.floor }).await;
                self.keys(&taken.keys).await;
                self.identity(taken.identity).await
            }
            Err(problem) => {
                self.unkept(wanted, &problem);
                false
            }
        }
    }

    /// Tells, once for each view, that it is in force but not on disk.
    fn unkept(&mut self, wanted: &Wanted, problem: &str) {
        let (number, Some(taken)) = &wanted.view else { return };
        if self.told < *number {
            error!("{problem}. The view is in force until the next start all the same");
            let mut applied = taken.applied.clone();
            applied.problems.push(format!("not kept over a restart: {problem}"));
            self.tell(*number, applied);
        }
    }

    fn tell(&mut self, number: u64, applied: Applied) {
        self.told = number;
        self.kept.send_replace(Some(applied));
    }

    async fn time(&mut self, wanted: &Wanted) {
        let Some(clock) = wanted.clock else { return };
        if wanted.end || self.next_time <= Instant::now() {
            self.next_time = Instant::now() + TIME;
            let floor = Floor { time: clock.now().max(self.floor.time), ..self.floor };
            self.floor(floor).await;
        }
    }

    async fn floor(&mut self, floor: Floor) {
        // Even where it can't be written: what is tried next isn't below it.
        self.floor = floor;
        if let Err(problem) = self.on_disk(move |disk| disk.keep_floor(&floor)).await
            && !self.failing
        {
            error!("{problem}");
        }
    }

    async fn demands(&mut self, demands: &Demands) -> Result<(), String> {
        if self.demands.as_ref() == Some(demands) {
            return Ok(());
        }
        let written = demands.clone();
        self.on_disk(move |disk| disk.keep_demands(&written)).await?;
        self.demands = Some(demands.clone());
        Ok(())
    }

    async fn keys(&mut self, keys: &KnownKeys) {
        if self.keys.as_ref() == Some(keys) {
            return;
        }
        let written = keys.clone();
        match self.on_disk(move |disk| disk.keep_keys(&written)).await {
            Ok(()) => self.keys = Some(keys.clone()),
            Err(problem) if !self.failing => error!("{problem}"),
            Err(_) => {}
        }
    }

    /// Puts the identity key that the view on disk names in its place there.
    async fn identity(&mut self, identity: Option<PublicKey>) -> bool {
        let Some(wanted) = identity.filter(|_| identity != self.identity) else { return true };
        match self.on_disk(move |disk| disk.keep_identity(wanted)).await {
            Ok(()) => {
                self.identity = identity;
                true
            }
            Err(problem) => {
                if !self.failing {
                    error!(
                        "the identity key that operators have approved isn't in its place yet: {problem}"
                    );
                }
                false
            }
        }
    }

    async fn place(&mut self, place: Option<SocketAddr>) -> bool {
        let Some(wanted) = place.filter(|_| place != self.place) else { return true };
        let written = self.on_disk(move |disk| disk.keep_place(wanted)).await;
        match &written {
            Ok(()) => self.place = place,
            Err(problem) if !self.failing => error!("{problem}"),
            Err(_) => {}
        }
        written.is_ok()
    }

    async fn on_disk(
        &self,
        work: impl FnOnce(&dyn Disk) -> Result<(), StateError> + Send + 'static,
    ) -> Result<(), String> {
        let disk = self.disk.clone();
        match tokio::task::spawn_blocking(move || work(&*disk)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(error) => Err(format!("the state can't be written: {error}")),
        }
    }
}
