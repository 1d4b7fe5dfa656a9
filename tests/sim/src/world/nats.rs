//! Gateways behind routers that translate their addresses.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anteroom_lab::wan::nat::{Kind, Nat, UDP};

use super::World;

/// The routers, by the gateway that each serves.
#[derive(Debug, Default)]
pub struct Nats {
    nats: BTreeMap<usize, Nat>,
}

impl Nats {
    /// The router in front of a gateway.
    ///
    /// # Panics
    /// If it has none.
    pub fn of(&mut self, gateway: usize) -> &mut Nat {
        self.nats.get_mut(&gateway).unwrap_or_else(|| panic!("gateway {gateway} has no router"))
    }
}

impl World {
    /// Puts a gateway behind a router of its own, which all that it sends to others goes through.
    pub fn set_nat(&mut self, gateway: usize, kind: Kind) {
        let last = u8::try_from(gateway + 1).unwrap_or(u8::MAX);
        let nat = Nat::new(kind, Ipv4Addr::new(203, 0, 113, last), u64::from(last));
        self.nats.nats.insert(gateway, nat);
        self.tell_relays();
    }

    /// Where a datagram of a gateway seems to come from, if it gets out.
    pub(super) fn leaves_as(&mut self, gateway: usize, to: SocketAddr) -> Option<SocketAddr> {
        let endpoint = self.plan.gateways[gateway].endpoint;
        let Some(nat) = self.nats.nats.get_mut(&gateway) else { return Some(endpoint) };
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (endpoint, to) else { return None };
        nat.outbound(UDP, from, to, self.now).ok().map(SocketAddr::V4)
    }

    /// Which gateway a datagram reaches.
    pub(super) fn arrives_at(&mut self, to: SocketAddr, from: SocketAddr) -> Option<usize> {
        let (SocketAddr::V4(outside), SocketAddr::V4(remote)) = (to, from) else {
            return self.gateway_at(to);
        };
        let now = self.now;
        let behind = self.nats.nats.iter_mut().find(|(_, nat)| nat.address() == *outside.ip());
        let Some((gateway, nat)) = behind else {
            // Nobody reaches an inside address from outside.
            return self.gateway_at(to).filter(|gateway| !self.nats.nats.contains_key(gateway));
        };
        let gateway = *gateway;
        nat.inbound(UDP, outside, remote, now).ok().map(|_| gateway)
    }
}
