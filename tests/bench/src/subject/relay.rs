//! Two gateways that know no address of each other, and a relay between them.
//!
//! ```text
//! gw-a up1 ── a0 relay b0 ── up1 gw-b
//! ```

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anteroom_lab::topology::{self, Host};
use anyhow::{Context as _, Result};

use super::anteroom;
use crate::organisation::Organisation;
use crate::world::{PREFIX, World};

/// Where the relay listens.
const PORT: u16 = 4433;
/// Both its cables: the interface's name, its address, the gateway's.
const CABLES: [(&str, Ipv4Addr, Ipv4Addr); 2] = [
    ("a0", Ipv4Addr::new(192, 168, 8, 9), Ipv4Addr::new(192, 168, 8, 1)),
    ("b0", Ipv4Addr::new(192, 168, 9, 9), Ipv4Addr::new(192, 168, 9, 1)),
];

/// The relay's host, and what starts everything.
pub(super) struct Between {
    /// Must stay for as long as the relay runs.
    pub(super) host: Host,
    /// Starts the relay.
    pub(super) relay: Command,
    /// The gateways' configurations.
    pub(super) configs: Vec<PathBuf>,
}

/// Lays the cables, makes a relay, and enrols both gateways in an organisation that names it.
pub(super) fn prepare(
    world: &World,
    prefix: &str,
    controller: &Path,
    directory: &Path,
) -> Result<Between> {
    let host = Host::create(&format!("{prefix}-between"))?;
    for (gateway, (interface, near, far)) in world.gateways.iter().zip(CABLES) {
        topology::cable((&host, interface, None), (gateway, "up1"))?;
        host.address(interface, near, PREFIX)?;
        gateway.address("up1", far, PREFIX)?;
    }
    // It is named by one address, which is on the other cable for one of the two.
    let [(_, known, _), (_, via, _)] = CABLES;
    world.gateways[1].ip(&format!("route add {known} via {via}"))?;
    let mut organisation = Organisation::new()?;
    organisation.apart = true;
    let (home, address) = (directory.join("relay"), format!("{known}:{PORT}"));
    let pin = organisation.pin()?.to_string();
    let home = home.display().to_string();
    let made = host.run(
        controller,
        &["relay-init", "--dir", &home, "--advertise", &address, "--authority", &pin],
    )?;
    let key = made.lines().find_map(|line| line.strip_prefix("Relay key"));
    let key = key.context("the relay doesn't say its key")?.trim().parse()?;
    organisation.name_relay(key, vec![address])?;
    let configs = anteroom::enrol(world, directory, organisation)?;
    let mut relay = host.command(controller);
    relay.args(["relay", "--dir", &home]);
    Ok(Between { host, relay, configs })
}
