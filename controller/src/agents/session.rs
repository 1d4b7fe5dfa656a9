//! A greeted gateway's connection, from its welcome to its end.

use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::api::{RekeyDoubt, RekeyState};
use anteroom_proto::direct;
use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::PublicKey;
use anteroom_proto::rekey::{self, RekeyOffer};
use anteroom_proto::relay::CAPABILITY;
use anteroom_proto::v1::telemetry::Report;
use anteroom_proto::v1::{
    Applied, Hello, ROTATES, Reachable, Refusal, RefusalCode, TELLS, ToAgent, ToController,
};
use anteroom_transport::link::Connection;
use anteroom_transport::message::{MessageReader, MessageWriter};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::greeting::{Greeted, claim_keys, clean_applied, refusal, store_failed};
use super::{LAST_WORD, Peer, telemetry, trials};
use crate::clock;
use crate::distribution::{Event, TunnelEnds, check_offer};
use crate::online::{CloseCode, Link, Outgoing, QUEUE};
use crate::state::{Controller, Current};
use crate::store::{AppliedFacts, NewAudit, StoreError};

/// How long one message may take to be taken in.
const WRITE: Duration = Duration::from_secs(30);
/// Messages that a gateway may send at once, and how often after that.
const BURST: u32 = 64;
const EVERY: Duration = Duration::from_millis(50);

/// What is known of the gateway when its connection begins.
pub(super) struct Session {
    gateway: GatewayId,
    greeted: Greeted,
    /// Whether it wants passes for relays.
    relayed: bool,
    /// Whether it can be asked to replace its tunnel keys.
    rotates: bool,
    /// Whether it can be asked for another identity key.
    rekeys: bool,
    /// What its reports tell beyond the basics, to a controller that reads it.
    tells: Vec<String>,
    /// Whether views may tell it peers' QUIC ports, and its own.
    takes_quic: bool,
    quic: Option<u16>,
}

/// What a session works with while it runs.
struct Running<'a> {
    controller: &'a Controller,
    gateway: GatewayId,
    key: PublicKey,
    serial: u64,
    outgoing: mpsc::Sender<Outgoing>,
    quic: Option<u16>,
}

fn facts(applied: &Applied) -> AppliedFacts {
    AppliedFacts { number: applied.number, revision: applied.revision, intent: applied.intent_hash }
}

impl Session {
    pub(super) fn new(hello: &Hello, greeted: Greeted) -> Self {
        let can = |what| hello.capabilities.iter().any(|capability| capability == what);
        let (relayed, rotates, rekeys) = (can(CAPABILITY), can(ROTATES), can(rekey::CAPABILITY));
        let tells = TELLS.into_iter().filter(|what| can(what)).map(str::to_owned).collect();
        let (takes_quic, quic) = (can(direct::CAPABILITY), hello.quic);
        let gateway = hello.gateway;
        Self { gateway, greeted, relayed, rotates, rekeys, tells, takes_quic, quic }
    }

