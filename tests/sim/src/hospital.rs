//! A hospital: three gateways with two devices each, an archive without a gateway, a workstation, an intruder.

use std::net::Ipv4Addr;
use std::time::Duration;

use anteroom_agent_core::wire::parse_ethernet;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;

use crate::model::{Machine, Way};
use crate::packet;
use crate::plan::Who;
use crate::world::World;

/// Imaging's CT.
pub const CT: usize = 0;
/// Imaging's MRI, on the second port of the same gateway.
pub const MRI: usize = 1;
/// The ward's pump.
pub const PUMP: usize = 2;
/// The ward's monitor.
pub const MONITOR: usize = 3;
/// The server room's PACS.
pub const PACS: usize = 4;
/// The server room's HL7 engine.
pub const HL7: usize = 5;
/// An archive without a gateway.
pub const ARCHIVE: usize = 6;
/// A workstation without a gateway.
pub const WORKSTATION: usize = 7;
/// An intruder in imaging's subnet.
pub const INTRUDER: usize = 8;

/// A hospital with everything in observe, and the policy that the others count on:
///
/// - the CT and the MRI send DICOM (tcp/104) to the PACS; the PACS opens tcp/4006 to the CT;
/// - the monitor sends HL7 (tcp/2575) to the HL7 engine, which is essential, and pings it;
/// - the CT sends DICOM to the archive, in the clear; the pump asks the archive by udp/5000, not in the clear;
/// - the CT and the MRI share udp/7000.
#[must_use]
pub fn hospital(seed: u64) -> World {
    let mut world = World::new(seed);
    let imaging = world.gateway([10, 20, 1], &["port1", "port2"]);
    let ward = world.gateway([10, 20, 2], &["port1", "port2"]);
    let servers = world.gateway([10, 20, 4], &["port1", "port2"]);
    world.device("ct", imaging, 0, 10);
    world.device("mri", imaging, 1, 11);
    world.device("pump", ward, 0, 10);
    world.device("monitor", ward, 1, 11);
    world.device("pacs", servers, 0, 10);
    world.device("hl7", servers, 1, 11);
    world.plain("archive", [10, 20, 4, 50]);
    world.plain("workstation", [10, 20, 9, 20]);
    world.plain("intruder", [10, 20, 1, 66]);
    let plan = &mut world.plan;
    let archive = plan.external("archive", &["10.20.4.50/32"]);
    plan.rule("scans", Who::Devices(vec![CT, MRI]), Who::Device(PACS), &["tcp/104"]);
    plan.rule("fetch", Who::Device(PACS), Who::Device(CT), &["tcp/4006"]);
    plan.rule("alarms", Who::Device(MONITOR), Who::Device(HL7), &["tcp/2575", "icmp/echo"])
        .essential = true;
    plan.rule("archive", Who::Device(CT), Who::External(archive), &["tcp/104"]).clear = true;
    plan.rule("pump-archive", Who::Device(PUMP), Who::External(archive), &["udp/5000"]);
    plan.rule("imaging", Who::Device(CT), Who::Device(MRI), &["udp/7000"]);
    world
}

/// What the model calls a host.
#[must_use]
pub fn machine(world: &World, host: usize) -> Machine {
    if host < world.plan.devices.len() {
        Machine::Device(host)
    } else {
        Machine::Plain(world.hosts[host].address)
    }
}

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether its payload arrived.
    pub arrived: bool,
    /// Whether its answer came back.
    pub answered: bool,
    /// Whether the campus carried its payload, there or back.
    pub on_campus: bool,
}

impl Outcome {
    /// What a way means for a probe.
    #[must_use]
    pub const fn of(way: Way) -> Self {
        match way {
            Way::Clear => Self { arrived: true, answered: true, on_campus: true },
            Way::Tunnel | Way::Local => Self { arrived: true, answered: true, on_campus: false },
            Way::None => Self { arrived: false, answered: false, on_campus: false },
        }
    }
}

