//! For tests: an engine and nothing else, and what a data plane would say that is that.

use std::time::Instant;

use anteroom_agent_core::config::{Config, TunnelIdentity};
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::limits::Limits;
use anteroom_agent_core::report::EngineStatus;
use anteroom_proto::key::{IdentityKey, TunnelSecret};
use anteroom_proto::mac::MacAddr;

use crate::dataplane::{Status, ThreadsStatus, UnderlayCounters, UnderlayStatus};
use crate::net::offload::Offload;
use crate::testkit::GATEWAY;

/// An engine without ports, peers and a view.
pub(crate) fn bare_engine(now: Instant) -> Engine {
    let config = Config {
        ports: Vec::new(),
        uplink_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        gateway_macs: Vec::new(),
        own_addresses: Vec::new(),
        limits: Limits::default(),
    };
    let identity = TunnelIdentity {
        gateway: GATEWAY,
        secret: TunnelSecret::from_bytes([1; 32]),
        identity: IdentityKey::from_seed(&[2; 32]),
        seed: [3; 32],
    };
    Engine::new(config, identity, now)
}

/// What a data plane says that is an engine and nothing else.
pub(crate) fn plane_status(engine: EngineStatus) -> Status {
    Status {
        engine,
        interfaces: Vec::new(),
        underlays: None,
        sensor: None,
        outside_tunnel: None,
        host_problems: Vec::new(),
        underlay: UnderlayStatus {
            listen: String::new(),
            receive_buffer: 0,
            segmentation: Offload::On,
            merging: Offload::On,
            steering: Offload::On,
            counters: UnderlayCounters::default(),
        },
        threads: ThreadsStatus::default(),
    }
}
