use std::net::SocketAddr;

use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::peer::{KeyUse, OwnKey};
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::report::{EngineReport, Explanation, FlowInfo, Learned, Question};
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_proto::authority::Operator;
use anteroom_proto::bypass::MAX_BYPASS;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::View;

use super::*;
use crate::bare::{bare_engine, plane_status};
use crate::dataplane::Status;
use crate::testkit::{GATEWAY, ORGANISATION, Organisation};

const HOUR: u64 = 3_600_000;
/// When the operator signs.
const SIGNED: UnixMillis = UnixMillis(1_795_305_600_000);

/// A data plane that is an engine and nothing else.
#[derive(Clone)]
struct BarePlane {
    engine: Arc<Mutex<Engine>>,
    now: Arc<Mutex<Instant>>,
    /// How often it still answers with its status.
    answers: Arc<Mutex<u32>>,
}

impl BarePlane {
    fn new(now: Instant) -> Self {
        Self {
            engine: Arc::new(Mutex::new(bare_engine(now))),
            now: Arc::new(Mutex::new(now)),
            answers: Arc::new(Mutex::new(u32::MAX)),
        }
    }

    fn engine<T>(&self, ask: impl FnOnce(&mut Engine, Instant) -> T) -> T {
        let now = *self.now.lock().unwrap();
        ask(&mut self.engine.lock().unwrap(), now)
    }

    /// Whether the gateway is bypassed after `passed`.
    fn bypassed(&self, passed: Duration) -> bool {
        let then = {
            let mut now = self.now.lock().unwrap();
            *now += passed;
            *now
        };
        let mut engine = self.engine.lock().unwrap();
        if engine.poll_timeout().is_some_and(|(at, _)| at <= then) {
            engine.handle_timeout(then, &mut Nowhere);
        }
        !engine.status(then).bypasses.is_empty()
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn frame(&mut self, _: PortId, _: VnetHeader, _: Option<VlanTag>, _: &[&[u8]]) {}

    fn datagram(&mut self, _: SocketAddr, _: u8, _: usize, _: impl FnOnce(&mut [u8]) -> usize) {}
}

impl Plane for BarePlane {
    fn shortcomings(&self, _: &View) -> Vec<String> {
        Vec::new()
    }

    async fn apply(&self, view: Arc<View>) -> Result<Vec<String>, PlaneError> {
        self.engine(|engine, now| engine.apply(view, now));
        Ok(Vec::new())
    }

    async fn hindrances(&self) -> Vec<String> {
        Vec::new()
    }

    async fn set_time(&self, wall: UnixMillis, confirmed: bool) -> Result<(), PlaneError> {
        self.engine(|engine, now| engine.set_time(wall, confirmed, now));
        Ok(())
    }

    async fn set_authority(&self, _: u64) -> Result<(), PlaneError> {
        Ok(())
    }

    async fn set_own_keys(&self, _: Vec<OwnKey>) -> Result<(), PlaneError> {
        Ok(())
    }

    async fn set_identity(&self, _: IdentityKey) -> Result<(), PlaneError> {
        Ok(())
    }

    async fn key_use(&self) -> Result<Vec<KeyUse>, PlaneError> {
        Ok(Vec::new())
    }

    async fn set_bypasses(&self, loaded: Vec<LoadedBypass>) -> Result<(), PlaneError> {
        // Others have their turn, as while a worker is asked.
        tokio::task::yield_now().await;
        self.engine(|engine, now| engine.set_bypasses(loaded, now));
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn report(&self) -> Result<EngineReport, PlaneError> {
        Ok(EngineReport::default())
    }

    async fn status(&self) -> Result<Status, PlaneError> {
        {
            let mut answers = self.answers.lock().unwrap();
            *answers = answers.checked_sub(1).ok_or(PlaneError::Closed)?;
        }
        Ok(plane_status(self.engine(|engine, now| engine.status(now))))
    }

    async fn flows(&self, _: usize) -> Result<Vec<FlowInfo>, PlaneError> {
        Ok(Vec::new())
    }

    async fn explain(&self, _: Question) -> Result<Explanation, PlaneError> {
        Err(PlaneError::Closed)
    }

    async fn learned(&self) -> Result<Learned, PlaneError> {
        Ok(Learned::default())
    }

    fn alive(&self) -> bool {
        true
    }
}

/// A gateway with its state on disk.
struct Appliance {
    organisation: Organisation,
    _directory: tempfile::TempDir,
    state: Arc<StateDir>,
    orders: Orders,
    plane: BarePlane,
    machine: Machine,
}

impl Appliance {
    fn new() -> Self {
        let organisation = Organisation::new(&["192.0.2.1:4433".parse().unwrap()]);
        let directory = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(&directory.path().join("state")).unwrap());
        state.write_authority(&organisation.followed()).unwrap();
        let now = Instant::now();
        let orders = Orders::load(&state, Some(organisation.enrolment()));
        let machine = Machine { boot: "first".into(), uptime: 5 * HOUR, now };
        let plane = BarePlane::new(now);
        Self { organisation, _directory: directory, state, orders, plane, machine }
    }

