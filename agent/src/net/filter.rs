//! The gateway's two packet filter tables.
//!
//! `netdev anteroom` keeps kernel and devices apart, and is the wire while no agent runs: see [`wire`].
//!
//! `inet anteroom_guard` makes the gateway itself silent on the underlay and the uplink. Answers to what it asked come
//! in, and so do tunnels, peers' QUIC where it is taken, DHCP replies, IPv6 neighbour discovery (IPv6's ARP) and the services that the configuration
//! names. Tunnel packets are left out of connection tracking: a flood of them fills no table. Of handshakes that strangers
//! begin, QUIC's too, so many a second come in and no more: see [`doorstep`].
//!
//! Without connection tracking in the kernel the guard can't tell answers from questions. Then it lets in what could
//! be an answer, and keeps the kernel from betraying itself with resets and "port unreachable".

use crate::config::LocalService;
use crate::net::netlink::Session;
use crate::net::nft::{Batch, Expression, Family, Header, Hook, Meta, NftError, Policy};
use anteroom_proto::service::Protocol;

mod doorstep;
pub(crate) mod wire;

/// The table of the ports.
pub(crate) const PORTS: &str = "anteroom";
/// The table that keeps the gateway itself silent.
pub(crate) const GUARD: &str = "anteroom_guard";

/// An empty chain of the guard's table, by which it is known to be there.
const STANDS: &str = "stands";

/// What the guard lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guard<'a> {
    /// Interfaces on which the gateway stays silent.
    pub(crate) interfaces: Vec<&'a str>,
    /// UDP port of the tunnels.
    pub(crate) tunnel_port: u16,
    /// UDP port of peers' QUIC connections: one of its own, or the tunnels'.
    pub(crate) quic_port: Option<u16>,
    /// Services that stay reachable.
    pub(crate) management: &'a [LocalService],
}

/// How the guard tells answers from questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guarding {
    /// By connection tracking.
    Tracked,
    /// Not at all: the kernel has no connection tracking.
    Untracked,
}

