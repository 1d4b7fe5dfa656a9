//! Where the engine writes what is to be sent.

use std::net::SocketAddr;

use crate::batch::VlanTag;
use crate::lane::{Job, Taken};
use crate::port::PortId;
use crate::target::{Through, Whose};
use crate::vnet::VnetHeader;

/// Takes frames and datagrams. The shell's sink fills send rings; tests and the simulation keep what they get.
///
/// A sink is bounded. What it can't take it counts itself; the engine never waits.
pub trait Sink {
    /// Sends the frame that `parts` make, one behind the other, out of `port`.
    fn frame(&mut self, port: PortId, vnet: VnetHeader, vlan: Option<VlanTag>, parts: &[&[u8]]);

    /// Sends a datagram to `to` through the underlay. `write` gets a buffer of at least `capacity` bytes and
    /// returns how many of them it filled; 0 sends nothing.
    ///
    /// `dscp_ecn` is the byte for the outer header: the inner packet's DSCP, so that the network can tell
    /// alarms from archives.
    fn datagram(
        &mut self,
        to: SocketAddr,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    );

    /// As [`Self::datagram`], for a datagram that a relay carries. Asked only of a shell that told of relays
    /// ([`crate::engine::Engine::set_relays`]); any other has nowhere to send it. `whose` says who is to share a queue with
    /// whom.
    fn relayed(
        &mut self,
        to: Through,
        whose: Whose,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let _ = (to, whose, capacity, write);
    }

    /// As [`Self::datagram`], for a datagram of a lane ([`crate::lane`]): `owner` is who runs the lane. Where it goes
    /// through a socket of its own, whatever went to [`Self::datagram`] before goes out before it.
    fn lane_datagram(
        &mut self,
        owner: u8,
        to: SocketAddr,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let _ = owner;
        self.datagram(to, dscp_ecn, capacity, write);
    }

    /// Hands a job to the thread that runs its lane, behind what it was ordered so far, and behind whatever went to
    /// [`Self::datagram`] before, which goes out first. Asked only of a shell that runs the lanes itself.
    fn job(&mut self, owner: u8, job: Job<'_>) -> Taken {
        let _ = (owner, job);
        Taken::NoSession
    }

    /// Hands a datagram to the thread that runs its lane: one that came to the engine's socket. Asked only of a shell that
    /// runs the lanes itself.
    fn hand_on(&mut self, owner: u8, from: SocketAddr, datagram: &[u8]) {
        let _ = (owner, from, datagram);
    }
}
