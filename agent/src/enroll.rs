//! `enroll`: turns a machine with an invite into a gateway.
//!
//! Keys come first and are kept, so that repeating it after a broken connection says the same to the controller.

use std::time::Duration;

use anteroom_proto::authority::{AuthorityChain, AuthorityError};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, OrganisationId};
use anteroom_proto::invite::{IdentityClaim, InviteCode, InviteCodeError};
use anteroom_proto::key::{Fingerprint, IdentityKey};
use anteroom_proto::v1::frame::MAX_TO_AGENT;
use anteroom_proto::v1::{Enrol, RefusalCode, ToAgent, ToController};
use anteroom_transport::endpoint::Link;
use anteroom_transport::link::Carrier;
use anteroom_transport::message::{MessageError, MessageReader, MessageWriter};
use tokio::time::timeout;

use crate::control::dial::{Candidates, DialError, dial};
use crate::state::{Enrolment, StateDir, StateError};
use crate::text::plain;

#[cfg(test)]
mod tests;

/// How long the controller may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Why this machine isn't enrolled. What it held before is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Not an invite, or not all of one.
    #[error("{0}")]
    Invite(#[from] InviteCodeError),
    /// The state directory or a file in it.
    #[error("{0}")]
    State(#[from] StateError),
    /// This machine is a gateway already.
    #[error(
        "this machine is already enrolled, as {gateway} of {organisation}, and this invite is another one. To make it another gateway, stop the agent and move {state} away first"
    )]
    Already {
        /// Which gateway it is.
        gateway: GatewayId,
        /// Whose.
        organisation: OrganisationId,
        /// The state directory.
        state: String,
    },
    /// Nobody answers.
    #[error(
        "{0}. Check cable, addresses and firewalls (UDP, or TCP at the same port), then repeat the command: the invite stays good"
    )]
    Unreachable(String),
    /// Somebody else answers.
    #[error("{0}. Nothing was sent; ask whoever made the invite for the controller's fingerprint")]
    WrongController(String),
    /// The connection broke.
    #[error(
        "the controller at {address} didn't finish: {problem}. Repeat the command: the invite stays good"
    )]
    Broken {
        /// Where.
        address: String,
        /// What happened.
        problem: String,
    },
    /// The invite was used by a gateway with another key.
    #[error(
        "another gateway has used this invite ({message}). If that wasn't you, tell your operators: they can see it under `anteroom gateway pending`. Ask for a new invite with `anteroom gateway invite`"
    )]
    Used {
        /// The controller's words.
        message: String,
    },
    /// The invite is unknown or has lapsed.
    #[error(
        "the controller doesn't take this invite: {message}. Ask for a new one with `anteroom gateway invite`"
    )]
    Refused {
        /// The controller's words.
        message: String,
    },
    /// The controller refuses for another reason.
    #[error("the controller refuses: {message}")]
    Other {
        /// The controller's words.
        message: String,
    },
    /// What the controller sent isn't the organisation that the invite names.
    #[error("the controller's authority documents don't fit the invite: {0}. Nothing was stored")]
    Authority(#[from] AuthorityError),
}

/// A machine that is enrolled now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// Which gateway it is.
    pub gateway: GatewayId,
    /// Whose.
    pub organisation: OrganisationId,
    /// What the operator compares when they approve it.
    pub fingerprint: Fingerprint,
}

