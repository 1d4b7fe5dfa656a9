//! The table of the ports: isolation while the agent lives, and where the port is a wire, the kernel's own
//! forwarding while it doesn't.
//!
//! The agent's beat ([`crate::net::beat`]) keeps one element in the set `alive`, which leaves by itself
//! [`LIFE`] after the last beat. While it is there, what comes in on a port ends behind the packet taps: the agent
//! sees it and the kernel's stack doesn't. Once it is gone, the rules of the wire have their say:
//!
//! ```text
//! from_port_N (ingress, else drop):  alive -> drop;  wire_port_N
//! wire_port_N (empty where closed):  to the port itself, to a device on the same port -> drop
//!                                    wire_devices;  wire_copies;  -> uplink
//! from_uplink (ingress, else accept): alive -> accept;  wire_uplink
//! wire_uplink:                       to the gateway itself -> accept;  wire_devices;  wire_copies
//! wire_devices:                      to a known device -> its port, or nowhere where that is closed
//! wire_copies:                       a copy to every wire port but the one it came from
//! to_port_N (egress, else drop):     with the agent's mark -> accept
//! ```
//!
//! Addresses that no view names are on every wire port, as on a hub. What is for a group of the link itself (802.1X,
//! LLDP) passes between port and uplink and not from port to port.
//!
//! A change of the wire replaces the rules of the `wire_` chains in one transaction and touches no hook: no frame is
//! lost, and none passes twice. An empty chain named after the layout (interfaces and their order) says whether the
//! table that stands is the one to be changed.

use std::io::ErrorKind;
use std::time::Duration;

use anteroom_proto::key::Hash;

use crate::net::filter::PORTS;
use crate::net::netlink::Session;
use crate::net::nft::{Batch, Expression, Family, Header, Hook, Key, Meta, NftError, Policy};
use crate::net::packet::MARK;
use crate::net::wiring::{PortWiring, Wiring};

/// How long a beat lasts.
pub(crate) const LIFE: Duration = Duration::from_millis(250);

/// The mark on a beat (`SO_MARK`), which is also the one element of the set.
pub(crate) const BEAT: u32 = 0x616e_7466;

/// The mark on the agent's last word: the kernel is to take over now.
pub(crate) const FAREWELL: u32 = 0x616e_7467;

const ALIVE: &str = "alive";
const FAMILY: Family = Family::Netdev;
const PRIORITY: i32 = -500;

/// Raised with the rules: a table of another format is built anew.
const FORMAT: &str = "1";

/// How completely the ports are isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Both ways.
    Full,
    /// The kernel is older than 5.16: its own frames (IPv6 router solicitations and the like) could reach a device.
    IngressOnly,
}

/// What stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) isolation: Isolation,
    /// Whether the kernel can be a wire. Where it can't, all ports are closed while no agent runs.
    pub(crate) can_forward: bool,
}

/// The interfaces and what is wanted of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) uplink: &'a str,
    /// In the configuration's order.
    pub(crate) ports: &'a [&'a str],
    pub(crate) wiring: &'a Wiring,
}

