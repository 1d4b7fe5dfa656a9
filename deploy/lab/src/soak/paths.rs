//! What the paths between the gateways are like, and what makes them worse.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::changes::{Bad, FAR, Nat, TWICE};
use super::relays;
use crate::hospital::{Hospital, address};
use crate::topology::cable;
use crate::wan::Attach;
use crate::wan::conditions::Conditions;
use crate::wan::link::{Link, Way};
use crate::wan::nat::{Egress, TCP, UDP};
use crate::wan::router::{NatRouter, Place};

/// The gateways behind routers of their own, and the networks outside these (100.64.x.0/24).
pub(super) const BEHIND: [(&str, u8); 2] = [(FAR, 1), ("servers", 2)];
/// The controller's port for gateways.
const CONTROLLER: u16 = 4_433;
/// The longest datagram that a half-dead path carries: knocks and hellos go through, packets don't.
const SHORT: usize = 300;
/// The second uplink's network (100.64.x.0/24).
const SECOND: u8 = 9;

/// What may pass the routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    All,
    /// No tunnels: only controller and relays.
    NoTunnels,
    /// Short datagrams alone, but for controller and relays.
    ShortAlone,
    /// Controller and relays by TCP.
    TcpOnly,
}

/// A router between two gateways' networks and the campus' one, and the link of one of them.
#[derive(Debug)]
pub(super) struct Paths {
    link: Link,
    routers: [NatRouter; 2],
    passage: Passage,
    nats: [Nat; 2],
    cut: bool,
    bad: Option<Bad>,
    silent: bool,
    second_dead: bool,
    /// The last octets of the far gateway's address, and of its router's outside one.
    last: [u8; 2],
}

const fn outside(number: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, number, last)
}

impl Paths {
    /// Lays links and routers that do nothing to packets yet, and gives a gateway its second uplink. Agents run.
    pub(super) fn lay(hospital: &mut Hospital, seed: u64) -> Result<Self> {
        let (campus, router) = (&hospital.campus, &hospital.router);
        campus.switch("br-wan")?;
        router.ip(&format!("link delete {FAR}"))?;
        let ends = (Attach::Host(router, FAR), Attach::Switch(campus, "br-wan"));
        let link = Link::lay("wan", ends.0, ends.1, seed)?;
        let mut routers = Vec::new();
        for (network, number) in BEHIND {
            let bridge = format!("br-{network}");
            let inside = Place { address: address(network, 1), prefix: 24 };
            let place = Place { address: outside(number, 2), prefix: 24 };
            let far = if network == FAR {
                Attach::Switch(campus, "br-wan")
            } else {
                router.ip(&format!("link delete {network}"))?;
                Attach::Host(router, network)
            };
            routers.push(NatRouter::set_up(
                &format!("nat-{number}"),
                (Attach::Switch(campus, &bridge), inside),
                (far, place),
                Some(outside(number, 1)),
                Nat::None.kind(),
                seed ^ u64::from(number),
            )?);
            router.address(network, outside(number, 1), 24)?;
            route(hospital, network, number, 2)?;
        }
        let [first, second]: [NatRouter; 2] =
            routers.try_into().ok().context("two gateways have routers")?;
        // Interfaces' second addresses outlive their first, as systemd has it.
        let host = &hospital.gateways[FAR].host;
        let promote = "/proc/sys/net/ipv4/conf/all/promote_secondaries";
        host.enter(|| std::fs::write(promote, "1"))?.context("promote_secondaries")?;
        let paths = Self {
            link,
            routers: [first, second],
            passage: Passage::All,
            nats: [Nat::None; 2],
            cut: false,
            bad: None,
            silent: false,
            second_dead: false,
            last: [2, 2],
        };
        paths.set();
        add_uplink(hospital)?;
        Ok(paths)
    }