    async fn follow(&self, text: &str) -> Result<Followed, OrderError> {
        self.orders.follow(text, &self.plane, &self.machine).await
    }

    /// The agent is started anew, after `passed`; the machine as well where `boot` says so.
    async fn restart(&mut self, passed: Duration, boot: &str) {
        self.machine.now += passed;
        let millis = u64::try_from(passed.as_millis()).unwrap();
        let same = boot == self.machine.boot;
        self.machine.uptime = if same { self.machine.uptime + millis } else { 1_000 };
        boot.clone_into(&mut self.machine.boot);
        self.plane = BarePlane::new(self.machine.now);
        self.orders = Orders::load(&self.state, Some(self.organisation.enrolment()));
        self.plane.set_bypasses(self.orders.loaded(&self.machine)).await.unwrap();
    }
}

fn order(serial: u64, lasts: Option<u64>) -> BypassOrder {
    BypassOrder {
        organisation: ORGANISATION,
        authority: 1,
        gateway: GATEWAY,
        serial,
        not_after: lasts.map(|lasts| SIGNED.saturating_add(lasts)),
        signed_at: SIGNED,
        reason: "power supply burnt".into(),
    }
}

fn sign(order: &BypassOrder, key: &IdentityKey) -> String {
    BypassCode(Signed::sign(order, key)).to_string()
}

#[tokio::test]
async fn an_order_counts_from_its_loading_where_nobody_knows_the_time() {
    let appliance = Appliance::new();
    let text = sign(&order(1, Some(HOUR)), &appliance.organisation.operator);
    let followed = appliance.follow(&text).await.unwrap();
    assert!(followed.bypassed && followed.unkept.is_none(), "{followed:?}");
    assert_eq!(followed.lasts_ms, Some(HOUR));
    assert!(appliance.plane.bypassed(Duration::from_millis(HOUR - 1)));
    // The same once more is no harm, and prolongs nothing.
    assert!(appliance.follow(&text).await.is_ok());
    assert!(!appliance.plane.bypassed(Duration::from_millis(1)));
    assert!(matches!(appliance.follow(&text).await, Err(OrderError::Over)), "it has ended");
}

#[tokio::test]
async fn nobody_but_an_operator_of_this_organisation_is_followed() {
    let mut appliance = Appliance::new();
    let fired = IdentityKey::from_seed(&[77; 32]);
    appliance.organisation.extend(|next| {
        next.operators.push(Operator { name: "ben".parse().unwrap(), key: fired.public() });
    });
    appliance.organisation.extend(|next| next.operators.truncate(1));
    appliance.state.write_authority(&appliance.organisation.followed()).unwrap();
    let (ana, controller) =
        (appliance.organisation.operator.clone(), appliance.organisation.controller.clone());
    let open = order(1, Some(HOUR));
    let other = BypassOrder { organisation: OrganisationId::from_bytes([9; 16]), ..open.clone() };
    let stranger = BypassOrder { gateway: GatewayId::from_bytes([99; 16]), ..open.clone() };
    let long =
        BypassOrder { not_after: Some(SIGNED.saturating_add(MAX_BYPASS + 1)), ..open.clone() };
    let good = sign(&open, &ana);
    for (text, expected) in [
        (sign(&open, &fired), "who may not sign it"),
        (sign(&open, &controller), "who may not sign it"),
        (sign(&other, &ana), "another organisation"),
        (sign(&stranger, &ana), "with whose devices nothing here shares a rule"),
        (sign(&long, &ana), "lasts too long"),
        (good[..good.len() - 3].to_owned(), "not copied whole"),
        ("hello".to_owned(), "not a bypass order"),
        (String::new(), "not a bypass order"),
    ] {
        let error = appliance.follow(&text).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!appliance.plane.bypassed(Duration::ZERO), "{expected}");
    }
    assert!(appliance.follow(&good).await.unwrap().bypassed);
    let nobody = Orders::load(&appliance.state, None);
    let error = nobody.follow(&good, &appliance.plane, &appliance.machine).await.unwrap_err();
    assert!(matches!(error, OrderError::NotEnrolled), "{error}");
}

