//! Another identity key in the place of the one in use.
//!
//! An operator's order has a key made, written down, and offered with the word of both. From then on this gateway is one
//! that may be known by either: a controller that refuses the one is asked with the other. What else the key is for
//! (claims, relays, QUIC with peers) changes with the leaf that operators signed and that names the new one.

use anteroom_proto::cose::Signed;
use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_proto::rekey::{MAX_AHEAD, RekeyOffer, RekeyOrder};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{Rotate, ToController};
use anteroom_proto::view::View;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::Client;
use super::session::{End, Out};
use crate::plane::{Plane, PlaneError};
use crate::state::{Nexts, StateDir, StateError};

/// Keys on offer on their way to the disk, and the order that asked for it.
type Writing = (Nexts, u64, JoinHandle<Result<(), StateError>>);

/// The identity keys of this gateway.
pub(super) struct Identities {
    /// The one in use: that it enrolled with, or that its leaf names.
    own: watch::Sender<IdentityKey>,
    /// Those on offer.
    nexts: Nexts,
    /// Which of them all controllers are met with now.
    shown: IdentityKey,
    /// Which the connection of now was made with.
    met: PublicKey,
    /// Those on offer as they are being written down.
    writing: Option<Writing>,
    /// The order upon which something was offered over the connection of now.
    offered: Option<u64>,
}

impl Identities {
    pub(super) fn new(own: IdentityKey, nexts: Nexts) -> Self {
        let (shown, met) = (own.clone(), own.public());
        Self { own: watch::channel(own).0, nexts, shown, met, writing: None, offered: None }
    }

    /// The key in use, as it changes.
    pub(super) fn own(&self) -> watch::Receiver<IdentityKey> {
        self.own.subscribe()
    }

    /// What controllers are met with.
    pub(super) const fn shown(&self) -> &IdentityKey {
        &self.shown
    }

    /// A connection begins that was made with the key that is shown: nothing was offered over it.
    pub(super) fn begin(&mut self) {
        self.offered = None;
        self.met = self.shown.public();
    }

    /// Whether the key that is shown is another than when the connection of now began.
    pub(super) fn are_new(&self) -> bool {
        self.met != self.shown.public()
    }

    /// The key after the one that a controller refused: those on offer, newest first, then the one in use. Says whether
    /// there is one that wasn't tried since the one in use was.
    fn turn(&mut self) -> bool {
        let own = self.own.borrow().clone();
        let mut all: Vec<IdentityKey> =
            self.nexts.iter().rev().map(|next| next.key.clone()).collect();
        all.retain(|key| key.public() != own.public());
        let shown = self.shown.public();
        let after = match all.iter().position(|key| key.public() == shown) {
            Some(at) => at + 1,
            None if shown == own.public() => 0,
            None => all.len(),
        };
        let next = all.into_iter().nth(after);
        let more = next.is_some();
        self.shown = next.unwrap_or(own);
        more
    }

    /// Keys that mustn't make room for others.
    fn kept(&self) -> [PublicKey; 2] {
        [self.own.borrow().public(), self.shown.public()]
    }
}

impl<P: Plane> Client<P> {
    /// A controller won't have this gateway: it may know it by another key. Says whether there is one to try at once.
    pub(super) fn try_another_identity(&mut self) -> bool {
        let before = self.identities.shown().public();
        let more = self.identities.turn();
        let shown = self.identities.shown();
        if shown.public() != before {
            info!(fingerprint = %shown.public().fingerprint(), "trying another identity key");
            self.bind();
        }
        more
    }

    /// Binds the tunnel keys anew.
    pub(super) fn bind(&mut self) {
        self.bindings = self.ring.bindings(&self.enrolment, self.identities.shown());
    }

