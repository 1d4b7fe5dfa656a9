//! Nebula between the gateways, with the devices' networks as routes behind its hosts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::tools::Tools;
use crate::world::{UNDERLAY, World};

const PORT: u16 = 4_242;

/// Makes certificates and both configurations. Returns where the configurations are.
pub(super) fn prepare(tools: &Tools, directory: &Path) -> Result<Vec<PathBuf>> {
    let cert = tools.nebula_cert()?;
    let run = |arguments: &[&str]| -> Result<()> {
        let output = Command::new(&cert)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .output()
            .context("starting nebula-cert")?;
        if !output.status.success() {
            bail!("nebula-cert {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    };
    run(&["ca", "-name", "bench"])?;
    let mut configs = Vec::new();
    for (gateway, underlay) in UNDERLAY.into_iter().enumerate() {
        let name = format!("gw-{gateway}");
        let overlay = |gateway: usize| format!("172.30.0.{}", gateway + 1);
        let (behind, length) = World::behind(gateway);
        let (far_behind, far_length) = World::behind(1 - gateway);
        let address = format!("{}/24", overlay(gateway));
        run(&["sign", "-name", &name, "-ip", &address, "-subnets", &format!("{behind}/{length}")])?;
        let place = |file: &str| directory.join(file).display().to_string();
        // JSON is YAML, and needs no care for indentation.
        let open = serde_json::json!([{ "port": "any", "proto": "any", "host": "any" }]);
        let config = serde_json::json!({
            "pki": {
                "ca": place("ca.crt"),
                "cert": place(&format!("{name}.crt")),
                "key": place(&format!("{name}.key")),
            },
            "static_host_map": {
                overlay(1 - gateway): [format!("{}:{PORT}", UNDERLAY[1 - gateway])],
            },
            "lighthouse": { "am_lighthouse": false },
            "listen": { "host": underlay.to_string(), "port": PORT },
            "tun": {
                "dev": "nebula0",
                "unsafe_routes": [{
                    "route": format!("{far_behind}/{far_length}"),
                    "via": overlay(1 - gateway),
                }],
            },
            "firewall": {
                "outbound": open,
                // What goes to networks behind a host needs a rule of its own in newer versions.
                "inbound": [{ "port": "any", "proto": "any", "host": "any", "local_cidr": "0.0.0.0/0" },
                            { "port": "any", "proto": "any", "host": "any" }],
            },
            "logging": { "level": "error" },
        });
        let path = directory.join(format!("{name}.yml"));
        std::fs::write(&path, config.to_string())?;
        configs.push(path);
    }
    Ok(configs)
}
