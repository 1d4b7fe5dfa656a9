//! Bypass orders from files: verified, kept over restarts, counted.
//!
//! An order that was loaded into this running machine is counted from then by its clock of uptime, so that it
//! opens and ends where nobody can tell the time; an agent that is started anew goes on counting. After a boot of
//! the machine it opens again only once a controller or peer has confirmed the time, as a rule with `expires` does:
//! switching the power off and on, and loading the file again, prolongs nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anteroom_agent_core::bypass::LoadedBypass;
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::bypass::{BypassCode, BypassCodeError, BypassError, BypassOrder};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::plane::{Plane, PlaneError};
use crate::state::{Enrolment, StateDir, StateError};

#[cfg(test)]
mod tests;

/// Most gateways whose orders are kept.
pub(crate) const MAX_ORDERS: usize = 256;

/// Why an order isn't followed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// Nobody's gateway.
    #[error("this machine isn't enrolled, so nobody can order anything of it")]
    NotEnrolled,
    /// No chain to verify it by.
    #[error(
        "this gateway holds no authority documents to verify the order by; it needs its controller once"
    )]
    NoAuthority,
    /// Not the text of an order.
    #[error(transparent)]
    Code(#[from] BypassCodeError),
    /// Not an operator's.
    #[error(transparent)]
    Bypass(#[from] BypassError),
    /// About a gateway that nobody here speaks with.
    #[error(
        "the order is for {0}, with whose devices nothing here shares a rule: it is for other gateways"
    )]
    Stranger(GatewayId),
    /// Replayed.
    #[error(
        "a newer order for {gateway} is held (number {held}, this one has {found}): ask for a new one with `anteroom gateway bypass NAME --for TIME --offline`"
    )]
    Older {
        /// Whose.
        gateway: GatewayId,
        /// The serial held.
        held: u64,
        /// The serial of the order.
        found: u64,
    },
    /// It opens nothing now.
    #[error(
        "the order opens nothing now: its time is over, it is dated too far ahead, or the controller has passed on a newer one"
    )]
    Over,
    /// No room.
    #[error(
        "{MAX_ORDERS} orders are held already, each for another gateway, and no more are kept: have this one sent by the controller (`anteroom gateway bypass NAME --for TIME` without `--offline`)"
    )]
    Full,
    /// The state can't be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The data plane doesn't answer.
    #[error(transparent)]
    Plane(#[from] PlaneError),
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// The gateway that is out, or was.
    pub gateway: GatewayId,
    /// Whether its devices are met in the clear now.
    pub bypassed: bool,
    /// How long that lasts at most, in milliseconds from now.
    pub lasts_ms: Option<u64>,
    /// Why it isn't kept over a restart, where it isn't.
    pub unkept: Option<String>,
}

/// This machine's clocks that need nobody.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Names this boot of the machine. Empty where the system doesn't say.
    pub(crate) boot: String,
    /// Time since then, in milliseconds, sleep included.
    pub(crate) uptime: u64,
    pub(crate) now: Instant,
}

impl Machine {
    /// They now.
    pub(crate) fn look() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds: Option<f64> = uptime.split(' ').next().and_then(|word| word.parse().ok());
        let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Self {
            // Without an uptime there is nothing to go on counting by.
            boot: if uptime.is_some() { boot.trim().to_owned() } else { String::new() },
            uptime: uptime.map_or(0, |up| u64::try_from(up.as_millis()).unwrap_or(u64::MAX)),
            now: Instant::now(),
        }
    }
}

/// An order as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    /// As it was signed.
    pub(crate) order: Signed<BypassOrder>,
    /// The boot in which it was loaded.
    pub(crate) boot: String,
    /// The uptime at which it ends at the latest.
    pub(crate) until_uptime: u64,
}

/// The orders that this gateway holds.
#[derive(Debug)]
pub(crate) struct Orders {
    state: Arc<StateDir>,
    enrolment: Option<Enrolment>,
    kept: Mutex<Vec<(Kept, BypassOrder)>>,
    /// Orders on disk that couldn't be verified for want of a chain. They open nothing and aren't forgotten: a newer
    /// order that ended one mustn't be.
    unverified: Mutex<Vec<Kept>>,
    /// Held while an order is followed and written.
    following: Arc<tokio::sync::Mutex<()>>,
}

impl Orders {
    /// Reads what is kept, and verifies it again: by all who ever were operators, for an operator who left since
    /// doesn't undo what was taken. What doesn't hold is left out and said.
    pub(crate) fn load(state: &Arc<StateDir>, enrolment: Option<Enrolment>) -> Self {
        let kept = state.bypasses().unwrap_or_else(|problem| {
            error!("{problem}");
            Vec::new()
        });
        let orders = Self {
            state: Arc::clone(state),
            enrolment,
            kept: Mutex::default(),
            unverified: Mutex::new(kept),
            following: Arc::default(),
        };
        match orders.chain() {
            Ok(chain) => orders.verify(&chain),
            Err(problem) => {
                let held = orders.unverified().len();
                if held != 0 {
                    error!("{held} bypass orders on disk aren't followed: {problem}");
                }
            }
        }
        orders
    }

    /// Verifies what couldn't be before.
    fn verify(&self, chain: &AuthorityChain) {
        let unverified = std::mem::take(&mut *self.unverified());
        let signers = chain.all_operator_keys();
        for kept in unverified {
            match kept.order.verify(chain.newest().organisation, &signers) {
                Ok(order) => self.kept().push((kept, order.into_document())),
                Err(problem) => error!("a bypass order on disk doesn't hold: {problem}"),
            }
        }
    }

