//! A host's configuration: `[host]` in the place of uplink and ports.
//!
//! ```toml
//! [host]
//! # interface = "anteroom0"              # the TUN device, which the agent makes and which goes with it
//! # [underlay]                           # as a gateway's; without it, any address and UDP port 51820
//! # listen = "0.0.0.0:51820"
//! # interface = "eth0"                   # default: peers are told the addresses of all interfaces
//! ```

use std::net::{Ipv4Addr, SocketAddr};

use anteroom_proto::name::Name;
use anteroom_proto::v1::{HOST_PORT, Unlisted};
use serde::Deserialize;
use toml::Spanned;

use super::{
    Config, ConfigError, InterfaceName, Place, Port, RawConfig, Underlay, Uplink, check_lanes,
};

/// The TUN device's name, unless the file gives another.
const INTERFACE: &str = "anteroom0";
/// The tunnels' UDP port, unless the file gives another.
const PORT: u16 = 51_820;

/// A host: this machine is the member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The TUN device.
    pub interface: InterfaceName,
    /// The interface whose addresses peers are told; none: those of all.
    pub underlay: Option<InterfaceName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [host]")]
pub(super) struct RawHost {
    interface: Option<Spanned<InterfaceName>>,
}

impl RawConfig {
    /// The configuration of a host.
    pub(super) fn host(self, place: &Place<'_>) -> Result<Config, ConfigError> {
        let Self { state, run, host, uplink, underlay, port, offloads, flows, cores, keys, sensor } =
            self;
        let only = "a host has neither uplink nor ports: leave it out, or leave [host] out";
        if let Some(uplink) = uplink {
            return Err(place.error(Some(uplink.span()), only));
        }
        if let Some(port) = port.first() {
            return Err(place.error(Some(port.name.span()), only));
        }
        check_lanes(offloads, cores, place)?;
        let named = host.and_then(|host| host.into_inner().interface);
        let usual = || INTERFACE.parse().map_err(|problem: String| place.error(None, &problem));
        let interface = named.as_ref().map_or_else(usual, |named| Ok(named.get_ref().clone()))?;
        let name: Name =
            HOST_PORT.parse().map_err(|_| place.error(None, "the port has no name"))?;
        let mut found = None;
        let mut own = Underlay {
            interface: interface.clone(),
            backup: None,
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            advertise: Vec::new(),
            quic: None,
            management: Vec::new(),
        };
        if let Some(underlay) = underlay {
            underlay.check(place)?;
            if let Some(first) = underlay.management.first() {
                let problem = "is for gateways: a host's own services are left as they are";
                return Err(place.error(Some(first.span()), problem));
            }
            if let Some(backup) = &underlay.backup {
                let problem = "is for gateways: a host's packets go as its routes say";
                return Err(place.error(Some(backup.span()), problem));
            }
            if let Some(named) = &underlay.interface {
                if *named.get_ref() == interface {
                    let problem =
                        "is the TUN device itself: name the interface towards the network";
                    return Err(place.error(Some(named.span()), problem));
                }
                found = Some(named.get_ref().clone());
                own.interface = named.get_ref().clone();
            }
            own.quic = underlay.quic.map(toml::Spanned::into_inner);
            own.listen = underlay.listen.into_inner();
            own.advertise = underlay.advertise.into_iter().map(Spanned::into_inner).collect();
        }
        Ok(Config {
            state: state.into_inner(),
            run: run.into_inner(),
            host: Some(Host { interface: interface.clone(), underlay: found }),
            uplink: Uplink { interface: interface.clone(), follow_port: false },
            underlay: own,
            ports: vec![Port { name, interface, unlisted: Unlisted::Hold }],
            offloads,
            flows: flows.check(place)?,
            cores,
            keys,
            sensor,
        })
    }
}
