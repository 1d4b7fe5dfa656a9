//! The connection to one relay: made, kept, made again.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anteroom_agent_core::target::RelayId;
use anteroom_proto::authority::Authority;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::relay::{
    FromRelay, Hello, MAX_FROM_RELAY, MAX_TO_RELAY, Refusal, RefusalCode, ToRelay, VERSIONS,
};
use anteroom_transport::egress;
use anteroom_transport::endpoint::Link as Connected;
use anteroom_transport::link::{Closed, StreamError};
use anteroom_transport::message::{MessageError, MessageReader, MessageWriter};
use anteroom_transport::tls::Protocol;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::carried::{BARRIER, Change, InHand, Shared, bring_packets, take_packets};
use super::table::Table;
use super::{Known, Place, Who};
use crate::again::Again;
use crate::control::Backoff;
use crate::dataplane::relayed::{Inlet, Outgoing};
use crate::looks::Looks;
use crate::seek::Search;
use crate::silence;
use crate::text::plain;

/// How long what is under way to this end may take to arrive once a better connection is taken.
const DRAIN: Duration = Duration::from_secs(2);
/// How long packets wait for a connection in the place of a silent one to be greeted.
const HELD: Duration = Duration::from_secs(2);
/// How long the relay may take to say welcome.
const GREETING: Duration = Duration::from_secs(10);
/// How often round trip and room are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Authority documents in one message, and their bytes: it has some of its own.
const DOCUMENTS: usize = 16;
const DOCUMENT_BYTES: usize = MAX_TO_RELAY - 4 * 1024;

/// One relay to stay connected to.
pub(super) struct Link {
    pub(super) id: RelayId,
    pub(super) place: Place,
    pub(super) who: Who,
    pub(super) known: watch::Receiver<Known>,
    pub(super) table: Arc<Table>,
    /// QUIC or TCP.
    pub(super) again: Again,
    /// Where it was reached last.
    pub(super) last: Option<SocketAddr>,
    /// Tells where the network may be another one.
    pub(super) moves: watch::Receiver<u64>,
}

/// Why a connection is left.
pub(super) enum Problem {
    /// It has ended, and knows why; or else its stream does.
    Ended(Option<String>),
    /// It is there, and nothing is heard.
    Silent,
    /// What was said, or is missing.
    Said(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ended(_) => "the connection ended",
            Self::Silent => "the relay says nothing",
            Self::Said(problem) => problem,
        })
    }
}

impl From<MessageError> for Problem {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Gone(error) => error.into(),
            error => Self::Said(plain(&error.to_string())),
        }
    }
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        Self::Ended(Some(plain(&error.to_string())))
    }
}

/// A connection that was greeted.
struct Greeting {
    /// The pass that the relay has seen.
    shown: Signed<RelayPass>,
    /// Number of the authority document that it was told of.
    told: u64,
    reader: MessageReader<FromRelay>,
    writer: MessageWriter<ToRelay>,
}

/// How a connection is made anew in the place of one that is well.
struct Anew {
    /// For which size of what the interface takes one was had.
    tried: Option<u16>,
    /// Until when there is none, since the relay said no to the last.
    rest: Instant,
    backoff: Backoff,
}

/// A connection that was greeted and takes another's place.
struct Better {
    link: Connected,
    identity: IdentityKey,
    greeting: Greeting,
    /// Where it is over TCP in the place of a silent one over QUIC: whether TCP got through at once.
    fell: Option<bool>,
}

