//! First words: the hello, and the controller's welcome.

use std::net::SocketAddr;
use std::pin::Pin;

use anteroom_proto::v1::frame::MAX_TO_AGENT;
use anteroom_proto::v1::{Applied, Hello, ToAgent, ToController, Welcome};
use anteroom_transport::endpoint::Link;
use anteroom_transport::link::{Closed, Connection};
use anteroom_transport::message::{MessageReader, MessageWriter};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Reach;
use super::session::{End, GREETING, Out};
use crate::silence::{self, Silence};
use crate::text::plain;

/// What is wrong with a controller that doesn't answer.
pub(super) const SAYS_NOTHING: &str = "the controller says nothing";

/// A connection over which the controller has said welcome.
pub(super) struct Greeted {
    pub(super) link: Link,
    pub(super) address: SocketAddr,
    pub(super) welcomed: Welcomed,
    pub(super) words: Words,
    /// Where it is over TCP in the place of a silent one over QUIC: whether TCP got through at once.
    pub(super) fell: Option<bool>,
}

/// What is read from and written to, and the welcome.
pub(super) struct Welcomed {
    pub(super) reader: MessageReader<ToAgent>,
    pub(super) out: Out,
    pub(super) welcome: Box<Welcome>,
}

/// What the hello said, and what tells when there is more to say.
pub(super) struct Words {
    pub(super) hello: Box<Hello>,
    /// Of what was acknowledged.
    pub(super) kept: watch::Receiver<Option<Applied>>,
    /// Of addresses and ports.
    pub(super) reach: watch::Receiver<Reach>,
}

/// A better connection that is being greeted.
pub(super) type Greeting = Pin<Box<dyn Future<Output = Result<Greeted, String>> + Send>>;

/// Says hello over `link`, and waits until the controller says welcome.
pub(super) async fn greet(link: &Link, hello: &Hello) -> Result<Welcomed, End> {
    let greeted = async {
        let lost = |error: Closed| {
            End::Lost(format!("the connection ended: {}", plain(&error.to_string())))
        };
        let (send, receive) = link.connection().open_bi().await.map_err(lost)?;
        let mut reader = MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT);
        let out = Out::new(MessageWriter::new(send));
        out.send(ToController::Hello(Box::new(hello.clone())))?;
        let welcome = greeting(reader.next().await?)?;
        Ok(Welcomed { reader, out, welcome })
    };
    timeout(GREETING, greeted).await.unwrap_or(Err(End::Silent))
}

/// The same over one that is to take the place of `held`: of a silent one for as long as that is silent, and `fell` says whether
/// TCP got through at once.
pub(super) async fn greet_better(
    link: Link,
    address: SocketAddr,
    fell: Option<(bool, Silence)>,
    held: Connection,
    words: Words,
) -> Result<Greeted, String> {
    let greeting = greet(&link, &words.hello);
    let (fell, greeted) = match fell {
        None => (None, greeting.await),
        Some((at_once, silence)) => {
            let greeted = silence.unless_it_ends(&held, greeting).await;
            (Some(at_once), greeted.unwrap_or_else(|| Err(End::Lost(silence::ENDED.into()))))
        }
    };
    match greeted {
        Ok(welcomed) => Ok(Greeted { link, address, welcomed, words, fell }),
        Err(end) => {
            link.close("").await;
            Err(match end {
                End::Lost(problem) => problem,
                End::Refused(refused) => refused.to_string(),
                _ => SAYS_NOTHING.into(),
            })
        }
    }
}

/// What becomes of it, where there is one.
pub(super) async fn of(greeting: &mut Option<Greeting>) -> Result<Greeted, String> {
    match greeting {
        Some(greeting) => greeting.await,
        None => std::future::pending().await,
    }
}

fn greeting(message: Option<ToAgent>) -> Result<Box<Welcome>, End> {
    match message {
        Some(ToAgent::Welcome(welcome)) => Ok(welcome),
        Some(ToAgent::Refused(refusal)) => Err(End::Refused(refusal.into())),
        Some(_) => Err(End::Lost("the controller speaks before it says welcome".into())),
        None => Err(End::Lost("the controller closed the connection".into())),
    }
}
