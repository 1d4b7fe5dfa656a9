//! What must stand before the engine can run: isolated ports, open sockets, known addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anteroom_agent_core as core;
use anteroom_agent_core::engine::Runner;
use anteroom_proto::id::GatewayId;
use anteroom_proto::mac::MacAddr;

use crate::config::{Config, Host, InterfaceName, LaneThreads};
use crate::dataplane::host::{self, open as open_host};
use crate::dataplane::lanes::Threads;
use crate::dataplane::status::Offloads;
use crate::net::beat::Beat;
use crate::net::exit::Exits;
use crate::net::host::Network;
use crate::net::link::{Changes, Link, LinkError, Links};
use crate::net::offload;
use crate::net::offload::Offload;
use crate::net::packet::{PacketOptions, PacketSocket};
use crate::net::ports::{self, PortsError};
use crate::net::sentry::{Pulse, Sentry};
use crate::net::tun::TunFrames;
use crate::net::udp::{Group, UdpSocket};
use crate::net::wiring::Wiring;

/// Why an offload isn't in use that the configuration excludes.
const SWITCHED_OFF: &str = "the configuration switches it off";

/// Interfaces and sockets, ready for the worker.
pub struct Setup {
    pub(super) config: Config,
    pub(super) links: Links,
    pub(super) changes: Changes,
    /// The uplink's socket, then those of the ports; None where the interface isn't there.
    pub(super) sockets: Vec<Option<PacketSocket>>,
    pub(super) offloads: Vec<Offloads>,
    pub(super) underlay: Group,
    /// The threads that run lanes, once they were started.
    pub(super) threads: Option<Threads>,
    /// By which interface they leave.
    pub(super) exits: Exits,
    lane_threads: u8,
    /// How many there are, and why.
    pub(super) threads_chosen: String,
    pub(super) addresses: Addresses,
    /// The packet filter's keeper, which a host has none of.
    pub(super) sentry: Option<Sentry>,
    /// A host's TUN device.
    pub(super) host: Option<OwnNetwork>,
    pub(super) uplink_index: u32,
    pub(super) pulse: Arc<Pulse>,
    pub(super) beat: Beat,
    engine: core::config::Config,
    warnings: Vec<String>,
}

/// A host's own network.
pub(super) struct OwnNetwork {
    pub(super) host: Host,
    pub(super) network: Arc<Network>,
    pub(super) frames: TunFrames,
}

/// Why the data plane can't start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Ports couldn't be isolated.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// An interface couldn't be read.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// An interface without which nothing works isn't there.
    #[error("{key}: there is no interface {interface}; `ip link` lists those that there are")]
    Missing {
        /// The configuration's key.
        key: &'static str,
        /// The interface.
        interface: InterfaceName,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The machine's addresses, as the engine and the peers have to know them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addresses {
    /// All of the machine: a device can't reach them.
    pub(super) own: Vec<IpAddr>,
    /// Where peers can send to.
    pub(super) endpoints: Vec<SocketAddr>,
    /// How many bytes of IP the underlay's interface carries in one piece, while it is there.
    pub(super) underlay_mtu: Option<u16>,
}

impl Addresses {
    /// Whether the gateway is elsewhere than `before`. Another MTU or order isn't another place.
    pub(super) fn moved_from(&self, before: &Self) -> bool {
        fn set<T: Ord>(all: &[T]) -> BTreeSet<&T> {
            all.iter().collect()
        }
        set(&self.own) != set(&before.own) || set(&self.endpoints) != set(&before.endpoints)
    }

    /// Reads them from the kernel.
    pub(super) async fn read(config: &Config, links: &Links) -> Result<Self, LinkError> {
        let all = links.addresses().await?;
        let link = links.find(&config.underlay.interface).await?;
        let underlay_mtu = link.as_ref().map(|link| u16::try_from(link.mtu).unwrap_or(u16::MAX));
        let mut underlays: Vec<u32> = link.iter().map(|link| link.index).collect();
        if let Some(backup) = &config.underlay.backup {
            underlays.extend(links.find(backup).await?.map(|link| link.index));
        }
        let listen = config.underlay.listen;
        let mut endpoints = config.underlay.advertise.clone();
        if endpoints.is_empty() {
            endpoints = all
                .iter()
                .filter(|(index, ip)| {
                    underlays.contains(index)
                        && (listen.ip().is_unspecified() || listen.ip() == *ip)
                        && (ip.is_ipv4() || listen.is_ipv6())
                        && !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
                })
                .map(|(_, ip)| SocketAddr::new(*ip, listen.port()))
                .collect();
        }
        let mut own: Vec<IpAddr> = all.into_iter().map(|(_, ip)| ip).collect();
        own.dedup();
        Ok(Self { own, endpoints, underlay_mtu })
    }
}

