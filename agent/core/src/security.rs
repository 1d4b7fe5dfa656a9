//! Port security: is this Ethernet address, this IP address, this port?

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::DropReason;

use crate::config::Config;
use crate::device::Device;
use crate::nexthop;
use crate::port::PortId;
use crate::station::{StationId, Stations};

/// Whether an Ethernet address is the gateway's own.
pub(crate) fn is_own(config: &Config, mac: MacAddr) -> bool {
    mac == config.uplink_mac
        || config.gateway_macs.contains(&mac)
        || config.ports.iter().any(|port| port.mac == mac)
}

/// Whose frame came in on a device port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A station that belongs on this port.
    Station(StationId),
    /// An unconfirmed station that was on another port until now. Wires allow that.
    Moved(StationId),
    /// An address that has no place yet.
    New,
}

/// Checks the source address of a frame that came in on a device port.
///
/// # Errors
/// [`DropReason::Malformed`] for a group address, [`DropReason::MacSpoofed`] for an address of the gateway or of
/// a device on another port.
pub(crate) fn check_source(
    config: &Config,
    stations: &Stations,
    port: PortId,
    source: MacAddr,
) -> Result<Sender, DropReason> {
    if source.is_group() {
        return Err(DropReason::Malformed);
    }
    if is_own(config, source) {
        return Err(DropReason::MacSpoofed);
    }
    let Some(id) = stations.find(source) else { return Ok(Sender::New) };
    let Some(station) = stations.get(id) else { return Ok(Sender::New) };
    match (station.port == port, &station.device) {
        (true, _) => Ok(Sender::Station(id)),
        (false, Some(_)) => Err(DropReason::MacSpoofed),
        (false, None) => Ok(Sender::Moved(id)),
    }
}

/// Checks the source address of an IPv4 packet from a device that has left observe.
///
/// # Errors
/// [`DropReason::IpSpoofed`] when it isn't the device's own.
pub(crate) fn check_address(device: &Device, source: Ipv4Addr) -> Result<(), DropReason> {
    if device.stance == Mode::Observe || device.owns(source) {
        Ok(())
    } else {
        Err(DropReason::IpSpoofed)
    }
}

/// What devices here depend on, and what nobody else on a port may pass for. It follows from the view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Guarded {
    /// Addresses of routers of devices that have left observe, and of devices that are held for want of their port.
    pub(crate) routers: BTreeSet<Ipv4Addr>,
    /// The same of devices in a VLAN, with that.
    pub(crate) vlan_routers: BTreeSet<(u16, Ipv4Addr)>,
    /// Ethernet addresses that operators pinned for them.
    pub(crate) router_macs: BTreeSet<MacAddr>,
    /// Those that ARP on the uplink told of instead. They stay a router's however long it is silent: the devices
    /// go on using them.
    pub(crate) learnt_macs: BTreeSet<MacAddr>,
    /// VLANs of confirmed devices.
    pub(crate) vlans: BTreeSet<u16>,
}

impl Guarded {
    /// What is guarded for these stations, in a site whose routers have these addresses of their own.
    pub(crate) fn of(stations: &Stations, routers: &[Ipv4Addr]) -> Self {
        let mut guarded = Self::default();
        guarded.routers.extend(stations.absent_addresses());
        for (_, station) in stations.iter() {
            let Some(device) = &station.device else { continue };
            guarded.vlans.extend(device.vlan);
            if device.stance == Mode::Observe {
                continue;
            }
            guarded.routers.extend(routers);
            guarded.vlan_routers.extend(
                device.vlan.iter().flat_map(|vlan| routers.iter().map(|own| (*vlan, *own))),
            );
            if let Some(router) = device.router {
                guarded.routers.insert(router.address);
                guarded.vlan_routers.extend(device.vlan.map(|vlan| (vlan, router.address)));
                guarded.router_macs.extend(router.mac);
            }
            if device.router.is_none_or(|router| router.mac.is_none()) {
                let used = nexthop::router_of(Some(device), &station.next_hops);
                guarded.learnt_macs.extend(used.and_then(|(_, mac)| mac));
            }
        }
        guarded
    }
}
