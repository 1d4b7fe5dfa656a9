//! `ports isolate` and `ports release`: what keeps the kernel and the devices apart, and the gateway silent.

use crate::config::Config;
use crate::net::defence;
use crate::net::filter::wire::{self, Isolation, Standing, Wanted};
use crate::net::filter::{self, Guard, Guarding};
use crate::net::link::{LinkError, Links};
use crate::net::netlink::Session;
use crate::net::nft::{NETLINK_NETFILTER, NftError};
use crate::net::offload;
use crate::net::wiring::Wiring;

/// Why ports couldn't be isolated or released.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// An interface couldn't be read or set.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The packet filter refused.
    #[error("{what}: {source}; the agent needs CAP_NET_ADMIN and a kernel with nftables")]
    Filter {
        /// The part that it objected to.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl From<NftError> for PortsError {
    fn from(error: NftError) -> Self {
        Self::Filter {
            what: format!("the packet filter refused {}", error.what),
            source: error.source,
        }
    }
}

/// Isolates all ports before the agent runs: the kernel's own stack neither sees a device's frame nor sends one to it,
/// and the gateway answers no scan. Then brings the ports up. Doing it twice does no harm: what an agent left in force
/// stays. `wiring` says which ports the kernel forwards for until there is an agent.
///
/// Returns warnings: ports whose interface isn't there yet, and what this kernel can't do.
///
/// # Errors
/// Where the packet filter or an interface can't be set.
pub async fn isolate(config: &Config, wiring: &Wiring) -> Result<Vec<String>, PortsError> {
    isolate_or_shut(config, wiring, false).await
}

/// As [`isolate`], and whatever stood before, no port is a wire on return.
///
/// # Errors
/// As [`isolate`].
pub async fn shut(config: &Config) -> Result<Vec<String>, PortsError> {
    isolate_or_shut(config, &Wiring::closed(config), true).await
}

async fn isolate_or_shut(
    config: &Config,
    wiring: &Wiring,
    shut: bool,
) -> Result<Vec<String>, PortsError> {
    let session = Session::open(NETLINK_NETFILTER)
        .map_err(|source| PortsError::Filter { what: "opening netlink".into(), source })?;
    let mut warnings = guard(&session, config)?;
    let ports: Vec<&str> = config.ports.iter().map(|port| port.interface.as_str()).collect();
    let uplink = config.uplink.interface.as_str();
    let wanted = Wanted { uplink, ports: &ports, wiring };
    if shut || !wire::stands(&session, &wanted)? {
        warnings.extend(shortfalls(wire::build(&session, &wanted, false)?));
    }
    let links = Links::new()?;
    switch_on_uplink(config, &links).await?;
    warnings.extend(switch_on(config, &links).await?);
    // What the kernel merges it can't always take apart again as it was.
    let interfaces = config.ports.iter().map(|port| &port.interface);
    for interface in interfaces.chain([&config.uplink.interface]) {
        if offload::gro(interface).is_ok_and(|on| on)
            && let Err(error) = offload::set_gro(interface, false)
        {
            warnings.push(format!("{interface}: GRO can't be switched off: {error}"));
        }
    }
    Ok(warnings)
}

/// Writes the guard's table.
pub(crate) fn guard(session: &Session, config: &Config) -> Result<Vec<String>, PortsError> {
    let mut interfaces = vec![config.underlay.interface.as_str()];
    if !config.shares_uplink() {
        interfaces.push(config.uplink.interface.as_str());
    }
    if let Some(backup) = &config.underlay.backup
        && !interfaces.contains(&backup.as_str())
    {
        interfaces.push(backup.as_str());
    }
    let guard = Guard {
        interfaces,
        tunnel_port: config.underlay.listen.port(),
        quic_port: config.underlay.quic,
        management: &config.underlay.management,
    };
    Ok(match filter::guard(session, &guard)? {
        Guarding::Tracked => Vec::new(),
        Guarding::Untracked => vec![
            "this kernel has no connection tracking: client ports of the gateway are open to strangers, though \
             nothing there answers them"
                .into(),
        ],
    })
}

/// What this kernel can't do, one sentence each.
pub(crate) fn shortfalls(standing: Standing) -> Vec<String> {
    let mut warnings = Vec::new();
    if standing.isolation == Isolation::IngressOnly {
        warnings.push(
            "this kernel can't filter what goes out of a port (nftables egress, Linux 5.16): devices may see frames \
             that the gateway itself sent"
                .into(),
        );
    }
    if !standing.can_forward {
        warnings.push(
            "this kernel can't forward by nftables (nft_fwd_netdev, nft_dup_netdev): every port is closed while no \
             agent runs, whatever on_failure says"
                .into(),
        );
    }
    warnings
}

/// Has the uplink hear every frame, whether an agent listens or not, and switches it on if it carries nothing of the
/// gateway's own.
pub(crate) async fn switch_on_uplink(config: &Config, links: &Links) -> Result<(), PortsError> {
    // The agent's beat goes there.
    links.switch_on_loopback().await?;
    let uplink = &config.uplink.interface;
    if let Some(link) = links.find(uplink).await? {
        if !config.shares_uplink() {
            links.switch_on(uplink, link.index).await?;
        }
        links.hear_all(uplink, link.index, true).await?;
    }
    Ok(())
}

/// Switches on the ports that are there, silent and hearing every frame, whether an agent listens or not. The packet
/// filter must stand before. Returns warnings.
pub(crate) async fn switch_on(config: &Config, links: &Links) -> Result<Vec<String>, PortsError> {
    let mut warnings = Vec::new();
    for port in &config.ports {
        let Some(link) = links.find(&port.interface).await? else {
            warnings.push(format!(
                "port {}: interface {} isn't there; it is isolated as soon as the agent sees it",
                port.name, port.interface
            ));
            continue;
        };
        links.quiet(&port.interface, link.index).await?;
        links.hear_all(&port.interface, link.index, true).await?;
        if let Err(error) = offload::clear_lro(&port.interface) {
            warnings.push(format!("port {}: LRO can't be switched off: {error}", port.name));
        }
    }
    Ok(warnings)
}

/// Undoes [`isolate`]: switches the ports off, so that no device reaches the kernel's stack by surprise, and removes
/// the packet filter.
///
/// # Errors
/// As [`isolate`].
pub async fn release(config: &Config) -> Result<Vec<String>, PortsError> {
    let links = Links::new()?;
    let mut warnings = Vec::new();
    for port in &config.ports {
        match links.find(&port.interface).await? {
            Some(link) => {
                links.hear_all(&port.interface, link.index, false).await?;
                links.unquiet(&port.interface, link.index).await?;
            }
            None => {
                warnings.push(format!("port {}: no interface {}", port.name, port.interface));
            }
        }
    }
    if let Some(link) = links.find(&config.uplink.interface).await? {
        links.hear_all(&config.uplink.interface, link.index, false).await?;
    }
    for interface in config.underlay.interfaces() {
        defence::release(interface, &links).await?;
    }
    filter::release()?;
    Ok(warnings)
}
