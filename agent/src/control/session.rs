//! One connection, from hello to goodbye.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anteroom_agent_core::report::EngineReport;
use anteroom_proto::authority::{Authority, AuthorityChain};
use anteroom_proto::cose::Signed;
use anteroom_proto::direct;
use anteroom_proto::key::PublicKey;
use anteroom_proto::rekey;
use anteroom_proto::relay as wire;
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::v1::frame::MAX_TO_AGENT;
use anteroom_proto::v1::telemetry::TunnelState;
use anteroom_proto::v1::{
    Hello, ROTATES, Refusal, RefusalCode, TELLS, ToAgent, ToController, VERSIONS, Welcome,
};
use anteroom_transport::dial;
use anteroom_transport::endpoint::Link;
use anteroom_transport::link::Closed;
use anteroom_transport::message::{MessageError, MessageReader, MessageWriter};
use anteroom_transport::tls::Protocol;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::clock::held_ahead;
use super::fitted::Reads;
use super::greet::{Greeted, Greeting, Welcomed, Words, greet, greet_better, of};
use super::{Client, alarm, rotate, stopped};
use crate::looks::Looks;
use crate::plane::{Plane, PlaneError};
use crate::relay;
use crate::silence;
use crate::text::plain;

/// How long the greeting may take.
pub(super) const GREETING: Duration = Duration::from_secs(10);
/// Messages to the controller that may wait.
const QUEUE: usize = 64;
/// Shortest and longest time between reports, whatever the controller asks for.
const REPORTS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// After how long without a word about them reports are sent again on the same connection.
const RESEND: Duration = Duration::from_secs(30);
/// How long peers aren't told of an authority document while the data plane hasn't heard which relays it takes out. That is a matter
/// of milliseconds; a connection to the controller, by which revocations come, waits for nothing without an end.
const HEEDED: Duration = Duration::from_secs(10);

/// How a connection ended.
pub(super) struct Ended {
    pub(super) why: End,
    /// Whether the controller had said welcome.
    pub(super) greeted: bool,
}

/// Why a connection ended.
pub(super) enum End {
    /// The agent is to stop.
    Stopped,
    /// The data plane has ended.
    Plane(PlaneError),
    /// The controller won't have it.
    Refused(Refused),
    /// This gateway has another identity key from now on, and comes back with that.
    Rekeyed,
    /// There is a better connection, which the controller has greeted.
    Better(Box<Greeted>),
    /// The controller says nothing.
    Silent,
    /// Anything else.
    Lost(String),
}

impl From<PlaneError> for End {
    fn from(error: PlaneError) -> Self {
        Self::Plane(error)
    }
}

impl From<MessageError> for End {
    fn from(error: MessageError) -> Self {
        Self::Lost(format!("the connection ended: {}", plain(&error.to_string())))
    }
}

