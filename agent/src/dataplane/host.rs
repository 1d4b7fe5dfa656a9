//! What is kept in order beside the worker on a host: its addresses, as peers are told them, and its TUN device.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anteroom_agent_core::port::PortId;
use anteroom_transport::egress;
use tokio::sync::{mpsc, watch};
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::config::{Config, Host};
use crate::dataplane::handle::{Command, Commander, Stopped};
use crate::dataplane::setup::Addresses;
use crate::net::host::Network;
use crate::net::link::{Changes, LinkError, Links};
use crate::net::packet::PacketSocket;
use crate::net::tun::{self, TunFrames};

/// Changes of links come in bursts; this long after the first of them all is read anew.
const SETTLE: Duration = Duration::from_millis(20);
/// How often address and routes are looked at, should somebody have changed them.
const LOOK: Duration = Duration::from_secs(5);
/// Pause between two attempts to make the device anew.
const RETRY: Duration = Duration::from_secs(1);
/// Most addresses that peers are told.
const MOST: usize = 8;
/// What the underlay is taken to carry where the configuration names no interface; what it really does is found out.
const USUAL_MTU: u16 = 1500;

/// A host's addresses, as peers have to know them. The engine knows of none: on a host nothing is a device's to keep
/// away from.
pub(super) async fn addresses(
    config: &Config,
    host: &Host,
    links: &Links,
    network: &Network,
) -> Result<Addresses, LinkError> {
    let tun = network.index();
    let (mut only, mut underlay_mtu) = (None, Some(USUAL_MTU));
    if let Some(interface) = &host.underlay {
        let link = links.find(interface).await?;
        underlay_mtu = link.as_ref().map(|link| u16::try_from(link.mtu).unwrap_or(u16::MAX));
        // One that isn't there has no addresses.
        only = Some(link.map_or(0, |link| link.index));
    }
    let listen = config.underlay.listen;
    let mut endpoints = config.underlay.advertise.clone();
    if endpoints.is_empty() {
        let fits = |index: u32, ip: IpAddr| {
            Some(index) != tun
                && only.is_none_or(|only| only == index)
                && (listen.ip().is_unspecified() || listen.ip() == ip)
                && (ip.is_ipv4() || listen.is_ipv6())
                && !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
        };
        let all = links.addresses().await?;
        let own: BTreeSet<IpAddr> =
            all.into_iter().filter(|(index, ip)| fits(*index, *ip)).map(|(_, ip)| ip).collect();
        let told = own.into_iter().take(MOST);
        endpoints = told.map(|ip| SocketAddr::new(ip, listen.port())).collect();
    }
    Ok(Addresses { own: Vec::new(), endpoints, underlay_mtu })
}

/// Makes the TUN device, and switches it on.
pub(super) async fn open(
    config: &Config,
    host: &Host,
    network: &Network,
    frames: TunFrames,
) -> Result<PacketSocket, LinkError> {
    let made = tun::open(&host.interface, config.offloads.super_frames);
    let fd = made.map_err(|source| LinkError {
        what: format!(
            "making the TUN device {} (needs /dev/net/tun and CAP_NET_ADMIN, and a name that no interface has)",
            host.interface
        ),
        source,
    })?;
    network.switch_on().await?;
    Ok(PacketSocket::of_tun(fd, frames))
}

pub(super) struct HostKeeper {
    pub(super) config: Arc<Config>,
    pub(super) host: Host,
    pub(super) frames: TunFrames,
    pub(super) links: Links,
    pub(super) network: Arc<Network>,
    pub(super) changes: Changes,
    pub(super) commander: Commander,
    /// The device, where the worker found it gone.
    pub(super) lost: mpsc::Receiver<PortId>,
    pub(super) addresses: Addresses,
    pub(super) endpoints: watch::Sender<Vec<SocketAddr>>,
    /// Dropped once nothing is kept any more.
    pub(super) kept: watch::Sender<()>,
}

impl HostKeeper {
    /// Runs until the worker ends.
    pub(super) async fn run(mut self) {
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut missing: Option<(PortId, Instant)> = None;
        let mut said = Vec::new();
        loop {
            let again = missing.map_or_else(Instant::now, |(_, at)| at);
            tokio::select! {
                lost = self.lost.recv() => {
                    let Some(port) = lost else { break };
                    missing = Some((port, Instant::now()));
                    continue;
                }
                changed = self.changes.changed() => {
                    if let Err(error) = changed {
                        tracing::warn!(%error, "changes of links can't be followed");
                        time::sleep(LOOK).await;
                    }
                    time::sleep(SETTLE).await;
                    if self.follow_addresses().await.is_err() {
                        break;
                    }
                }
                () = time::sleep_until(again), if missing.is_some() => {
                    let Some((port, _)) = missing else { continue };
                    match open(&self.config, &self.host, &self.network, self.frames).await {
                        Ok(socket) => {
                            missing = None;
                            let opened = Command::PortOpened(port, Box::new(socket));
                            if self.commander.send(opened).await.is_err() {
                                break;
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "the host is cut off from members until it can be made");
                            missing = Some((port, Instant::now() + RETRY));
                            continue;
                        }
                    }
                }
                _ = look.tick() => {}
            }
            let problems = self.network.keep().await;
            if problems != said {
                problems.iter().for_each(|problem| tracing::warn!("{problem}"));
                said = problems;
            }
        }
        self.network.leave().await;
        drop(self.kept);
    }

    async fn follow_addresses(&mut self) -> Result<(), Stopped> {
        match addresses(&self.config, &self.host, &self.links, &self.network).await {
            Ok(addresses) if addresses != self.addresses => {
                let (endpoints, mtu) = (&addresses.endpoints, addresses.underlay_mtu);
                tracing::info!(
                    ?endpoints,
                    ?mtu,
                    "the host's addresses, or its underlay's MTU, changed"
                );
                // Of two underlays, what chooses between them tells that of the one in use.
                if let Some(mtu) = mtu.filter(|_| self.config.underlay.backup.is_none()) {
                    self.commander.send(Command::SetUnderlayMtu(mtu)).await?;
                }
                self.commander.send(Command::Moved).await?;
                self.endpoints.send_replace(addresses.endpoints.clone());
                egress::moved();
                self.addresses = addresses;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the host's addresses can't be read"),
        }
        Ok(())
    }
}
