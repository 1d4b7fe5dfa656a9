//! Where somebody hostile stands in the lab's hospital, whom he passes for, and what he tries.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_lab::hospital::{Hospital, address};
use anteroom_lab::topology::Host;

use crate::attack::{self, BROADCAST, MARK, Mac};
use crate::wire::End;

/// An Ethernet address and an IP address.
pub type Who = (Mac, Ipv4Addr);

/// The hostile device, and those around it.
#[derive(Debug)]
pub struct Place {
    network: String,
    /// The one who attacks.
    pub own: Who,
    /// At another port of the same gateway.
    pub neighbour: Who,
    /// A member elsewhere, which the device may reach on DICOM's ports and by echoes (as the rules are for imaging).
    pub member: Who,
    /// The router of its network.
    pub router: Who,
    /// What the neighbour may reach in the clear, and the device may not.
    pub external: Ipv4Addr,
    /// Nobody of whom a rule speaks.
    pub stranger: Ipv4Addr,
    elsewhere: Ipv4Addr,
    /// The gateway's uplink, and its interface at the device.
    pub gateway: [Who; 2],
}

impl Place {
    /// The MRI, beside the CT.
    #[must_use]
    pub fn imaging(hospital: &Hospital) -> Self {
        Self::new(hospital, ("imaging", "port2"), "mri-1", "ct-1", "pacs-1")
    }

    /// The pump, beside the monitor.
    #[must_use]
    pub fn ward(hospital: &Hospital) -> Self {
        Self::new(hospital, ("ward", "port1"), "pump-1", "monitor-1", "hl7-1")
    }

    fn new(
        hospital: &Hospital,
        (network, port): (&str, &str),
        own: &str,
        neighbour: &str,
        member: &str,
    ) -> Self {
        let who = |name: &str| {
            let machine = hospital.machine(name);
            let mac = machine.host.mac("eth0");
            (mac.unwrap_or_else(|error| panic!("{name}: {error:#}")), machine.address())
        };
        let mac = |host: &Host, interface: &str| {
            host.mac(interface).unwrap_or_else(|error| panic!("{interface}: {error:#}"))
        };
        let gateway = &hospital.gateways[network].host;
        let elsewhere = if network == "ward" { "mri-1" } else { "monitor-1" };
        Self {
            network: network.to_owned(),
            own: who(own),
            neighbour: who(neighbour),
            member: who(member),
            router: (mac(&hospital.router, network), address(network, 1)),
            external: who("archive-1").1,
            stranger: who("hvac-1").1,
            elsewhere: who(elsewhere).1,
            gateway: ["uplink", port]
                .map(|interface| (mac(gateway, interface), address(network, 2))),
        }
    }

    /// Under whose addresses the device speaks: a description, Ethernet address, IP address.
    fn guises(&self) -> Vec<(&'static str, Mac, Ipv4Addr)> {
        let own = self.own.0;
        vec![
            ("itself", own, self.own.1),
            ("the neighbour", self.neighbour.0, self.neighbour.1),
            ("the neighbour's IP address", own, self.neighbour.1),
            ("the neighbour's Ethernet address", self.neighbour.0, self.own.1),
            ("the router", self.router.0, self.router.1),
            ("the router's IP address", own, self.router.1),
            ("a member elsewhere", self.member.0, self.member.1),
            ("a member's IP address", own, self.member.1),
            ("the external", own, self.external),
            ("the gateway", self.gateway[0].0, self.gateway[0].1),
            ("the gateway's port", self.gateway[1].0, self.gateway[1].1),
            ("the gateway's IP address", own, self.gateway[0].1),
            ("a stranger", [2, 0, 0, 0, 0, 9], address(&self.network, 99)),
            ("an address of nobody's", own, address(&self.network, 99)),
            ("nobody", own, Ipv4Addr::UNSPECIFIED),
            ("everybody", own, Ipv4Addr::BROADCAST),
            ("a group", own, Ipv4Addr::new(239, 255, 255, 250)),
            ("the host itself", own, Ipv4Addr::LOCALHOST),
        ]
    }

    /// To whom: a description, Ethernet address, IP address.
    fn targets(&self) -> Vec<(&'static str, Mac, Ipv4Addr)> {
        let router = self.router.0;
        vec![
            ("the neighbour", self.neighbour.0, self.neighbour.1),
            ("the neighbour by the router", router, self.neighbour.1),
            ("the external", router, self.external),
            ("a stranger", router, self.stranger),
            ("the router", router, self.router.1),
            ("the gateway", self.gateway[0].0, self.gateway[0].1),
            ("the gateway's port", self.gateway[1].0, self.gateway[1].1),
            ("the gateway by the router", router, self.gateway[0].1),
            ("the controller", router, address("mgmt", 10)),
            ("another gateway", router, address("servers", 2)),
            ("another gateway's device", router, self.elsewhere),
            ("everybody", BROADCAST, Ipv4Addr::BROADCAST),
            ("everybody here", BROADCAST, address(&self.network, 255)),
            ("the neighbour by everybody", BROADCAST, self.neighbour.1),
            ("a group", [1, 0, 0x5e, 0x7f, 0xff, 0xfa], Ipv4Addr::new(239, 255, 255, 250)),
        ]
    }

