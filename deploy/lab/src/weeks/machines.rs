//! The hospital that is watched: what a policy is to be learnt from.

use crate::hospital::{Plan, Socket};

const B_BRAUN: [u8; 3] = [0x00, 0x12, 0x21];
const PHILIPS: [u8; 3] = [0x00, 0x09, 0xfb];
const DELL: [u8; 3] = [0x00, 0x14, 0x22];
const SIEMENS: [u8; 3] = [0x20, 0xe7, 0x91];

/// Who is in it. The intruder's own machine stays idle: it has got hold of a pump.
pub(super) const MACHINES: [Plan; 16] = [
    Plan::new("ct-1", "imaging", 11, Socket::Gateway("imaging", "port1"), "ct").made_by(SIEMENS),
    Plan::new("ct-2", "imaging", 12, Socket::Gateway("imaging", "port2"), "ct").made_by(SIEMENS),
    pump("pump-1", 11, "port1"),
    pump("pump-2", 12, "port2"),
    pump("pump-3", 13, "port3"),
    monitor("monitor-1", 21, "port4"),
    monitor("monitor-2", 22, "port5"),
    monitor("monitor-3", 23, "port6"),
    Plan::new("pacs-1", "servers", 11, Socket::Gateway("servers", "port1"), "pacs").made_by(DELL),
    Plan::new("central-1", "servers", 12, Socket::Gateway("servers", "port2"), "central-station")
        .made_by(DELL),
    Plan::new("drugs-1", "servers", 31, Socket::Campus, ""),
    Plan::new("clock-1", "servers", 32, Socket::Campus, ""),
    Plan::new("printer-1", "building", 31, Socket::Campus, ""),
    Plan::new("ws-1", "building", 21, Socket::Campus, ""),
    Plan::new("hvac-1", "building", 11, Socket::Campus, ""),
    Plan::new("intruder", "building", 66, Socket::Campus, ""),
];

const fn pump(name: &'static str, last: u8, port: &'static str) -> Plan {
    Plan::new(name, "ward", last, Socket::Gateway("ward", port), "infusion-pump").made_by(B_BRAUN)
}

const fn monitor(name: &'static str, last: u8, port: &'static str) -> Plan {
    Plan::new(name, "ward", last, Socket::Gateway("ward", port), "patient-monitor").made_by(PHILIPS)
}

/// What a device calls itself when it asks for the network's settings (DHCP), and what kind it says it is.
pub(super) fn calls_itself(name: &str) -> Option<(String, &'static str)> {
    let number = name.rsplit('-').next()?;
    if name.starts_with("pump") {
        Some((format!("infusomat-{number}"), "SpaceCom"))
    } else if name.starts_with("monitor") {
        Some((format!("intellivue-mx450-{number}"), "IntelliVue"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_machines_share_a_name_an_address_or_a_port() {
        let names: BTreeSet<_> = MACHINES.iter().map(|plan| plan.name).collect();
        let addresses: BTreeSet<_> = MACHINES.iter().map(Plan::address).collect();
        assert_eq!([names.len(), addresses.len()], [MACHINES.len(); 2]);
        let ports = MACHINES.iter().filter(|plan| plan.is_device()).map(|plan| plan.socket);
        let ports: Vec<_> = ports.collect();
        for (place, port) in ports.iter().enumerate() {
            assert!(!ports[..place].contains(port), "{port:?}");
        }
    }
}