    fn unverified(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        self.unverified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<(Kept, BypassOrder)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chain(&self) -> Result<AuthorityChain, OrderError> {
        let enrolment = self.enrolment.as_ref().ok_or(OrderError::NotEnrolled)?;
        let signed = self.state.authority()?.ok_or(OrderError::NoAuthority)?;
        let chain = AuthorityChain::follow(enrolment.pin, &signed).ok();
        chain
            .filter(|chain| chain.newest().organisation == enrolment.organisation)
            .ok_or(OrderError::NoAuthority)
    }

    /// What the engine is told.
    pub(crate) fn loaded(&self, machine: &Machine) -> Vec<LoadedBypass> {
        all_loaded(&self.kept(), machine)
    }

    /// Verifies the order in `text` and follows it.
    ///
    /// # Errors
    /// [`OrderError`]; what was followed before then still is. Only a data plane that has ended may not.
    pub(crate) async fn follow(
        &self,
        text: &str,
        plane: &impl Plane,
        machine: &Machine,
    ) -> Result<Followed, OrderError> {
        let code: BypassCode = text.parse()?;
        // One after another: each builds on what the one before has left, on disk too.
        let alone = Arc::clone(&self.following).lock_owned().await;
        let chain = self.chain()?;
        self.verify(&chain);
        let order = code.verify(chain.newest())?.into_document();
        let gateway = order.gateway;
        let status = plane.status().await?.engine;
        let peers = status.peers.iter().map(|peer| peer.gateway);
        if !peers.chain([status.gateway]).any(|known| known == gateway) {
            return Err(OrderError::Stranger(gateway));
        }
        let before = self.kept().clone();
        let mut after = before.clone();
        let held = before.iter().find(|(_, held)| held.gateway == gateway);
        match held {
            // The same once more is no harm, and begins nothing anew.
            Some((kept, _)) if kept.order == code.0 => {}
            Some((_, held)) if held.serial >= order.serial => {
                return Err(OrderError::Older { gateway, held: held.serial, found: order.serial });
            }
            None if before.len() >= MAX_ORDERS => return Err(OrderError::Full),
            _ => {
                let until_uptime = machine.uptime.saturating_add(order.lasts().unwrap_or(0));
                let boot = machine.boot.clone();
                after.retain(|(_, held)| held.gateway != gateway);
                after.push((Kept { order: code.0, boot, until_uptime }, order.clone()));
            }
        }
        let told = tell(plane, all_loaded(&after, machine)).await;
        let bypassed = told.as_ref().is_ok_and(|bypassed| bypassed.contains(&gateway));
        if told.is_err() || (!bypassed && order.not_after.is_some()) {
            plane.set_bypasses(all_loaded(&before, machine)).await?;
            told?;
            return Err(OrderError::Over);
        }
        self.kept().clone_from(&after);
        if bypassed {
            warn!(%gateway, reason = order.reason, "a bypass is in force: what rules open to its devices goes in the clear");
        } else {
            info!(%gateway, "a bypass is ended");
        }
        let all: Vec<Kept> = after.iter().map(|(kept, _)| kept.clone()).collect();
        let state = Arc::clone(&self.state);
        let written = tokio::task::spawn_blocking(move || {
            // Held to the end of the write, though nobody should wait for it any more.
            let _alone = alone;
            state.write_bypasses(&all)
        });
        let written = written.await;
        let unkept = match written {
            Ok(Ok(())) => None,
            // Care goes on until the next start all the same.
            Ok(Err(problem)) => Some(problem.to_string()),
            Err(problem) => Some(problem.to_string()),
        };
        if let Some(problem) = &unkept {
            error!("a bypass order isn't kept over a restart: {problem}");
        }
        let counted = all_loaded(&after, machine)
            .into_iter()
            .find(|known| known.gateway == gateway)
            .and_then(|known| known.counted);
        let lasts_ms = counted.filter(|_| bypassed).map(|end| {
            let left = end.saturating_duration_since(machine.now).as_millis();
            u64::try_from(left).unwrap_or(u64::MAX)
        });
        Ok(Followed { gateway, bypassed, lasts_ms, unkept })
    }
}

/// Tells the engine these orders. Returns the gateways that are bypassed then.
async fn tell(plane: &impl Plane, orders: Vec<LoadedBypass>) -> Result<Vec<GatewayId>, PlaneError> {
    plane.set_bypasses(orders).await?;
    let status = plane.status().await?.engine;
    Ok(status.bypasses.iter().map(|open| open.gateway).collect())
}

fn all_loaded(orders: &[(Kept, BypassOrder)], machine: &Machine) -> Vec<LoadedBypass> {
    orders.iter().map(|(kept, order)| loaded(kept, order, machine)).collect()
}

fn loaded(kept: &Kept, order: &BypassOrder, machine: &Machine) -> LoadedBypass {
    let same_boot = !machine.boot.is_empty() && kept.boot == machine.boot;
    let left = Duration::from_millis(kept.until_uptime.saturating_sub(machine.uptime));
    let counted = same_boot.then(|| machine.now.checked_add(left)).flatten();
    LoadedBypass { gateway: order.gateway, serial: order.serial, until: order.not_after, counted }
}
