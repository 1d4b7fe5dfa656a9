//! What may leave an engine whose devices are all in enforce.

use std::net::Ipv4Addr;

use anteroom_agent_core::wire::arp::parse_arp;
use anteroom_agent_core::wire::{Ipv4Packet, Transport, ethernet, parse_ethernet, parse_ipv4};
use anteroom_sim::plan::Plan;

use super::{DEVICES, From};
use crate::kept::Frame;

/// Addresses with which enforced devices may speak in the clear: the external, the router, servers.
fn outside(plan: &Plan, address: Ipv4Addr) -> bool {
    let external = plan.externals.iter().flat_map(|(_, prefixes)| prefixes);
    external.clone().any(|prefix| prefix.contains(&address))
        || address == Ipv4Addr::new(10, 20, 1, 1)
        || address == Ipv4Addr::new(10, 20, 4, 1)
        || server(plan, address)
}

fn server(plan: &Plan, address: Ipv4Addr) -> bool {
    let servers = &plan.infrastructure;
    [&servers.dhcp, &servers.dns, &servers.ntp].into_iter().any(|list| list.contains(&address))
}

/// Which device uses an address.
fn device(plan: &Plan, address: Ipv4Addr) -> Option<usize> {
    (0..DEVICES).find(|d| plan.member(*d).addresses.iter().any(|net| net.contains(&address)))
}

/// Says what is wrong with a frame that the engine of the gateway `at` sent.
pub(super) fn check(plan: &Plan, at: usize, from: From, frame: &Frame) -> Result<(), String> {
    let parsed =
        parse_ethernet(&frame.bytes, frame.vlan).map_err(|_| "it is no frame".to_owned())?;
    if matches!(parsed.ethertype, ethernet::EAPOL | ethernet::LLDP) {
        return Ok(());
    }
    // A tag that gives a priority alone names no VLAN.
    if parsed.vlan().is_some() || parsed.tags > 1 {
        return Err("a tagged frame passes".into());
    }
    let up = frame.port.is_uplink();
    match parsed.ethertype {
        ethernet::ARP => {
            let arp = parse_arp(parsed.payload).map_err(|_| "malformed ARP passes".to_owned())?;
            if up {
                let own = (0..DEVICES).any(|d| plan.member(d).mac == arp.sender_mac);
                if own && outside(plan, arp.target) {
                    Ok(())
                } else {
                    Err(format!("ARP about {} leaves", arp.target))
                }
            } else if from == From::Uplink && !outside(plan, arp.sender) {
                Err(format!("ARP of {} reaches a device", arp.sender))
            } else {
                Ok(())
            }
        }
        ethernet::IPV4 => {
            let packet =
                parse_ipv4(parsed.payload).map_err(|_| "malformed IPv4 passes".to_owned())?;
            if up {
                let spoken = (0..DEVICES).find(|d| plan.member(*d).mac == parsed.source);
                let Some(spoken) = spoken.filter(|d| plan.devices[*d].gateway == at) else {
                    return Err("IPv4 leaves with nobody's Ethernet address".into());
                };
                leaves(plan, spoken, &packet)
            } else {
                arrives(plan, at, from, &packet)
            }
        }
        other => Err(format!("{other:#06x} {}", if up { "leaves" } else { "reaches a device" })),
    }
}

/// Service ports of a packet, either way around. `None` where a fragment doesn't say.
fn ports(packet: &Ipv4Packet<'_>) -> Option<(u8, u16, u16)> {
    match packet.transport {
        Transport::LaterFragment | Transport::IcmpError { .. } => None,
        _ => Some((packet.protocol, packet.source_port, packet.destination_port)),
    }
}

/// DHCP, DNS and NTP with a server.
fn serves(plan: &Plan, server: Ipv4Addr, protocol: u8, port: u16) -> bool {
    let list = match (protocol, port) {
        (17, 67) => return server.is_broadcast() || plan.infrastructure.dhcp.contains(&server),
        (17 | 6, 53) => &plan.infrastructure.dns,
        (17, 123) => &plan.infrastructure.ntp,
        _ => return false,
    };
    list.contains(&server)
}

fn leaves(plan: &Plan, spoken: usize, packet: &Ipv4Packet<'_>) -> Result<(), String> {
    let (source, destination) = (packet.source, packet.destination);
    let Some((protocol, source_port, destination_port)) = ports(packet) else {
        let fits = device(plan, source) == Some(spoken) && outside(plan, destination);
        return if fits { Ok(()) } else { Err(format!("a part for {destination} leaves")) };
    };
    if serves(plan, destination, protocol, destination_port)
        && (device(plan, source) == Some(spoken)
            || (source.is_unspecified() && destination_port == 67))
    {
        return Ok(());
    }
    if device(plan, source) != Some(spoken) {
        return Err(format!("{source} leaves, which isn't the device's"));
    }
    let external = plan.externals[0].1.iter().any(|prefix| prefix.contains(&destination));
    let service = protocol == 6 && (destination_port == 104 || source_port == 4006);
    if external && spoken == 0 && service {
        Ok(())
    } else {
        Err(format!("{protocol} to {destination}:{destination_port} leaves"))
    }
}

fn arrives(plan: &Plan, at: usize, from: From, packet: &Ipv4Packet<'_>) -> Result<(), String> {
    let (source, destination) = (packet.source, packet.destination);
    let whom = device(plan, destination);
    let sender = device(plan, source);
    let Some((protocol, source_port, destination_port)) = ports(packet) else {
        // A router on the way may say that a packet was too big, or that a host isn't there.
        let error = matches!(packet.transport, Transport::IcmpError { .. });
        let fits = whom.is_some() && (error || sender.is_some() || outside(plan, source));
        return if fits { Ok(()) } else { Err(format!("a part of {source} reaches a device")) };
    };
    if serves(plan, source, protocol, source_port) || (protocol == 17 && source_port == 67) {
        return if server(plan, source) {
            Ok(())
        } else {
            Err(format!("{source} serves a device"))
        };
    }
    let pair = |a: usize, b: usize, protocols: u8, port: u16| {
        protocol == protocols
            && ((sender, whom, destination_port) == (Some(a), Some(b), port)
                || (sender, whom, source_port) == (Some(b), Some(a), port))
    };
    let members = pair(0, 3, 6, 104)
        || pair(1, 3, 6, 104)
        || pair(3, 0, 6, 4006)
        || pair(0, 1, 17, 7000)
        || (protocol == 1 && matches!((sender, whom), (Some(0), Some(3)) | (Some(3), Some(0))));
    if let (Some(sender), Some(_)) = (sender, whom) {
        let local = plan.devices[sender].gateway == at;
        let way = match from {
            From::Port => local,
            From::Tunnel => !local,
            From::Uplink => false,
            From::Time => true,
        };
        return if members && way {
            Ok(())
        } else {
            Err(format!(
                "{protocol} of {source}:{source_port} reaches {destination}:{destination_port}"
            ))
        };
    }
    let external = plan.externals[0].1.iter().any(|prefix| prefix.contains(&source));
    let service = protocol == 6 && (source_port == 104 || destination_port == 4006);
    if external && whom == Some(0) && service && from == From::Uplink {
        Ok(())
    } else {
        Err(format!(
            "{protocol} of {source}:{source_port} reaches {destination}:{destination_port}"
        ))
    }
}
