//! Changing this gateway's tunnel keys: by age, and when the controller asks for it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anteroom_agent_core::peer::KeyUse;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::TunnelSecret;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{Rotate, ToController};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::Client;
use super::session::{End, Out};
use crate::kem::KemKey;
use crate::keys::Ring;
use crate::plane::{Plane, PlaneError};

/// How often it is looked at.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How long after a failure to write keys down it is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// Least time between two new keys, whoever asks for them: each costs all peers a handshake.
const LEAST: Duration = Duration::from_secs(10);

/// What is wrong where the newest key agrees on no pre-shared keys, and nobody could tell of another one.
const BARE: &str = "the ML-KEM-768 key beside this gateway's tunnel key was lost, or an earlier version made that: packets go without pre-shared keys, also to peers that had one, until a controller is in sight and tells them of a new key";
/// How long that has to last.
const BARE_FOR: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// How far ahead of now a serial may lie that a controller wants the new one to be above.
const FAR: u64 = 100 * 366 * 24 * 3600;

/// Since when the newest key has been in use. Clocks jump, and this doesn't.
#[derive(Debug, Clone, Copy)]
pub(super) struct InUse {
    since: Instant,
    /// Whether it was made in this run: else it may be older, and needn't be waited for.
    new: bool,
}

impl InUse {
    /// What was on the disk at the start.
    pub(super) fn before() -> Self {
        Self { since: Instant::now(), new: false }
    }

    /// Whether it is too early for another one.
    fn is_young(self) -> bool {
        self.new && self.since.elapsed() < LEAST
    }
}

impl<P: Plane> Client<P> {
    /// Makes a new key where the newest is old enough, and gives up old ones that nobody needs.
    pub(super) async fn tend_keys(&mut self, out: &Out) -> Result<(), End> {
        self.look_at_keys(Some(out)).await
    }

