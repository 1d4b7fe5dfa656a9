//! Whether a connection over QUIC still gets anything through, and one over TCP in its place where it doesn't.
//!
//! QUIC itself gives a connection up after ten seconds without a word. Long before that, questions without an answer
//! tell: TCP is tried beside QUIC, which stays as it is until TCP is there. Whichever speaks first then has it.

mod pace;
mod watch;

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use anteroom_proto::key::IdentityKey;
use anteroom_transport::endpoint::TransportError;
use anteroom_transport::link::{Carrier, Connection, Link};
use anteroom_transport::tls::Protocol;
use anteroom_transport::{dial, egress};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::looks;
pub(crate) use pace::Pace;
use watch::{IDLE, State, Watch};

/// How long the first tries of TCP may take, or as many round trips: what comes back answers at once, and a connection's own second
/// question would be late.
const TRY: (Duration, u32) = (Duration::from_secs(2), 6);
/// How long a connection over TCP is kept that came when QUIC answered again, and how long QUIC must have been fine before it
/// is said to owe nothing any more.
const KEPT: Duration = Duration::from_secs(3);
const STEADY: Duration = Duration::from_secs(2);
/// How soon TCP has to be there for its way to have been open all the time.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long a greeting over TCP may still take once QUIC answers again, or as many round trips. Whoever took it has closed QUIC
/// by then.
const GRACE: (Duration, u32) = (Duration::from_millis(500), 3);

/// Why a connection over TCP isn't needed any more.
pub(crate) const ENDED: &str = "QUIC gets through again";

/// What is told of a connection's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// Answers begin to be missing.
    Owes,
    /// They come again, or nobody looks any more.
    OwesNothing,
    /// One came that was waited for.
    Answered,
    /// More than one look found none since then. It is told with each further one.
    Waits(Instant),
}

/// Tells of answers that are missing, and that they are no more, also when it goes: nobody would say so later.
pub(crate) struct Owing<T: Fn(Word)> {
    tell: T,
    owes: bool,
}

impl<T: Fn(Word)> Owing<T> {
    fn set(&mut self, owes: bool) {
        if std::mem::replace(&mut self.owes, owes) != owes {
            (self.tell)(if owes { Word::Owes } else { Word::OwesNothing });
        }
    }
}

impl<T: Fn(Word)> Drop for Owing<T> {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A connection over TCP that may take the place of one over QUIC.
pub(crate) struct Fallen<T: Fn(Word)> {
    pub(crate) link: Link,
    pub(crate) address: SocketAddr,
    /// Whether TCP got through as soon as it was tried, so that the network wasn't gone.
    pub(crate) at_once: bool,
    /// Whether the one over QUIC still is.
    pub(crate) silence: Silence,
    /// As long as it is held the one over QUIC is said to owe answers.
    pub(crate) owing: Owing<T>,
}

/// A connection over QUIC that nothing gets through, looked at on while the one over TCP is greeted.
#[derive(Debug)]
pub(crate) struct Silence(Watch);

impl Silence {
    /// What `greeting` over TCP comes to. None where `held` answers again, and that doesn't come to anything a moment later either:
    /// then all is better left as it is.
    pub(crate) async fn unless_it_ends<G: Future>(
        mut self,
        held: &Connection,
        greeting: G,
    ) -> Option<G::Output> {
        let mut greeting = pin!(greeting);
        loop {
            tokio::select! {
                biased;
                greeted = &mut greeting => return Some(greeted),
                () = self.answered(held) => {}
            }
            let (least, trips) = GRACE;
            if let Ok(greeted) = timeout(least.max(held.rtt() * trips), &mut greeting).await {
                return Some(greeted);
            }
            if held.close_reason().is_some() {
                return Some(greeting.await);
            }
            if self.look(held) == State::Fine {
                return None;
            }
        }
    }

    async fn answered(&mut self, held: &Connection) {
        while self.look(held) != State::Fine {
            sleep(self.0.pause()).await;
        }
    }