    pub(super) async fn run(
        self,
        controller: &Arc<Controller>,
        peer: Peer,
        reader: MessageReader<ToController>,
        writer: MessageWriter<ToAgent>,
    ) {
        let Self { gateway, greeted, relayed, rotates, rekeys, tells, takes_quic, quic } = self;
        let Greeted { approved, authority, ends, rotate, welcome, facts: hello } = greeted;
        let observed = hello.observed;
        let recorded = match controller.store.record_hello(gateway, &hello).await {
            Ok(()) if approved && rekeys => end_rekey(controller, gateway, peer.key).await,
            recorded => recorded,
        };
        if let Err(error) = recorded {
            let refused = ToAgent::Refused(store_failed(&error));
            return peer.say_last(writer, refused, CloseCode::Refused).await;
        }
        let (outgoing, queue) = mpsc::channel(QUEUE);
        // The welcome is first in the queue, before anyone else can reach it.
        let _ = outgoing.try_send(Outgoing::Message(ToAgent::Welcome(Box::new(welcome))));
        if !tells.is_empty() {
            let _ = outgoing.try_send(Outgoing::Message(ToAgent::Reads(tells)));
        }
        let connection = peer.connection.clone();
        let writing = tokio::spawn(write(connection.clone(), writer, queue));
        let link = Link {
            connection: connection.clone(),
            outgoing: outgoing.clone(),
            identity: peer.key,
            observed,
            rotates,
            rekeys,
            relays: Vec::new(),
            relays_away: Vec::new(),
            takes_quic,
        };
        let serial = controller.online.insert(gateway, link);
        tracing::info!(%gateway, from = %observed, approved, "connected");
        let applied = hello.applied.as_ref().filter(|applied| applied.refused.is_none()).map(facts);
        controller
            .tell(Event::Connected { gateway, approved, authority, applied, ends, relayed })
            .await;
        if let Some(rotate) = rotate {
            controller.tell(Event::Rotate { gateway, rotate }).await;
        }
        let running = Running { controller, gateway, key: peer.key, serial, outgoing, quic };
        if let Err(refusal) = running.read(reader).await {
            tracing::info!(%gateway, message = %refusal.message, "refused");
            let _ = running.outgoing.send(Outgoing::Refuse(refusal)).await;
        }
        controller.online.remove(gateway, serial);
        drop(running);
        // The writer ends with its queue, or with the connection.
        let _ = writing.await;
        connection.close(CloseCode::Done.into(), b"");
        if let Err(error) = controller.store.record_seen(&[gateway], clock::now()).await {
            tracing::warn!(%gateway, %error, "the end of a connection wasn't recorded");
        }
        tracing::info!(%gateway, reason = ?connection.close_reason(), "disconnected");
    }
}

/// Forgets what a gateway offered that has come with that key: its own greeting binds its tunnel keys now.
async fn end_rekey(
    controller: &Controller,
    gateway: GatewayId,
    key: PublicKey,
) -> Result<(), StoreError> {
    let Some(state) = controller.store.rekey(gateway).await? else { return Ok(()) };
    if state.offer.as_ref().and_then(RekeyOffer::new_key) == Some(key) {
        tracing::info!(%gateway, "its new identity key is in use");
        controller.store.end_rekey(gateway, &state.order).await?;
    }
    Ok(())
}

/// Writes what is queued, until there is a last word, nobody is left to queue, or the gateway takes nothing.
async fn write(
    connection: Connection,
    mut writer: MessageWriter<ToAgent>,
    mut queue: mpsc::Receiver<Outgoing>,
) {
    loop {
        let next = tokio::select! {
            next = queue.recv() => next,
            _ = connection.closed() => return,
        };
        match next {
            Some(Outgoing::Message(message)) => match timeout(WRITE, writer.send(&message)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return tracing::debug!(%error, "nothing more can be sent"),
                Err(_) => {
                    let reason = b"this gateway takes no messages";
                    return connection.close(CloseCode::TooSlow.into(), reason);
                }
            },
            Some(Outgoing::Refuse(refusal)) => {
                let said = async {
                    if writer.send(&ToAgent::Refused(refusal)).await.is_ok() {
                        writer.finish().await;
                    }
                };
                let _ = timeout(LAST_WORD, said).await;
                return connection.close(CloseCode::Refused.into(), b"refused");
            }
            None => return,
        }
    }
}

