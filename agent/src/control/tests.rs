//! The client against a controller that the test plays, over real QUIC on loopback, with a data plane that
//! only notes what it is told.

use std::sync::Mutex;
use std::time::Duration;

use anteroom_agent_core::bypass::LoadedBypass;
use anteroom_agent_core::peer::{KeyUse, OwnKey};
use anteroom_agent_core::report::{
    EngineReport, EngineStatus, Explanation, FlowInfo, Learned, Question,
};
use anteroom_proto::id::{BootId, MemberId, SiteId};
use anteroom_proto::inventory::DeviceHints;
use anteroom_proto::key::{IdentityKey, TunnelSecret};
use anteroom_proto::mode::Mode;
use anteroom_proto::overlay::member_address;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::frame::MAX_TO_CONTROLLER;
use anteroom_proto::v1::telemetry::{Report, TunnelState};
use anteroom_proto::v1::{Hello, Refusal, RefusalCode, ToAgent, ToController, Welcome};
use anteroom_proto::view::{SignedView, View};
use anteroom_transport::endpoint::listen;
use anteroom_transport::link::Connection;
use anteroom_transport::message::{MessageReader, MessageWriter};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::bare::plane_status;
use crate::dataplane::Status;
use crate::state::tests::state;
use crate::state::{Held, StateDir};
use crate::testkit::{GATEWAY, ORGANISATION, Organisation, check_binding, intent};

mod attacks;
mod authority;
mod carriers;
mod keep;
mod keys;
mod passes;
mod persons;
mod places;
mod rekey;

const DEADLINE: Duration = Duration::from_secs(30);
const BOOT: BootId = BootId::from_bytes([8; 16]);

/// Notes what it is told.
#[derive(Clone, Default)]
struct FakePlane(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    views: Vec<Arc<View>>,
    times: Vec<(UnixMillis, bool)>,
    authorities: Vec<u64>,
    own_keys: Vec<Vec<OwnKey>>,
    identities: Vec<anteroom_proto::key::PublicKey>,
    key_use: Vec<KeyUse>,
    tunnels: Vec<TunnelState>,
    reports: u64,
    /// What the engine says of itself; nothing where the ports are closed.
    engine: Option<EngineStatus>,
    stopped: bool,
    /// What stands in the way of what is in force.
    hindrances: Vec<String>,
    /// What the sensor hasn't read yet, and what it has.
    unread: Vec<DeviceHints>,
    hints: Vec<DeviceHints>,
}

impl FakePlane {
    fn told<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn check(&self) -> Result<(), PlaneError> {
        if self.told(|told| told.stopped) {
            return Err(PlaneError::Stopped("it has stopped".into()));
        }
        Ok(())
    }
}

impl Plane for FakePlane {
    fn shortcomings(&self, view: &View) -> Vec<String> {
        let devices = view.intent.devices.iter();
        devices
            .filter(|device| device.port.as_str() == "port-9")
            .map(|_| "no port-9".into())
            .collect()
    }

    async fn apply(&self, view: Arc<View>) -> Result<Vec<String>, PlaneError> {
        self.check()?;
        self.told(|told| told.views.push(view));
        Ok(Vec::new())
    }

    async fn hindrances(&self) -> Vec<String> {
        self.told(|told| told.hindrances.clone())
    }

    async fn set_time(&self, wall: UnixMillis, confirmed: bool) -> Result<(), PlaneError> {
        self.told(|told| told.times.push((wall, confirmed)));
        Ok(())
    }

    async fn set_authority(&self, number: u64) -> Result<(), PlaneError> {
        self.told(|told| told.authorities.push(number));
        Ok(())
    }

    async fn set_own_keys(&self, keys: Vec<OwnKey>) -> Result<(), PlaneError> {
        self.told(|told| told.own_keys.push(keys));
        Ok(())
    }

    async fn set_identity(&self, identity: IdentityKey) -> Result<(), PlaneError> {
        self.told(|told| told.identities.push(identity.public()));
        Ok(())
    }

    async fn key_use(&self) -> Result<Vec<KeyUse>, PlaneError> {
        Ok(self.told(|told| told.key_use.clone()))
    }

    async fn set_bypasses(&self, _loaded: Vec<LoadedBypass>) -> Result<(), PlaneError> {
        Ok(())
    }