    /// What needs no controller of that. A new key does: nobody else tells peers of it.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub(super) async fn tend_keys_alone(&mut self) -> Result<(), PlaneError> {
        match self.look_at_keys(None).await {
            Err(End::Plane(error)) => Err(error),
            _ => Ok(()),
        }
    }

    async fn look_at_keys(&mut self, out: Option<&Out>) -> Result<(), End> {
        if !self.take_over_written(out).await? {
            // Views don't wait for the disk, and neither does this.
            return Ok(());
        }
        let now = self.clock.now();
        let approved = self.status.borrow().approved == Some(true);
        // The age differs a little from gateway to gateway, or all that were started together would change together.
        let share = f64::from(self.jitter) / f64::from(u32::MAX);
        let every = self.rotate_every.mul_f64(0.9 + 0.1 * share);
        let told = self.asked_to_rotate;
        if told.is_some_and(|told| self.ring.newest().serial > told.up_to) {
            // What was asked for is done, but for the old keys that may be waiting for peers.
            self.asked_to_rotate = None;
            if let Some(ring) = self.ring.hurried().filter(|_| told.is_some_and(|told| told.now)) {
                self.write(ring);
                return Ok(());
            }
        }
        let asked = self.asked_to_rotate;
        let urgent = asked.is_some_and(|asked| asked.now);
        let late = approved && self.ring.is_due(every, now);
        let rests = self.keys_rest.is_some_and(|until| until > Instant::now());
        let room = urgent || !self.ring.is_full();
        if self.keys_unwritten && !rests {
            self.keys_unwritten = false;
            self.write(self.ring.clone());
            return Ok(());
        }
        let wanted = asked.is_some() || late;
        self.show_waiting(wanted && out.is_none());
        let bare = self.ring.newest().kem.is_none() && self.in_use.since.elapsed() >= BARE_FOR;
        if out.is_none() && bare && !std::mem::replace(&mut self.told_bare, true) {
            // Another one isn't made meanwhile: what peers don't know agrees on nothing, and with those that ever had a pre-shared key
            // packets would wait for that.
            self.alarm(BARE);
        }
        if wanted && out.is_some() && room && !self.in_use.is_young() && !rests {
            return self.rotate(urgent, asked.map_or(0, |asked| asked.up_to));
        }
        let uses = if self.ring.is_changing() { self.key_use().await? } else { Vec::new() };
        self.show_keys(&uses);
        let (used, sure) = (self.in_use.since.elapsed(), self.clock.sure());
        if let Some(now) = sure {
            self.tell_who_holds_on(&uses, now);
        }
        if let Some(ring) = self.ring.without_unneeded(&uses, used, sure).filter(|_| !rests) {
            self.write(ring);
        }
        Ok(())
    }

    /// Raises an alarm where live peers still use a key that was replaced a day ago: once for each of them and each newest key.
    fn tell_who_holds_on(&mut self, uses: &[KeyUse], now: UnixMillis) {
        let newest = self.ring.newest().serial;
        if self.held_on.0 != newest {
            self.held_on = (newest, BTreeSet::new());
        }
        let found = self.ring.held_on_by(uses, now);
        if found.is_subset(&self.held_on.1) {
            return;
        }
        let names: Vec<String> = found.iter().map(GatewayId::to_string).collect();
        let effect = if self.ring.is_full() { ", and until then no newer one is made" } else { "" };
        self.alarm(&format!(
            "a tunnel key that was replaced a day ago is still used by peers that are there ({}): no controller told them of the new one, or they don't move; `anteroom gateway rotate NAME --now` ends it for them{effect}",
            names.join(", ")
        ));
        self.held_on.1.extend(found);
    }

    /// Notes that keys up to some serial are to be replaced. Serials aren't let run away: at the end of them no key would ever be newer.
    pub(super) fn hear_rotate(&mut self, rotate: Rotate) {
        let most = (self.clock.now().0 / 1000).max(self.ring.newest().serial).saturating_add(FAR);
        let rotate = Rotate { up_to: rotate.up_to.min(most), ..rotate };
        let now = rotate.now || self.asked_to_rotate.is_some_and(|before| before.now);
        let before = self.asked_to_rotate.map_or(0, |before| before.up_to);
        self.asked_to_rotate = Some(Rotate { up_to: rotate.up_to.max(before), now });
    }

    fn rotate(&mut self, urgent: bool, above: u64) -> Result<(), End> {
        let mut bytes = Zeroizing::new([0; 32]);
        if let Err(error) = getrandom::fill(bytes.as_mut_slice()) {
            self.alarm(&format!("no new tunnel key: the system gives no random bytes: {error}"));
            return Ok(());
        }
        let keys = (TunnelSecret::from_bytes(*bytes), KemKey::generate());
        let ring = self.ring.with_new(keys, urgent, above, self.clock.now());
        self.write(ring);
        Ok(())
    }

    /// Has other keys written down, and then used. They are on the disk first, in the engine next, and offered last.
    fn write(&mut self, ring: Ring) {
        let (disk, kept) = (self.disk.clone(), ring.clone());
        self.writing = Some((ring, tokio::task::spawn_blocking(move || disk.keep_ring(&kept))));
    }

    /// Uses and offers keys that are written by now. Says whether nothing is being written any more.
    async fn take_over_written(&mut self, out: Option<&Out>) -> Result<bool, End> {
        if self.writing.as_ref().is_some_and(|(_, writing)| !writing.is_finished()) {
            return Ok(false);
        }
        let Some((ring, writing)) = self.writing.take() else { return Ok(true) };
        let problem = match writing.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            warn!("the tunnel keys stay as they are: {problem}");
            self.alarm(&format!("the tunnel keys can't be changed: {problem}"));
            self.keys_rest = Some(Instant::now() + AGAIN);
            self.keys_unwritten = true;
            return Ok(true);
        }
        if ring.newest().serial == self.ring.newest().serial {
            info!(
                left = ring.all().count(),
                "the tunnel keys are written down: old ones may be given up, or no longer wait"
            );
        } else {
            info!(serial = ring.newest().serial, urgent = ring.newest().urgent, "a new tunnel key");
            self.in_use = InUse { since: Instant::now(), new: true };
        }
        self.ring = ring;
        self.bind();
        let who = (self.enrolment.organisation, self.enrolment.gateway);
        self.plane.set_own_keys(self.ring.own(who)).await?;
        // The next greeting says it otherwise.
        if let Some(out) = out {
            out.send(ToController::Reachable(self.reachable()))?;
            self.offer_again(out)?;
        }
        Ok(true)
    }

    async fn key_use(&self) -> Result<Vec<KeyUse>, PlaneError> {
        match self.plane.key_use().await {
            Err(PlaneError::Closed) => Ok(Vec::new()),
            uses => uses,
        }
    }

    fn show_waiting(&self, waits: bool) {
        self.status.send_if_modified(|status| {
            std::mem::replace(&mut status.new_key_waits, waits) != waits
        });
    }

    fn show_keys(&self, uses: &[KeyUse]) {
        let keys = self.ring.status(uses);
        self.status.send_if_modified(|status| {
            let changed = status.keys != keys;
            status.keys = keys;
            changed
        });
    }
}