#[tokio::test]
async fn an_older_order_never_comes_back_after_a_newer_one() {
    let mut appliance = Appliance::new();
    let ana = appliance.organisation.operator.clone();
    let first = sign(&order(5, Some(HOUR)), &ana);
    appliance.follow(&first).await.unwrap();
    let ended = appliance.follow(&sign(&order(6, None), &ana)).await.unwrap();
    assert!(!ended.bypassed, "{ended:?}");
    for replayed in [first.clone(), sign(&order(6, Some(HOUR)), &ana)] {
        let error = appliance.follow(&replayed).await.unwrap_err();
        assert!(matches!(error, OrderError::Older { held: 6, .. }), "{error}");
    }
    appliance.restart(Duration::from_secs(1), "second").await;
    let error = appliance.follow(&first).await.unwrap_err();
    assert!(matches!(error, OrderError::Older { held: 6, .. }), "after a restart: {error}");
    assert!(!appliance.plane.bypassed(Duration::ZERO));
}

#[tokio::test]
async fn it_outlives_the_agent_and_not_a_boot_without_a_clock() {
    let mut appliance = Appliance::new();
    let ana = appliance.organisation.operator.clone();
    let text = sign(&order(1, Some(HOUR)), &ana);
    appliance.follow(&text).await.unwrap();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    appliance.restart(minutes(20), "first").await;
    assert!(appliance.plane.bypassed(Duration::ZERO), "an agent that was started anew goes on");
    assert!(appliance.plane.bypassed(minutes(39)));
    assert!(!appliance.plane.bypassed(minutes(1)), "counted from the loading, not from the start");
    appliance.restart(minutes(1), "second").await;
    assert!(!appliance.plane.bypassed(Duration::ZERO), "the power was off and on");
    let error = appliance.follow(&text).await.unwrap_err();
    assert!(matches!(error, OrderError::Over), "loading it again prolongs nothing: {error}");
    let soon = SIGNED.saturating_add(HOUR / 2);
    appliance.plane.set_time(soon, true).await.unwrap();
    assert!(appliance.plane.bypassed(Duration::ZERO), "somebody has confirmed the time");
    let late = SIGNED.saturating_add(HOUR);
    appliance.plane.set_time(late, true).await.unwrap();
    assert!(!appliance.plane.bypassed(Duration::ZERO));
}

#[tokio::test]
async fn an_order_whose_time_is_over_isnt_followed_and_leaves_nothing() {
    let appliance = Appliance::new();
    let ana = appliance.organisation.operator.clone();
    appliance.plane.set_time(SIGNED.saturating_add(2 * HOUR), true).await.unwrap();
    let error = appliance.follow(&sign(&order(9, Some(HOUR)), &ana)).await.unwrap_err();
    assert!(matches!(error, OrderError::Over), "{error}");
    assert!(appliance.state.bypasses().unwrap().is_empty());
    let longer = order(8, Some(3 * HOUR));
    assert!(appliance.follow(&sign(&longer, &ana)).await.unwrap().bypassed);
}

#[tokio::test]
async fn an_altered_file_on_disk_opens_nothing() {
    let mut appliance = Appliance::new();
    let stranger = IdentityKey::from_seed(&[99; 32]);
    let forged = Kept {
        order: Signed::sign(&order(1, Some(HOUR)), &stranger),
        boot: appliance.machine.boot.clone(),
        until_uptime: u64::MAX,
    };
    appliance.state.write_bypasses(&[forged]).unwrap();
    appliance.restart(Duration::ZERO, "first").await;
    assert!(!appliance.plane.bypassed(Duration::ZERO));
    std::fs::write(appliance.state.path().join("bypasses"), b"anteroom-agent bypasses 1 0\nx")
        .unwrap();
    appliance.restart(Duration::ZERO, "first").await;
    assert!(!appliance.plane.bypassed(Duration::ZERO));
    let ana = appliance.organisation.operator.clone();
    assert!(appliance.follow(&sign(&order(2, Some(HOUR)), &ana)).await.unwrap().bypassed);
}