    async fn report(&self) -> Result<EngineReport, PlaneError> {
        self.check()?;
        let (overflow, tunnels) = self.told(|told| {
            told.reports += 1;
            (told.reports, told.tunnels.clone())
        });
        Ok(EngineReport { overflow, tunnels, ..EngineReport::default() })
    }

    fn hints(&self) -> (Vec<DeviceHints>, u64) {
        (self.told(|told| std::mem::take(&mut told.hints)), 0)
    }

    async fn settled(&self, _patience: Duration) {
        self.told(|told| told.hints.append(&mut told.unread));
    }

    async fn status(&self) -> Result<Status, PlaneError> {
        self.told(|told| told.engine.clone()).map(plane_status).ok_or(PlaneError::Closed)
    }

    async fn flows(&self, _limit: usize) -> Result<Vec<FlowInfo>, PlaneError> {
        Ok(Vec::new())
    }

    async fn explain(&self, _question: Question) -> Result<Explanation, PlaneError> {
        Err(PlaneError::Closed)
    }

    async fn learned(&self) -> Result<Learned, PlaneError> {
        Ok(Learned::default())
    }

    fn alive(&self) -> bool {
        true
    }
}

/// A controller's end of one connection.
struct Session {
    connection: Connection,
    reader: MessageReader<ToController>,
    writer: MessageWriter<ToAgent>,
    hello: Hello,
}

impl Session {
    async fn accept(endpoint: &quinn::Endpoint) -> Self {
        let accepting = async {
            // An agent may have given up on an earlier try.
            loop {
                let incoming = endpoint.accept().await.expect("the endpoint is open");
                let Ok(connection) = incoming.await else { continue };
                if let Some(session) = Self::hello(connection.into()).await {
                    return session;
                }
            }
        };
        timeout(DEADLINE, accepting).await.expect("an agent that says hello")
    }

    async fn hello(connection: Connection) -> Option<Self> {
        let (send, receive) = connection.accept_bi().await.ok()?;
        let mut reader = MessageReader::new(receive, MAX_TO_CONTROLLER);
        let Ok(Some(ToController::Hello(hello))) = reader.next().await else { return None };
        Some(Self { connection, reader, writer: MessageWriter::new(send), hello: *hello })
    }

    async fn send(&mut self, message: ToAgent) {
        self.writer.send(&message).await.unwrap();
    }

    async fn welcome(&mut self, report_every: u32, time: u64) {
        let welcome = Welcome {
            version: 1,
            approved: false,
            authority: None,
            observed: self.connection.remote_address(),
            time: UnixMillis(time),
            report_every,
        };
        self.send(ToAgent::Welcome(Box::new(welcome))).await;
    }

    async fn hear(&mut self) -> ToController {
        timeout(DEADLINE, self.reader.next())
            .await
            .expect("a message")
            .expect("a whole one")
            .expect("before the end")
    }

    async fn hear_applied(&mut self) -> Applied {
        loop {
            if let ToController::Applied(applied) = self.hear().await {
                return applied;
            }
        }
    }

    async fn hear_report(&mut self) -> Report {
        loop {
            if let ToController::Report(report) = self.hear().await {
                return *report;
            }
        }
    }
}

/// An enrolled agent that runs, and the controller that it looks for.
struct World {
    _parent: TempDir,
    state: Arc<StateDir>,
    plane: FakePlane,
    organisation: Organisation,
    endpoint: quinn::Endpoint,
    reach: watch::Sender<Reach>,
    stop: watch::Sender<bool>,
    status: watch::Receiver<ControlStatus>,
    /// What whoever connects to relays is told.
    relays: watch::Receiver<Known>,
    /// And by which document it has told the data plane, if it is there.
    heeded: watch::Sender<Option<u64>>,
    agent: JoinHandle<Result<(), PlaneError>>,
}

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

impl World {
    fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// A world in which `prepare` did something to the state before the agent began.
    fn with(prepare: impl FnOnce(&StateDir, &Organisation)) -> Self {
        Self::on(&key(11), |state| state, prepare)
    }

    /// A world in which whoever has `controller` answers where the controller is looked for, with another disk than
    /// the state directory's own.
    fn on(
        controller: &IdentityKey,
        disk: impl FnOnce(Arc<StateDir>) -> Arc<dyn Disk>,
        prepare: impl FnOnce(&StateDir, &Organisation),
    ) -> Self {
        let endpoint = listen("127.0.0.1:0".parse().unwrap(), controller).unwrap();
        let address = endpoint.local_addr().unwrap();
        Self::of(endpoint, address, disk, prepare)
    }

