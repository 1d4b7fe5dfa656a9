//! The reference model: who may reach whom, by which path. It knows nothing of packets, flows or tunnels.

use anteroom_proto::mode::Mode;
use anteroom_proto::service::{PortMatch, Protocol};

use crate::plan::{Plan, Who};

/// How a first packet gets from one machine to another, once all gateways have the newest revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In the clear over the campus.
    Clear,
    /// Through the tunnel: the campus sees nothing of it.
    Tunnel,
    /// Inside one gateway: the campus sees nothing of it.
    Local,
    /// Not at all.
    None,
}

/// A machine, as the plan sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// A device, by its place in the plan.
    Device(usize),
    /// A machine without a gateway, at this address.
    Plain(std::net::Ipv4Addr),
}

/// What must become of a flow.
#[must_use]
pub fn way(plan: &Plan, from: Machine, to: Machine, protocol: Protocol, port: u16) -> Way {
    let rule = allowed(plan, from, to, protocol, port);
    let mode = |machine| match machine {
        Machine::Device(device) => plan.member(device).mode,
        Machine::Plain(_) => Mode::Observe,
    };
    let (a, b) = (mode(from), mode(to));
    let gateway = |machine| match machine {
        Machine::Device(device) => Some(plan.devices[device].gateway),
        Machine::Plain(_) => None,
    };
    let (home, away) = (gateway(from), gateway(to));
    let enforced = a == Mode::Enforce || b == Mode::Enforce;
    if home.is_some() && home == away {
        let both_enforce_or_protect = a != Mode::Observe && b != Mode::Observe;
        let open = rule.is_some_and(|clear| clear || both_enforce_or_protect);
        return if !enforced || open { Way::Local } else { Way::None };
    }
    let revoked = [home, away].into_iter().flatten().any(|at| plan.gateways[at].revoked);
    let rule = rule.filter(|_| !revoked);
    let both_left_observe = a != Mode::Observe && b != Mode::Observe;
    match (both_left_observe, rule) {
        (true, Some(_)) => Way::Tunnel,
        (false, Some(clear)) if enforced => {
            if clear {
                Way::Clear
            } else {
                Way::None
            }
        }
        (_, None) if enforced => Way::None,
        _ => Way::Clear,
    }
}

/// Whether a rule allows it, and whether one that does says `clear = true`.
fn allowed(plan: &Plan, from: Machine, to: Machine, protocol: Protocol, port: u16) -> Option<bool> {
    let is = |who: &Who, machine: Machine| match (who, machine) {
        (Who::Device(one), Machine::Device(device)) => *one == device,
        (Who::Devices(several), Machine::Device(device)) => several.contains(&device),
        (Who::External(at), Machine::Plain(address)) => {
            plan.externals[*at].1.iter().any(|net| net.contains(&address))
        }
        _ => false,
    };
    plan.rules
        .iter()
        .filter(|rule| is(&rule.from, from) && is(&rule.to, to))
        .filter(|rule| {
            rule.services.iter().any(|text| {
                text.parse::<PortMatch>().is_ok_and(|known| known.matches(protocol, port))
            })
        })
        .map(|rule| rule.clear)
        .reduce(|a, b| a || b)
}