/// Replaces the guard's table, with as much in it as the kernel is built for.
pub(crate) fn guard(session: &Session, guard: &Guard<'_>) -> Result<Guarding, NftError> {
    let attempts = [
        (Guarding::Tracked, true),
        (Guarding::Tracked, false),
        (Guarding::Untracked, true),
        (Guarding::Untracked, false),
    ];
    let mut last = None;
    for (guarding, bounds) in attempts {
        match guard.batch(guarding, bounds).commit_on(session) {
            Ok(()) if bounds => return Ok(guarding),
            Ok(()) => {
                tracing::warn!(
                    "this kernel's packet filter has no limits, so that a flood of handshakes is \
                     bounded by the agent alone"
                );
                return Ok(guarding);
            }
            Err(error) if is_missing(&error) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    // There is one: no attempt came back.
    last.map_or(Ok(Guarding::Untracked), Err)
}

/// Whether the kernel lacks something that was asked for.
fn is_missing(error: &NftError) -> bool {
    matches!(error.source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::Unsupported)
}

/// Whether the guard's table stands.
pub(crate) fn guard_stands(session: &Session) -> Result<bool, NftError> {
    let mut batch = Batch::default();
    // An empty chain: nothing is changed by emptying it.
    batch.flush_chain(Family::Inet, GUARD, STANDS);
    match batch.commit_on(session) {
        Ok(()) => Ok(true),
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes both tables.
pub(crate) fn release() -> Result<(), NftError> {
    let mut batch = Batch::default();
    batch.remove_table(Family::Netdev, PORTS);
    batch.remove_table(Family::Inet, GUARD);
    batch.commit()
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
pub(crate) const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// The lowest port that a client's socket gets by itself, on Linux as it comes.
const FIRST_CLIENT_PORT: u16 = 32_768;

impl Guard<'_> {
    fn batch(&self, guarding: Guarding, bounds: bool) -> Batch {
        let mut batch = Batch::default();
        batch.remove_table(Family::Inet, GUARD);
        batch.table(Family::Inet, GUARD);
        batch.chain(Family::Inet, GUARD, STANDS);
        batch.chain(Family::Inet, GUARD, "guarded");
        for rule in self.accepted(guarding) {
            let rule = [rule, vec![Expression::Accept]].concat();
            batch.rule(Family::Inet, GUARD, "guarded", &rule);
        }
        let silence = [Expression::Counter, Expression::Drop];
        batch.rule(Family::Inet, GUARD, "guarded", &silence);

        // Before the usual filter priority of 0, so that a host's own rules can only narrow further.
        base(&mut batch, "input", Hook::Input, -10);
        base(&mut batch, "forward", Hook::Forward, -10);
        for interface in &self.interfaces {
            let rule =
                [named(Meta::InputName, interface), vec![Expression::Jump("guarded".into())]];
            batch.rule(Family::Inet, GUARD, "input", &rule.concat());
            let rule = [named(Meta::InputName, interface), vec![Expression::Drop]];
            batch.rule(Family::Inet, GUARD, "forward", &rule.concat());
        }
        match guarding {
            Guarding::Tracked => self.leave_tunnels_untracked(&mut batch),
            Guarding::Untracked => self.silence_the_kernel(&mut batch),
        }
        if bounds {
            doorstep::add(&mut batch, self);
        }
        batch
    }

    fn accepted(&self, guarding: Guarding) -> Vec<Vec<Expression>> {
        let mut rules = vec![
            [transport(UDP), to_port(self.tunnel_port)].concat(),
            // DHCP's answers come unasked as far as connection tracking can tell: the question was a broadcast.
            [family(IPV4), transport(UDP), from_port(67), to_port(68)].concat(),
            [family(IPV6), transport(UDP), from_port(547), to_port(546)].concat(),
        ];
        let quic = self.quic_port.filter(|port| *port != self.tunnel_port);
        rules.extend(quic.map(|port| [transport(UDP), to_port(port)].concat()));
        // Router advertisement, neighbour solicitation and advertisement.
        rules.extend([134, 135, 136].map(|kind| [transport(ICMPV6), icmp_type(kind)].concat()));
        for service in self.management {
            match service.protocol {
                Protocol::Tcp => rules.push([transport(TCP), to_port(service.port)].concat()),
                Protocol::Udp => rules.push([transport(UDP), to_port(service.port)].concat()),
                Protocol::IcmpEcho => {
                    rules.push([family(IPV4), transport(ICMP), icmp_type(8)].concat());
                    rules.push([transport(ICMPV6), icmp_type(128)].concat());
                }
            }
        }
        match guarding {
            Guarding::Tracked => {
                // Established and related, as bits in the state's set.
                let states = (1_u32 << 1 | 1 << 2).to_ne_bytes().to_vec();
                rules.push(vec![
                    Expression::ConnectionState,
                    Expression::Mask(states),
                    Expression::NotEqual(vec![0; 4]),
                ]);
            }
            Guarding::Untracked => {
                let client = || {
                    vec![
                        Expression::Payload(Header::Transport, 2, 2),
                        Expression::AtLeast(FIRST_CLIENT_PORT.to_be_bytes().to_vec()),
                    ]
                };
                rules.push([transport(UDP), client()].concat());
                // Of TCP, what doesn't open a connection: SYN alone does.
                let not_opening = vec![
                    Expression::Payload(Header::Transport, 13, 1),
                    Expression::Mask(vec![0x12]),
                    Expression::NotEqual(vec![0x02]),
                ];
                rules.push([transport(TCP), client(), not_opening].concat());
                rules.extend(
                    [0, 3, 11]
                        .map(|kind| [family(IPV4), transport(ICMP), icmp_type(kind)].concat()),
                );
                rules.extend(
                    [1, 2, 3, 129].map(|kind| [transport(ICMPV6), icmp_type(kind)].concat()),
                );
            }
        }
        rules
    }

    fn leave_tunnels_untracked(&self, batch: &mut Batch) {
        // Before connection tracking, which comes at -200.
        base(batch, "prerouting", Hook::Prerouting, -300);
        base(batch, "output", Hook::Output, -300);
        let quic = self.quic_port.filter(|port| *port != self.tunnel_port);
        let ports = [Some(self.tunnel_port), quic];
        for (interface, port) in self
            .interfaces
            .iter()
            .flat_map(|interface| ports.iter().flatten().map(move |port| (interface, *port)))
        {
            let inward = [named(Meta::InputName, interface), transport(UDP)].concat();
            let inward = [inward, to_port(port), vec![Expression::NoTrack]].concat();
            batch.rule(Family::Inet, GUARD, "prerouting", &inward);
            let outward = [named(Meta::OutputName, interface), transport(UDP)].concat();
            let outward = [outward, from_port(port), vec![Expression::NoTrack]];
            batch.rule(Family::Inet, GUARD, "output", &outward.concat());
        }
    }

    fn silence_the_kernel(&self, batch: &mut Batch) {
        base(batch, "output", Hook::Output, -10);
        for interface in &self.interfaces {
            let reset = vec![
                Expression::Payload(Header::Transport, 13, 1),
                Expression::Mask(vec![0x04]),
                Expression::NotEqual(vec![0]),
            ];
            for betrayal in [
                [transport(TCP), reset].concat(),
                [family(IPV4), transport(ICMP), icmp_type(3)].concat(),
                [transport(ICMPV6), icmp_type(1)].concat(),
            ] {
                let rule = [named(Meta::OutputName, interface), betrayal, vec![Expression::Drop]];
                batch.rule(Family::Inet, GUARD, "output", &rule.concat());
            }
        }
    }
}

fn base(batch: &mut Batch, chain: &str, hook: Hook<'_>, priority: i32) {
    batch.base_chain(Family::Inet, GUARD, chain, hook, priority, Policy::Accept);
}

fn named(which: Meta, interface: &str) -> Vec<Expression> {
    let mut name = interface.as_bytes().to_vec();
    name.resize(libc::IFNAMSIZ, 0);
    vec![Expression::Meta(which), Expression::Equal(name)]
}

pub(crate) fn family(number: u8) -> Vec<Expression> {
    vec![Expression::Meta(Meta::Family), Expression::Equal(vec![number])]
}

fn transport(number: u8) -> Vec<Expression> {
    vec![Expression::Meta(Meta::Transport), Expression::Equal(vec![number])]
}

fn from_port(port: u16) -> Vec<Expression> {
    let port = port.to_be_bytes().to_vec();
    vec![Expression::Payload(Header::Transport, 0, 2), Expression::Equal(port)]
}

fn to_port(port: u16) -> Vec<Expression> {
    let port = port.to_be_bytes().to_vec();
    vec![Expression::Payload(Header::Transport, 2, 2), Expression::Equal(port)]
}

fn icmp_type(number: u8) -> Vec<Expression> {
    vec![Expression::Payload(Header::Transport, 0, 1), Expression::Equal(vec![number])]
}

#[cfg(test)]
mod tests;