impl Running<'_> {
    async fn read(&self, mut reader: MessageReader<ToController>) -> Result<(), Refusal> {
        // A gateway that sends faster than this waits; flow control tells it so.
        let burst = EVERY * BURST;
        let earliest = |now: Instant| now.checked_sub(burst).unwrap_or(now);
        let mut due = earliest(Instant::now());
        loop {
            let message = match reader.next().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(anteroom_transport::message::MessageError::Malformed(error)) => {
                    return Err(refusal(RefusalCode::Protocol, error.to_string()));
                }
                Err(error) => {
                    tracing::debug!(gateway = %self.gateway, %error, "no more messages");
                    return Ok(());
                }
            };
            if !self.controller.online.is_current(self.gateway, self.serial) {
                return Ok(());
            }
            let now = Instant::now();
            due = due.max(earliest(now)) + EVERY;
            if due > now {
                tokio::time::sleep_until(due).await;
            }
            match message {
                ToController::Applied(applied) => {
                    self.applied(&applied).await.map_err(|error| store_failed(&error))?;
                }
                ToController::Reachable(reachable) => {
                    let reachable = Reachable { quic: self.quic, ..reachable };
                    self.reachable(reachable).await?;
                }
                ToController::Report(report) => self.report(*report).await?,
                ToController::Rekey(offer) => self.offer(*offer).await?,
                ToController::Enrol(_)
                | ToController::Hello(_)
                | ToController::AskAuthority { .. } => {
                    let message = "first words came a second time";
                    return Err(refusal(RefusalCode::Protocol, message));
                }
            }
        }
    }

    async fn applied(&self, applied: &Applied) -> Result<(), StoreError> {
        let gateway = self.gateway;
        let applied = clean_applied(applied);
        self.controller.store.record_applied(gateway, &applied, clock::now()).await?;
        match &applied.refused {
            None => {
                tracing::info!(%gateway, number = %applied.number, revision = applied.revision, "applied");
                let applied = facts(&applied);
                self.controller.tell(Event::Applied { gateway, applied }).await;
            }
            Some(reason) => tracing::warn!(%gateway, reason, "a gateway refused its view"),
        }
        Ok(())
    }

    async fn reachable(&self, mut reachable: Reachable) -> Result<(), Refusal> {
        let Some(chain) = self.controller.authority() else { return Ok(()) };
        let gateway = self.gateway;
        let ends = TunnelEnds::check(chain.newest().organisation, gateway, self.key, &reachable)
            .map_err(|error| refusal(RefusalCode::Protocol, error.to_string()))?;
        let who = (gateway, self.controller.online.rotates(gateway));
        let (ends, rotate) = claim_keys(self.controller, who, &mut reachable, ends).await?;
        self.controller
            .store
            .record_reachable(gateway, &reachable, clock::now())
            .await
            .map_err(|error| store_failed(&error))?;
        self.controller.tell(Event::Ends { gateway, ends }).await;
        if let Some(rotate) = rotate {
            self.controller.tell(Event::Rotate { gateway, rotate }).await;
        }
        Ok(())
    }

    /// Takes note of another identity key that the gateway offers. One that doesn't fit costs it nothing: operators may
    /// have ordered another one meanwhile.
    async fn offer(&self, offer: RekeyOffer) -> Result<(), Refusal> {
        let Some(chain) = self.controller.authority() else { return Ok(()) };
        let gateway = self.gateway;
        let store = &self.controller.store;
        // What was approved isn't replaced by what came a moment later, nor by an answer to an earlier order.
        let _changing = self.controller.changing.lock().await;
        let current = self.controller.current();
        let Some(current) = current.filter(|current| current.approves(gateway, self.key)) else {
            tracing::warn!(%gateway, "an identity key that isn't the approved one vouches for another");
            return Ok(());
        };
        let wanted = store.rekey(gateway).await.map_err(|error| store_failed(&error))?;
        let Some(wanted) = wanted else {
            tracing::warn!(%gateway, "a gateway offers another identity key unasked");
            return Ok(());
        };
        let organisation = chain.newest().organisation;
        let fits = check_offer(organisation, gateway, self.key, &wanted.order, &offer);
        let fits = fits.and_then(|()| {
            // Nobody gets hold of another's tunnel key by this way either.
            let own = self.controller.tunnel_keys.holds(gateway, &offer.keys);
            if own {
                Ok(())
            } else {
                Err("it binds a tunnel key that the gateway hasn't named".into())
            }
        });
        let fits = fits.and_then(|()| match offer.new_key() {
            Some(new) if current.model.is_free_identity(new) => Ok(()),
            _ => Err("some gateway has that key, or had it".into()),
        });
        if let Err(problem) = fits {
            tracing::warn!(%gateway, problem, "another identity key isn't taken note of");
            return Ok(());
        }
        let held = wanted.offer.as_ref().and_then(RekeyOffer::new_key);
        let (Some(new), RekeyState { order, doubt, .. }) = (offer.new_key(), &wanted) else {
            return Ok(());
        };
        // An order has one key made. One that comes from a backup may be withdrawn, and says nothing.
        if let Some(held) = held.filter(|held| *held != new)
            && *doubt != Some(RekeyDoubt::Restored)
        {
            tracing::warn!(%gateway, "two different identity keys are offered upon one order");
            if doubt.is_none() {
                let audit = NewAudit {
                    at: clock::now(),
                    actor: gateway.to_string(),
                    action: "gateway rekey doubted".into(),
                    subject: gateway.to_string(),
                    before: Some(format!("identity {} was offered", held.fingerprint())),
                    after: Some(format!(
                        "identity {} was offered upon the same order: the old key may be in two hands",
                        new.fingerprint()
                    )),
                    ..NewAudit::default()
                };
                let noted = store.doubt_rekey(gateway, order, &audit).await;
                noted.map_err(|error| store_failed(&error))?;
            }
            return Ok(());
        }
        let noted = store.offer_rekey(gateway, order, &offer).await;
        noted.map_err(|error| store_failed(&error))?;
        tracing::info!(%gateway, "offers another identity key");
        self.controller.tell(Event::Offer { gateway, offer: Box::new(offer) }).await;
        Ok(())
    }

    async fn report(&self, report: Report) -> Result<(), Refusal> {
        let (boot, sequence): (BootId, u64) = (report.boot, report.sequence);
        let (mut report, cut) = telemetry::bounded(report);
        if cut > 0 {
            tracing::debug!(gateway = %self.gateway, cut, "a report went beyond its bounds");
        }
        self.note_trials(&mut report).await?;
        self.controller
            .store
            .record_report(self.gateway, &report, self.controller.history_now())
            .await
            .map_err(|error| store_failed(&error))?;
        let Report { relays, relays_away, .. } = report;
        self.controller.online.set_relays(self.gateway, self.serial, relays, relays_away);
        let stored = Outgoing::Message(ToAgent::Reported { boot, sequence });
        // The writer has gone only when the connection has.
        let _ = self.outgoing.send(stored).await;
        Ok(())
    }

    /// Has what devices on trial came to in the audit log before the report that tells it is stored: a crash in between
    /// says it twice rather than never.
    async fn note_trials(&self, report: &mut Report) -> Result<(), Refusal> {
        let on_trial = |current: &Arc<Current>| {
            let leaf = current.compiled.leaves.get(&self.gateway);
            let devices = leaf.into_iter().flat_map(|leaf| &leaf.intent.devices);
            devices.clone().any(|device| device.rollout.trial.is_some())
        };
        let Some(current) = self.controller.current().filter(on_trial) else {
            report.trials.clear();
            return Ok(());
        };
        let store = &self.controller.store;
        let facts = store.gateway(self.gateway).await.map_err(|error| store_failed(&error))?;
        let before = facts.map(|facts| facts.trials).unwrap_or_default();
        for entry in trials::taken(self.gateway, &mut report.trials, &before, &current.model) {
            tracing::warn!(device = entry.subject, reason = entry.reason, "a trial is over");
            store.append_audit(&entry).await.map_err(|error| store_failed(&error))?;
        }
        Ok(())
    }
}
