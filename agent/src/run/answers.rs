//! What the local socket answers.

use std::time::Instant;

use anteroom_agent_core::report::Question;
use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::IdentityKey;
use tokio::sync::watch;

use crate::bypass::{Machine, Orders};
use crate::config::Classic;
use crate::control::{ControlStatus, newer_authority, withheld, without_psk};
use crate::direct::DirectStatus;
use crate::local::protocol::{
    AgentStatus, DEFAULT_FLOWS, Identity, MAX_FLOWS, Request, Response, Situation,
};
use crate::local::server::Answer;
use crate::plane::{Plane, PlaneError};
use crate::relay::RelayStatus;

/// Answers for one run of the data plane.
pub(super) struct Answers<P> {
    pub(super) plane: P,
    pub(super) boot: BootId,
    pub(super) started: Instant,
    pub(super) identity: Option<Identity>,
    /// Its identity key, as it changes.
    pub(super) key: Option<watch::Receiver<IdentityKey>>,
    /// The gateway that this machine is, where its private keys can't be opened.
    pub(super) locked: Option<GatewayId>,
    pub(super) control: Option<watch::Receiver<ControlStatus>>,
    pub(super) problems: Vec<String>,
    /// Whether packets may go to other gateways without a pre-shared key.
    pub(super) classic: Classic,
    pub(super) orders: Orders,
    pub(super) relays: watch::Receiver<Vec<RelayStatus>>,
    pub(super) direct: watch::Receiver<DirectStatus>,
}

impl<P: Plane> Answers<P> {
    /// Who this gateway is now.
    fn identity(&self) -> Option<Identity> {
        let mut identity = self.identity.clone()?;
        if let Some(key) = &self.key {
            identity.fingerprint = key.borrow().public().fingerprint().to_string();
        }
        Some(identity)
    }

    async fn status(&self) -> Result<AgentStatus, PlaneError> {
        let data_plane = match self.plane.status().await {
            Ok(status) => Some(status),
            Err(PlaneError::Closed) => None,
            Err(error) => return Err(error),
        };
        let view = data_plane.as_ref().map(|status| status.engine.view.is_some());
        let situation = situation(self.identity.is_some(), self.locked.is_some(), view);
        let control = self.control.as_ref().map(|control| control.borrow().clone());
        let mut problems = self.problems.clone();
        if let (Some(control), Some(status)) = (&control, &data_plane) {
            // Also with no controller in sight, when nothing is reported.
            problems.extend(newer_authority(control.authority, &status.engine.peers));
            match self.classic {
                Classic::Allowed => problems.extend(without_psk(&status.engine.peers)),
                Classic::Never => problems.extend(withheld(&status.engine.peers)),
            }
        }
        let underlays = data_plane.as_ref().and_then(|status| status.underlays.as_ref());
        problems.extend(underlays.iter().flat_map(|underlays| underlays.problems.clone()));
        Ok(AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: self.boot,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            situation,
            identity: self.identity(),
            locked: self.locked,
            control,
            data_plane,
            problems,
            relays: self.relays.borrow().clone(),
            direct: self.direct.borrow().clone(),
        })
    }
}

/// What the gateway is doing. `view`: whether one is in force; none while the ports are closed.
const fn situation(enrolled: bool, locked: bool, view: Option<bool>) -> Situation {
    match view {
        None if locked => Situation::LockedClosed,
        Some(_) if locked => Situation::Locked,
        None => Situation::Closed,
        Some(_) if !enrolled => Situation::NotEnrolled,
        Some(true) => Situation::InForce,
        Some(false) => Situation::Wire,
    }
}

impl<P: Plane> Answer for Answers<P> {
    async fn answer(&self, request: Request) -> Response {
        let answered = match request {
            Request::Status {} => {
                self.status().await.map(|status| Response::Status(Box::new(status)))
            }
            Request::Bypass { order } => {
                let followed = self.orders.follow(&order, &self.plane, &Machine::look()).await;
                return match followed {
                    Ok(followed) => Response::Bypass(followed),
                    Err(error) => {
                        tracing::warn!("a bypass order is refused: {error}");
                        Response::Error(error.to_string())
                    }
                };
            }
            Request::Flows { limit } => {
                let limit = limit.unwrap_or(DEFAULT_FLOWS).min(MAX_FLOWS);
                self.plane.flows(limit).await.map(Response::Flows)
            }
            Request::Why { from, to, service } => match service.parse() {
                Ok(service) => {
                    let question = Question { from, to, service };
                    let explained = self.plane.explain(question).await;
                    explained.map(|explanation| Response::Why(Box::new(explanation)))
                }
                Err(error) => return Response::Error(error.to_string()),
            },
        };
        answered.unwrap_or_else(|error| Response::Error(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_whose_keys_cant_be_opened_isnt_told_to_enrol() {
        assert_eq!(situation(false, true, Some(false)), Situation::Locked);
        assert_eq!(situation(false, true, None), Situation::LockedClosed);
        for locked in [Situation::Locked, Situation::LockedClosed] {
            let text = locked.explanation();
            assert!(
                text.contains("sealed") && !text.contains("agent enroll") && !text.contains("lost"),
                "{text}"
            );
        }
        assert_eq!(situation(false, false, Some(false)), Situation::NotEnrolled);
        assert_eq!(situation(true, false, Some(false)), Situation::Wire);
        assert_eq!(situation(true, false, Some(true)), Situation::InForce);
        assert_eq!(situation(true, false, None), Situation::Closed);
    }
}
