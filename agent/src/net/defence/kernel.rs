//! The kernel's routes and neighbours, by rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use anteroom_proto::mac::MacAddr;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};

use crate::net::link::{Links, io_error};

/// Marks the entries that the agent made, so that it never takes over an administrator's.
const MARK: u8 = 0xa7;

/// Where the packets of an interface go first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Routes {
    /// The routers that it uses.
    pub(super) routers: Vec<Ipv4Addr>,
    /// The networks that lie on it, with their prefix lengths.
    pub(super) on_link: Vec<(Ipv4Addr, u8)>,
}

impl Routes {
    /// Reads those of the interface with this index.
    pub(super) async fn read(links: &Links, index: u32) -> io::Result<Self> {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = AddressFamily::Inet;
        let mut answers = std::pin::pin!(links.handle().route().get(wanted).execute());
        let mut found = Self::default();
        while let Some(route) = answers.try_next().await.map_err(io_error)? {
            found.add(&route, index);
        }
        found.routers.sort_unstable();
        found.routers.dedup();
        Ok(found)
    }

    fn add(&mut self, route: &RouteMessage, index: u32) {
        let header = &route.header;
        if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
            return;
        }
        let here = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Oif(oif) if *oif == index);
        let via_here = route.attributes.iter().any(here);
        let mut router = None;
        let mut network = Ipv4Addr::UNSPECIFIED;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => router = Some(*ip),
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => network = *ip,
                RouteAttribute::MultiPath(hops) => {
                    let hops = hops.iter().filter(|hop| hop.interface_index == index);
                    for attribute in hops.flat_map(|hop| &hop.attributes) {
                        if let RouteAttribute::Gateway(RouteAddress::Inet(ip)) = attribute {
                            self.routers.push(*ip);
                        }
                    }
                }
                _ => {}
            }
        }
        match router {
            Some(ip) if via_here => self.routers.push(ip),
            None if via_here => self.on_link.push((network, header.destination_prefix_length)),
            _ => {}
        }
    }

    /// The next hops towards `peers`: all routers, then the peers that need none.
    pub(super) fn hops<'a>(
        &'a self,
        peers: impl Iterator<Item = Ipv4Addr> + 'a,
    ) -> impl Iterator<Item = Ipv4Addr> + 'a {
        let near = peers.filter(|peer| {
            self.on_link.iter().any(|(network, length)| {
                *length > 0
                    && network.to_bits() ^ peer.to_bits()
                        < 1 << (32 - u32::from(*length).min(32)).min(31)
            })
        });
        self.routers.iter().copied().chain(near)
    }
}

/// What the kernel knows of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) address: Ipv4Addr,
    pub(super) mac: MacAddr,
    /// Whether nothing that anybody says changes it.
    pub(super) permanent: bool,
    /// Whether the agent made it.
    pub(super) ours: bool,
}

/// The IPv4 neighbours on the interface with this index whose Ethernet address is known.
pub(super) async fn neighbours(links: &Links, index: u32) -> io::Result<Vec<Neighbour>> {
    let request = links.handle().neighbours().get().set_address_family(AddressFamily::Inet);
    let mut answers = std::pin::pin!(request.execute());
    let mut found = Vec::new();
    while let Some(message) = answers.try_next().await.map_err(io_error)? {
        if message.header.ifindex == index {
            found.extend(neighbour(&message));
        }
    }
    Ok(found)
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    let state = message.header.state;
    if !matches!(state, Delay | Permanent | Probe | Reachable | Stale) {
        return None;
    }
    let (mut address, mut mac, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(*ip),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(MacAddr);
            }
            NeighbourAttribute::Protocol(by) => ours = *by == RouteProtocol::Other(MARK),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: mac?, permanent: state == Permanent, ours })
}

/// Has the kernel send to `mac` what goes to `address`, whatever anybody says.
pub(super) async fn pin(
    links: &Links,
    index: u32,
    address: Ipv4Addr,
    mac: MacAddr,
) -> io::Result<()> {
    let mut request = links
        .handle()
        .neighbours()
        .add(index, IpAddr::V4(address))
        .state(NeighbourState::Permanent)
        .link_layer_address(&mac.0)
        .replace();
    let mark = NeighbourAttribute::Protocol(RouteProtocol::Other(MARK));
    request.message_mut().attributes.push(mark);
    request.execute().await.map_err(io_error)
}

/// Has the kernel find out about `address` by itself, the next time that it sends there.
pub(super) async fn release(links: &Links, index: u32, address: Ipv4Addr) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    let destination = NeighbourAttribute::Destination(NeighbourAddress::Inet(address));
    message.attributes.push(destination);
    match links.handle().neighbours().del(message).execute().await.map_err(io_error) {
        // It went with its interface.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_come_first_and_only_peers_on_the_interface_follow() {
        let ip = |last| Ipv4Addr::new(10, 20, 1, last);
        let routes = Routes { routers: vec![ip(1)], on_link: vec![(ip(0), 24), (ip(200), 32)] };
        let far = Ipv4Addr::new(10, 20, 2, 9);
        let hops: Vec<_> = routes.hops([ip(9), far, ip(200)].into_iter()).collect();
        assert_eq!(hops, [ip(1), ip(9), ip(200)]);
        // A default route with no router, as on a point-to-point link, has no neighbours to be defended.
        let routes = Routes { routers: vec![], on_link: vec![(Ipv4Addr::UNSPECIFIED, 0)] };
        assert_eq!(routes.hops([far].into_iter()).count(), 0);
    }
}