/// Changes the wire of the table that stands. None: there is none for these interfaces.
pub(crate) fn update(session: &Session, wanted: &Wanted<'_>) -> Result<Option<Standing>, NftError> {
    for isolation in [Isolation::Full, Isolation::IngressOnly] {
        let rewire = |wiring: &Wiring| {
            let mut batch = Batch::default();
            batch.flush_chain(FAMILY, PORTS, &wanted.layout(isolation));
            Wanted { wiring, ..*wanted }.rewire(&mut batch, true);
            batch.commit_on(session)
        };
        match or_closed(wanted.wiring, rewire) {
            Ok(can_forward) => return Ok(Some(Standing { isolation, can_forward })),
            Err(error) if missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether the table for these interfaces stands.
pub(crate) fn stands(session: &Session, wanted: &Wanted<'_>) -> Result<bool, NftError> {
    for isolation in [Isolation::Full, Isolation::IngressOnly] {
        let mut batch = Batch::default();
        batch.flush_chain(FAMILY, PORTS, &wanted.layout(isolation));
        match batch.commit_on(session) {
            Ok(()) => return Ok(true),
            Err(error) if missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Replaces the table as a whole. `beating`: the agent lives, and isn't to be thought dead until its next beat.
///
/// A recent kernel (tried with 6.18) takes the names of absent interfaces and isolates them the moment they appear;
/// an older one refuses them. Then the table is built for those that are there, and anew when more appear.
pub(crate) fn build(
    session: &Session,
    wanted: &Wanted<'_>,
    beating: bool,
) -> Result<Standing, NftError> {
    match build_for(session, wanted, beating, |_| true) {
        Err(error) if missing(&error) => {
            build_for(session, wanted, beating, |interface| index(interface).is_some())
        }
        result => result,
    }
}

fn build_for(
    session: &Session,
    wanted: &Wanted<'_>,
    beating: bool,
    hooked: impl Fn(&str) -> bool + Copy,
) -> Result<Standing, NftError> {
    let attempt = |isolation| {
        let build = |wiring: &Wiring| {
            Wanted { wiring, ..*wanted }.table(isolation, beating, hooked).commit_on(session)
        };
        or_closed(wanted.wiring, build).map(|can_forward| Standing { isolation, can_forward })
    };
    match attempt(Isolation::Full) {
        Err(error) if error.source.kind() == ErrorKind::Unsupported => {
            attempt(Isolation::IngressOnly)
        }
        result => result,
    }
}

/// Does something with a wiring; where this kernel has no rules that forward, with all ports closed. Says whether it
/// has.
fn or_closed(
    wiring: &Wiring,
    attempt: impl Fn(&Wiring) -> Result<(), NftError>,
) -> Result<bool, NftError> {
    match attempt(wiring) {
        Ok(()) => Ok(true),
        Err(error)
            if error.what.starts_with("a rule of chain wire_")
                && matches!(error.source.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) =>
        {
            let mut closed = wiring.clone();
            closed.ports.iter_mut().for_each(|port| port.wire = false);
            attempt(&closed).map(|()| false)
        }
        Err(error) => Err(error),
    }
}

fn missing(error: &NftError) -> bool {
    error.source.kind() == ErrorKind::NotFound
}

impl Wanted<'_> {
    fn layout(&self, isolation: Isolation) -> String {
        let isolation = [u8::from(isolation == Isolation::Full)];
        let mut parts = vec![FORMAT.as_bytes(), &isolation, self.uplink.as_bytes()];
        parts.extend(self.ports.iter().map(|port| port.as_bytes()));
        let digest = Hash::of("anteroom port table", &parts).to_string();
        format!("layout_{}", digest.get(..16).unwrap_or(&digest))
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &str, &PortWiring)> {
        let ports = self.ports.iter().zip(&self.wiring.ports);
        (1..).zip(ports).map(|(number, (interface, wiring))| (number, *interface, wiring))
    }

    fn table(&self, isolation: Isolation, beating: bool, hooked: impl Fn(&str) -> bool) -> Batch {
        let mut batch = Batch::default();
        batch.remove_table(FAMILY, PORTS);
        batch.table(FAMILY, PORTS);
        batch.chain(FAMILY, PORTS, &self.layout(isolation));
        batch.passing_set(FAMILY, PORTS, ALIVE, Key::Mark, 4);
        if beating {
            let beat = [BEAT.to_ne_bytes().to_vec()];
            batch.elements(FAMILY, PORTS, ALIVE, &beat, Some(LIFE));
        }
        for (number, ..) in self.numbered() {
            batch.set(FAMILY, PORTS, &devices(number), Key::Ethernet);
            batch.chain(FAMILY, PORTS, &wire_port(number));
        }
        for chain in [DEVICES, COPIES, UPLINK] {
            batch.chain(FAMILY, PORTS, chain);
        }
        self.rewire(&mut batch, false);

        // The agent's own packets on the loopback interface, which nothing from outside comes to.
        hook(&mut batch, "beat", Hook::Ingress("lo"), Policy::Accept);
        let marked = |mark: u32| [Expression::Meta(Meta::Mark), equal(mark)];
        for (mark, act) in
            [(BEAT, Expression::Refresh(ALIVE, LIFE)), (FAREWELL, Expression::Forget(ALIVE))]
        {
            let act = [Expression::Load(BEAT.to_ne_bytes().to_vec()), act, Expression::Drop];
            batch.rule(FAMILY, PORTS, "beat", &[&marked(mark)[..], &act].concat());
        }
        if hooked(self.uplink) {
            hook(&mut batch, "from_uplink", Hook::Ingress(self.uplink), Policy::Accept);
            alive_then(&mut batch, "from_uplink", Expression::Accept, UPLINK);
        }
        for (number, interface, _) in self.numbered().filter(|(_, name, _)| hooked(name)) {
            let chain = format!("from_port_{number}");
            hook(&mut batch, &chain, Hook::Ingress(interface), Policy::Drop);
            alive_then(&mut batch, &chain, Expression::Drop, &wire_port(number));
            if isolation == Isolation::Full {
                let chain = format!("to_port_{number}");
                hook(&mut batch, &chain, Hook::Egress(interface), Policy::Drop);
                let own = [&marked(MARK)[..], &[Expression::Accept]].concat();
                batch.rule(FAMILY, PORTS, &chain, &own);
            }
        }
        batch
    }

    /// Fills the chains and sets of the wire, emptied first where they stand.
    fn rewire(&self, batch: &mut Batch, standing: bool) {
        if standing {
            for chain in [DEVICES, COPIES, UPLINK] {
                batch.flush_chain(FAMILY, PORTS, chain);
            }
            for (number, ..) in self.numbered() {
                batch.flush_chain(FAMILY, PORTS, &wire_port(number));
                batch.flush_set(FAMILY, PORTS, &devices(number));
            }
        }
        for (number, interface, wiring) in self.numbered() {
            let known: Vec<_> = wiring.devices.iter().map(|mac| mac.0.to_vec()).collect();
            batch.elements(FAMILY, PORTS, &devices(number), &known, None);
            let there = index(interface).filter(|_| wiring.wire);
            let act =
                there.map_or(vec![Expression::Drop], |index| out(index, Expression::ForwardTo));
            batch.rule(FAMILY, PORTS, DEVICES, &[to_devices(number), act].concat());
            if let Some(index) = there {
                let mut name = interface.as_bytes().to_vec();
                name.resize(libc::IFNAMSIZ, 0);
                let elsewhere = vec![Expression::Meta(Meta::InputName), Expression::NotEqual(name)];
                let copy = [elsewhere, out(index, Expression::CopyTo)].concat();
                batch.rule(FAMILY, PORTS, COPIES, &copy);
                self.rewire_port(batch, number);
            }
        }
        if self.wiring.ports.iter().any(|port| port.wire) {
            batch.rule(FAMILY, PORTS, UPLINK, &[to_host(), vec![Expression::Accept]].concat());
            batch.rule(FAMILY, PORTS, UPLINK, &mark(MARK));
            batch.rule(FAMILY, PORTS, UPLINK, &[Expression::Jump(DEVICES.into())]);
            batch.rule(FAMILY, PORTS, UPLINK, &[Expression::Jump(COPIES.into())]);
            // What goes on to the gateway's own stack is no longer the wire's.
            batch.rule(FAMILY, PORTS, UPLINK, &mark(0));
        }
    }

    fn rewire_port(&self, batch: &mut Batch, number: usize) {
        let chain = wire_port(number);
        let mut rule = |rule: &[Expression]| batch.rule(FAMILY, PORTS, &chain, rule);
        rule(&[to_host(), vec![Expression::Drop]].concat());
        rule(&[to_devices(number), vec![Expression::Drop]].concat());
        rule(&mark(MARK));
        rule(&[Expression::Jump(DEVICES.into())]);
        rule(&[
            Expression::Payload(Header::Link, 0, 5),
            Expression::NotEqual(vec![0x01, 0x80, 0xc2, 0, 0]),
            Expression::Jump(COPIES.into()),
        ]);
        if let Some(uplink) = index(self.uplink) {
            rule(&out(uplink, Expression::ForwardTo));
        }
    }
}

const DEVICES: &str = "wire_devices";
const COPIES: &str = "wire_copies";
const UPLINK: &str = "wire_uplink";

fn wire_port(number: usize) -> String {
    format!("wire_port_{number}")
}

fn devices(number: usize) -> String {
    format!("devices_{number}")
}

fn index(interface: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(interface).ok()
}

fn hook(batch: &mut Batch, chain: &str, hook: Hook<'_>, policy: Policy) {
    batch.base_chain(FAMILY, PORTS, chain, hook, PRIORITY, policy);
}

/// `verdict` while the agent lives; otherwise `wire` has its say.
fn alive_then(batch: &mut Batch, chain: &str, verdict: Expression, wire: &str) {
    let alive =
        [Expression::Load(BEAT.to_ne_bytes().to_vec()), Expression::InSet(ALIVE.into()), verdict];
    batch.rule(FAMILY, PORTS, chain, &alive);
    batch.rule(FAMILY, PORTS, chain, &[Expression::Jump(wire.into())]);
}

fn equal(number: u32) -> Expression {
    Expression::Equal(number.to_ne_bytes().to_vec())
}

fn mark(mark: u32) -> Vec<Expression> {
    vec![Expression::Load(mark.to_ne_bytes().to_vec()), Expression::SetMark]
}

fn out(index: u32, how: Expression) -> Vec<Expression> {
    vec![Expression::Load(index.to_ne_bytes().to_vec()), how]
}

/// Frames to this machine's own address on the interface they came in on.
fn to_host() -> Vec<Expression> {
    vec![Expression::Meta(Meta::PacketType), Expression::Equal(vec![0])]
}

fn to_devices(number: usize) -> Vec<Expression> {
    vec![Expression::Payload(Header::Link, 0, 6), Expression::InSet(devices(number))]
}
