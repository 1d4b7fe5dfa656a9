//! Gateways' connections: QUIC, or TLS over TCP, with raw public keys, one stream each, one task each. Those that want to be relayed
//! are handed on to [`crate::relay`].

mod accept;
pub mod admission;
mod greeting;
mod session;
mod strangers;
mod telemetry;
mod trials;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_proto::key::PublicKey;
use anteroom_proto::v1::{Refusal, RefusalCode, ToAgent, ToController, frame};
use anteroom_transport::link::Connection;
use anteroom_transport::message::{MessageError, MessageReader, MessageWriter};
use anteroom_transport::tls::Protocol;
use tokio::time::timeout;

use crate::online::CloseCode;
use crate::rate::Rate;
use crate::state::Controller;
pub(crate) use accept::{Doors, Key, Newcomer, accept_all};
use admission::{Admission, Permit};
use greeting::refusal;

/// How long a newcomer has for the handshake and its first message.
pub(crate) const FIRST_MESSAGE: Duration = Duration::from_secs(5);
/// How long a last word may take to arrive.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);

/// Serves gateways.
#[derive(Debug)]
pub struct Agents {
    controller: Arc<Controller>,
    admission: Admission,
    enrolments: Rate,
}

impl Agents {
    /// Serves gateways.
    #[must_use]
    pub(crate) fn new(controller: Arc<Controller>) -> Self {
        let admission = Admission::new(controller.config.limits);
        let enrolments = Rate::new(50, Duration::from_millis(200));
        Self { controller, admission, enrolments }
    }

    /// Serves whoever comes in by `doors` until they are shut, and then until every connection has ended, for a few
    /// seconds at most.
    pub(crate) async fn run(self, doors: Doors) {
        let shared = Arc::new(self);
        let admission = shared.admission.clone();
        let serve = move |connection, mut permit, deadline| {
            let shared = shared.clone();
            async move {
                shared.serve(connection, &mut permit, deadline).await;
                permit
            }
        };
        accept_all(doors, &admission, serve).await;
    }

    async fn serve(
        &self,
        connection: Connection,
        permit: &mut Permit,
        deadline: tokio::time::Instant,
    ) {
        let from = connection.remote_address();
        if connection.protocol() == Some(Protocol::Relay) {
            return self.controller.relay.serve(connection, permit, deadline).await;
        }
        // Such a connection carries none. Those that nobody reads would hold on to memory. It ends with the connection.
        tokio::spawn(refuse_datagrams(connection.clone()));
        let Some(key) = connection.peer_key() else {
            return connection.close(CloseCode::Refused.into(), b"no identity key");
        };
        let first = async {
            let (send, receive) =
                connection.accept_bi().await.map_err(|error| error.to_string())?;
            let mut reader = MessageReader::new(receive, frame::MAX_FIRST);
            let first = reader.next().await;
            Ok::<_, String>((MessageWriter::new(send), reader, first))
        };
        let (writer, mut reader, first) = match tokio::time::timeout_at(deadline, first).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return tracing::debug!(%from, %error, "no first message"),
            Err(_) => {
                tracing::debug!(%from, "the first message took too long");
                return connection
                    .close(CloseCode::Refused.into(), b"say who you are within 5 seconds");
            }
        };
        reader.set_max(frame::MAX_TO_CONTROLLER);
        let peer = Peer { connection, key };
        match self.first_words(&peer, permit, first).await {
            Ok(First::Answer(answer)) => peer.say_last(writer, answer, CloseCode::Done).await,
            Ok(First::Gateway(session)) => {
                let connection = peer.connection.clone();
                tokio::select! {
                    () = session.run(&self.controller, peer, reader, writer) => {}
                    never = permit.follow(&connection, |_| {}) => match never {},
                }
            }
            Err(refusal) => {
                tracing::info!(%from, code = ?refusal.code, message = %refusal.message, "refused");
                peer.say_last(writer, ToAgent::Refused(refusal), CloseCode::Refused).await;
            }
        }
    }

    async fn first_words(
        &self,
        peer: &Peer,
        permit: &mut Permit,
        first: Result<Option<ToController>, MessageError>,
    ) -> Result<First, Refusal> {
        let from = peer.connection.remote_address();
        let malformed = |message: String| refusal(RefusalCode::Protocol, message);
        match first.map_err(|error| malformed(error.to_string()))? {
            Some(ToController::Enrol(enrol)) => {
                if !self.enrolments.allow(from.ip(), Instant::now()) {
                    let message = "too many enrolments from this address; try again in a minute";
                    return Err(refusal(RefusalCode::Busy, message));
                }
                let answer = greeting::enrol(&self.controller, peer.key, &enrol, from).await?;
                Ok(First::Answer(answer))
            }
            Some(ToController::Hello(hello)) => {
                let greeted = greeting::hello(&self.controller, peer.key, &hello, from).await?;
                permit.known();
                Ok(First::Gateway(Box::new(session::Session::new(&hello, greeted))))
            }
            Some(ToController::AskAuthority { organisation, gateway }) => {
                let asked = (organisation, gateway);
                greeting::authority(&self.controller, peer.key, asked).await.map(First::Answer)
            }
            Some(_) => {
                Err(malformed("the first message must be an enrolment or a greeting".into()))
            }
            None => Err(malformed("the stream ended before its first message".into())),
        }
    }
}

/// Ends a connection that sends datagrams where none are taken.
pub(crate) async fn refuse_datagrams(connection: Connection) {
    if connection.read_datagram().await.is_ok() {
        tracing::info!(from = %connection.remote_address(), "it sends datagrams unasked");
        connection.close(CloseCode::Refused.into(), b"no datagrams are taken here");
    }
}

/// Who is at the other end.
struct Peer {
    connection: Connection,
    key: PublicKey,
}

enum First {
    Answer(ToAgent),
    Gateway(Box<session::Session>),
}

impl Peer {
    /// Sends the last message and closes, once it has arrived or a moment has passed.
    async fn say_last(
        &self,
        mut writer: MessageWriter<ToAgent>,
        message: ToAgent,
        code: CloseCode,
    ) {
        let said = async {
            if writer.send(&message).await.is_ok() {
                writer.finish().await;
            }
        };
        let _ = timeout(LAST_WORD, said).await;
        self.connection.close(code.into(), b"");
    }
}
