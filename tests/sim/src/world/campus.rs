//! The campus: a learning switch in each subnet, and one router between them.

use super::*;

impl World {
    pub(super) fn subnet_of(&self, cable: Cable, bytes: &[u8]) -> [u8; 3] {
        match cable {
            Cable::Gateway(gateway) => self.gateways[gateway].subnet,
            Cable::Host(host) => match self.plugs[host] {
                Plug::Subnet(subnet) => subnet,
                Plug::Port(..) => [0; 3],
            },
            // The router's frames bear the subnet that they go to in front.
            Cable::Router => [bytes[0], bytes[1], bytes[2]],
        }
    }

    /// A learning switch per subnet, with the router on each.
    pub(super) fn switch(&mut self, from: Cable, bytes: Vec<u8>) {
        let subnet = self.subnet_of(from, &bytes);
        let bytes = if from == Cable::Router { bytes[3..].to_vec() } else { bytes };
        self.campus.push(OnCampus { from, bytes: bytes.clone() });
        assert!(
            self.campus.len() < STORM,
            "a storm on the campus: {:02x?}",
            self.campus.get(STORM - 4..)
        );
        let Ok(frame) = parse_ethernet(&bytes, None) else { return };
        let (source, destination) = (frame.source, frame.destination);
        if !source.is_group() {
            self.learnt.insert((subnet, source), from);
        }
        let mut cables: Vec<Cable> = (0..self.gateways.len())
            .filter(|at| self.gateways[*at].subnet == subnet)
            .map(Cable::Gateway)
            .chain(
                (0..self.hosts.len())
                    .filter(|host| self.plugs[*host] == Plug::Subnet(subnet))
                    .map(Cable::Host),
            )
            .collect();
        cables.push(Cable::Router);
        if let Some(known) = self.learnt.get(&(subnet, destination)) {
            cables.retain(|cable| cable == known);
        }
        for cable in cables {
            if cable == from {
                continue;
            }
            match cable {
                Cable::Gateway(gateway) => {
                    let to = To::Gateway(gateway, PortId::UPLINK);
                    self.push(HOP, Event::Frame(to, bytes.clone()));
                }
                Cable::Host(host) => self.push(HOP, Event::Frame(To::Host(host), bytes.clone())),
                Cable::Router => self.route(subnet, &bytes),
            }
        }
    }

    /// The router forgets who has which address.
    pub fn flush_router(&mut self) {
        self.router_arp.clear();
    }

    /// The router announces itself in a subnet.
    pub fn announce_router(&mut self, subnet: [u8; 3]) {
        let own = Ipv4Addr::new(subnet[0], subnet[1], subnet[2], 1);
        self.router_sends(subnet, &arp::request(self.router_mac, own, own));
    }

    fn router_sends(&mut self, subnet: [u8; 3], frame: &[u8]) {
        let mut bytes = subnet.to_vec();
        bytes.extend_from_slice(frame);
        self.push(HOP, Event::Frame(To::Campus(Cable::Router), bytes));
    }

    /// The router: answers ARP for .1 of each subnet, and forwards between them.
    fn route(&mut self, subnet: [u8; 3], bytes: &[u8]) {
        let Ok(frame) = parse_ethernet(bytes, None) else { return };
        let for_it = frame.destination == self.router_mac || frame.destination.is_group();
        if frame.tags > 0 || !for_it || self.router_is_down {
            return;
        }
        let own = Ipv4Addr::new(subnet[0], subnet[1], subnet[2], 1);
        match frame.ethertype {
            ethernet::ARP => {
                let Ok(packet) = arp::parse_arp(frame.payload) else { return };
                if packet.operation == Operation::Request && packet.target == own {
                    self.router_sends(subnet, &arp::reply(&packet, self.router_mac));
                }
                if packet.operation == Operation::Reply && packet.target == own {
                    self.router_arp.insert(packet.sender, packet.sender_mac);
                    for (hop, packet) in std::mem::take(&mut self.router_waits) {
                        self.forward(hop, &packet);
                    }
                }
            }
            ethernet::IPV4 if frame.destination == self.router_mac => {
                let Ok(packet) = parse_ipv4(frame.payload) else { return };
                let (destination, bytes) = (packet.destination, packet.bytes.to_vec());
                self.forward(destination, &bytes);
            }
            _ => {}
        }
    }

    fn forward(&mut self, destination: Ipv4Addr, bytes: &[u8]) {
        let [a, b, c, last] = destination.octets();
        if last == 1 || destination.is_multicast() {
            return;
        }
        let subnet = [a, b, c];
        if let Some(mac) = self.router_arp.get(&destination).copied() {
            let frame = packet::frame(mac, self.router_mac, ethernet::IPV4, bytes);
            self.router_sends(subnet, &frame);
            return;
        }
        let request = arp::request(self.router_mac, Ipv4Addr::new(a, b, c, 1), destination);
        self.router_sends(subnet, &request);
        if self.router_waits.len() < 64 {
            self.router_waits.push((destination, bytes.to_vec()));
        }
    }
}