    /// The far gateway's address.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        address(FAR, self.last[0])
    }

    /// The name of the router's interface in front of the far gateway, on the campus.
    pub(super) const fn door() -> &'static str {
        "nat-1-in"
    }

    /// What of packets may pass now.
    pub(super) const fn passage(&self) -> Passage {
        self.passage
    }

    /// Whether nothing is wrong with any of them.
    pub(super) fn are_good(&self) -> bool {
        self.passage == Passage::All
            && self.nats == [Nat::None; 2]
            && !(self.cut || self.silent || self.second_dead)
            && self.bad.is_none()
    }

    /// What is wrong with them, and what became of packets.
    pub(super) fn state(&self) -> String {
        let Self { passage, nats, cut, bad, silent, second_dead, .. } = self;
        let ways = [Way::There, Way::Back].map(|way| self.link.counters(way));
        let routers = [0, 1].map(|which: usize| self.routers[which].counters());
        format!(
            "{passage:?} pass, {nats:?}, cut {cut}, bad {bad:?}, first of two uplinks silent {silent}, second dead \
             {second_dead}\nlink: {ways:?}\nrouters: {routers:?}"
        )
    }

    /// All is good again, but for what ends by itself.
    pub(super) fn heal(&mut self) {
        self.bad = None;
        self.passage = Passage::All;
        self.nats = [Nat::None; 2];
        self.set();
    }

    pub(super) fn cut(&mut self, cut: bool) {
        self.cut = cut;
        self.set();
    }

    pub(super) fn worsen(&mut self, how: Bad) {
        self.bad = Some(how);
        self.set();
    }

    pub(super) fn limit(&mut self, passage: Passage) {
        self.passage = passage;
        self.set();
    }

    pub(super) fn translate(&mut self, nats: [Nat; 2]) {
        self.nats = nats;
        for (router, nat) in self.routers.iter().zip(nats) {
            router.set_kind(nat.kind().letting_out(egress(self.passage)));
        }
    }

    /// The router in front of the far gateway gets another address outside.
    pub(super) fn move_router(&mut self, hospital: &Hospital) -> Result<()> {
        let last = self.next_last(1);
        let number = BEHIND[0].1;
        route(hospital, FAR, number, last)?;
        let place = Place { address: outside(number, last), prefix: 24 };
        self.routers[0].set_address(place, Some(outside(number, 1)));
        Ok(())
    }

    /// The far gateway gets another address.
    pub(super) fn move_gateway(&mut self, hospital: &mut Hospital) -> Result<()> {
        let (new, router) = (address(FAR, self.next_last(0)), address(FAR, 1));
        hospital.gateway(FAR).host.readdress("uplink", new, 24, Some(router))
    }

    fn next_last(&mut self, which: usize) -> u8 {
        let last = &mut self.last[which];
        *last = if *last >= 99 { 70 } else { (*last).max(69) + 1 };
        *last
    }

    /// Whether nothing passes by the first of two uplinks.
    pub(super) fn silence(&mut self, hospital: &Hospital, silent: bool) -> Result<()> {
        let verb = if silent { "add" } else { "del" };
        if std::mem::replace(&mut self.silent, silent) != silent {
            hospital.router.ip(&format!("rule {verb} pref 10 iif {TWICE} blackhole"))?;
            let to = address(TWICE, 2);
            hospital.router.ip(&format!("rule {verb} pref 11 to {to}/32 blackhole"))?;
        }
        Ok(())
    }

    /// Whether the second of two uplinks has no carrier.
    pub(super) fn kill_second(&mut self, hospital: &Hospital, dead: bool) -> Result<()> {
        self.second_dead = dead;
        let state = if dead { "down" } else { "up" };
        hospital.router.ip(&format!("link set backup {state}")).map(drop)
    }

    fn set(&self) {
        let conditions = if self.cut {
            Conditions::down()
        } else {
            self.bad.map_or_else(Conditions::default, conditions)
        };
        self.link.set_both(&conditions);
        for (router, nat) in self.routers.iter().zip(self.nats) {
            router.treat(nat.kind().letting_out(egress(self.passage)));
        }
    }
}

/// What isn't translated finds its way there.
fn route(hospital: &Hospital, network: &str, number: u8, last: u8) -> Result<()> {
    let (to, by) = (address(network, 0), outside(number, last));
    hospital.router.ip(&format!("route replace {to}/24 via {by}")).map(drop)
}

fn egress(passage: Passage) -> Egress {
    let ports = || relays::PORTS.into_iter().chain([CONTROLLER]);
    let tcp = ports().map(|port| (TCP, port));
    match passage {
        Passage::All => Egress::All,
        Passage::NoTunnels => Egress::Only(tcp.chain(ports().map(|port| (UDP, port))).collect()),
        Passage::ShortAlone => Egress::Short(SHORT, ports().collect()),
        Passage::TcpOnly => Egress::Only(tcp.collect()),
    }
}

/// Lays a second cable from a gateway to the router, which it takes where the first is dead or silent.
fn add_uplink(hospital: &mut Hospital) -> Result<()> {
    let router = hospital.router.clone();
    let gateway = hospital.gateway(TWICE);
    cable((&gateway.host, "backup", None), (&router, "backup"))?;
    gateway.host.address("backup", outside(SECOND, 2), 24)?;
    router.address("backup", outside(SECOND, 1), 24)?;
    let by = outside(SECOND, 1);
    gateway.host.ip(&format!("route add default via {by} dev backup metric 500"))?;
    for interface in ["all", "uplink", "backup"] {
        let file = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        gateway.host.enter(|| std::fs::write(&file, "0"))?.context("rp_filter")?;
    }
    gateway.stop()?;
    let text = std::fs::read_to_string(&gateway.config)?;
    let text = text.replace("[underlay]", "[underlay]\nbackup = \"backup\"");
    std::fs::write(&gateway.config, text)?;
    gateway.start()?;
    gateway.wait_running()
}

fn conditions(how: Bad) -> Conditions {
    let good = Conditions::default();
    let ms = Duration::from_millis;
    match how {
        Bad::Loses => good.losing(0.05),
        Bad::Lossy => {
            good.losing(0.02).delayed(ms(10), ms(3)).reordering(0.02, ms(5)).duplicating(0.02)
        }
        Bad::Far => good.delayed(ms(100), ms(5)),
        Bad::Narrow => good.limited(20_000_000, 128 << 10),
        Bad::Small => good.with_path_mtu(1_340, outside(BEHIND[0].1, 1)),
        Bad::BlackHole => good.swallowing_above(1_340),
    }
}