/// The controller's refusal, fit for a log.
pub(super) struct Refused {
    text: String,
    pub(super) fatal: bool,
    /// Whether only an operator can change it.
    pub(super) unwanted: bool,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let text = format!("refused ({:?}): {}", refusal.code, plain(&refusal.message));
        let unwanted = matches!(refusal.code, RefusalCode::Unknown | RefusalCode::Revoked);
        Self { text, fatal: refusal.fatal, unwanted }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Messages on their way out. A controller that doesn't read must not keep this end from reading.
pub(super) struct Out {
    queue: mpsc::Sender<ToController>,
    writer: JoinHandle<()>,
}

impl Out {
    pub(super) fn new(mut writer: MessageWriter<ToController>) -> Self {
        let (queue, mut messages) = mpsc::channel(QUEUE);
        let writer = tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                // A connection that is gone shows at the reading side.
                if writer.send(&message).await.is_err() {
                    return;
                }
            }
        });
        Self { queue, writer }
    }

    pub(super) fn send(&self, message: ToController) -> Result<(), End> {
        self.queue
            .try_send(message)
            .map_err(|_| End::Lost("the controller doesn't take what is sent to it".into()))
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl<P: Plane> Client<P> {
    /// Says hello over `link` and talks until it ends.
    pub(super) async fn session(&mut self, link: Link, address: SocketAddr) -> Ended {
        let mut stop = self.stop.clone();
        let words = self.first_words();
        let greeted = tokio::select! {
            greeted = greet(&link, &words.hello) => greeted,
            () = stopped(&mut stop) => Err(End::Stopped),
        };
        match greeted {
            Ok(welcomed) => {
                let greeted = Greeted { link, address, welcomed, words, fell: None };
                self.go_on(greeted).await
            }
            Err(why) => self.leave(link, why, None).await,
        }
    }

    /// Talks over a connection that was greeted until it ends.
    pub(super) async fn go_on(&mut self, mut greeted: Greeted) -> Ended {
        let (mut since, mut better) = (None, None);
        let Err(mut why) = self.talk(&mut greeted, &mut since, &mut better).await;
        if matches!(why, End::Stopped) && since.is_some() {
            self.tell_the_last(&mut greeted.welcomed).await;
        }
        if let (End::Lost(_), Some(greeting)) = (&why, better) {
            // A controller that takes the better one ends this one before its welcome is here.
            let mut stop = self.stop.clone();
            tokio::select! {
                greeted = greeting => if let Ok(greeted) = greeted {
                    why = End::Better(Box::new(greeted));
                },
                () = stopped(&mut stop) => why = End::Stopped,
            }
        }
        self.leave(greeted.link, why, since).await
    }

    /// Leaves a connection that was greeted at a time, if it was.
    async fn leave(&mut self, link: Link, why: End, since: Option<Instant>) -> Ended {
        let (carrier, reason) = (link.connection().carrier(), link.connection().close_reason());
        let silent = match &why {
            End::Silent => true,
            End::Lost(_) => reason.as_ref().is_some_and(Closed::is_silence),
            _ => false,
        };
        let lasted = since.map(|since| since.elapsed());
        let fell = match &why {
            End::Better(better) => better.fell,
            _ => None,
        };
        match (fell, lasted) {
            (Some(at_once), Some(lasted)) => {
                self.again.fell(lasted, at_once);
                self.status.send_modify(|status| status.silences += 1);
            }
            _ => self.again.ended(carrier, lasted, silent),
        }
        let why = match (why, reason) {
            // What the stream says of it is just that it is gone.
            (End::Lost(_), Some(reason)) => {
                End::Lost(format!("the connection ended: {}", plain(&reason.to_string())))
            }
            (why, _) => why,
        };
        let greeted = since.is_some();
        if matches!(why, End::Better(..)) {
            // The controller closes it for the newer one, so that it never takes the gateway to be away.
            tokio::spawn(async move {
                let _ = timeout(GREETING, link.connection().closed()).await;
                link.close("").await;
            });
            return Ended { why, greeted };
        }
        let reason = match &why {
            End::Stopped => "the gateway's agent stops",
            _ => "",
        };
        link.close(reason).await;
        Ended { why, greeted }
    }

    async fn talk(
        &mut self,
        greeted: &mut Greeted,
        since: &mut Option<Instant>,
        better: &mut Option<Greeting>,
    ) -> Result<Infallible, End> {
        let Greeted { link, address, welcomed, words, .. } = greeted;
        let Welcomed { reader, out, welcome } = welcomed;
        let link = &*link;
        let held = link.connection();
        let mut stop = self.stop.clone();
        self.reads = Reads::default();
        self.identities.begin();
        self.rekey_later = None;
        self.welcome(welcome, link).await?;
        if self.bindings != words.hello.reachable.keys {
            out.send(ToController::Reachable(self.reachable()))?;
        }
        let Words { kept, reach, .. } = words;
        *since = Some(Instant::now());
        self.connected(*address, link.connection().carrier(), welcome.approved);
        let identity = self.identities.shown().clone();
        let mut again = self.again;
        let mut moves = self.reach.clone();
        moves.mark_unchanged();
        let moves = Mutex::new(moves);
        let moved = || async {
            // Whoever would say so is gone: that ends the session anyway.
            if moves.lock().await.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let (found, mut finds) = mpsc::channel(1);
        let came_to_nothing = Notify::new();
        let looking = async {
            let mut pace = silence::Pace::default();
            loop {
                let protocol = Protocol::Control;
                let better = tokio::select! {
                    (link, address) = again.quic(held, &identity, protocol, &moved) => (link, address, None),
                    fallen = silence::over_tcp(held, &identity, protocol, &mut pace, |_| {}) => {
                        (fallen.link, fallen.address, Some((fallen.at_once, fallen.silence)))
                    }
                };
                if found.send(better).await.is_err() {
                    return End::Stopped;
                }
                came_to_nothing.notified().await;
            }
        };
        let mut looking = std::pin::pin!(looking);

        let every = Duration::from_millis(welcome.report_every.into()).clamp(REPORTS.0, REPORTS.1);
        let (mut reports, mut key_looks) = (Looks::every(every), Looks::every(rotate::LOOK));
        let mut resend = Instant::now() + RESEND;
        self.tell_again(out)?;
        loop {
            tokio::select! {
                message = reader.next() => match message? {
                    Some(message) => {
                        if matches!(message, ToAgent::Reported { .. }) {
                            resend = Instant::now() + RESEND;
                        }
                        self.hear(message, out, link).await?;
                    }
                    None => return Err(End::Lost("the controller closed the connection".into())),
                },
                () = reports.next(), if self.outbox.has_room() => {
                    if self.outbox.waiting().next().is_none() {
                        resend = Instant::now() + RESEND;
                    }
                    self.tell(out).await?;
                }
                Ok(()) = kept.changed() => {
                    let applied = kept.borrow_and_update().clone();
                    if let Some(applied) = applied {
                        self.applied = Some(applied.clone());
                        out.send(ToController::Applied(self.with_problems(applied)))?;
                    }
                }
                () = key_looks.next() => {
                    self.tend_keys(out).await?;
                    self.tend_identities(out).await?;
                    self.note_places();
                    self.tell_problems(out).await?;
                }
                () = sleep_until(resend), if self.outbox.waiting().next().is_some() => {
                    self.tell_again(out)?;
                    resend = Instant::now() + RESEND;
                }
                changed = reach.changed() => {
                    if changed.is_err() {
                        return Err(End::Stopped);
                    }
                    out.send(ToController::Reachable(self.reachable()))?;
                }
                end = &mut looking => return Err(end),
                Some((link, address, fell)) = finds.recv() => {
                    let words = self.first_words();
                    *better = Some(Box::pin(greet_better(link, address, fell, held.clone(), words)));
                }
                greeted = of(better) => {
                    *better = None;
                    match greeted {
                        Ok(greeted) => return Err(End::Better(Box::new(greeted))),
                        Err(problem) => debug!("no change to a better connection: {problem}"),
                    }
                    self.again.tried();
                    came_to_nothing.notify_one();
                }
                () = stopped(&mut stop) => return Err(End::Stopped),
            }
        }
    }

    /// The hello, as it is now.
    fn first_words(&mut self) -> Words {
        let mut kept = self.keeping.kept.clone();
        if let Some(applied) = kept.borrow_and_update().clone() {
            self.applied = Some(applied);
        }
        let hello = Box::new(self.hello());
        Words { hello, kept, reach: self.reach.clone() }
    }

    fn hello(&mut self) -> Hello {
        Hello {
            versions: VERSIONS,
            organisation: self.enrolment.organisation,
            gateway: self.enrolment.gateway,
            boot: self.boot,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: {
                let relays = self.relays.iter().map(|_| wire::CAPABILITY);
                let ours = [ROTATES, direct::CAPABILITY, rekey::CAPABILITY];
                relays.chain(ours).chain(TELLS).map(str::to_owned).collect()
            },
            authority: self.chain.as_ref().map_or(0, |chain| chain.newest().number),
            applied: self.applied.clone().map(|applied| self.with_problems(applied)),
            reachable: self.reachable(),
            quic: self.quic,
        }
    }

    async fn welcome(&mut self, welcome: &Welcome, link: &Link) -> Result<(), End> {
        if !(VERSIONS.0..=VERSIONS.1).contains(&welcome.version) {
            let version = welcome.version;
            return Err(End::Lost(format!("the controller speaks version {version}, unasked")));
        }
        if let Some(documents) = &welcome.authority {
            self.hear_authority(documents, link).await?;
        }
        self.confirm_time(welcome.time).await?;
        if let Some(problem) = held_ahead(self.clock.now(), welcome.time) {
            self.alarm(&problem);
        }
        self.note_time().await;
        debug!("the controller sees this gateway at {}", welcome.observed);
        Ok(())
    }

    async fn hear_authority(
        &mut self,
        documents: &[Signed<Authority>],
        link: &Link,
    ) -> Result<(), End> {
        if !self.follow(documents).await? {
            return Ok(());
        }
        let keys = self.chain.as_ref().map(|chain| chain.newest().controller_keys());
        match (keys, link.connection().peer_key()) {
            (Some(keys), Some(key)) if keys.contains(&key) => Ok(()),
            _ => Err(End::Lost("this controller isn't one of the organisation's any more".into())),
        }
    }

    /// Follows the chain to a newer document and tells peers of it. Gives whether there is one.
    async fn follow(&mut self, documents: &[Signed<Authority>]) -> Result<bool, PlaneError> {
        let newer = match self.take_authority(documents).await {
            Ok(newer) => newer,
            Err(problem) => {
                self.alarm(&format!("authority documents refused: {problem}"));
                self.status.send_modify(|status| status.last_error = Some(problem));
                return Ok(false);
            }
        };
        let Some(newest) = self.chain.as_ref().map(AuthorityChain::newest).filter(|_| newer) else {
            return Ok(false);
        };
        let (number, root) = (newest.number, newest.root);
        // An operator has signed it, so it counts; but somebody signed more than that operator knows of.
        if let Some(root) = root.filter(|root| root.place() < self.floor.revision) {
            self.alarm(&format!(
                "authority document {number} goes on from revision {}, but this gateway holds revision {}: what was signed between them is lost, revocations too",
                root.number, self.floor.revision.1
            ));
        }
        self.tell_relays();
        // Whoever says that it holds a document has forgotten what relays told that it takes out: peers go by that.
        let heeded = |at: &Option<u64>| at.is_none_or(|heeded| heeded >= number);
        if timeout(HEEDED, self.heeded.wait_for(heeded)).await.is_err() {
            warn!(
                number,
                "the data plane doesn't hear which relays an authority document takes out"
            );
        }
        self.plane.set_authority(number).await?;
        Ok(true)
    }

    /// Takes over a pass for relays, unless it is none, or older than the one that is held.
    fn take_pass(&self, signed: Signed<RelayPass>) {
        let (Some(relays), Some(chain)) = (&self.relays, &self.chain) else { return };
        let identity = self.identities.shown().public();
        let pass = match RelayPass::verify(&signed, chain.newest(), identity) {
            Ok(pass) if pass.gateway == self.enrolment.gateway => pass,
            Ok(_) => return self.alarm("the controller sent another gateway's pass for relays"),
            Err(error) => return self.alarm(&format!("pass for relays refused: {error}")),
        };
        let held = relays.borrow().pass.clone();
        let held = held.and_then(|held| {
            RelayPass::verify(&held, chain.newest(), identity).ok().map(|held| held.number)
        });
        if held.is_some_and(|held| held >= pass.number) {
            return;
        }
        debug!(number = %pass.number, peers = pass.peers.len(), "a pass for relays");
        relays.send_modify(|known| known.pass = Some(signed));
    }

    /// Asks a controller with an unknown key which authority document names it, and follows the chain there. Nothing
    /// is believed but the operators' signatures, so anyone may answer. Gives whether it led to something.
    pub(super) async fn ask_authority(
        &mut self,
        address: SocketAddr,
        key: PublicKey,
    ) -> Result<bool, PlaneError> {
        let question = ToController::AskAuthority {
            organisation: self.enrolment.organisation,
            gateway: self.enrolment.gateway,
        };
        let asking = async {
            let (first, servers) = (self.again.first(), [key]);
            let connecting =
                dial::either(first, address, self.identities.shown(), &servers, Protocol::Control);
            let link = connecting.await.ok()?;
            let (send, receive) = link.connection().open_bi().await.ok()?;
            MessageWriter::new(send).send(&question).await.ok()?;
            let mut reader = MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT);
            let answer = reader.next().await.ok()??;
            link.close("").await;
            Some(answer)
        };
        let Ok(Some(ToAgent::Authority(documents))) = timeout(GREETING, asking).await else {
            return Ok(false);
        };
        self.follow(&documents).await
    }

    async fn hear(&mut self, message: ToAgent, out: &Out, link: &Link) -> Result<(), End> {
        match message {
            ToAgent::View(view) => {
                // One that is taken is acknowledged once it is on disk.
                if let Some(answer) = self.take_view(*view).await? {
                    if let Some(problem) = &answer.refused {
                        self.alarm(problem);
                    }
                    out.send(ToController::Applied(self.with_problems(answer)))?;
                }
                if self.identities.are_new() {
                    return Err(End::Rekeyed);
                }
            }
            ToAgent::Authority(documents) => self.hear_authority(&documents, link).await?,
            ToAgent::Reported { boot, sequence } => {
                self.outbox.stored(boot, sequence);
                self.count_reports();
                self.forget_what_was_left();
            }
            ToAgent::Rotate(rotate) => {
                self.hear_rotate(rotate);
                self.tend_keys(out).await?;
            }
            ToAgent::Rekey(order) => self.hear_rekey(&order, out)?,
            ToAgent::Refused(refusal) => return Err(End::Refused(refusal.into())),
            ToAgent::Reads(what) => self.reads = Reads::of(&what),
            ToAgent::Pass(pass) if self.relays.is_some() => self.take_pass(*pass),
            ToAgent::Welcome(_) | ToAgent::Enrolled { .. } | ToAgent::Pass(_) => {
                return Err(End::Lost("the controller speaks out of turn".into()));
            }
        }
        Ok(())
    }

    async fn tell(&mut self, out: &Out) -> Result<(), End> {
        let report = match self.plane.report().await {
            Ok(report) => report,
            // No traffic, nothing to tell; the controller hears that the gateway is there.
            Err(PlaneError::Closed) => EngineReport::default(),
            Err(error) => return Err(error.into()),
        };
        self.look_for_newer_authority(&report.tunnels);
        for problem in self.classic.look(&report.tunnels, std::time::Instant::now()) {
            self.alarm(&problem);
        }
        let at = self.clock.now();
        let relays = relay::told(&self.relay_status.borrow(), &report.tunnels);
        let reads = self.reads;
        let (hints, away) = self.plane.hints();
        let report = EngineReport { overflow: report.overflow + away, ..report };
        for report in self.outbox.push(report, hints, &relays, at) {
            out.send(reads.fitted(report))?;
        }
        self.count_reports();
        Ok(())
    }

    /// A peer that holds a newer authority document than any controller has given this gateway: it is held back here,
    /// or the peer makes it up.
    fn look_for_newer_authority(&mut self, tunnels: &[TunnelState]) {
        let held = self.chain.as_ref().map_or(0, |chain| chain.newest().number);
        let now = std::time::Instant::now();
        if let Some(problem) = newer_authority(held, tunnels) {
            self.alarm(&problem);
            self.accusations.note(&problem, now);
            return;
        }
        let refuted = self.accusations.refuted(now);
        self.status.send_if_modified(|status| {
            let before = status.alarms.len();
            alarm::withdraw(&mut status.alarms, &refuted);
            status.alarms.len() < before
        });
    }

    fn tell_again(&self, out: &Out) -> Result<(), End> {
        for report in self.outbox.waiting() {
            out.send(self.reads.fitted(report))?;
        }
        Ok(())
    }

    pub(super) fn count_reports(&self) {
        let unstored = self.outbox.waiting().count();
        self.status.send_if_modified(|status| {
            std::mem::replace(&mut status.unstored_reports, unstored) != unstored
        });
    }
}

/// What is wrong where a peer holds a newer authority document than the one that is `held` here.
pub(crate) fn newer_authority(held: u64, tunnels: &[TunnelState]) -> Option<String> {
    let said = tunnels.iter().filter_map(|tunnel| Some((tunnel.authority?, tunnel.gateway)));
    let (number, gateway) = said.max().filter(|(number, _)| *number > held)?;
    Some(format!(
        "{gateway} says that it holds authority document {number}, and this gateway was given {held}: its controller holds newer ones back"
    ))
}
