//! `ports isolate` and `ports release`: what keeps the kernel and the devices apart, and the gateway silent.

use crate::config::Config;
use crate::net::filter::{self, Guard, Guarding, Isolation};
use crate::net::link::{Link, LinkError, Links};
use crate::net::nft::NftError;
use crate::net::offload;

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

/// Isolates all ports, before the agent runs or at its start: the kernel's own stack neither sees a device's frame
/// nor sends one to it, and the gateway answers no scan. Then brings the ports up. Doing it twice does no harm.
///
/// Returns warnings: ports whose interface isn't there yet, and what this kernel can't do.
///
/// # Errors
/// Where the packet filter or an interface can't be set.
pub async fn isolate(config: &Config) -> Result<Vec<String>, PortsError> {
    let links = Links::new()?;
    let mut warnings = guard(config)?;
    if !config.shares_uplink()
        && let Some(link) = links.find(&config.uplink.interface).await?
    {
        links.switch_on(&config.uplink.interface, link.index).await?;
    }
    let (found, more) = isolate_ports(config, &links).await?;
    warnings.extend(more);
    for (port, link) in config.ports.iter().zip(found) {
        if link.is_none() {
            warnings.push(format!(
                "port {}: interface {} isn't there; it is isolated as soon as the agent sees it",
                port.name, port.interface
            ));
        }
    }
    Ok(warnings)
}

/// Writes the guard's table.
fn guard(config: &Config) -> Result<Vec<String>, PortsError> {
    let mut interfaces = vec![config.underlay.interface.as_str()];
    if !config.shares_uplink() {
        interfaces.push(config.uplink.interface.as_str());
    }
    let guard = Guard {
        interfaces,
        tunnel_port: config.underlay.listen.port(),
        management: &config.underlay.management,
    };
    Ok(match filter::guard(&guard)? {
        Guarding::Tracked => Vec::new(),
        Guarding::Untracked => vec![
            "this kernel has no connection tracking: client ports of the gateway are open to strangers, though \
             nothing there answers them"
                .into(),
        ],
    })
}

/// Isolates the ports whose interfaces are there. Returns them in the ports' order, and warnings.
///
/// Frames are kept out first and the interface is switched on last, so that nothing slips through in between.
pub(crate) async fn isolate_ports(
    config: &Config,
    links: &Links,
) -> Result<(Vec<Option<Link>>, Vec<String>), PortsError> {
    let mut found = Vec::with_capacity(config.ports.len());
    for port in &config.ports {
        found.push(links.find(&port.interface).await?);
    }
    let all: Vec<&str> = config.ports.iter().map(|port| port.interface.as_str()).collect();
    let present: Vec<&str> =
        all.iter().zip(&found).filter_map(|(name, link)| link.is_some().then_some(*name)).collect();
    let mut warnings = Vec::new();
    if filter::isolate(&all, &present)? == Isolation::IngressOnly {
        warnings.push(
            "this kernel can't filter what goes out of a port (nftables egress, Linux 5.16): devices may see frames \
             that the gateway itself sent"
                .into(),
        );
    }
    for (port, link) in config.ports.iter().zip(&found) {
        if let Some(link) = link {
            links.quiet(&port.interface, link.index).await?;
            if let Err(error) = offload::clear_lro(&port.interface) {
                warnings.push(format!("port {}: LRO can't be switched off: {error}", port.name));
            }
        }
    }
    Ok((found, warnings))
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
            Some(link) => links.unquiet(&port.interface, link.index).await?,
            None => {
                warnings.push(format!("port {}: no interface {}", port.name, port.interface));
            }
        }
    }
    filter::release()?;
    Ok(warnings)
}