impl Setup {
    /// Isolates the ports, guards the gateway itself and opens all sockets. Runs inside a tokio runtime.
    ///
    /// A port whose interface isn't there is opened later, when it is. `wiring` is in force on return: its wires are
    /// the kernel's until the worker runs.
    ///
    /// # Errors
    /// Where the uplink is missing, a socket can't be opened or the packet filter can't be written.
    pub async fn prepare(config: &Config, wiring: Wiring) -> Result<Self, SetupError> {
        let links = Links::new()?;
        // Listening begins before anything is read, so that no change falls in between.
        let changes = Changes::new()?;
        let pulse = Arc::new(Pulse::new(&wiring));
        let wires = wiring.bits();
        // Frames are kept out first and the interfaces are switched on last, so that nothing slips through in between.
        let (sentry, mut warnings) = {
            let (config, pulse) = (config.clone(), pulse.clone());
            tokio::task::spawn_blocking(move || Sentry::start(&config, wiring, pulse))
                .await
                .map_err(|error| SetupError::System {
                    what: "starting the packet filter's thread".into(),
                    source: io::Error::other(error),
                })??
        };
        ports::switch_on_uplink(config, &links).await?;
        warnings.extend(ports::switch_on(config, &links).await?);
        let missing = |key, interface: &InterfaceName| SetupError::Missing {
            key,
            interface: interface.clone(),
        };
        let interface = &config.uplink.interface;
        let uplink =
            links.find(interface).await?.ok_or_else(|| missing("uplink.interface", interface))?;
        let interface = &config.underlay.interface;
        let underlay =
            links.find(interface).await?.ok_or_else(|| missing("underlay.interface", interface))?;

        let mut sockets = vec![Some(open_uplink(config, &uplink, wires != 0)?)];
        let mut port_macs = Vec::new();
        for (place, port) in (0..).zip(&config.ports) {
            let link = links.find(&port.interface).await?;
            sockets.push(match &link {
                Some(link) => {
                    Some(open_port(config, &port.interface, link, wires >> place & 1 != 0)?)
                }
                None => None,
            });
            port_macs.push(link.map(|link| link.mac));
        }
        let mut gateway_macs = vec![uplink.mac, underlay.mac];
        if let Some(backup) = &config.underlay.backup {
            match links.find(backup).await? {
                Some(link) => gateway_macs.push(link.mac),
                None => warnings.push(format!(
                    "underlay.backup: there is no interface {backup}; it is used once it is there"
                )),
            }
        }
        gateway_macs.extend(port_macs.iter().flatten());
        gateway_macs.sort_unstable();
        gateway_macs.dedup();

        let mut offloads = Vec::new();
        for interface in interfaces(config) {
            offloads.push(set_offloads(interface, false));
        }
        let addresses = Addresses::read(config, &links).await?;
        let (underlay, lane_threads, threads_chosen) = choose_lanes(config)?;
        let engine = core::config::Config {
            gateway_macs,
            own_addresses: addresses.own.clone(),
            ports: config
                .ports
                .iter()
                .zip(port_macs)
                .map(|(port, mac)| core::config::PortConfig {
                    name: port.name.clone(),
                    mac: mac.unwrap_or(MacAddr([0; 6])),
                    unlisted: port.unlisted,
                })
                .collect(),
            uplink_mac: uplink.mac,
            limits: limits(config),
        };
        Ok(Self {
            links,
            changes,
            sockets,
            offloads,
            exits: exits(&underlay)?,
            underlay,
            threads: None,
            lane_threads,
            threads_chosen,
            addresses,
            sentry: Some(sentry),
            host: None,
            uplink_index: uplink.index,
            pulse,
            beat: open_beat()?,
            engine,
            warnings,
            config: config.clone(),
        })
    }