    fn look(&mut self, held: &Connection) -> State {
        let now = Instant::now();
        let state = look(held, &mut self.0, now);
        ask_if_due(held, &mut self.0, now);
        state
    }
}

/// A connection over TCP, once it is there.
struct Made {
    link: Link,
    at: Instant,
    at_once: bool,
}

type Dialing<'a> = Pin<Box<dyn Future<Output = Result<Link, TransportError>> + Send + 'a>>;

/// How it stands with `held`. One that was given up for its silence asks nothing more.
fn look(held: &Connection, watch: &mut Watch, now: Instant) -> State {
    let state = watch.look(held.traffic(), held.rtt(), now);
    if held.close_reason().is_some_and(|why| why.is_silence()) { State::Silent } else { state }
}

fn ask_if_due(held: &Connection, watch: &mut Watch, now: Instant) {
    if watch.is_due(now) {
        held.ask();
        watch.note_asked(now);
    }
}

/// A connection over TCP to where `held` leads over QUIC, once nothing gets through that and TCP does. Never, where `held` is over
/// TCP already. `tell` is told when answers begin to be missing, and when they come again. `pace` is for all that is done of
/// this kind for one connection.
pub(crate) async fn over_tcp<T: Fn(Word)>(
    held: &Connection,
    identity: &IdentityKey,
    protocol: Protocol,
    pace: &mut Pace,
    tell: T,
) -> Fallen<T> {
    let (Carrier::Quic, Some(key)) = (held.carrier(), held.peer_key()) else {
        return std::future::pending().await;
    };
    let (address, keys) = (held.remote_address(), [key]);
    let mut owing = Owing { tell, owes: false };
    let mut watch = Watch::new(held.traffic());
    let (mut doubts, mut state) = (egress::doubts(), State::Fine);
    let mut dialing: Option<Dialing<'_>> = None;
    let mut made: Option<Made> = None;
    // When TCP was first tried in this doubt, and how often it has failed since.
    let (mut tried, mut failures) = (None::<Instant>, 0_u32);
    loop {
        tokio::select! {
            () = next_look(&watch) => {}
            changed = doubts.changed(), if state == State::Fine => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                // What was answered before this question says nothing of it.
                let now = Instant::now();
                watch.look(held.traffic(), held.rtt(), now);
                held.ask();
                watch.note_asked(now);
            }
            dialed = of(&mut dialing) => {
                dialing = None;
                let at = Instant::now();
                match dialed {
                    Ok(link) => {
                        let at_once = tried.is_some_and(|tried| at - tried <= AT_ONCE + held.rtt() * 3);
                        made = Some(Made { link, at, at_once: at_once && failures == 0 });
                    }
                    Err(error) => {
                        debug!("QUIC is silent, and TCP doesn't get through either: {error}");
                        failures += 1;
                        pace.note_failed(at);
                    }
                }
            }
        }
        let now = Instant::now();
        let before = std::mem::replace(&mut state, look(held, &mut watch, now));
        let doubtful = state >= State::Doubtful;
        let fine = pace.note(!doubtful, now);
        if doubtful {
            owing.set(true);
        } else if fine >= STEADY {
            owing.set(false);
        }
        if let Some(since) = watch.waits(held.rtt(), now) {
            (owing.tell)(Word::Waits(since));
        }
        if before != State::Fine && state == State::Fine {
            (owing.tell)(Word::Answered);
            // What others doubted meanwhile is answered, too.
            doubts.mark_unchanged();
        }
        let useless = |made: &mut Made| {
            made.link.connection().close_reason().is_some() || (!doubtful && now - made.at >= KEPT)
        };
        if let Some(made) = made.take_if(useless) {
            tokio::spawn(made.link.close(""));
        }
        if !doubtful {
            (dialing, tried, failures) = (None, None, 0);
        } else if dialing.is_none() && made.is_none() && pace.may_try(now) {
            pace.note_try(identity.public(), now);
            tried.get_or_insert(now);
            let patience = if failures < 2 { TRY.0.max(held.rtt() * TRY.1) } else { dial::ANSWER };
            dialing = Some(Box::pin(async move {
                let tcp = dial::over(Carrier::Tcp, address, identity, &keys, protocol);
                let silent = || Err(TransportError::Silent { address, carrier: Carrier::Tcp });
                timeout(patience, tcp).await.unwrap_or_else(|_| silent())
            }));
        }
        ask_if_due(held, &mut watch, now);
        if state == State::Silent
            && let Some(Made { link, at_once, .. }) = made.take()
        {
            return Fallen { link, address, at_once, silence: Silence(watch), owing };
        }
    }
}

/// Waits until the next look is due. One at a connection that nothing is missing from and nothing much goes by comes with others'.
async fn next_look(watch: &Watch) {
    match watch.pause() {
        IDLE => looks::pause(IDLE).await,
        soon => sleep(soon).await,
    }
}

/// What becomes of it, where there is one.
async fn of(dialing: &mut Option<Dialing<'_>>) -> Result<Link, TransportError> {
    match dialing {
        Some(dialing) => dialing.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
