//! What is taken over, and a disk that is slow, full or read-only.

use std::sync::Condvar;

use anteroom_agent_core::report::DoubtedTime;
use anteroom_proto::approval::Demands;
use anteroom_proto::authority::{AuthorityChain, Operator};
use anteroom_proto::id::GatewayId;
use anteroom_proto::inventory::{DeviceHints, Hint, HintKind};
use anteroom_proto::key::PublicKey;
use anteroom_proto::view::{Floor, KnownKeys};

use super::*;
use crate::keys::Ring;
use crate::state::{Nexts, StateError};

/// A state directory on a disk that does as it is told.
pub(super) struct Disc {
    state: Arc<StateDir>,
    mood: Mutex<Mood>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    Stuck,
    Full,
    /// There is room for a view, and none for the longer chain.
    FullForChains,
}

impl Disc {
    fn new(state: Arc<StateDir>, mood: Mood) -> Arc<Self> {
        Arc::new(Self { state, mood: Mutex::new(mood), changed: Condvar::new() })
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
        self.changed.notify_all();
    }

    fn wait(&self) -> Result<(), StateError> {
        let mood = self.mood.lock().unwrap();
        let (mood, _) =
            self.changed.wait_timeout_while(mood, DEADLINE, |mood| *mood == Mood::Stuck).unwrap();
        match *mood {
            Mood::Full => Err(self.full("view")),
            _ => Ok(()),
        }
    }

    fn full(&self, file: &str) -> StateError {
        StateError::File {
            path: self.state.path().join(file),
            verb: "written",
            error: std::io::ErrorKind::StorageFull.into(),
        }
    }
}

impl Disk for Disc {
    fn keep_chain(&self, chain: &AuthorityChain) -> Result<(), StateError> {
        self.wait()?;
        if *self.mood.lock().unwrap() == Mood::FullForChains {
            return Err(self.full("authority"));
        }
        self.state.keep_chain(chain)
    }

    fn keep_demands(&self, demands: &Demands) -> Result<(), StateError> {
        self.state.keep_demands(demands)
    }

    fn keep_view(&self, view: &SignedView, marks: bool) -> Result<(), StateError> {
        self.wait()?;
        self.state.keep_view(view, marks)
    }

    // A floor is small: it may fit where a view doesn't.
    fn keep_floor(&self, floor: &Floor) -> Result<(), StateError> {
        self.state.keep_floor(floor)
    }

    fn keep_ring(&self, ring: &Ring) -> Result<(), StateError> {
        self.wait()?;
        self.state.keep_ring(ring)
    }

    fn keep_keys(&self, keys: &KnownKeys) -> Result<(), StateError> {
        self.state.keep_keys(keys)
    }

    fn keep_nexts(&self, nexts: &Nexts) -> Result<(), StateError> {
        self.wait()?;
        self.state.keep_nexts(nexts)
    }

    fn keep_identity(&self, identity: PublicKey) -> Result<(), StateError> {
        self.wait()?;
        self.state.keep_identity(identity)
    }

    fn keep_reports(&self, gateway: GatewayId, reports: &[Report]) -> Result<(), StateError> {
        self.wait()?;
        self.state.keep_reports(gateway, reports)
    }

    fn left_reports(&self, gateway: GatewayId) -> Result<Vec<Report>, StateError> {
        self.state.left_reports(gateway)
    }

    fn keep_place(&self, place: SocketAddr) -> Result<(), StateError> {
        self.state.keep_place(place)
    }

    fn left_place(&self) -> Result<Option<SocketAddr>, StateError> {
        self.state.left_place()
    }
}

pub(super) fn world(mood: Mood) -> (World, Arc<Disc>) {
    let mut disc = None;
    let world = World::on(&key(11), |state| disc.insert(Disc::new(state, mood)).clone(), |_, _| {});
    (world, disc.unwrap())
}

async fn in_force(world: &World, count: usize) {
    let in_force = || world.plane.told(|told| told.views.len()) >= count;
    world.soon("the views in force", in_force).await;
}

