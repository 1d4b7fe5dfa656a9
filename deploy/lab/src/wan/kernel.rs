//! Translation by the kernel's own connection tracking (nftables), for the two kinds that it does: what most real
//! routers run.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::topology::Host;

/// How the kernel chooses outside ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelPorts {
    /// The inside port where it is free, which is free for each remote end by itself: seen from outside, one port for
    /// all, and only who was spoken to may answer.
    Preserved,
    /// Any, anew for each remote end: "symmetric".
    Random,
}

/// Makes `host` a router that translates what leaves by `interface` to that interface's address.
///
/// # Errors
/// If `nft` isn't there, or the kernel has no address translation.
pub fn translate(host: &Host, interface: &str, ports: KernelPorts) -> Result<()> {
    host.forward()?;
    let random = if ports == KernelPorts::Random { " fully-random" } else { "" };
    let rules = format!(
        "table ip lab-nat {{}}\nflush table ip lab-nat\ntable ip lab-nat {{\n chain out {{\n  type nat hook postrouting \
         priority srcnat;\n  oifname \"{interface}\" masquerade{random}\n }}\n chain pass {{\n  type filter hook forward \
         priority filter;\n  iifname \"{interface}\" ct state new drop\n }}\n}}\n"
    );
    let nft = crate::programs::find("nft").context("`nft` isn't installed (package nftables)")?;
    let mut child = host
        .command(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `nft`")?;
    child.stdin.take().context("its input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("nft on {}: {}", host.name(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