impl Link {
    /// Stays connected for as long as it is polled.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut last = String::new();
        loop {
            // Without a pass no relay takes anybody in.
            let identity = self.who.key().public();
            let known = self.known.wait_for(|known| known.pass_for(identity).is_some());
            tokio::select! {
                known = known => if known.is_err() { return },
                () = another(&mut self.who.identity) => continue,
            }
            let mut greeted = false;
            let problem = self.session(&mut greeted).await;
            let problem = plain(&problem);
            if greeted {
                backoff.reset();
            }
            self.table.lost(self.id, &problem).await;
            // The log has it once, and again when it changes.
            if last == problem {
                debug!("relay {}: {problem}", self.name());
            } else {
                warn!("relay {}: {problem}; trying again", self.name());
                last = problem;
            }
            // Without random bytes gateways come back in step, which is no reason not to come back.
            let wait = backoff.next(getrandom::u32().unwrap_or_default());
            tokio::select! {
                () = sleep(wait) => {}
                changed = self.known.changed() => if changed.is_err() { return },
            }
        }
    }

    fn name(&self) -> String {
        self.place.addresses.first().map_or_else(|| self.id.0.to_string(), Clone::clone)
    }

    /// Connects, and says how that ended.
    async fn session(&mut self, greeted: &mut bool) -> String {
        if self.moves.has_changed().is_ok_and(|changed| changed) {
            self.moves.mark_unchanged();
            self.again.moved();
        }
        let mut identity = self.who.key();
        let mut link = match self.dial(&identity).await {
            Ok(link) => link,
            Err(problem) => return problem,
        };
        let mut greeting = match self.greet(&link, identity.public()).await {
            Ok(greeting) => greeting,
            Err(problem) => return self.over(link, problem, None).await,
        };
        *greeted = true;
        self.last = Some(link.connection().remote_address());
        let mut since = Instant::now();
        let carrier = link.connection().carrier();
        self.again.greeted(carrier);
        info!("connected to the relay at {} over {carrier}", self.name());
        let Some((mut outgoing, inlet)) = self.table.opened(self.id, carrier).await else {
            let problem = Problem::Said("the data plane has stopped".into());
            return self.over(link, problem, Some(since)).await;
        };
        let mut hand = InHand::default();
        loop {
            let (public, told) = (identity.public(), greeting.told);
            let shared = Arc::new(Shared::new(link.connection().clone(), public, told));
            let mut again = self.again;
            let packets = (&mut outgoing, &mut hand);
            let carried = self.carry(&shared, greeting, &mut again, packets, &inlet).await;
            self.again = again;
            let (better, fell);
            (better, identity, greeting, fell) = match carried {
                Ok(Better { link, identity, greeting, fell }) => (link, identity, greeting, fell),
                Err(problem) => return self.over(link, problem, Some(since)).await,
            };
            // What is still to be sent by a silent one never is.
            hand.renew(if fell.is_some() { shared.unsent() } else { 0 });
            if let Some(at_once) = fell {
                self.again.fell(since.elapsed(), at_once);
                self.table.silent(self.id);
            }
            since = Instant::now();
            // What comes by the connection so far is taken until the relay closes it for the newer one.
            let before = std::mem::replace(&mut link, better);
            let (id, inlet) = (self.id, inlet.clone());
            tokio::spawn(async move {
                let _ = timeout(DRAIN, bring_packets(&shared, id, &inlet)).await;
                before.close("").await;
            });
            let carrier = link.connection().carrier();
            self.again.greeted(carrier);
            self.table.carried(self.id, carrier);
            info!("connected to the relay at {} over {carrier} again", self.name());
        }
    }

    /// Leaves a connection that was greeted at a time, if it was, and says why.
    async fn over(&mut self, link: Connected, problem: Problem, since: Option<Instant>) -> String {
        let (reason, carrier) = (link.connection().close_reason(), link.connection().carrier());
        let silent = match problem {
            Problem::Ended(_) => reason.as_ref().is_some_and(Closed::is_silence),
            Problem::Silent => true,
            Problem::Said(_) => false,
        };
        self.again.ended(carrier, since.map(|since| since.elapsed()), silent);
        link.close("").await;
        match (problem, reason) {
            (Problem::Ended(_), Some(reason)) => format!("the connection ended: {reason}"),
            (Problem::Ended(Some(why)), None) => format!("the relay ended its stream: {why}"),
            (Problem::Ended(None), None) => "the relay ended its stream: no word why".into(),
            (problem, _) => problem.to_string(),
        }
    }

    /// Connects to the first of its addresses that answers, the one before ahead of the others.
    async fn dial(&self, identity: &IdentityKey) -> Result<Connected, String> {
        let search = Search {
            identity: identity.clone(),
            keys: vec![self.place.key],
            protocol: Protocol::Relay,
            first: self.again.first(),
        };
        let failed = match search.among(&self.place.addresses, self.last).await {
            Ok((link, _)) => return Ok(link),
            Err(failed) => failed,
        };
        if failed.is_empty() {
            return Err("no address is known".into());
        }
        let texts: Vec<String> = failed.into_iter().map(|failed| failed.text).collect();
        Err(texts.join("; "))
    }

    /// Says hello until the relay says welcome, or gives what is in the way.
    async fn greet(&self, link: &Connected, identity: PublicKey) -> Result<Greeting, Problem> {
        let known = self.known.borrow().clone();
        let pass = known.pass_for(identity).cloned();
        let (Some(chain), Some(pass)) = (known.chain, pass) else {
            return Err(Problem::Said("there is no pass for relays yet".into()));
        };
        let told = chain.newest().number;
        let hello = Hello {
            versions: VERSIONS,
            organisation: self.who.organisation,
            authority: told,
            pass: Box::new(pass.clone()),
        };
        let documents = chain.to_signed();
        let greeting = async {
            // A relay may take the connection and grant no stream, or no room in it.
            let opened = link.connection().open_bi().await;
            let (send, receive) =
                opened.map_err(|closed| Problem::Ended(Some(plain(&closed.to_string()))))?;
            let mut reader = MessageReader::<FromRelay>::new(receive, MAX_FROM_RELAY);
            let mut writer = MessageWriter::<ToRelay>::new(send);
            writer.send(&ToRelay::Hello(Box::new(hello))).await?;
            let welcome = loop {
                match reader.next().await?.ok_or(Problem::Ended(None))? {
                    FromRelay::AuthorityWanted { after } => {
                        let after = usize::try_from(after).unwrap_or(usize::MAX);
                        let missing = documents.get(after..).unwrap_or_default();
                        let missing = as_many_as_fit(missing).to_vec();
                        writer.send(&ToRelay::Authority(missing)).await?;
                    }
                    FromRelay::Welcome(welcome) => break welcome,
                    FromRelay::Refused(refusal) => return Err(Problem::Said(refused(&refusal))),
                    _ => {
                        let problem = "the relay speaks before it says welcome";
                        return Err(Problem::Said(problem.into()));
                    }
                }
            };
            Ok((welcome, reader, writer))
        };
        let greeted = timeout(GREETING, greeting).await;
        let (welcome, reader, writer) = greeted.unwrap_or(Err(Problem::Silent))?;
        if !(VERSIONS.0..=VERSIONS.1).contains(&welcome.version) {
            let problem = format!("the relay speaks version {}, unasked", welcome.version);
            return Err(Problem::Said(problem));
        }
        Ok(Greeting { shown: pass, told, reader, writer })
    }

    /// Carries packets until the connection ends, or the relay has taken a better one in its place.
    async fn carry(
        &self,
        shared: &Shared,
        greeting: Greeting,
        again: &mut Again,
        (outgoing, hand): (&mut Outgoing, &mut InHand),
        inlet: &Inlet,
    ) -> Result<Better, Problem> {
        let id = self.id;
        let changed = self.change(shared, again);
        self.table.asks(id, shared.connection.remote_address()).await;
        let ended = async {
            let problem = tokio::select! {
                Err(problem) = self.messages(shared, greeting) => problem,
                () = take_packets(shared, outgoing, hand) => Problem::Ended(None),
                () = bring_packets(shared, id, inlet) => Problem::Ended(None),
            };
            // A relay that takes the better one ends this one before its welcome is here.
            shared.reach(|change| change == Change::None).await;
            problem
        };
        tokio::select! {
            biased;
            changed = changed => Ok(changed),
            problem = ended => Err(problem),
        }
    }

    /// A connection by the identity key that this gateway has, once it has another one and a pass for that; one that tells the relay of an
    /// authority document that this one's hello didn't name; one that has met as many peers as a connection may, so that the relay takes no
    /// newer pass by it; or one that begins with short packets, and knows nothing yet of its way's round
    /// trip and width, once this one's have become too long for the interface by which they leave.
    async fn renewed(&self, shared: &Shared, anew: &mut Anew) -> (Connected, IdentityKey) {
        let (mut who, mut known) = (self.who.identity.clone(), self.known.clone());
        let (mut mtu, mut worn) = (self.who.mtu.clone(), shared.worn.subscribe());
        loop {
            let is_worn = *worn.borrow_and_update();
            let key = who.borrow_and_update().clone();
            let (passed, outdated) = {
                let known = known.borrow_and_update();
                let outdated = known.outdates(shared.told, self.place.key, key.public());
                (known.pass_for(key.public()).is_some(), outdated)
            };
            let takes = *mtu.borrow_and_update();
            if anew.tried != takes {
                anew.tried = None;
            }
            let too_long = |mtu| shared.connection.is_too_long_for(mtu);
            let too_long = anew.tried.is_none() && takes.is_some_and(too_long);
            if passed && (key.public() != shared.identity || outdated || too_long || is_worn) {
                sleep_until(anew.rest).await;
                match self.dial(&key).await {
                    Ok(link) => {
                        anew.tried = takes;
                        return (link, key);
                    }
                    Err(problem) => {
                        debug!("relay {}: no new connection: {problem}", self.name());
                        sleep(LOOK).await;
                        continue;
                    }
                }
            }
            let changed = tokio::select! {
                changed = who.changed() => changed,
                changed = known.changed() => changed,
                changed = mtu.changed() => changed,
                changed = worn.changed() => changed,
            };
            if changed.is_err() {
                // Whoever would say so is gone, and ends this, too.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A connection that the relay has greeted in place of this one, as soon as one can be had: over QUIC where this one is
    /// over TCP, over TCP where this one is over QUIC and nothing gets through it, and anew where this gateway has got another identity key
    /// or a newer authority document, or another uplink takes shorter packets only. Where it isn't greeted, packets go on as before.
    async fn change(&self, shared: &Shared, again: &mut Again) -> Better {
        let mut tries = *again;
        let mut pace = silence::Pace::default();
        let moves = tokio::sync::Mutex::new(egress::moves());
        let mut anew = Anew { tried: None, rest: Instant::now(), backoff: Backoff::default() };
        loop {
            let moved = || async {
                // Whoever says so is there for as long as the process is.
                let _ = moves.lock().await.changed().await;
            };
            let (key, protocol) = (self.who.key(), Protocol::Relay);
            let tell = |word| self.table.heard(self.id, word);
            let held = &shared.connection;
            let (better, key, fell, silence) = tokio::select! {
                (better, key) = self.renewed(shared, &mut anew) => (better, key, None, None),
                (better, _) = tries.quic(held, &key, protocol, moved) => (better, key.clone(), None, None),
                fallen = silence::over_tcp(held, &key, protocol, &mut pace, tell) => {
                    (fallen.link, key.clone(), Some(fallen.at_once), Some((fallen.silence, fallen.owing)))
                }
            };
            // Nothing that is sent by a silent one arrives: packets wait for the other from now on.
            let (first, patience) = match fell {
                None => (Change::Asked, BARRIER),
                Some(_) => (Change::Ready, HELD),
            };
            shared.change.send_replace(first);
            let _ = timeout(2 * BARRIER, shared.reach(|change| change == Change::Ready)).await;
            let greeting = async {
                let mut greeting = pin!(self.greet(&better, key.public()));
                match timeout(patience, &mut greeting).await {
                    Ok(greeted) => greeted,
                    Err(_) => {
                        shared.change.send_replace(Change::Slow);
                        greeting.await
                    }
                }
            };
            let greeted = match silence {
                None => greeting.await,
                // It owes answers until it is seen what becomes of the other.
                Some((silence, _owing)) => {
                    let greeted = silence.unless_it_ends(held, greeting).await;
                    greeted.unwrap_or(Err(Problem::Said(silence::ENDED.into())))
                }
            };
            if fell.is_none() {
                again.tried();
            }
            match greeted {
                Ok(greeting) => return Better { link: better, identity: key, greeting, fell },
                Err(problem) => {
                    shared.change.send_replace(Change::None);
                    let problem = plain(&problem.to_string());
                    debug!("relay {}: no change to a better connection: {problem}", self.name());
                    let wait = anew.backoff.next(getrandom::u32().unwrap_or_default());
                    anew.rest = Instant::now() + wait;
                    better.close("").await;
                }
            }
        }
    }

    async fn messages(
        &self,
        shared: &Shared,
        Greeting { mut shown, mut reader, mut writer, .. }: Greeting,
    ) -> Result<Infallible, Problem> {
        let mut look = Looks::every(LOOK);
        let begun = Instant::now();
        let mut known = self.known.clone();
        let mut named = names(&shown);
        loop {
            tokio::select! {
                message = reader.next() => match message?.ok_or(Problem::Ended(None))? {
                    FromRelay::Peers(states) => {
                        shared.hear(states, |gateway| named.contains(gateway));
                    }
                    FromRelay::PassTaken(number) => {
                        debug!(%number, "the relay took the pass");
                        self.table.right(self.id);
                    }
                    FromRelay::PassRefused(refusal) => {
                        let problem = refused(&refusal);
                        warn!("relay {}: the newer pass: {problem}", self.name());
                        self.table.problem(self.id, problem);
                        if refusal.code == RefusalCode::Busy {
                            shared.worn.send_replace(true);
                        }
                        continue;
                    }
                    FromRelay::Refused(refusal) => return Err(Problem::Said(refused(&refusal))),
                    FromRelay::AuthorityWanted { .. } | FromRelay::Welcome(_) => {
                        return Err(Problem::Said("the relay speaks out of turn".into()));
                    }
                },
                changed = known.changed() => {
                    changed.map_err(|_| Problem::Said("this gateway ends".into()))?;
                    let pass = known.borrow_and_update().pass_for(shared.identity).cloned();
                    if let Some(pass) = pass.filter(|pass| *pass != shown) {
                        shown = pass.clone();
                        named = names(&shown);
                        writer.send(&ToRelay::Pass(Box::new(pass))).await?;
                    }
                    continue;
                }
                () = look.next() => {}
            }
            // What was known by an earlier connection stands until this one has said something.
            if shared.peers().numbers.is_empty() && begun.elapsed() < LOOK {
                continue;
            }
            let rooms = shared.peers().rooms(shared.room());
            let dropped =
                shared.dropped.load(Ordering::Relaxed) + shared.connection.lost().in_all();
            self.table.found(self.id, rooms, shared.connection.rtt(), dropped);
        }
    }
}

/// Whom a pass names. It was checked when it was taken.
fn names(pass: &Signed<RelayPass>) -> HashSet<GatewayId> {
    let pass = pass.verify_self_named();
    pass.map(|pass| pass.peers.iter().copied().collect()).unwrap_or_default()
}

/// The documents that go into one message: the first in any case.
fn as_many_as_fit(documents: &[Signed<Authority>]) -> &[Signed<Authority>] {
    let mut bytes = 0;
    let fits = documents.iter().take(DOCUMENTS).take_while(|document| {
        bytes += document.as_bytes().len();
        bytes <= DOCUMENT_BYTES
    });
    let fits = fits.count().max(1);
    documents.get(..fits).unwrap_or(documents)
}

fn refused(refusal: &Refusal) -> String {
    let what = match refusal.code {
        RefusalCode::Replaced => "another connection of this gateway took its place",
        _ => "refused",
    };
    format!("{what} ({:?}): {}", refusal.code, plain(&refusal.message))
}

/// Waits for another identity key: for ever, where nobody is left who would have one.
async fn another(identity: &mut watch::Receiver<IdentityKey>) {
    if identity.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_fill_a_message_and_no_more() {
        let document = |len| Signed::<Authority>::from_bytes(vec![0; len]);
        let many = |count, len| vec![document(len); count];
        assert_eq!(as_many_as_fit(&many(40, 100)).len(), DOCUMENTS);
        assert_eq!(as_many_as_fit(&many(40, 65_000)).len(), 8);
        assert_eq!(as_many_as_fit(&many(3, MAX_TO_RELAY)).len(), 1);
        assert!(as_many_as_fit(&[]).is_empty());
    }
}