    /// A world in which the controller that has this endpoint is looked for at `address`.
    fn of(
        endpoint: quinn::Endpoint,
        address: SocketAddr,
        disk: impl FnOnce(Arc<StateDir>) -> Arc<dyn Disk>,
        prepare: impl FnOnce(&StateDir, &Organisation),
    ) -> Self {
        let (parent, state) = state();
        let organisation = Organisation::new(&[address]);
        state.identity_or_new().unwrap();
        state.write_enrolment(&organisation.enrolment()).unwrap();
        state.write_authority(&organisation.followed()).unwrap();
        prepare(&state, &organisation);
        let held = Held::load(&state).unwrap();
        let state = Arc::new(state);
        let plane = FakePlane::default();
        let (reach, reach_receiver) = watch::channel(Reach {
            endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
            ports: Vec::new(),
        });
        let (stop, stop_receiver) = watch::channel(false);
        let (known, relays) = watch::channel(Known::default());
        let (heeded, heeded_receiver) = watch::channel(None);
        let client = Client::new(
            disk(state.clone()),
            plane.clone(),
            held.enrolled.expect("enrolled"),
            BOOT,
            reach_receiver,
            stop_receiver,
        )
        .with_relays(known, watch::channel(Vec::new()).1)
        .heeding(heeded_receiver);
        let status = client.status();
        let agent = tokio::spawn(client.run());
        Self {
            _parent: parent,
            state,
            plane,
            organisation,
            endpoint,
            reach,
            stop,
            status,
            relays,
            heeded,
            agent,
        }
    }

    async fn session(&self) -> Session {
        Session::accept(&self.endpoint).await
    }

    async fn until(&self, what: &str, so: impl Fn(&ControlStatus) -> bool) {
        let mut status = self.status.clone();
        if timeout(DEADLINE, status.wait_for(|status| so(status))).await.is_err() {
            panic!("never {what}: {:?}", self.status.borrow());
        }
    }

    /// Waits for what nothing tells of, such as what is on the disk.
    async fn soon(&self, what: &str, mut so: impl FnMut() -> bool) {
        let wait = async {
            while !so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(DEADLINE, wait).await.is_err() {
            panic!("never {what}: {:?}", self.status.borrow());
        }
    }

    async fn finish(self) {
        self.stop.send_replace(true);
        let ended = timeout(DEADLINE, self.agent).await.expect("it stops").unwrap();
        assert_eq!(ended, Ok(()));
    }
}

fn view_message(view: SignedView) -> ToAgent {
    ToAgent::View(Box::new(view))
}

#[tokio::test]
async fn an_agent_says_who_it_is_and_takes_the_time() {
    let world = World::new();
    let mut session = world.session().await;
    let hello = session.hello.clone();
    let identity = world.state.identity().unwrap().unwrap().public();
    assert_eq!(session.connection.peer_key(), Some(identity));
    assert_eq!((hello.organisation, hello.gateway, hello.boot), (ORGANISATION, GATEWAY, BOOT));
    assert_eq!((hello.authority, &hello.applied), (1, &None));
    assert_eq!(hello.reachable.endpoints, ["192.0.2.1:51820".parse().unwrap()]);
    let tunnel = world.state.tunnel_keys().unwrap().remove(0);
    let binding = check_binding(&hello.reachable.keys[0], identity);
    assert_eq!((binding.gateway, binding.x25519), (GATEWAY, tunnel.secret.public()));

    session.welcome(50, 2_000_000).await;
    world.until("approval is awaited", |status| status.approved == Some(false)).await;
    let times = world.plane.told(|told| told.times.clone());
    assert_eq!(times.last(), Some(&(UnixMillis(2_000_000), true)));
    assert!(times[..times.len() - 1].iter().all(|(_, confirmed)| !confirmed), "{times:?}");
    // What is seen before approval is told too.
    assert_eq!(session.hear_report().await.sequence, 1);
    world.finish().await;
    let closed = timeout(DEADLINE, session.connection.closed()).await.unwrap();
    assert!(closed.to_string().contains("agent stops"), "{closed}");
}

#[tokio::test]
async fn a_view_is_on_disk_and_in_force_before_it_is_acknowledged() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let view = world.organisation.view(4, 7, Mode::Enforce);
    session.send(view_message(view.clone())).await;
    let applied = session.hear_applied().await;
    assert_eq!((applied.revision, applied.number.sequence), (4, 7));
    assert_eq!((applied.refused, applied.problems), (None, Vec::new()));
    assert_eq!(world.plane.told(|told| told.views.len()), 1);
    assert!(world.state.ever_enforced(), "the marker comes before the view");
    let held = Held::load(&world.state).unwrap();
    assert_eq!(held.enrolled.unwrap().view.unwrap().revision, 4);
    // A signed time above the clock's is taken as the time.
    let time = world.plane.told(|told| told.times.last().copied());
    assert_eq!(time, Some((UnixMillis(1_000_007), true)));
    world.until("in force", |status| status.applied.is_some()).await;
    assert_eq!(world.status.borrow().approved, Some(true));
    world.finish().await;
}