    /// An operator's order came, by way of the controller.
    pub(super) fn hear_rekey(&mut self, order: &Signed<RekeyOrder>, out: &Out) -> Result<(), End> {
        let Some(chain) = &self.chain else { return Ok(()) };
        let operators = chain.newest().operator_keys();
        let order = match order.verify(self.enrolment.organisation, &operators) {
            Ok(order) if order.gateway == self.enrolment.gateway => order,
            Ok(_) => {
                self.alarm(
                    "the controller sent another gateway's order to replace an identity key",
                );
                return Ok(());
            }
            Err(error) => {
                self.alarm(&format!("an order to replace the identity key is refused: {error}"));
                return Ok(());
            }
        };
        let identities = &self.identities;
        let own = identities.own.borrow().public();
        // Until the leaf has come that names the key which is shown, there is nothing to be vouched for.
        let settled = identities.shown.public() == own;
        if self.status.borrow().approved != Some(true) || !settled || identities.writing.is_some() {
            debug!("an order to replace the identity key has to wait");
            self.rekey_later = Some(order.signed().clone());
            return Ok(());
        }
        let number = order.number;
        let now = self.clock.now();
        if number > now.0.saturating_add(MAX_AHEAD) {
            self.alarm(&format!(
                "an order to replace the identity key is refused: its number lies {} s ahead of the controller's time: the operator's clock or the controller's is wrong",
                UnixMillis(number).since(now).as_secs()
            ));
            return Ok(());
        }
        if order.withdraw {
            if number > identities.nexts.newest() {
                let nexts = identities.nexts.withdrawn(number, &identities.kept());
                info!("offers of another identity key are withdrawn");
                self.write_nexts(nexts, number);
            }
            return Ok(());
        }
        let newest = identities.nexts.newest();
        match identities.nexts.of(number) {
            Some(next) if next.key.public() != own => return self.offer(number, out),
            None if number > newest => {}
            _ if number == newest => {
                debug!(number, "an order to replace the identity key was done before");
                return Ok(());
            }
            _ => {
                self.alarm(&format!(
                    "an order to replace the identity key isn't followed: one that is {} s newer by its number was followed before. If this one was given just now, the operator's clock is behind: set it, or try again after that time",
                    UnixMillis(newest).since(UnixMillis(number)).as_secs()
                ));
                return Ok(());
            }
        }
        match StateDir::new_identity(number) {
            Ok(next) => {
                let nexts = self.identities.nexts.with(next, &self.identities.kept());
                self.write_nexts(nexts, number);
            }
            Err(error) => self.alarm(&format!("no other identity key: {error}")),
        }
        Ok(())
    }

    fn write_nexts(&mut self, nexts: Nexts, order: u64) {
        let (disk, kept) = (self.disk.clone(), nexts.clone());
        let writing = tokio::task::spawn_blocking(move || disk.keep_nexts(&kept));
        self.identities.writing = Some((nexts, order, writing));
    }

    /// Offers what is written by now.
    pub(super) async fn tend_identities(&mut self, out: &Out) -> Result<(), End> {
        let writing = self.identities.writing.take_if(|(_, _, writing)| writing.is_finished());
        if let Some((nexts, order, writing)) = writing {
            let problem = match writing.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem {
                self.alarm(&format!("no other identity key is offered: {problem}"));
                return Ok(());
            }
            self.identities.nexts = nexts;
            if self.identities.nexts.of(order).is_some() {
                self.offer(order, out)?;
            }
        }
        if self.identities.writing.is_none()
            && let Some(order) = self.rekey_later.take()
        {
            self.hear_rekey(&order, out)?;
        }
        Ok(())
    }

    /// Offers the key that was made upon an order.
    fn offer(&mut self, order: u64, out: &Out) -> Result<(), End> {
        let identities = &mut self.identities;
        let own = identities.own.borrow().clone();
        let Some(next) =
            identities.nexts.of(order).filter(|_| identities.shown.public() == own.public())
        else {
            return Ok(());
        };
        let who = (self.enrolment.organisation, self.enrolment.gateway, order);
        let keys = self.ring.bindings(&self.enrolment, &next.key);
        let offer = RekeyOffer::new(who, &own, &next.key, keys);
        if identities.offered != Some(order) {
            let fingerprint = next.key.public().fingerprint();
            info!(%fingerprint, "another identity key is offered, for an operator to approve");
        }
        identities.offered = Some(order);
        out.send(ToController::Rekey(Box::new(offer)))
    }

    /// The tunnel keys have changed: what is on offer binds the new ones.
    pub(super) fn offer_again(&mut self, out: &Out) -> Result<(), End> {
        match self.identities.offered {
            Some(order) => self.offer(order, out),
            None => Ok(()),
        }
    }

    /// A view is in force: has the identity key used that it names, and gives it. Whether all of it changed is for the
    /// caller to see from what controllers are met with.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub(super) async fn adopt(&mut self, view: &View) -> Result<Option<PublicKey>, PlaneError> {
        let Some(wanted) = view.intent.identity else { return Ok(None) };
        let identities = &mut self.identities;
        if identities.own.borrow().public() == wanted {
            return Ok(Some(wanted));
        }
        let Some(next) = identities.nexts.find(wanted) else {
            let fingerprint = wanted.fingerprint();
            self.alarm(&format!(
                "operators have approved the identity key {fingerprint} for this gateway, and it isn't here"
            ));
            return Ok(None);
        };
        let key = next.key.clone();
        warn!(fingerprint = %wanted.fingerprint(), "this gateway has another identity key from now on");
        identities.shown = key.clone();
        identities.offered = None;
        self.bind();
        self.plane.set_identity(key.clone()).await?;
        self.identities.own.send_replace(key);
        // Whoever made a new identity key necessary may have the tunnel keys, too.
        self.hear_rotate(Rotate { up_to: self.ring.newest().serial, now: false });
        Ok(Some(wanted))
    }
}
