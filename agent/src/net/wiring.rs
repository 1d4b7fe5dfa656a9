//! What each port does while no agent forwards: `wire` or `closed`.

use std::collections::BTreeSet;

use anteroom_agent_core::on_failure::is_wire;
use anteroom_proto::intent::Device;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::view::View;

use crate::config::Config;

/// What the kernel does with each port while the agent's beat is missing. In the configuration's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    pub(crate) ports: Vec<PortWiring>,
}

/// One port's part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PortWiring {
    /// Whether the kernel forwards, as if no gateway were there.
    pub(crate) wire: bool,
    /// The Ethernet addresses of the devices there, as far as the view names them.
    pub(crate) devices: BTreeSet<MacAddr>,
}

impl Wiring {
    /// All ports closed.
    #[must_use]
    pub fn closed(config: &Config) -> Self {
        Self { ports: vec![PortWiring::default(); config.ports.len()] }
    }

    /// What `view` asks for. Without one the gateway is a wire. A port without devices is one too: what is plugged in
    /// there is observed. On a port that devices share, one that is to be closed closes it for all.
    #[must_use]
    pub fn of(config: &Config, view: Option<&View>) -> Self {
        let devices = || view.iter().flat_map(|view| &view.intent.devices);
        let cut_off = |device: &Device| {
            view.is_some_and(|view| view.operation.quarantined.contains(&device.member.id))
        };
        let lost = devices().filter(|device| !has_port(config, device));
        let any_lost = lost.into_iter().any(|device| !is_wire(device, cut_off(device)));
        let ports = config.ports.iter().map(|port| {
            let here = || devices().filter(|device| device.port == port.name);
            // A port that the view doesn't name may be that of a device whose port isn't here.
            let may_be_its = any_lost && here().next().is_none();
            PortWiring {
                wire: !may_be_its && here().all(|device| is_wire(device, cut_off(device))),
                devices: here().map(|device| device.member.mac).collect(),
            }
        });
        Self { ports: ports.collect() }
    }

    /// The ports that are a wire, as bits in the configuration's order.
    pub(crate) fn bits(&self) -> u64 {
        self.ports
            .iter()
            .zip(0..u64::BITS)
            .filter(|(port, _)| port.wire)
            .fold(0, |bits, (_, place)| bits | 1 << place)
    }
}

fn has_port(config: &Config, device: &Device) -> bool {
    config.ports.iter().any(|port| port.name == device.port)
}

/// The devices that `view` has on ports that this machine doesn't have: one sentence each, with what becomes of them.
#[must_use]
pub fn unplaced(config: &Config, view: &View) -> Vec<String> {
    let told = |device: &Device| {
        let member = device.member.id;
        let fate = if is_wire(device, view.operation.quarantined.contains(&member)) {
            "it is on a wire, as when no agent runs"
        } else {
            "it is held, and the ports that the view doesn't name are closed"
        };
        format!(
            "{member} is on port {:?}, which this gateway doesn't have: {fate}; give the port its name back in the \
             agent's configuration, or move the device (`anteroom device bind`)",
            device.port.as_str()
        )
    };
    view.intent.devices.iter().filter(|device| !has_port(config, device)).map(told).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anteroom_proto::intent::OnFailure;
    use anteroom_proto::mode::Mode;

    use super::*;
    use crate::testkit::Organisation;

    fn config() -> Config {
        let text = "[uplink]\ninterface = \"up0\"\n[underlay]\nlisten = \"0.0.0.0:51820\"\n\
                    [[port]]\nname = \"port1\"\ninterface = \"p1\"\n\
                    [[port]]\nname = \"port2\"\ninterface = \"p2\"\n";
        Config::parse(Path::new("test.toml"), text).unwrap()
    }

    fn view() -> View {
        let organisation = Organisation::new(&[]);
        organisation.verified(&organisation.view(1, 1, Mode::Observe))
    }

    fn wires(change: impl Fn(&mut Vec<Device>)) -> (bool, bool) {
        let mut view = view();
        change(&mut view.intent.devices);
        let wiring = Wiring::of(&config(), Some(&view));
        (wiring.ports[0].wire, wiring.ports[1].wire)
    }

    #[test]
    fn the_mode_decides_unless_operators_did_and_quarantine_closes() {
        let with = |mode, on_failure, quarantined| {
            wires(move |devices| {
                let device = &mut devices[0];
                (device.member.mode, device.member.quarantined) = (mode, quarantined);
                device.on_failure = on_failure;
            })
            .0
        };
        use OnFailure::{Closed, Default, Wire};
        assert!(with(Mode::Observe, Default, false));
        assert!(with(Mode::Protect, Default, false));
        assert!(!with(Mode::Enforce, Default, false));
        assert!(!with(Mode::Unrecognised, Default, false));
        assert!(!with(Mode::Observe, Default, true));
        assert!(with(Mode::Enforce, Wire, false));
        assert!(with(Mode::Observe, Wire, true));
        assert!(!with(Mode::Observe, Closed, false));
    }

    #[test]
    fn what_the_controller_quarantined_is_closed_too() {
        let mut view = view();
        assert_eq!(Wiring::of(&config(), Some(&view)).bits(), 0b11);
        view.operation.quarantined.push(view.intent.devices[0].member.id);
        assert_eq!(Wiring::of(&config(), Some(&view)).bits(), 0b10);
    }

    #[test]
    fn a_shared_port_is_closed_if_one_there_is_and_an_empty_one_is_a_wire() {
        let shared = wires(|devices| {
            let mut other = devices[0].clone();
            other.member.mac = MacAddr([2, 0, 0, 0, 0, 99]);
            devices[0].on_failure = OnFailure::Wire;
            other.on_failure = OnFailure::Closed;
            devices.push(other);
        });
        assert_eq!(shared, (false, true));
        let none = Wiring::of(&config(), None);
        assert_eq!(none.bits(), 0b11);
        assert_eq!(Wiring::closed(&config()).bits(), 0);
    }

    #[test]
    fn without_its_port_a_device_that_is_to_be_closed_closes_those_without_a_name() {
        let mut view = view();
        view.intent.devices.truncate(1);
        assert_eq!(unplaced(&config(), &view), [""; 0]);
        view.intent.devices[0].port = "port-9".parse().unwrap();
        assert_eq!(Wiring::of(&config(), Some(&view)).bits(), 0b11, "an observed one is on a wire");
        assert!(unplaced(&config(), &view)[0].contains("on a wire"));
        view.intent.devices[0].member.mode = Mode::Enforce;
        assert_eq!(Wiring::of(&config(), Some(&view)).bits(), 0);
        let told = unplaced(&config(), &view);
        assert!(told[0].contains("\"port-9\"") && told[0].contains("held"), "{told:?}");
        let mut other = view.intent.devices[0].clone();
        (other.port, other.member.mode) = ("port2".parse().unwrap(), Mode::Observe);
        view.intent.devices.push(other);
        assert_eq!(Wiring::of(&config(), Some(&view)).bits(), 0b10, "port2 has its device");
    }
}
