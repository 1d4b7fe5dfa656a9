//! The engine: batches in, frames and datagrams out, in an explicit order of stages.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::Verdict;
use anteroom_proto::view::View;

use crate::batch::{RxDatagram, RxFrame};
use crate::config::{Config, TunnelIdentity};
use crate::port::PortId;
use crate::report::{
    EngineReport, EngineStatus, Explanation, FlowInfo, Learned, Party, Question, TableSizes,
};
use crate::sink::Sink;

/// One gateway's packet engine. It owns its peers with both directions of their flows.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    identity: TunnelIdentity,
    view: Option<Arc<View>>,
}

impl Engine {
    /// An engine without a view: a wire that records what it sees.
    #[must_use]
    pub fn new(config: Config, identity: TunnelIdentity, now: Instant) -> Self {
        let _ = now;
        Self { config, identity, view: None }
    }

    /// Takes frames that came in on `port`.
    pub fn handle_frames(
        &mut self,
        port: PortId,
        frames: &mut [RxFrame<'_>],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let _ = (port, frames, now, out);
    }

    /// Takes datagrams that came in on the underlay.
    pub fn handle_datagrams(
        &mut self,
        datagrams: &mut [RxDatagram<'_>],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let _ = (datagrams, now, out);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Sink) {
        let _ = (now, out);
    }

    /// When [`Self::handle_timeout`] is wanted next, and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }

    /// Takes over a view. Flows stay; their verdicts are found again as their packets come.
    pub fn apply(&mut self, view: Arc<View>, now: Instant) {
        let _ = now;
        self.view = Some(view);
    }

    /// Tells the wall clock. `confirmed`: a controller or a peer said so since this start.
    pub fn set_time(&mut self, wall: UnixMillis, confirmed: bool, now: Instant) {
        let _ = (wall, confirmed, now);
    }

    /// Tells the gateway's own addresses when they change.
    pub fn set_own_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.config.own_addresses = addresses;
    }

    /// Takes out what happened since the last call.
    pub fn report(&mut self, now: Instant) -> EngineReport {
        let _ = now;
        EngineReport::default()
    }

    /// The engine at a glance.
    #[must_use]
    pub fn status(&self, now: Instant) -> EngineStatus {
        let _ = now;
        EngineStatus {
            gateway: self.identity.gateway,
            view: None,
            epoch: 0,
            time_confirmed: false,
            wants_gro: self.wants_gro(),
            ports: Vec::new(),
            devices: Vec::new(),
            peers: Vec::new(),
            drops: std::collections::BTreeMap::new(),
            overflow: 0,
            tables: TableSizes::default(),
        }
    }

    /// At most `limit` flows, the most recently used first.
    #[must_use]
    pub fn flows(&self, now: Instant, limit: usize) -> Vec<FlowInfo> {
        let _ = (now, limit);
        Vec::new()
    }

    /// What would become of a flow, and why.
    #[must_use]
    pub fn explain(&self, question: &Question, now: Instant) -> Explanation {
        let _ = now;
        Explanation {
            question: question.clone(),
            from: Party::Unknown,
            to: Party::Unknown,
            verdict: Verdict::Clear,
            rule: None,
            path: "clear".into(),
            tunnel: None,
            flow: None,
            last_drop: None,
            because: String::new(),
            next_step: String::new(),
        }
    }

    /// What is worth keeping over a restart.
    #[must_use]
    pub fn learned(&self) -> Learned {
        Learned::default()
    }

    /// Takes back what an earlier run learnt. Pinned and newer knowledge wins.
    pub fn restore(&mut self, learned: Learned) {
        drop(learned);
    }

    /// Whether ports and uplink may merge packets. Not while a device is observed: merging isn't reversible for
    /// every sender.
    #[must_use]
    pub fn wants_gro(&self) -> bool {
        false
    }
}
