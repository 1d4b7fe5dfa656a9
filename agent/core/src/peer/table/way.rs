//! The way to a peer, and what is sent by it.

use crate::peer::tunnel::{Tunnel, sealed_room};
use crate::sink::Sink;
use crate::target::{Target, Whose};

/// The way to a peer: a tunnel with a session, and where the peer is.
pub struct Way<'a> {
    pub(super) tunnel: &'a mut Tunnel,
    pub(super) to: Target,
}

impl Way<'_> {
    /// Seals an IP packet and gives it to the sink. The packet's DSCP goes to the outer header as well. A packet that
    /// is too long for any datagram goes nowhere: see [`crate::peer::MAX_PACKET_LEN`].
    pub fn send(&mut self, packet: &[u8], out: &mut impl Sink) {
        seal(self.tunnel, self.to, (Whose::of(packet), packet), out);
    }
}

/// The byte of the outer header for a packet.
pub(in crate::peer) fn dscp(packet: &[u8]) -> u8 {
    // ECN stays inside: nothing would bring a mark on the outer header back in (RFC 6040).
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(1).map_or(0, |byte| byte & 0xfc),
        Some(6) => packet.first_chunk::<2>().map_or(0, |[a, b]| (a << 4 | b >> 4) & 0xfc),
        _ => 0,
    }
}

/// Seals somebody's packet for `to`.
pub(super) fn seal(
    tunnel: &mut Tunnel,
    to: Target,
    (whose, packet): (Whose, &[u8]),
    out: &mut impl Sink,
) {
    let what = (whose, sealed_room(packet.len()));
    to.put_sealed(out, dscp(packet), what, |buffer| tunnel.seal(packet, buffer));
}

/// Sends a message that is written already.
pub(super) fn write(out: &mut impl Sink, to: Target, dscp: u8, message: &[u8]) {
    to.put(out, dscp, message.len(), |buffer| match buffer.get_mut(..message.len()) {
        Some(room) => {
            room.copy_from_slice(message);
            message.len()
        }
        None => 0,
    });
}
