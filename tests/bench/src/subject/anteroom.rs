//! Two gateways with views, as if they had been enrolled.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::organisation::{Attached, Opening, Organisation};
use crate::world::{Device, UNDERLAY, World};

/// Where tunnels end.
pub(crate) const TUNNEL_PORT: u16 = 51_820;

/// Writes state and configuration of both gateways, with so many lane threads at either where it is said. Returns where the
/// configurations are.
pub(super) fn prepare(
    world: &World,
    directory: &Path,
    lane_threads: Option<[u8; 2]>,
) -> Result<Vec<PathBuf>> {
    let configs = enrol(world, directory, Organisation::new()?)?;
    if let Some(threads) = lane_threads {
        for (path, threads) in configs.iter().zip(threads) {
            let text = std::fs::read_to_string(path)?;
            std::fs::write(
                path,
                format!("{text}[offloads]\nlanes = true\n[cores]\nlane_threads = {threads}\n"),
            )?;
        }
    }
    Ok(configs)
}

/// Switches the sensor off in these configurations.
pub(super) fn blind(configs: &[PathBuf]) -> Result<()> {
    for path in configs {
        let text = std::fs::read_to_string(path)?;
        std::fs::write(path, format!("{text}[sensor]\nenabled = false\n"))?;
    }
    Ok(())
}

/// Enrols both gateways in an organisation, with all devices, and writes their configurations.
pub(super) fn enrol(
    world: &World,
    directory: &Path,
    mut organisation: Organisation,
) -> Result<Vec<PathBuf>> {
    for (gateway, address) in UNDERLAY.into_iter().enumerate() {
        let state = directory.join(format!("state-{gateway}"));
        organisation.enrol(state, SocketAddr::from((address, TUNNEL_PORT)))?;
    }
    for device in Device::ALL {
        organisation.devices.push(Attached {
            gateway: device.gateway(),
            port: device.port(),
            mac: device.mac(),
            address: world.address(device),
        });
    }
    for (from, to) in [(Device::A, Device::B), (Device::C, Device::D)] {
        organisation.openings.push(Opening { from: vec![from as usize], to: vec![to as usize] });
    }
    organisation.sign()?;
    (0..UNDERLAY.len()).map(|gateway| config(directory, gateway)).collect()
}

/// Writes one gateway's configuration.
pub(crate) fn config(directory: &Path, gateway: usize) -> Result<PathBuf> {
    let state = directory.join(format!("state-{gateway}"));
    let run = directory.join(format!("run-{gateway}"));
    let text = format!(
        "state = {state:?}\nrun = {run:?}\n[uplink]\ninterface = \"up0\"\n\
         [underlay]\nlisten = \"0.0.0.0:{TUNNEL_PORT}\"\n\
         [[port]]\nname = \"port1\"\ninterface = \"port0\"\n\
         [[port]]\nname = \"port2\"\ninterface = \"port1\"\n",
    );
    let path = directory.join(format!("agent-{gateway}.toml"));
    std::fs::write(&path, text)?;
    Ok(path)
}
