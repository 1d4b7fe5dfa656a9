//! Bounds of every table and queue in the engine, and the time-outs of flows.

use std::time::Duration;

/// How much the engine may hold. What is "of one device" is, for Ethernet addresses that nobody confirmed, of all of
/// those on one port together.
///
/// The defaults suit a gateway with a handful of device ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Flows in all.
    pub flows: usize,
    /// Flows of one device, dropped ones included.
    pub flows_per_device: usize,
    /// Ethernet addresses remembered per port that no operator has confirmed.
    pub unknown_per_port: usize,
    /// As many on a port that lets unconfirmed ones pass: a server with many virtual machines.
    pub unlisted_per_port: usize,
    /// Entries of the learning table for the uplink's side.
    pub bridge_entries: usize,
    /// Edges kept between two reports, in all.
    pub edges: usize,
    /// Edges kept between two reports of one device.
    pub edges_per_device: usize,
    /// Edges of one device of flows that nobody answered, as those of a scan. More are folded into few.
    pub unanswered_per_device: usize,
    /// Next hops learnt per device.
    pub next_hops_per_device: usize,
    /// Dropped packets remembered per device, for `why`.
    pub recent_drops_per_device: usize,
    /// Largest IP packet that goes into the tunnel in one piece whatever the path carries, in bytes.
    pub tunnel_mtu: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 65_536,
            flows_per_device: 16_384,
            unknown_per_port: 256,
            unlisted_per_port: 4_096,
            bridge_entries: 4_096,
            edges: 16_384,
            edges_per_device: 2_048,
            unanswered_per_device: 256,
            next_hops_per_device: 32,
            recent_drops_per_device: 32,
            tunnel_mtu: 1_500,
        }
    }
}

/// TCP that isn't open at both ends yet.
pub const TCP_HALF_OPEN: Duration = Duration::from_secs(30);
/// TCP that was picked up in the middle, until the other end takes part.
pub const TCP_PICKED_UP: Duration = Duration::from_secs(300);
/// Established TCP. Clinical connections stay silent for days.
pub const TCP_ESTABLISHED: Duration = Duration::from_secs(5 * 24 * 3600);
/// TCP after both ends have said that they are done.
pub const TCP_FINISHED: Duration = Duration::from_secs(60);
/// TCP after a reset.
pub const TCP_RESET: Duration = Duration::from_secs(10);
/// UDP that was answered.
pub const UDP: Duration = Duration::from_secs(180);
/// UDP that nobody answered yet.
pub const UDP_ONE_WAY: Duration = Duration::from_secs(60);
/// ICMP echo and protocols that no rule can open.
pub const OTHER: Duration = Duration::from_secs(30);
/// A dropped flow: long enough that repeated packets cost one look-up.
pub const DROPPED: Duration = Duration::from_secs(10);
/// An entry of the learning table that wasn't heard of again.
pub const BRIDGE_AGE: Duration = Duration::from_secs(300);