#[tokio::test]
async fn what_closes_waits_for_no_disk_and_is_acknowledged_once_it_is_kept() {
    let (world, disc) = world(Mood::Stuck);
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    for (revision, sequence) in [(4, 7), (5, 8), (6, 9)] {
        session
            .send(view_message(world.organisation.view(revision, sequence, Mode::Enforce)))
            .await;
    }
    in_force(&world, 3).await;
    let held = Held::load(&world.state).unwrap().enrolled.unwrap();
    assert_eq!(held.view, None, "the disk is stuck");
    disc.set(Mood::Well);
    let mut newest = 0;
    while newest < 9 {
        newest = session.hear_applied().await.number.sequence;
        let kept = Held::load(&world.state).unwrap().enrolled.unwrap().view.unwrap();
        assert!(kept.operation.number.sequence >= newest, "acknowledged before it was kept");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_is_on_it_stays_good_until_it_has_room() {
    let (world, disc) = world(Mood::Well);
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    session.send(view_message(world.organisation.view(4, 7, Mode::Observe))).await;
    assert_eq!(session.hear_applied().await.problems, [""; 0]);
    disc.set(Mood::Full);
    session.send(view_message(world.organisation.view(5, 8, Mode::Enforce))).await;
    let applied = session.hear_applied().await;
    assert_eq!(applied.revision, 5);
    assert!(applied.problems[0].contains("not kept over a restart"), "{applied:?}");
    in_force(&world, 2).await;
    // What a restart would find now: the view before, not a floor that shuts it out.
    let held = Held::load(&world.state).unwrap().enrolled.unwrap();
    assert_eq!(held.view.unwrap().revision, 4);
    disc.set(Mood::Well);
    let applied = session.hear_applied().await;
    assert_eq!((applied.revision, applied.problems), (5, Vec::new()), "it was tried again");
    let held = Held::load(&world.state).unwrap().enrolled.unwrap();
    assert_eq!(held.view.unwrap().revision, 5);
    world.finish().await;
}

#[tokio::test]
async fn no_view_is_written_before_the_chain_that_names_its_signers() {
    let (mut world, disc) = world(Mood::Well);
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    session.send(view_message(world.organisation.view(4, 7, Mode::Enforce))).await;
    assert_eq!(session.hear_applied().await.problems, [""; 0]);
    disc.set(Mood::FullForChains);
    // Another operator joins, who signs the next view.
    let other = key(33);
    world.organisation.extend(|next| {
        next.operators.push(Operator { name: "ben".parse().unwrap(), key: other.public() });
    });
    session.send(ToAgent::Authority(world.organisation.chain.clone())).await;
    world.organisation.operator = other;
    session.send(view_message(world.organisation.view(5, 8, Mode::Enforce))).await;
    let applied = session.hear_applied().await;
    assert_eq!((applied.revision, &applied.refused), (5, &None));
    assert!(applied.problems[0].contains("not kept over a restart"), "{applied:?}");
    let held = Held::load(&world.state).unwrap();
    assert!(held.problems.is_empty(), "{:?}", held.problems);
    assert_eq!(held.enrolled.unwrap().view.unwrap().revision, 4, "the one whose signer is known");
    disc.set(Mood::Well);
    let applied = session.hear_applied().await;
    assert_eq!((applied.revision, applied.problems), (5, Vec::new()), "it was tried again");
    assert_eq!(Held::load(&world.state).unwrap().enrolled.unwrap().view.unwrap().revision, 5);
    world.finish().await;
}

#[tokio::test]
async fn the_highest_confirmed_time_outlives_a_restart() {
    let noon = UnixMillis(system_time().0 + 1_000_000_000);
    let world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, noon.0).await;
    world.until("connected", |status| status.connected.is_some()).await;
    let state = world.state.clone();
    let World { agent, stop, _parent: parent, .. } = world;
    stop.send_replace(true);
    timeout(DEADLINE, agent).await.expect("it stops").unwrap().unwrap();
    let floor = Held::load(&state).unwrap().enrolled.unwrap().floor;
    assert!(floor.time >= noon, "{floor:?}, not {noon:?}");
    drop(parent);

    // The next start, and a controller in the wrong hands.
    let world = World::with(|state, _| state.write_floor(&floor).unwrap());
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    world.until("connected", |status| status.connected.is_some()).await;
    let times = world.plane.told(|told| told.times.clone());
    assert!(times.iter().all(|(time, _)| *time >= noon), "{times:?}, not {noon:?}");
    world.finish().await;
}

/// A peer in the wrong hands told the time before any controller did.
#[tokio::test]
async fn a_peers_word_of_the_time_is_never_written_down_and_what_passes_is() {
    let thief = GatewayId::from_bytes([0x77; 16]);
    let (noon, day) = (UnixMillis(system_time().0), 86_400_000);
    let years = noon.saturating_add(4000 * day);
    let floor = Floor { time: noon, ..Floor::default() };
    let engine = |overruled| {
        let said = DoubtedTime { gateway: thief, said: years, held: noon, overruled };
        let now = Instant::now();
        let mut engine = crate::bare::bare_engine(now).status(now);
        (engine.time_confirmed, engine.time, engine.doubted) = (true, years, vec![said]);
        engine
    };
    let end = async |world: World| {
        let World { agent, stop, state, _parent: parent, .. } = world;
        stop.send_replace(true);
        timeout(DEADLINE, agent).await.expect("it stops").unwrap().unwrap();
        let floor = Held::load(&state).unwrap().enrolled.unwrap().floor;
        drop(parent);
        floor.time
    };

    // No controller is in sight: whatever answers there knows no language.
    let world = World::with(|state, _| state.write_floor(&floor).unwrap());
    world.plane.told(|told| told.engine = Some(engine(false)));
    let refusing = Session::accept(&world.endpoint).await;
    refusing.connection.close(0u32.into(), b"not now");
    world
        .until("an alarm that names it", |status| {
            let named =
                |what: &str| what.contains(&thief.to_string()) && what.contains("4000 days");
            status.alarms.iter().any(|alarm| named(&alarm.what))
        })
        .await;
    let kept = end(world).await;
    assert!(noon <= kept && kept < noon.saturating_add(day), "{kept:?}, not {noon:?} and a little");
    assert!(kept > noon, "what has passed since the start counts");

    // A controller overrules it, for the data plane and for the disk.
    let world = World::with(|state, _| state.write_floor(&floor).unwrap());
    world.plane.told(|told| told.engine = Some(engine(true)));
    let mut session = world.session().await;
    let right = noon.saturating_add(day / 2);
    session.welcome(60_000, right.0).await;
    world
        .until("an alarm that says so", |status| {
            status.alarms.iter().any(|alarm| alarm.what.contains("until a controller was in sight"))
        })
        .await;
    assert_eq!(world.plane.told(|told| told.times.last().copied()), Some((right, true)));
    let alarms = world.status.borrow().alarms.clone();
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    let kept = end(world).await;
    assert!(right <= kept && kept < right.saturating_add(day), "{kept:?}, not {right:?}");
}

/// What a run leaves on disk.
fn reports_left(world: &World) -> Vec<Report> {
    world.state.left_reports(world.organisation.enrolment().gateway).unwrap()
}

fn left(world: &World) -> Vec<(BootId, u64)> {
    let left = reports_left(world);
    left.iter().map(|report| (report.boot, report.sequence)).collect()
}

#[tokio::test]
async fn what_is_told_at_the_end_is_stored_or_on_disk_for_the_next_run() {
    // The controller stores the last report: there is nothing left.
    let mut world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    assert_eq!(session.hear_report().await.sequence, 1);
    session.send(ToAgent::Reported { boot: BOOT, sequence: 1 }).await;
    world.until("stored", |status| status.unstored_reports == 0).await;
    world.stop.send_replace(true);
    let last = session.hear_report().await;
    assert_eq!((last.sequence, last.overflow), (2, 2), "what came in between");
    session.send(ToAgent::Reported { boot: BOOT, sequence: 2 }).await;
    (&mut world.agent).await.unwrap().unwrap();
    // A machine that is too slow for that has it on disk.
    let left_over = left(&world);
    assert!(left_over.is_empty() || left_over == [(BOOT, 2)], "{left_over:?}");

    // It says nothing any more: all that isn't stored is on disk.
    let mut world = World::new();
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    session.hear_report().await;
    world.stop.send_replace(true);
    (&mut world.agent).await.unwrap().unwrap();
    assert_eq!(left(&world), [(BOOT, 1), (BOOT, 2)]);
    let kept = world.state.left_reports(world.organisation.enrolment().gateway).unwrap();

    // The next run sends it first, as it was, and takes it off the disk once it is stored.
    let before = BootId::from_bytes([9; 16]);
    let other: Vec<Report> =
        kept.iter().map(|report| Report { boot: before, ..report.clone() }).collect();
    let world = World::with(|state, organisation| {
        state.write_reports(organisation.enrolment().gateway, &other).unwrap();
    });
    let mut session = world.session().await;
    session.welcome(60_000, 5).await;
    assert_eq!([session.hear_report().await, session.hear_report().await], other[..]);
    assert_eq!(session.hear_report().await.boot, BOOT);
    session.send(ToAgent::Reported { boot: before, sequence: 2 }).await;
    let gone = async {
        while !left(&world).is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, gone).await.expect("what is stored goes from the disk");
    world.finish().await;
}

#[tokio::test]
async fn without_a_controller_the_last_report_waits_on_disk_and_another_gateways_isnt_sent() {
    let stranger = GatewayId::from_bytes([0x77; 16]);
    let mut world = World::with(|state, _| {
        let report =
            Report { boot: BootId::from_bytes([9; 16]), ..crate::control::outbox::tests::report() };
        state.write_reports(stranger, &[report]).unwrap();
    });
    // Seen a moment ago, and not read yet.
    let hint = Hint {
        kind: HintKind::DnsQuery,
        value: "ntp.ward".to_owned(),
        first: UnixMillis(1),
        last: UnixMillis(1),
    };
    let device = DeviceHints {
        port: "port1".parse().unwrap(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        vlan: None,
        member: None,
        hints: vec![hint],
    };
    world.plane.told(|told| told.unread.push(device.clone()));
    world.stop.send_replace(true);
    (&mut world.agent).await.unwrap().unwrap();
    assert_eq!(left(&world), [(BOOT, 1)]);
    let reports = reports_left(&world);
    assert_eq!(reports[0].hints, [device], "{reports:?}");
}
