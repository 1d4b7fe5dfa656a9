//! Next hops: which Ethernet address a device uses for what, and what it should see as a source.

use std::net::Ipv4Addr;

use anteroom_proto::id::GatewayId;
use anteroom_proto::mac::MacAddr;

use crate::device::{Device, is_host};

/// What one station's next hops are known to be. Small and bounded: the oldest go first.
#[derive(Debug, Clone, Default)]
pub(crate) struct NextHops {
    /// Who answers for which address, from ARP that the station saw. The newest is last.
    neighbours: Vec<(Ipv4Addr, MacAddr)>,
    /// The neighbour that it sends to when the destination is someone else.
    router: Option<(Ipv4Addr, MacAddr)>,
    /// Addresses that it asked for by ARP: the one farthest from its own, as a length of common prefix.
    farthest_asked: Option<u8>,
    /// Destinations that it sent to its router: the nearest, as a length of common prefix.
    nearest_routed: Option<u8>,
    /// How often neighbours or the router changed.
    changes: u64,
}

impl NextHops {
    /// Notes that `address` is at `mac`. Where there is no room, the oldest goes, but never `keep` or the router in
    /// use. Returns whether that is news.
    pub(crate) fn neighbour(
        &mut self,
        address: Ipv4Addr,
        mac: MacAddr,
        keep: Option<Ipv4Addr>,
        limit: usize,
    ) -> bool {
        if mac.is_group() || !is_host(address) {
            return false;
        }
        if let Some(entry) = self.neighbours.iter_mut().find(|entry| entry.0 == address) {
            let changed = entry.1 != mac;
            entry.1 = mac;
            self.changes += u64::from(changed);
            if let Some(router) = self.router.as_mut().filter(|router| router.0 == address) {
                router.1 = mac;
            }
            return changed;
        }
        if self.neighbours.len() >= limit.max(1) {
            let router = self.router.map(|router| router.0);
            let kept = |known: Ipv4Addr| Some(known) == keep || Some(known) == router;
            let oldest = self.neighbours.iter().position(|entry| !kept(entry.0));
            self.neighbours.remove(oldest.unwrap_or(0));
        }
        self.neighbours.push((address, mac));
        self.changes += 1;
        true
    }

    /// Notes that the station at `own` asked who has `target`.
    pub(crate) fn asked(&mut self, own: Ipv4Addr, target: Ipv4Addr) {
        if own != target && is_host(own) && is_host(target) {
            let len = common_prefix(own, target);
            self.farthest_asked = Some(self.farthest_asked.map_or(len, |known| known.min(len)));
        }
    }

    /// Notes that the station at `own` sent a packet for `destination` to `mac`. Returns whether its router
    /// became known by that.
    pub(crate) fn used(&mut self, own: Ipv4Addr, destination: Ipv4Addr, mac: MacAddr) -> bool {
        let of_destination = self.neighbours.iter().any(|entry| entry.0 == destination);
        if of_destination || !is_host(destination) || !is_host(own) {
            return false;
        }
        // A neighbour that takes packets for others is a router.
        let Some(hop) = self.neighbours.iter().find(|entry| entry.1 == mac).copied() else {
            return false;
        };
        let len = common_prefix(own, destination);
        self.nearest_routed = Some(self.nearest_routed.map_or(len, |known| known.max(len)));
        let changed = self.router.replace(hop) != Some(hop);
        self.changes += u64::from(changed);
        changed
    }

    /// Takes back a neighbour that an earlier run learnt.
    pub(crate) fn restore(&mut self, address: Ipv4Addr, mac: MacAddr, limit: usize) {
        if self.find(address).is_none() {
            self.neighbour(address, mac, None, limit);
        }
    }

    /// Takes back what an earlier run made of it all.
    pub(crate) fn restore_guesses(
        &mut self,
        router: Option<(Ipv4Addr, MacAddr)>,
        prefix_len: Option<u8>,
    ) {
        self.router = self.router.or(router);
        self.changes += 1;
        if let Some(len) = prefix_len.filter(|_| self.farthest_asked.is_none()) {
            self.farthest_asked = Some(len);
            self.nearest_routed = Some(len.saturating_sub(1));
        }
    }

    /// How often neighbours or the router changed. It only grows.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Who answers for an address.
    pub(crate) fn find(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.neighbours.iter().rev().find(|entry| entry.0 == address).map(|entry| entry.1)
    }

    /// Whether a neighbour has this Ethernet address.
    pub(crate) fn is_neighbour(&self, mac: MacAddr) -> bool {
        self.neighbours.iter().any(|entry| entry.1 == mac)
    }

    /// The router that the station uses, where its traffic told.
    pub(crate) fn router(&self) -> Option<(Ipv4Addr, MacAddr)> {
        self.router
    }

    /// All that is worth keeping over a restart.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, MacAddr)> + use<'_> {
        self.neighbours.iter().copied()
    }

    /// The length of the station's on-link prefix, as its traffic suggests: what it asked for lies inside, what
    /// it sent to its router outside.
    pub(crate) fn prefix_len(&self) -> Option<u8> {
        let longest = self.farthest_asked?;
        let shortest = self.nearest_routed.map_or(1, |len| len.saturating_add(1));
        if shortest > longest {
            return None;
        }
        Some(24_u8.clamp(shortest, longest))
    }
}