#[tokio::test]
async fn what_this_machine_cannot_do_is_told_with_the_view_and_after_each_start() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let mut intent = crate::testkit::intent(GATEWAY, Mode::Enforce);
    intent.devices[0].port = "port-9".parse().unwrap();
    let signed = world.organisation.view_of(&intent, 4, 7);
    session.send(view_message(signed.clone())).await;
    assert_eq!(session.hear_applied().await.problems, ["no port-9"]);
    let kept = world.organisation.verified(&signed);
    assert_eq!(applied_of(&kept, &world.plane).problems, ["no port-9"]);
    world.finish().await;
}

#[tokio::test]
async fn older_foreign_and_forged_views_are_refused_and_change_nothing() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    let organisation = &world.organisation;
    session.send(view_message(organisation.view(4, 7, Mode::Protect))).await;
    assert_eq!(session.hear_applied().await.refused, None);
    let mut forged = organisation.view(5, 9, Mode::Observe);
    let last = forged.intent.0.len() - 1;
    forged.intent.0[last] ^= 1;
    let other = anteroom_proto::id::GatewayId::from_bytes([9; 16]);
    for (view, problem) in [
        (organisation.view(4, 6, Mode::Observe), "older"),
        (organisation.view(3, 8, Mode::Observe), "older"),
        (organisation.view_for(other, 5, 9, Mode::Observe), "it is for gw-0909"),
        (forged, "isn't part of revision"),
    ] {
        session.send(view_message(view)).await;
        let applied = session.hear_applied().await;
        assert!(applied.refused.as_ref().unwrap().contains(problem), "{applied:?}");
        assert_eq!((applied.revision, applied.number.sequence), (4, 7), "still in force");
    }
    assert_eq!(world.plane.told(|told| told.views.len()), 1);
    // The connection is as good as before.
    session.send(view_message(organisation.view(5, 8, Mode::Observe))).await;
    assert_eq!(session.hear_applied().await.revision, 5);
    world.finish().await;
}

#[tokio::test]
async fn a_view_that_cant_be_written_is_in_force_all_the_same() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    // Root may write anywhere, but not into what isn't a directory any more.
    // What it writes down at its start may come in between.
    world.soon("without a state", || std::fs::remove_dir_all(world.state.path()).is_ok()).await;
    std::fs::write(world.state.path(), "").unwrap();
    session.send(view_message(world.organisation.view(4, 7, Mode::Observe))).await;
    let applied = session.hear_applied().await;
    assert_eq!((applied.revision, &applied.refused), (4, &None));
    assert!(applied.problems[0].contains("not kept over a restart"), "{applied:?}");
    assert_eq!(world.plane.told(|told| told.views.len()), 1);
    world.finish().await;
}

#[tokio::test]
async fn after_a_restart_the_hello_tells_what_is_in_force() {
    let world = World::with(|state, organisation| {
        state.write_view(&organisation.view(4, 7, Mode::Observe)).unwrap();
    });
    let mut session = world.session().await;
    let applied = session.hello.applied.clone().unwrap();
    assert_eq!((applied.revision, applied.number.sequence), (4, 7));
    session.welcome(60_000, 5).await;
    session.send(view_message(world.organisation.view(4, 6, Mode::Observe))).await;
    assert!(session.hear_applied().await.refused.is_some(), "below the view on disk");
    world.finish().await;
}

