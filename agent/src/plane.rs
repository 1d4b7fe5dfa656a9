//! The data plane as the rest of the agent sees it, so that control can be tried without interfaces.

use std::sync::Arc;
use std::time::Duration;

use anteroom_agent_core::bypass::LoadedBypass;
use anteroom_agent_core::peer::{KeyUse, OwnKey};
use anteroom_agent_core::report::{EngineReport, Explanation, FlowInfo, Learned, Question};
use anteroom_proto::inventory::DeviceHints;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::View;

use crate::dataplane::Status;

/// Why the data plane doesn't answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// It has ended, or can't be started. Without it the agent is of no use.
    #[error("{0}")]
    Stopped(String),
    /// The ports are held closed: there is no data plane before there is a view.
    #[error(
        "the ports are closed: an enforced device was here and the view that says so is lost; they open with the next view from the controller"
    )]
    Closed,
}

/// What control and the local socket ask of a data plane.
pub trait Plane: Clone + Send + Sync + 'static {
    /// Puts a view in force; returns once it is. Says what of it couldn't be done.
    fn apply(
        &self,
        view: Arc<View>,
    ) -> impl Future<Output = Result<Vec<String>, PlaneError>> + Send;
    /// What of a view this machine can't do as long as it is set up as it is, in sentences.
    fn shortcomings(&self, view: &View) -> Vec<String>;
    /// What stands in the way of what is in force just now, in sentences: on a host an address or a route that can't be set.
    fn hindrances(&self) -> impl Future<Output = Vec<String>> + Send;
    /// Tells the wall clock. `confirmed`: a controller has said so, and not only the machine's own clock.
    fn set_time(
        &self,
        wall: UnixMillis,
        confirmed: bool,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Tells the number of the newest authority document held, which peers are told.
    fn set_authority(&self, number: u64) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Has these tunnel keys used, newest first, and no others; returns once they are.
    fn set_own_keys(
        &self,
        keys: Vec<OwnKey>,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Has claims signed with another identity key from now on; returns once they are.
    fn set_identity(
        &self,
        identity: IdentityKey,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Who still needs which tunnel key.
    fn key_use(&self) -> impl Future<Output = Result<Vec<KeyUse>, PlaneError>> + Send;
    /// Tells the bypass orders that were loaded from files, all of them; returns once they are followed.
    fn set_bypasses(
        &self,
        loaded: Vec<LoadedBypass>,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Takes out what happened since the last report.
    fn report(&self) -> impl Future<Output = Result<EngineReport, PlaneError>> + Send;
    /// What devices let be seen of themselves since the last time, of a bounded number of devices; and how much of that found no
    /// room.
    fn hints(&self) -> (Vec<DeviceHints>, u64) {
        (Vec::new(), 0)
    }
    /// Waits until what was seen so far is among the [hints](Plane::hints), though not for longer than `patience`.
    fn settled(&self, _patience: Duration) -> impl Future<Output = ()> + Send {
        async {}
    }
    /// Engine, interfaces and underlay at a glance.
    fn status(&self) -> impl Future<Output = Result<Status, PlaneError>> + Send;
    /// At most `limit` flows, the most recently used first.
    fn flows(&self, limit: usize)
    -> impl Future<Output = Result<Vec<FlowInfo>, PlaneError>> + Send;
    /// What would become of a flow, and why.
    fn explain(
        &self,
        question: Question,
    ) -> impl Future<Output = Result<Explanation, PlaneError>> + Send;
    /// What is worth keeping over a restart.
    fn learned(&self) -> impl Future<Output = Result<Learned, PlaneError>> + Send;
    /// Whether it turns. False means that it hangs.
    fn alive(&self) -> bool;
}