/// How many leading bits two addresses share.
fn common_prefix(a: Ipv4Addr, b: Ipv4Addr) -> u8 {
    let bits = (a.to_bits() ^ b.to_bits()).leading_zeros();
    u8::try_from(bits).unwrap_or(32)
}

/// The Ethernet address that stands for a next hop that nobody knows. Locally administered; it never appears on
/// the uplink.
pub(crate) fn stand_in(gateway: GatewayId) -> MacAddr {
    let id = gateway.as_bytes();
    MacAddr([0x02, 0x61, 0x6e, id[0], id[1], id[2]])
}

/// The address and, where it is known, the Ethernet address of a device's router: pinned before learnt, what
/// the operators set before what its traffic tells.
pub(crate) fn router_of(
    device: Option<&Device>,
    hops: &NextHops,
) -> Option<(Ipv4Addr, Option<MacAddr>)> {
    match device.and_then(|device| device.router) {
        Some(router) => Some((router.address, router.mac.or_else(|| hops.find(router.address)))),
        None => hops.router().map(|(address, mac)| (address, Some(mac))),
    }
}

/// The router's Ethernet address, where the router answers in the name of `address` (RFC 1027).
pub(crate) fn proxy_for(device: &Device, hops: &NextHops, address: Ipv4Addr) -> Option<MacAddr> {
    let (router, mac) = router_of(Some(device), hops)?;
    mac.filter(|mac| router != address && hops.find(address) == Some(*mac))
}

/// The source that a packet from `member` at `address` would bear without a gateway.
pub(crate) fn source_for(
    device: &Device,
    hops: &NextHops,
    address: Ipv4Addr,
    member: MacAddr,
    stand_in: MacAddr,
) -> MacAddr {
    let router = router_of(Some(device), hops);
    let on_link = device.on_link(address).or_else(|| {
        // What it asked for by name, it takes for its own network.
        hops.find(address).map(|_| true)
    });
    match (on_link, router) {
        (Some(true), _) => proxy_for(device, hops, address).unwrap_or(member),
        (_, Some((_, Some(mac)))) => mac,
        (None, None) if near(device, address) => member,
        _ => stand_in,
    }
}

/// Whether an address shares the first 24 bits with the device's: what most networks are cut to.
fn near(device: &Device, address: Ipv4Addr) -> bool {
    device.addresses.iter().any(|own| common_prefix(own.addr(), address) >= 24)
}

#[cfg(test)]
mod tests {
    use anteroom_proto::id::MemberId;
    use anteroom_proto::intent::Router;
    use anteroom_proto::mode::Mode;

    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 10);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 20, 4, 10);

    fn mac(byte: u8) -> MacAddr {
        MacAddr([0, 0, 0, 0, 0, byte])
    }

    fn device(prefix_len: Option<u8>, router: Option<Router>) -> Device {
        Device {
            member: MemberId::from_bytes([1; 16]),
            mode: Mode::Enforce,
            stance: Mode::Enforce,
            quarantined: false,
            vlan: None,
            addresses: vec![OWN.into()],
            held: Vec::new(),
            prefix_len,
            router,
        }
    }

    #[test]
    fn a_neighbour_that_takes_packets_for_others_is_the_router() {
        let mut hops = NextHops::default();
        hops.asked(OWN, ROUTER);
        hops.neighbour(ROUTER, mac(1), None, 4);
        assert!(!hops.used(OWN, ROUTER, mac(1)));
        assert_eq!(hops.router(), None);
        assert!(hops.used(OWN, FAR, mac(1)));
        assert_eq!((hops.router(), hops.prefix_len()), (Some((ROUTER, mac(1))), Some(24)));
    }

    #[test]
    fn frames_bear_the_source_that_the_device_would_see_without_us() {
        let mut hops = NextHops::default();
        let (member, stand_in) = (mac(9), mac(0xff));
        let routed = device(Some(24), Some(Router { address: ROUTER, mac: None }));
        let near = Ipv4Addr::new(10, 20, 1, 77);
        assert_eq!(source_for(&routed, &hops, near, member, stand_in), member);
        assert_eq!(source_for(&routed, &hops, FAR, member, stand_in), stand_in);
        hops.neighbour(ROUTER, mac(1), None, 4);
        assert_eq!(source_for(&routed, &hops, FAR, member, stand_in), mac(1));
        let pinned = device(Some(24), Some(Router { address: ROUTER, mac: Some(mac(2)) }));
        assert_eq!(source_for(&pinned, &hops, FAR, member, stand_in), mac(2));
        let unknown = device(None, None);
        assert_eq!(source_for(&unknown, &NextHops::default(), near, member, stand_in), member);
    }

    #[test]
    fn the_table_is_bounded() {
        const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
        let mut hops = NextHops::default();
        for byte in 0..100 {
            hops.neighbour(Ipv4Addr::new(10, 0, 0, byte.max(1)), mac(byte), Some(FIRST), 8);
        }
        assert_eq!(hops.iter().count(), 8);
        assert_eq!(hops.find(FIRST), Some(mac(1)), "the router can't be pushed out");
    }
}