/// Enrols this machine with `code`.
///
/// # Errors
/// [`EnrolError`]. The command can be repeated after any of them.
pub async fn enrol(state: &StateDir, code: &str) -> Result<Enrolled, EnrolError> {
    let code: InviteCode = code.parse()?;
    let _lock = state.lock_enrolment()?;
    // A damaged record is replaced: the invite says the same again.
    let held = match state.enrolment() {
        Err(StateError::Damaged { .. }) => None,
        held => held?,
    };
    if let Some(held) = held.filter(|held| held.invite != code.invite) {
        return Err(EnrolError::Already {
            gateway: held.gateway,
            organisation: held.organisation,
            state: state.path().display().to_string(),
        });
    }
    let identity = state.identity_or_new()?;
    let keys = state.tunnel_keys()?;
    if keys.is_empty() {
        state.new_tunnel_key(&keys, 0)?;
    }
    let candidates = Candidates::new(&code.addresses, vec![code.controller]);
    let chain = match dial_and_ask(&candidates, &code, &identity, Carrier::Quic).await {
        // Some networks let QUIC shake hands, and nothing behind that.
        Err((EnrolError::Broken { .. }, true)) => {
            dial_and_ask(&candidates, &code, &identity, Carrier::Tcp).await
        }
        answer => answer,
    };
    let chain = chain.map_err(|(error, _)| error)?;
    // A chain that grew since an earlier try replaces the one from then; a fork doesn't.
    if let Some(enrolled) = crate::state::Held::load(state)?.enrolled
        && let Some(held) = enrolled.chain
    {
        held.check_replacement(&chain)?;
    }
    state.write_authority(&chain)?;
    // Last: with it the machine is a gateway.
    state.write_enrolment(&Enrolment {
        organisation: code.organisation,
        gateway: code.gateway,
        invite: code.invite,
        controller: code.controller,
        addresses: code.addresses,
        pin: code.authority,
    })?;
    Ok(Enrolled {
        gateway: code.gateway,
        organisation: code.organisation,
        fingerprint: identity.public().fingerprint(),
    })
}

/// Asks the controller, where `first` is tried first. Says with an error whether a connection was there, and nothing was heard.
async fn dial_and_ask(
    candidates: &Candidates,
    code: &InviteCode,
    identity: &IdentityKey,
    first: Carrier,
) -> Result<AuthorityChain, (EnrolError, bool)> {
    let dialled = dial(candidates, identity, first).await;
    let (link, address) = dialled.map_err(|error| match error {
        DialError::WrongKey { .. } => (EnrolError::WrongController(error.to_string()), false),
        DialError::Unreachable { .. } => (EnrolError::Unreachable(error.to_string()), false),
    })?;
    let answer = ask(&link, code, identity, &address.to_string()).await;
    let silent = link.connection().close_reason().is_none_or(|reason| reason.is_silence());
    link.close("").await;
    answer.map_err(|error| (error, silent))
}

async fn ask(
    link: &Link,
    code: &InviteCode,
    identity: &IdentityKey,
    address: &str,
) -> Result<AuthorityChain, EnrolError> {
    let broken = |problem: String| EnrolError::Broken { address: address.to_owned(), problem };
    let claim = IdentityClaim {
        organisation: code.organisation,
        invite: code.invite,
        gateway: code.gateway,
        identity: identity.public(),
    };
    let claim = Signed::sign(&claim, &code.key()?);
    let enrol = ToController::Enrol(Box::new(Enrol { invite: code.invite, claim }));
    let talk = async {
        let (send, receive) = link.connection().open_bi().await.map_err(|e| e.to_string())?;
        let text = |error: MessageError| error.to_string();
        MessageWriter::new(send).send(&enrol).await.map_err(text)?;
        let mut reader = MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT);
        reader.next().await.map_err(text)
    };
    let answer = match timeout(ANSWER, talk).await {
        Ok(answer) => answer.map_err(|problem| broken(plain(&problem)))?,
        Err(_) => return Err(broken("it didn't answer within 10 s".into())),
    };
    match answer {
        Some(ToAgent::Enrolled { authority }) => {
            let chain = AuthorityChain::follow(code.authority, &authority)?;
            if chain.newest().organisation == code.organisation {
                Ok(chain)
            } else {
                Err(broken("its authority documents are another organisation's".into()))
            }
        }
        Some(ToAgent::Refused(refusal)) => {
            let message = plain(&refusal.message);
            Err(match refusal.code {
                RefusalCode::InviteUsed => EnrolError::Used { message },
                RefusalCode::Invite => EnrolError::Refused { message },
                _ => EnrolError::Other { message },
            })
        }
        Some(_) => Err(broken("it answered something else".into())),
        None => Err(broken("it closed the connection".into())),
    }
}
