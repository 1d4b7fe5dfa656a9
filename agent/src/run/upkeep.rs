//! What goes on beside traffic and control: watching what may change, saving what was learnt, the watchdog.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anteroom_agent_core::report::Learned;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::PortInfo;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{error, warn};

use super::gate::{Gate, Open};
use crate::control::Reach;
use crate::plane::Plane;
use crate::state::StateDir;

/// How often ports are looked at for carrier, and what was learnt is. Claims on addresses that changed are saved at once:
/// whoever holds a new one is cut off by a gateway that starts with the old one. Those change about once a second at
/// most.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two that save whatever else changed: a stranger with many addresses shall not keep the disk busy.
const LOOKS: u32 = 5;
/// How often a machine that isn't enrolled looks whether it is now.
const ENROLMENT: Duration = Duration::from_millis(500);

/// Waits for the next look. All looks come at the same moments, so that an idle machine wakes once for them.
async fn next_look() {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let began = *BEGAN.get_or_init(Instant::now);
    let looks = began.elapsed().as_secs() / LOOK.as_secs() + 1;
    sleep_until(began + LOOK * u32::try_from(looks).unwrap_or(u32::MAX)).await;
}

/// Where the gateway can be reached now.
pub(super) async fn reach(open: &Open) -> Reach {
    let status = open.handle.status().await.ok();
    let up = |name: &str| {
        status
            .iter()
            .flat_map(|status| &status.interfaces)
            .any(|interface| interface.name == name && interface.open)
    };
    let ports = open
        .ports
        .iter()
        .map(|port| PortInfo {
            name: port.name.clone(),
            mac: port.mac,
            up: up(port.name.as_str()),
            unlisted: port.unlisted,
        })
        .collect();
    Reach { endpoints: open.handle.endpoints().borrow().clone(), ports }
}

/// Keeps `into` up to date for as long as it is polled.
pub(super) async fn watch_reach(gate: Gate, into: watch::Sender<Reach>) {
    let mut opened = gate.opened();
    loop {
        let open = match opened.wait_for(Option::is_some).await {
            Ok(open) => open.clone(),
            Err(_) => return,
        };
        let Some(open) = open else { continue };
        let mut endpoints = open.handle.endpoints();
        while opened.borrow().is_some() {
            let found = reach(&open).await;
            into.send_if_modified(|reach| {
                let changed = *reach != found;
                *reach = found;
                changed
            });
            tokio::select! {
                () = next_look() => {}
                changed = endpoints.changed() => if changed.is_err() { break },
            }
        }
        // The data plane has ended; whoever waits for it ends this too.
        sleep(LOOK).await;
    }
}

/// Saves what the engine learns for as long as it is polled.
pub(super) async fn save_learned(gate: Gate, state: Arc<StateDir>, mut saved: Learned) {
    for look in (1..=LOOKS).cycle() {
        next_look().await;
        let Ok(learned) = gate.learned().await else { continue };
        let urgent = learned.claims != saved.claims;
        if urgent || (look == LOOKS && lasting(&learned) != lasting(&saved)) {
            write_learned(&state, learned.clone()).await;
            saved = learned;
        }
    }
}

/// Saves what the engine has learnt so far.
pub(super) async fn save_now(gate: &Gate, state: &Arc<StateDir>) {
    if let Ok(learned) = gate.learned().await {
        write_learned(state, learned).await;
    }
}

async fn write_learned(state: &Arc<StateDir>, learned: Learned) {
    let state = state.clone();
    match tokio::task::spawn_blocking(move || state.write_learned(&learned)).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => warn!("{problem}"),
        Err(problem) => warn!("what was learnt isn't saved: {problem}"),
    }
}

/// What is learnt but for the times, which change with every packet and aren't worth a disk's wear.
fn lasting(learned: &Learned) -> Learned {
    let mut learned = learned.clone();
    for sighting in &mut learned.sightings {
        sighting.last_seen = UnixMillis(0);
    }
    learned
}

/// Returns once the machine is enrolled.
pub(super) async fn wait_for_enrolment(state: Arc<StateDir>) {
    loop {
        sleep(ENROLMENT).await;
        // A damaged file was named at start, and is replaced by an enrolment.
        if matches!(state.enrolment(), Ok(Some(_))) && matches!(state.identity(), Ok(Some(_))) {
            return;
        }
    }
}

/// Tells the service manager that the agent lives, for as long as its data plane turns.
pub(super) async fn watchdog(gate: Gate) {
    let Some(every) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut ticks = interval((every / 3).max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if gate.alive() {
            notify(&[sd_notify::NotifyState::Watchdog]);
        } else {
            error!(
                "the data plane hangs, or nobody keeps the packet filter; the service manager will start the agent anew"
            );
        }
    }
}

/// Tells the service manager something, if there is one.
pub(super) fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("the service manager can't be told: {error}");
    }
}