    /// All that it tries and may not: a description, and the frame.
    #[must_use]
    pub fn forbidden(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for (guise, mac, from) in self.guises() {
            for (whom, to, target) in self.targets() {
                let mut add = |what: &str, packet: Vec<u8>| {
                    let name = format!("{what} to {whom} as {guise}");
                    all.push((name, attack::frame(to, mac, 0x0800, &packet)));
                };
                self.packets(from, target, &mut add);
            }
            // The member that it may reach, but not like this.
            let honest = guise == "itself";
            for (whom, to) in [("the member", self.member.0), ("the member, routed", self.router.0)]
            {
                let mut add = |what: &str, packet: Vec<u8>| {
                    let name = format!("{what} to {whom} as {guise}");
                    all.push((name, attack::frame(to, mac, 0x0800, &packet)));
                };
                let to = self.member.1;
                for port in [22, 2_575, 4_006] {
                    add("a SYN", attack::tcp(((from, 41_000), (to, port)), 0x02));
                    add("UDP", attack::udp(((from, 41_000), (to, port)), b""));
                }
                if !honest {
                    add("DICOM", attack::tcp(((from, 41_000), (to, 104)), 0x02));
                    add("an echo", attack::icmp(from, to, (8, 0), &[0; 4]));
                }
            }
            for operation in [1, 2] {
                for (to, claimed, asked) in [
                    (BROADCAST, from, self.neighbour.1),
                    (self.neighbour.0, from, self.neighbour.1),
                    (self.router.0, from, self.router.1),
                    (BROADCAST, self.neighbour.1, self.router.1),
                    (BROADCAST, self.router.1, self.neighbour.1),
                    (BROADCAST, from, from),
                ] {
                    let packet = attack::arp(operation, (mac, claimed), ([0; 6], asked));
                    let name = format!("ARP {operation} of {claimed} for {asked} as {guise}");
                    all.push((name, attack::frame(to, mac, 0x0806, &packet)));
                }
            }
        }
        self.other_frames(&mut all);
        all
    }

    fn packets(&self, from: Ipv4Addr, to: Ipv4Addr, add: &mut impl FnMut(&str, Vec<u8>)) {
        for (flags, what) in [(0x02, "a SYN"), (0x12, "a SYN-ACK"), (0x10, "an ACK"), (4, "a RST")]
        {
            for (near, far) in [(41_000, 104), (104, 41_000), (41_000, 22)] {
                add(what, attack::tcp(((from, near), (to, far)), flags));
            }
        }
        for (near, far) in [(53, 53), (123, 123), (67, 68), (51_820, 51_820), (41_000, 4_433)] {
            add("UDP", attack::udp(((from, near), (to, far)), &[2, 1, 6, 0]));
        }
        let quoted = attack::tcp(((self.neighbour.1, 40_000), (self.member.1, 104)), 0x10);
        let body = [&self.own.1.octets()[..], &quoted[..28]].concat();
        for (kind, code) in
            [(8, 0), (0, 0), (5, 0), (5, 1), (3, 1), (3, 4), (11, 0), (9, 0), (13, 0)]
        {
            add(&format!("ICMP {kind}/{code}"), attack::icmp(from, to, (kind, code), &body));
        }
        add("a fragment", attack::ip(from, to, 17, 0x2003, MARK));
        add("a tiny fragment", attack::ip(from, to, 6, 0x2000, &[&[0; 8], MARK].concat()));
        for protocol in [2, 4, 41, 47, 50, 89, 112] {
            add(&format!("IP protocol {protocol}"), attack::ip(from, to, protocol, 0, MARK));
        }
    }

    /// IPv6, tags, and what isn't IP.
    fn other_frames(&self, all: &mut Vec<(String, Vec<u8>)>) {
        let own = self.own.0;
        let syn = attack::tcp(((self.own.1, 41_000), (self.member.1, 104)), 0x02);
        for (kind, length) in
            [(133, 4), (134, 12), (135, 20), (136, 20), (137, 36), (128, 4), (143, 24)]
        {
            for to in [[0x33, 0x33, 0, 0, 0, 1], self.neighbour.0, self.router.0, BROADCAST] {
                let packet = attack::icmpv6(kind, &vec![0; length]);
                all.push((format!("ICMPv6 {kind}"), attack::frame(to, own, 0x86dd, &packet)));
            }
        }
        // A priority alone is no VLAN: what is open stays open under one.
        for control in [1_u16, 42, 4_095, 0xe001] {
            for outer in [0x8100_u16, 0x88a8] {
                let tag = control.to_be_bytes();
                let inner = [&tag[..], &[8, 0], &syn].concat();
                let twice = [&tag[..], &[0x81, 0], &tag, &[8, 0], &syn].concat();
                for to in [self.member.0, self.neighbour.0, self.router.0] {
                    all.push((format!("tag {control}"), attack::frame(to, own, outer, &inner)));
                    all.push((format!("tags {control}"), attack::frame(to, own, outer, &twice)));
                }
            }
        }
        for kind in [
            0x0000_u16, 0x0026, 0x05ff, 0x0842, 0x22f0, 0x8035, 0x8137, 0x8863, 0x8864, 0x8892,
            0x88b5, 0x88e5, 0x88f7, 0xffff,
        ] {
            for to in [BROADCAST, self.neighbour.0, self.router.0, [1, 0x80, 0xc2, 0, 0, 0x42]] {
                all.push((format!("type {kind:#06x}"), attack::frame(to, own, kind, &[0; 40])));
            }
        }
    }
}

/// Listens for as long as this, however much there is to hear.
///
/// # Panics
/// If the kernel refuses.
pub fn listen(end: &mut End, time: Duration) {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        end.listen(Duration::from_millis(10)).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// What of an attack an end has heard, by its description.
#[must_use]
pub fn marked<'a>(end: &'a End, sent: &'a [(String, Vec<u8>)]) -> Vec<String> {
    let name = |frame: &Vec<u8>| {
        let found = sent.iter().find(|(_, bytes)| bytes[12..].starts_with(&frame[12..]));
        found.map_or_else(|| format!("{frame:02x?}"), |(name, _)| name.clone())
    };
    end.heard().iter().filter(|frame| attack::is_marked(frame)).map(name).collect()
}