    /// Makes a host's TUN device and opens the underlay's socket. The machine's own network stays as it is: no packet
    /// filter, no address and no route, but for those of the device. Runs inside a tokio runtime.
    ///
    /// # Errors
    /// Where the device or the socket can't be had.
    pub async fn prepare_host(
        config: &Config,
        host: &Host,
        gateway: GatewayId,
    ) -> Result<Self, SetupError> {
        let links = Links::new()?;
        let changes = Changes::new()?;
        let network = Arc::new(Network::new(links.clone(), host.interface.clone()));
        let frames = TunFrames::of(gateway);
        let device = open_host(config, host, &network, frames).await?;
        let addresses = host::addresses(config, host, &links, &network).await?;
        let (underlay, lane_threads, threads_chosen) = choose_lanes(config)?;
        // The device is the member: nothing on the way to it is the gateway's own.
        let ports = config.ports.iter().map(|port| core::config::PortConfig {
            name: port.name.clone(),
            mac: MacAddr([0; 6]),
            unlisted: port.unlisted,
        });
        let engine = core::config::Config {
            gateway_macs: Vec::new(),
            own_addresses: Vec::new(),
            ports: ports.collect(),
            uplink_mac: MacAddr([0; 6]),
            limits: limits(config),
        };
        Ok(Self {
            links,
            changes,
            // No uplink: what would go there in the clear goes nowhere.
            sockets: vec![None, Some(device)],
            offloads: vec![Offloads::default(); 2],
            exits: Exits::default(),
            underlay,
            threads: None,
            lane_threads,
            threads_chosen,
            addresses,
            sentry: None,
            host: Some(OwnNetwork { host: host.clone(), network, frames }),
            uplink_index: 0,
            pulse: Arc::new(Pulse::new(&Wiring::closed(config))),
            beat: open_beat()?,
            engine,
            warnings: Vec::new(),
            config: config.clone(),
        })
    }

    /// What the engine has to know of this machine.
    #[must_use]
    pub fn engine_config(&self) -> core::config::Config {
        self.engine.clone()
    }

    /// Starts the threads that run lanes, or finds that the engine is to run them.
    ///
    /// # Errors
    /// Where a thread can't be made.
    pub fn run_lanes(&mut self) -> Result<Runner, SetupError> {
        if self.lane_threads == 0 || self.underlay.sockets.len() < 2 {
            return Ok(Runner::Engine);
        }
        let sockets = self.underlay.sockets.split_off(1);
        let threads = Threads::start(sockets).map_err(|source| SetupError::System {
            what: "starting lane threads".into(),
            source,
        })?;
        self.threads = Some(threads);
        Ok(Runner::Shell(self.lane_threads))
    }

    /// What isn't as it should be, though the gateway can run: one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

fn limits(config: &Config) -> core::limits::Limits {
    core::limits::Limits {
        flows: config.flows.most as usize,
        flows_per_device: config.flows.per_device as usize,
        ..core::limits::Limits::default()
    }
}

fn exits(underlay: &Group) -> Result<Exits, SetupError> {
    let what = "following the underlay's sockets";
    Exits::of(underlay.sockets.iter())
        .map_err(|source| SetupError::System { what: what.into(), source })
}

fn open_beat() -> Result<Beat, SetupError> {
    Beat::open().map_err(|source| SetupError::System {
        what: "opening lo (needs CAP_NET_RAW and CAP_NET_ADMIN)".into(),
        source,
    })
}

/// The underlay's sockets, how many threads run lanes, and why so many.
fn choose_lanes(config: &Config) -> Result<(Group, u8, String), SetupError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (threads, chosen) = config.cores.lane_threads.choose(config.offloads.lanes, cores);
    let underlay = open_underlay(config, threads)?;
    // Everything would come to the packet thread's socket, and go round by it.
    let steered = !matches!(underlay.steering, Offload::Off(_));
    if threads > 0 && config.cores.lane_threads == LaneThreads::Auto && !steered {
        return Ok((underlay, 0, "none: the kernel doesn't steer".into()));
    }
    Ok((underlay, threads, chosen))
}