#[tokio::test]
async fn reports_are_sent_again_until_they_are_stored() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(50, 5).await;
    let mut first = Vec::new();
    while first.len() < 3 {
        first.push(session.hear_report().await);
    }
    assert_eq!(first.iter().map(|report| report.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    session.send(ToAgent::Reported { boot: BOOT, sequence: 2 }).await;
    let another = BootId::from_bytes([1; 16]);
    session.send(ToAgent::Reported { boot: another, sequence: 1000 }).await;
    world.until("two stored", |status| status.unstored_reports > 0).await;
    // The agent has heard of the two once a report comes with room made for it: wait for the full outbox.
    while session.hear_report().await.sequence < 10 {}
    session.connection.close(0u32.into(), b"gone");

    let mut session = world.session().await;
    session.welcome(50, 5).await;
    let again = session.hear_report().await;
    assert_eq!(again, first[2], "unchanged, and nothing that was stored");
    for sequence in 4..=10 {
        assert_eq!(session.hear_report().await.sequence, sequence);
    }
    assert_eq!(world.plane.told(|told| told.reports), 10, "a full outbox takes no more in");
    session.send(ToAgent::Reported { boot: BOOT, sequence: 10 }).await;
    assert_eq!(session.hear_report().await.sequence, 11);
    world.finish().await;
}

#[tokio::test]
async fn a_lost_controller_is_found_again_and_keeps_nothing_from_working() {
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    session.send(view_message(world.organisation.view(4, 7, Mode::Observe))).await;
    session.hear_applied().await;
    session.connection.close(0u32.into(), b"restarting");
    world.until("disconnected", |status| status.connected.is_none()).await;
    assert!(world.status.borrow().last_error.as_ref().unwrap().contains("restarting"));
    let mut session = world.session().await;
    assert_eq!(session.hello.applied.as_ref().unwrap().revision, 4);
    session.welcome(60_000, 5).await;
    world.until("connected", |status| status.connected.is_some()).await;
    assert_eq!(world.status.borrow().last_error, None);
    assert_eq!(world.plane.told(|told| told.views.len()), 1);
    world.finish().await;
}

#[tokio::test]
async fn a_refusal_is_told_and_tried_again() {
    let world = World::new();
    let refuse = |fatal| {
        ToAgent::Refused(Refusal {
            code: RefusalCode::Unknown,
            message: "this gateway\u{1b}[31m was revoked\n".into(),
            fatal,
        })
    };
    let mut session = world.session().await;
    session.send(refuse(false)).await;
    world.until("told", |status| status.last_error.is_some()).await;
    let told = world.status.borrow().last_error.clone().unwrap();
    assert_eq!(told, "refused (Unknown): this gateway[31m was revoked");
    // In the middle of a session too.
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    session.send(refuse(false)).await;
    let mut session = world.session().await;
    session.send(refuse(true)).await;
    timeout(DEADLINE, session.connection.closed()).await.unwrap();
    world.finish().await;
}

#[tokio::test]
async fn an_end_of_the_data_plane_ends_the_agent() {
    let world = World::new();
    let mut session = world.session().await;
    world.plane.told(|told| told.stopped = true);
    session.welcome(50, 5).await;
    let ended = timeout(DEADLINE, world.agent).await.expect("it ends").unwrap();
    assert!(matches!(ended, Err(PlaneError::Stopped(_))), "{ended:?}");
}

#[tokio::test]
async fn whatever_is_out_of_turn_ends_the_connection_and_nothing_else() {
    let world = World::new();
    let mut session = world.session().await;
    session.send(view_message(world.organisation.view(4, 7, Mode::Observe))).await;
    timeout(DEADLINE, session.connection.closed()).await.expect("a view before the welcome");
    let mut session = world.session().await;
    session.welcome(50, 5).await;
    session.welcome(50, 5).await;
    timeout(DEADLINE, session.connection.closed()).await.expect("a second welcome");
    let session = world.session().await;
    let Session { connection, writer, .. } = session;
    drop(writer);
    timeout(DEADLINE, connection.closed()).await.expect("no word at all");
    assert!(world.plane.told(|told| told.views.is_empty()));
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    world.until("connected again", |status| status.connected.is_some()).await;
    world.finish().await;
}
