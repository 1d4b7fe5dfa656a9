//! What the local socket answers.

use std::time::Instant;

use anteroom_agent_core::report::Question;
use anteroom_proto::id::BootId;
use tokio::sync::watch;

use crate::bypass::{Machine, Orders};
use crate::control::{ControlStatus, newer_authority};
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
    pub(super) control: Option<watch::Receiver<ControlStatus>>,
    pub(super) problems: Vec<String>,
    pub(super) orders: Orders,
    pub(super) relays: watch::Receiver<Vec<RelayStatus>>,
}

impl<P: Plane> Answers<P> {
    async fn status(&self) -> Result<AgentStatus, PlaneError> {
        let data_plane = match self.plane.status().await {
            Ok(status) => Some(status),
            Err(PlaneError::Closed) => None,
            Err(error) => return Err(error),
        };
        let situation = match &data_plane {
            None => Situation::Closed,
            Some(_) if self.identity.is_none() => Situation::NotEnrolled,
            Some(status) if status.engine.view.is_some() => Situation::InForce,
            Some(_) => Situation::Wire,
        };
        let control = self.control.as_ref().map(|control| control.borrow().clone());
        let mut problems = self.problems.clone();
        if let (Some(control), Some(status)) = (&control, &data_plane) {
            // Also with no controller in sight, when nothing is reported.
            problems.extend(newer_authority(control.authority, &status.engine.peers));
        }
        Ok(AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: self.boot,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            situation,
            identity: self.identity.clone(),
            control,
            data_plane,
            problems,
            relays: self.relays.borrow().clone(),
        })
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