/// Sends one probe, `tries` times at most, a second apart, and says what became of it.
///
/// A TCP probe opens a connection and says the marker once it is open; UDP and ICMP carry it at once.
pub fn probe(
    world: &mut World,
    from: usize,
    to: usize,
    (protocol, port): (Protocol, u16),
    marker: u64,
    tries: u32,
) -> Outcome {
    let target: Ipv4Addr = world.hosts[to].address;
    let payload = [b"probe".as_slice(), &marker.to_be_bytes()].concat();
    let own_port = 40_000 + u16::try_from(marker % 20_000).unwrap_or(0);
    let has = |world: &World, host: usize, own: bool| {
        world.hosts[host].inbox.iter().any(|got| {
            let port = if own { own_port } else { port };
            let fits = protocol == Protocol::IcmpEcho || got.port == port;
            fits && got.payload == payload
        })
    };
    let campus = world.campus.len();
    for _ in 0..tries {
        world.act(from, |host, out| match protocol {
            Protocol::Tcp => host.connect((target, port), own_port, &payload, out),
            Protocol::Udp => {
                let bytes = packet::udp((host.address, own_port), (target, port), &payload);
                host.send(bytes, out);
            }
            Protocol::IcmpEcho => {
                let bytes = packet::echo(host.address, target, false, own_port, &payload);
                host.send(bytes, out);
            }
        });
        world.run(Duration::from_secs(1));
        if has(world, from, true) {
            break;
        }
    }
    Outcome {
        arrived: has(world, to, false),
        answered: has(world, from, true),
        on_campus: world.campus[campus..]
            .iter()
            .any(|seen| seen.bytes.windows(payload.len()).any(|window| window == payload)),
    }
}

/// What the campus carried that an enforced device may not have said, or heard.
#[must_use]
pub fn leaks(world: &World) -> Vec<String> {
    use anteroom_agent_core::wire::{arp, ethernet, parse_ipv4};
    let enforced: Vec<usize> = (0..world.plan.devices.len())
        .filter(|device| world.plan.member(*device).mode == Mode::Enforce)
        .collect();
    let mut leaks = Vec::new();
    for seen in &world.campus {
        let Ok(frame) = parse_ethernet(&seen.bytes, None) else { continue };
        let Some(device) =
            enforced.iter().find(|d| world.plan.member(**d).mac == frame.source).copied()
        else {
            continue;
        };
        let clear = |address: Ipv4Addr| {
            let other = (0..world.hosts.len())
                .find(|host| world.hosts[*host].address == address)
                .map(|host| machine(world, host));
            world.plan.rules.iter().filter(|rule| rule.clear).any(|rule| {
                let is = |who: &Who| match (who, other) {
                    (Who::Device(one), Some(Machine::Device(d))) => *one == d,
                    (Who::Devices(several), Some(Machine::Device(d))) => several.contains(&d),
                    (Who::External(at), _) => {
                        world.plan.externals[*at].1.iter().any(|net| net.contains(&address))
                    }
                    _ => false,
                };
                let own = |who: &Who| match who {
                    Who::Device(one) => *one == device,
                    Who::Devices(several) => several.contains(&device),
                    Who::External(_) => false,
                };
                (own(&rule.from) && is(&rule.to)) || (own(&rule.to) && is(&rule.from))
            })
        };
        let router = |address: Ipv4Addr| address == world.hosts[device].router;
        let fits = match frame.ethertype {
            ethernet::IPV4 => {
                parse_ipv4(frame.payload).is_ok_and(|packet| clear(packet.destination))
            }
            ethernet::ARP => arp::parse_arp(frame.payload)
                .is_ok_and(|packet| clear(packet.target) || router(packet.target)),
            ethernet::EAPOL | ethernet::LLDP => true,
            _ => false,
        };
        if !fits {
            let name = world.hosts[device].name;
            leaks.push(format!("{name} was heard on the campus: {:02x?}", seen.bytes));
        }
    }
    leaks
}