#[tokio::test]
async fn a_full_disk_doesnt_stop_care() {
    let appliance = Appliance::new();
    let ana = appliance.organisation.operator.clone();
    // A directory in the draft's place can't be removed as a file: nothing can be written.
    std::fs::create_dir(appliance.state.path().join(".bypasses.new")).unwrap();
    let followed = appliance.follow(&sign(&order(1, Some(HOUR)), &ana)).await.unwrap();
    assert!(followed.bypassed && followed.unkept.is_some(), "{followed:?}");
}

#[tokio::test]
async fn orders_that_come_together_are_followed_one_after_another() {
    let appliance = Appliance::new();
    let ana = appliance.organisation.operator.clone();
    let texts: Vec<String> =
        (1..=8).map(|serial| sign(&order(serial, (serial < 8).then_some(HOUR)), &ana)).collect();
    let (first, rest) = texts.split_at(4);
    let follow = |text| appliance.follow(text);
    // In the order in which they are asked for: each is newer than the one before.
    let (a, b, c, d) =
        tokio::join!(follow(&first[0]), follow(&first[1]), follow(&first[2]), follow(&first[3]));
    let (e, f, g, h) =
        tokio::join!(follow(&rest[0]), follow(&rest[1]), follow(&rest[2]), follow(&rest[3]));
    for followed in [a, b, c, d, e, f, g] {
        assert!(followed.as_ref().is_ok_and(|followed| followed.bypassed), "{followed:?}");
    }
    assert!(h.as_ref().is_ok_and(|followed| !followed.bypassed), "{h:?}");
    assert!(!appliance.plane.bypassed(Duration::ZERO), "the last one ends it");
    let newest = appliance.follow(&texts[6]).await.unwrap_err();
    assert!(matches!(newest, OrderError::Older { held: 8, .. }), "{newest}");
    let on_disk = appliance.state.bypasses().unwrap();
    assert_eq!(on_disk.len(), 1);
    assert_eq!(BypassCode(on_disk[0].order.clone()).to_string(), texts[7], "the last one");
}

#[tokio::test]
async fn an_order_that_the_data_plane_doesnt_confirm_leaves_nothing() {
    let appliance = Appliance::new();
    let ana = appliance.organisation.operator.clone();
    let text = sign(&order(1, Some(HOUR)), &ana);
    *appliance.plane.answers.lock().unwrap() = 1;
    let error = appliance.follow(&text).await.unwrap_err();
    assert!(matches!(error, OrderError::Plane(PlaneError::Closed)), "{error}");
    assert!(appliance.orders.loaded(&appliance.machine).is_empty());
    assert!(!appliance.plane.bypassed(Duration::ZERO));
    assert!(appliance.state.bypasses().unwrap().is_empty());
    *appliance.plane.answers.lock().unwrap() = u32::MAX;
    assert!(appliance.follow(&text).await.unwrap().bypassed, "it can be tried again");
}

#[tokio::test]
async fn orders_outlive_a_chain_that_couldnt_be_read() {
    let mut appliance = Appliance::new();
    let ana = appliance.organisation.operator.clone();
    appliance.follow(&sign(&order(1, Some(HOUR)), &ana)).await.unwrap();
    appliance.follow(&sign(&order(2, None), &ana)).await.unwrap();
    let authority = appliance.state.path().join("authority");
    let whole = std::fs::read(&authority).unwrap();
    std::fs::write(&authority, b"damaged").unwrap();
    appliance.restart(Duration::ZERO, "first").await;
    let replayed = sign(&order(1, Some(HOUR)), &ana);
    assert!(appliance.follow(&replayed).await.is_err());
    std::fs::write(&authority, whole).unwrap();
    let error = appliance.follow(&replayed).await.unwrap_err();
    assert!(matches!(error, OrderError::Older { held: 2, .. }), "{error}");
    appliance.follow(&sign(&order(3, Some(HOUR)), &ana)).await.unwrap();
    assert_eq!(appliance.state.bypasses().unwrap().len(), 1);
}
