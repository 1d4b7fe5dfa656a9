//! What tests of the hospital say often: everything into one mode, and a probe that must go one way.

use std::sync::atomic::{AtomicU64, Ordering};

use anteroom_agent_core::report::Question;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::{PortMatch, Protocol};

use crate::hospital::{Outcome, probe};
use crate::model::Way;
use crate::world::World;

/// Puts all devices into one mode, everywhere, and waits until all is quiet.
pub fn all(world: &mut World, mode: Mode) {
    world.plan.revise();
    let revision = world.plan.revision;
    for device in &mut world.plan.devices {
        device.device.member.mode = mode;
        device.device.member.mode_since = revision;
    }
    world.apply_all();
}

/// Sends a probe, and fails with all gateways' explanations unless it goes that way.
pub fn expect(world: &mut World, from: usize, to: usize, service: (Protocol, u16), way: Way) {
    static MARKER: AtomicU64 = AtomicU64::new(1);
    let marker = MARKER.fetch_add(1, Ordering::Relaxed);
    let mut outcome = probe(world, from, to, service, marker, 2);
    let enforced = from < world.plan.devices.len() && world.plan.member(from).mode == Mode::Enforce;
    if way == Way::None {
        outcome.on_campus &= enforced;
    }
    let names = (world.hosts[from].name, world.hosts[to].name);
    assert_eq!(
        outcome,
        Outcome::of(way),
        "{names:?} {service:?}\n{}",
        explain(world, from, to, service)
    );
}

/// What every gateway says of a flow, and what it dropped.
#[must_use]
pub fn explain(world: &mut World, from: usize, to: usize, service: (Protocol, u16)) -> String {
    let service = PortMatch { protocol: service.0, first: service.1, last: service.1 };
    let (from, to) = (world.hosts[from].address, world.hosts[to].address);
    let question = Question { from, to, service };
    let now = world.now;
    (0..world.plan.gateways.len())
        .filter(|gateway| world.runs(*gateway))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|gateway| {
            let explanation = world.engine(gateway).explain(&question, now);
            let drops = world.engine(gateway).status(now).drops;
            format!("gateway {gateway}: {explanation:#?}\n{drops:?}\n")
        })
        .collect()
}

/// The question whether `from` may open `service`, such as `tcp/104`, to `to`.
///
/// # Panics
/// When `service` isn't one.
#[must_use]
pub fn question(world: &World, from: usize, to: usize, service: &str) -> Question {
    Question {
        from: world.hosts[from].address,
        to: world.hosts[to].address,
        service: service.parse().unwrap_or_else(|error| panic!("{service}: {error}")),
    }
}
