//! Which tunnel a datagram is for.

use std::time::Instant;

use anteroom_proto::verdict::DropReason;

use super::{CONTROL, OWNER_SHIFT, PSK_BIT, Peers, write};
use crate::peer::front::{self, Admission, Kind};
use crate::sink::Sink;
use crate::target::Target;
use crate::wire::array;

impl Peers {
    /// Finds the tunnel that a datagram is for. `Ok(None)`: it was answered already.
    pub(super) fn route(
        &mut self,
        from: Target,
        datagram: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<Option<(Kind, u32)>, DropReason> {
        let kind = match front::classify(datagram) {
            Ok(kind) => kind,
            Err(DropReason::PeerUnknown) => {
                let heard = match self.hear_mirror(from, datagram, now) {
                    Some(heard) => heard,
                    None => self.hear_knock(from, datagram, now, out),
                };
                return heard.map(|()| None);
            }
            Err(reason) => return Err(reason),
        };
        let receiver = match kind {
            Kind::Initiation => None,
            Kind::Response { receiver } | Kind::Cookie { receiver } | Kind::Data { receiver } => {
                let index = receiver >> 8;
                let number = index & (PSK_BIT - 1);
                let ours = index >> OWNER_SHIFT == u32::from(self.config.owner & 0x0f);
                if !ours || self.tunnels.get(number).is_none() {
                    return Err(DropReason::PeerUnknown);
                }
                Some(number)
            }
        };
        if matches!(kind, Kind::Initiation | Kind::Response { .. }) {
            let of = receiver.and_then(|number| self.tunnels.get(number)).map(|tunnel| tunnel.own);
            match self.own.admit(of, from.charged(), datagram, now) {
                Admission::Admitted => {}
                Admission::Refused(reason) => return Err(reason),
                Admission::Cookie(cookie) => {
                    write(out, from, CONTROL, &cookie);
                    return Err(DropReason::HandshakeLimit);
                }
            }
        }
        let number = match receiver {
            Some(number) => number,
            None => self.caller(datagram, now, out)?,
        };
        let peer = self.tunnels.get(number).and_then(|tunnel| self.peers.get(tunnel.peer));
        match from {
            // A relay says who sent it, and answers go to whoever the tunnel leads to: they must be the same.
            Target::Relay(through) if peer.is_none_or(|peer| peer.gateway != through.peer) => {
                return Err(DropReason::PeerUnauthenticated);
            }
            Target::Udp(at)
                if matches!(kind, Kind::Initiation | Kind::Response { .. })
                    && peer.is_some_and(|peer| !self.may_be_at(peer, at, now)) =>
            {
                return Err(DropReason::PeerPlace);
            }
            _ => {}
        }
        Ok(Some((kind, number)))
    }

    /// The tunnel that an admitted initiation is for. Gateways say by a bit of their index whether it is one with a pre-shared
    /// key; a client's index is any number, and it has none.
    fn caller(
        &mut self,
        datagram: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<u32, DropReason> {
        let (own, key) = self.own.initiator(datagram)?;
        let bare = self.by_key.get(&(own, key, false)).copied();
        let peer = bare.and_then(|number| self.tunnels.get(number));
        let peer = peer.and_then(|tunnel| self.peers.get(tunnel.peer));
        let sender = array(datagram, 4).map(u32::from_le_bytes);
        let psk = sender.is_some_and(|sender| (sender >> 8) & PSK_BIT != 0);
        if !psk || peer.is_some_and(|peer| peer.client) {
            return bare.ok_or(DropReason::PeerUnknown);
        }
        let number = self.by_key.get(&(own, key, true)).copied();
        if number.is_none() {
            self.miss_psk((own, key), now, out);
        }
        number.ok_or(DropReason::PeerUnknown)
    }
}
