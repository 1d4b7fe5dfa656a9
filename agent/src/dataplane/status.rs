//! What the shell tells about interfaces and sockets, beside the engine's own status.

use anteroom_agent_core::report::EngineStatus;
use serde::{Deserialize, Serialize};

use crate::dataplane::sensing::SensorStatus;
use crate::dataplane::underlays::UnderlaysStatus;
use crate::net::host::TurnedAway;
use crate::net::offload::Offload;

/// Engine, interfaces and underlay at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The engine.
    pub engine: EngineStatus,
    /// The uplink, then the device ports in their order.
    pub interfaces: Vec<InterfaceStatus>,
    /// The gateway's own traffic.
    pub underlay: UnderlayStatus,
    /// Which of two underlays is used; none where there is one.
    #[serde(default)]
    pub underlays: Option<UnderlaysStatus>,
    /// The threads that carry traffic.
    #[serde(default)]
    pub threads: ThreadsStatus,
    /// The sensor; none where it is off.
    #[serde(default)]
    pub sensor: Option<SensorStatus>,
    /// On a host, what its kernel turned away that didn't take the TUN device; none elsewhere.
    #[serde(default)]
    pub outside_tunnel: Option<TurnedAway>,
    /// On a host, what stands in the way of its address, its routes or what fences them.
    #[serde(default)]
    pub host_problems: Vec<String>,
}

/// The threads that carry traffic, and how long each has worked since its start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ThreadsStatus {
    /// The packet thread, in milliseconds; None where the kernel doesn't tell.
    pub packet_ms: Option<u64>,
    /// Whether the kernel gives the packet thread the short turns that it asks for; None where that isn't known.
    #[serde(default)]
    pub short_turns: Option<Offload>,
    /// How many threads seal and open bulk, and why: a few words.
    #[serde(default)]
    pub chosen: String,
    /// The threads that seal and open bulk, if there are any.
    pub lanes: Vec<LaneThreadStatus>,
}

/// A thread that seals and opens bulk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneThreadStatus {
    /// How long it has worked, in milliseconds; None where the kernel doesn't tell.
    pub worked_ms: Option<u64>,
    /// Whether the kernel gives it the short turns that it asks for; None where that isn't known.
    #[serde(default)]
    pub short_turns: Option<Offload>,
    /// What passed its socket and what didn't. The underlay's counters have it, too.
    pub counters: UnderlayCounters,
}

/// The uplink or a device port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// `uplink`, or the port's name.
    pub name: String,
    /// The interface.
    pub interface: String,
    /// Whether frames can flow. False while the interface is gone or down; it is opened again by itself.
    pub open: bool,
    /// Offloads that are on.
    pub offloads: Offloads,
    /// What passed and what didn't.
    pub counters: InterfaceCounters,
}

/// Offloads of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Offloads {
    /// Super-frames pass between kernel and agent uncut (`PACKET_VNET_HDR`).
    pub super_frames: bool,
    /// The kernel merges received packets (generic receive offload). None where it doesn't say.
    pub gro: Option<bool>,
    /// The hardware merges received packets. Always switched off where it can be.
    pub lro: Option<bool>,
}

/// Counters of an interface since it was first opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InterfaceCounters {
    /// Frames that came in. A super-frame counts once.
    pub received: u64,
    /// Frames that went out. A super-frame counts once.
    pub sent: u64,
    /// Frames that the kernel dropped because the agent didn't fetch them in time.
    pub missed: u64,
    /// Frames too long for a buffer.
    pub truncated: u64,
    /// Super-frames of a kind that the kernel couldn't describe; it lost them.
    pub unknown_gso: u64,
    /// Frames that found the send queue full.
    pub queue_full: u64,
    /// Frames that the interface refused.
    pub egress_failed: u64,
}

/// The underlay's socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderlayStatus {
    /// Where it listens.
    pub listen: String,
    /// Size of its receive buffer in bytes.
    pub receive_buffer: usize,
    /// Runs of datagrams are handed over in one piece and cut apart by the kernel or the card (`UDP_SEGMENT`).
    pub segmentation: Offload,
    /// Datagrams of one peer that come in a row are handed over in one piece (`UDP_GRO`).
    pub merging: Offload,
    /// The kernel gives bulk's datagrams to a socket of their own. Where it doesn't, lanes share one with all else.
    pub steering: Offload,
    /// What passed and what didn't.
    pub counters: UnderlayCounters,
}

/// Counters of the underlay's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnderlayCounters {
    /// Datagrams that came in.
    pub received: u64,
    /// Datagrams that went out.
    pub sent: u64,
    /// Datagrams that the kernel dropped because the agent didn't fetch them in time. What it had merged counts once.
    #[serde(default)]
    pub missed: u64,
    /// Datagrams too long for a buffer, or without an address to answer to.
    pub truncated: u64,
    /// Datagrams larger than the path's first hop carries.
    pub too_big: u64,
    /// Datagrams that found the send queue full.
    pub queue_full: u64,
    /// Datagrams with no route to their destination.
    pub unreachable: u64,
    /// Datagrams refused for another reason.
    pub egress_failed: u64,
}

impl std::ops::Add for UnderlayCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            sent: self.sent + other.sent,
            missed: self.missed + other.missed,
            truncated: self.truncated + other.truncated,
            too_big: self.too_big + other.too_big,
            queue_full: self.queue_full + other.queue_full,
            unreachable: self.unreachable + other.unreachable,
            egress_failed: self.egress_failed + other.egress_failed,
        }
    }
}
