//! What goes on beside traffic and control: watching what may change, saving what was learnt, the watchdog.

use std::sync::Arc;
use std::time::Duration;

use anteroom_agent_core::report::Learned;
use anteroom_proto::cose::Signed;
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::PortInfo;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{error, warn};

use super::gate::{Gate, Open};
use crate::control::Reach;
use crate::looks;
use crate::plane::Plane;
use crate::relay::Known;
use crate::state::StateDir;

/// How often what was learnt is looked at. Claims on addresses that changed are saved at once:
/// whoever holds a new one is cut off by a gateway that starts with the old one. Those change about once a second at
/// most. So are peers with which there is a pre-shared key for the first time, which is seldom.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two that save whatever else changed: a stranger with many addresses shall not keep the disk busy.
const LOOKS: u32 = 5;
/// How often a machine that isn't enrolled looks whether it is now.
const ENROLMENT: Duration = Duration::from_millis(500);

/// Where the gateway can be reached now.
pub(super) fn reach(open: &Open) -> Reach {
    let live = open.handle.open();
    let live = live.borrow();
    // Behind the uplink.
    let live = live.iter().skip(1).copied().chain(std::iter::repeat(false));
    let ports = open
        .ports
        .iter()
        .zip(live)
        .map(|(port, up)| PortInfo {
            name: port.name.clone(),
            mac: port.mac,
            up,
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
        let (mut endpoints, mut live) = (open.handle.endpoints(), open.handle.open());
        while opened.borrow_and_update().is_some() {
            live.mark_unchanged();
            endpoints.mark_unchanged();
            let found = reach(&open);
            into.send_if_modified(|reach| {
                let changed = *reach != found;
                *reach = found;
                changed
            });
            tokio::select! {
                changed = opened.changed() => if changed.is_err() { return },
                changed = live.changed() => if changed.is_err() { break },
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
        looks::pause(LOOK).await;
        let Ok(learned) = gate.learned().await else { continue };
        let urgent = learned.claims != saved.claims || learned.agreed != saved.agreed;
        if urgent || (look == LOOKS && lasting(&learned) != lasting(&saved)) {
            write_learned(&state, learned.clone()).await;
            saved = learned;
        }
    }
}

/// The pass for relays that is on disk.
pub(super) fn held_pass(state: &StateDir) -> Option<Signed<RelayPass>> {
    state.relay_pass().unwrap_or_else(|error| {
        warn!("{error}");
        None
    })
}

/// Writes each newer pass for relays down for as long as it is polled: a start without a controller needs it.
pub(super) async fn keep_pass(mut known: watch::Receiver<Known>, state: Arc<StateDir>) {
    let mut kept = known.borrow_and_update().pass.clone();
    while known.changed().await.is_ok() {
        let pass = known.borrow_and_update().pass.clone();
        let Some(pass) = pass.filter(|pass| kept.as_ref() != Some(pass)) else { continue };
        kept = Some(pass.clone());
        let state = state.clone();
        // What a full disk refuses the next pass may find room for.
        match tokio::task::spawn_blocking(move || state.write_relay_pass(&pass)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!("the pass for relays isn't kept over a restart: {error}"),
            Err(error) => error!("the pass for relays isn't kept over a restart: {error}"),
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

/// Returns once the machine is enrolled, or its keys can be opened again.
pub(super) async fn wait_for_enrolment(state: Arc<StateDir>) {
    loop {
        sleep(ENROLMENT).await;
        let state = state.clone();
        // A damaged file was named at start, and is replaced by an enrolment. Sealed keys may take their time.
        let enrolled = tokio::task::spawn_blocking(move || {
            matches!(state.enrolment(), Ok(Some(_)))
                && matches!(state.identity(), Ok(Some(_)))
                && state.tunnel_keys().is_ok()
        });
        if enrolled.await.unwrap_or(false) {
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