/// The socket of lane 0, and one for bulk where that has lanes, or one for each thread that runs them.
fn open_underlay(config: &Config, lane_threads: u8) -> Result<Group, SetupError> {
    let listen = config.underlay.listen;
    let failed = |what: &str| {
        let what = format!("underlay.listen: {what} {listen}");
        move |source| SetupError::System { what, source }
    };
    let lanes = usize::from(lane_threads.max(1));
    let count = if config.offloads.lanes { 1 + lanes } else { 1 };
    let mut group = UdpSocket::bind_group(listen, count, config.underlay.shares_port())
        .map_err(failed("binding"))?;
    // Why QUIC can't be told from the tunnels is worth more.
    let refused = config.underlay.shares_port() && group.quic.is_none();
    if !config.offloads.lanes && !refused {
        group.steering = Offload::Off(SWITCHED_OFF.into());
    }
    for socket in &mut group.sockets {
        if !config.offloads.udp_segmentation {
            socket.stop_segmentation(SWITCHED_OFF);
        }
        if !config.offloads.udp_merging {
            socket.stop_merging(SWITCHED_OFF).map_err(failed("no UDP_GRO for"))?;
        }
    }
    Ok(group)
}

/// The uplink's interface, then those of the ports.
pub(super) fn interfaces(config: &Config) -> impl Iterator<Item = &InterfaceName> {
    std::iter::once(&config.uplink.interface).chain(config.ports.iter().map(|p| &p.interface))
}

/// Opens the uplink: frames to the gateway itself stay the kernel's. `deaf`: nothing is heard before the worker says so.
pub(super) fn open_uplink(
    config: &Config,
    link: &Link,
    deaf: bool,
) -> Result<PacketSocket, SetupError> {
    open(config, &config.uplink.interface, link, Some(link.mac), deaf)
}

/// Opens a device port. Each frame that comes in is the agent's. `deaf`: nothing is heard before the worker says so.
pub(super) fn open_port(
    config: &Config,
    name: &InterfaceName,
    link: &Link,
    deaf: bool,
) -> Result<PacketSocket, SetupError> {
    open(config, name, link, None, deaf)
}

fn open(
    config: &Config,
    name: &InterfaceName,
    link: &Link,
    skip: Option<MacAddr>,
    deaf: bool,
) -> Result<PacketSocket, SetupError> {
    let options = PacketOptions { skip, super_frames: config.offloads.super_frames, deaf };
    PacketSocket::open(link.index, options).map_err(|source| SetupError::System {
        what: format!("opening {name} (needs CAP_NET_RAW and CAP_NET_ADMIN)"),
        source,
    })
}

/// [`set_offloads`] on a thread that may wait for a driver.
pub(super) async fn offloads(interface: InterfaceName, gro: bool) -> Offloads {
    let set = tokio::task::spawn_blocking(move || set_offloads(&interface, gro));
    set.await.unwrap_or_default()
}

/// Switches merging as the engine wants it, and says how it stands. What an interface can't do stays as it is: a
/// gateway that merges still works.
pub(super) fn set_offloads(interface: &InterfaceName, gro: bool) -> Offloads {
    if let Err(error) = offload::clear_lro(interface) {
        tracing::warn!(%interface, %error, "LRO can't be switched off: packets may be merged for good");
    }
    if offload::gro(interface).ok() != Some(gro)
        && let Err(error) = offload::set_gro(interface, gro)
    {
        tracing::warn!(%interface, %error, gro, "GRO can't be switched");
    }
    Offloads {
        super_frames: false,
        gro: offload::gro(interface).ok(),
        lro: offload::lro(interface).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_or_another_order_is_no_move_and_another_address_is() {
        let ips: [IpAddr; 2] = [[192, 0, 2, 1].into(), [10, 0, 0, 1].into()];
        let before = Addresses {
            own: ips.to_vec(),
            endpoints: ips.map(|ip| SocketAddr::new(ip, 51_820)).to_vec(),
            underlay_mtu: Some(1_500),
        };
        let mut same = Addresses { underlay_mtu: Some(1_400), ..before.clone() };
        same.own.reverse();
        same.endpoints.reverse();
        assert_ne!(same, before);
        assert!(!same.moved_from(&before));
        assert!(!Addresses { underlay_mtu: None, ..before.clone() }.moved_from(&before));
        let fewer = Addresses { own: ips[..1].to_vec(), ..before.clone() };
        assert!(fewer.moved_from(&before) && before.moved_from(&fewer));
        let elsewhere = Addresses { endpoints: before.endpoints[..1].to_vec(), ..before.clone() };
        assert!(elsewhere.moved_from(&before) && before.moved_from(&elsewhere));
    }
}
