//! The hospital: a campus with a router, three gateways in the wire, and the equipment behind and beside them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::anteroom::{Controller, Gateway, Operator};
use crate::packet::{PacketSocket, arp_request};
use crate::programs::Programs;
use crate::scan::Leg;
use crate::topology::{self, Host};

/// The site that all gateways stand in.
pub const SITE: &str = "north";

/// The site's networks: name and third octet of 10.20.x.0/24. The router has address 1 in each.
const SUBNETS: [(&str, u8); 5] =
    [("mgmt", 0), ("imaging", 1), ("ward", 2), ("servers", 4), ("building", 9)];

/// What a machine is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// A port of a gateway.
    Gateway(&'static str, &'static str),
    /// The campus switch.
    Campus,
}

/// A machine of the hospital, on paper.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// The network that it is in.
    pub subnet: &'static str,
    /// The last octet of its address, and of its Ethernet address.
    pub last: u8,
    /// What it is plugged into.
    pub socket: Socket,
    /// The label `class` that operators give it.
    pub class: &'static str,
    /// The first half of its Ethernet address, by which its maker is known.
    pub maker: [u8; 3],
}

/// The range that is set aside for documentation: nobody's.
const NOBODY: [u8; 3] = [0x00, 0x00, 0x5e];

/// All machines.
pub const MACHINES: [Plan; 10] = [
    Plan::new("ct-1", "imaging", 11, Socket::Gateway("imaging", "port1"), "ct"),
    Plan::new("mri-1", "imaging", 12, Socket::Gateway("imaging", "port2"), "mri"),
    Plan::new("pump-1", "ward", 11, Socket::Gateway("ward", "port1"), "pump"),
    Plan::new("monitor-1", "ward", 12, Socket::Gateway("ward", "port2"), "monitor"),
    Plan::new("pacs-1", "servers", 11, Socket::Gateway("servers", "port1"), "pacs"),
    Plan::new("hl7-1", "servers", 12, Socket::Gateway("servers", "port2"), "hl7"),
    Plan::new("archive-1", "servers", 21, Socket::Campus, ""),
    Plan::new("hvac-1", "building", 11, Socket::Campus, ""),
    Plan::new("ws-1", "building", 21, Socket::Campus, ""),
    Plan::new("intruder", "building", 66, Socket::Campus, ""),
];

/// The gateways: name, and the network that they stand in.
pub const GATEWAYS: [&str; 3] = ["imaging", "ward", "servers"];

impl Plan {
    /// A machine of a maker that nobody knows.
    #[must_use]
    pub const fn new(
        name: &'static str,
        subnet: &'static str,
        last: u8,
        socket: Socket,
        class: &'static str,
    ) -> Self {
        Self { name, subnet, last, socket, class, maker: NOBODY }
    }

    /// The same, made by whom these octets were given to.
    #[must_use]
    pub const fn made_by(mut self, maker: [u8; 3]) -> Self {
        self.maker = maker;
        self
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        address(self.subnet, self.last)
    }

    /// Its Ethernet address.
    #[must_use]
    pub fn mac(&self) -> String {
        let [a, b, c] = self.maker;
        format!("{a:02x}:{b:02x}:{c:02x}:00:{:02x}:{:02x}", 0x50 + octet(self.subnet), self.last)
    }

    /// Whether a gateway stands in front of it.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.socket, Socket::Gateway(..))
    }
}

fn octet(subnet: &str) -> u8 {
    SUBNETS.iter().find(|(name, _)| *name == subnet).map_or(0, |(_, octet)| *octet)
}

/// An address in one of the networks.
#[must_use]
pub fn address(subnet: &str, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, octet(subnet), last)
}

/// A machine as it stands there.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What was planned.
    pub plan: Plan,
    /// Where its programs run.
    pub host: Host,
}

impl Machine {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.plan.address()
    }

    /// A socket address on it.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address(), port))
    }

    /// Announces itself, as machines do when they are switched on.
    ///
    /// # Errors
    /// If the frame can't be sent.
    pub fn announce(&self) -> Result<()> {
        let mac = self.host.mac("eth0")?;
        let frame = arp_request(mac, self.address(), self.address());
        self.host
            .enter(|| PacketSocket::open_on("eth0", 0x0806)?.send(&frame))?
            .with_context(|| format!("{} announcing itself", self.plan.name))
    }
}

/// The whole.
#[derive(Debug)]
pub struct Hospital {
    /// Where the programs' state is.
    pub directory: PathBuf,
    /// What the programs printed.
    pub logs: PathBuf,
    /// The programs.
    pub programs: Arc<Programs>,
    /// The campus switch.
    pub campus: Host,
    /// The router between the networks.
    pub router: Host,
    /// All machines, on paper.
    plans: &'static [Plan],
    /// The machines by name.
    machines: BTreeMap<&'static str, Machine>,
    /// The controller.
    pub controller: Controller,
    /// The operator.
    pub operator: Operator,
    /// The gateways by name.
    pub gateways: BTreeMap<&'static str, Gateway>,
}

impl Hospital {
    /// Lays all cables and places all machines. No program of Anteroom runs yet.
    ///
    /// # Errors
    /// If the kernel or `ip` refuses.
    pub fn build(programs: Programs, directory: &Path, logs: &Path) -> Result<Self> {
        Self::build_of(&MACHINES, programs, directory, logs)
    }

    /// The same with other machines. One is called `intruder`.
    ///
    /// # Errors
    /// If the kernel or `ip` refuses.
    pub fn build_of(
        plans: &'static [Plan],
        programs: Programs,
        directory: &Path,
        logs: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        std::fs::create_dir_all(logs)?;
        let programs = Arc::new(programs);
        let mut names: Vec<(String, Ipv4Addr)> =
            plans.iter().map(|plan| (plan.name.to_owned(), plan.address())).collect();
        names.extend(GATEWAYS.map(|name| (format!("gw-{name}"), address(name, 2))));
        names.push(("controller".into(), address("mgmt", 10)));
        names.push(("operator".into(), address("mgmt", 20)));
        topology::names(&names)?;
        let campus = Host::create("campus")?;
        let router = Host::create("router")?;
        router.forward()?;
        for (subnet, _) in SUBNETS {
            campus.switch(&format!("br-{subnet}"))?;
            let bridge = format!("br-{subnet}");
            topology::plug(&router, subnet, None, &campus, &bridge, &format!("r-{subnet}"))?;
            router.address(subnet, address(subnet, 1), 24)?;
        }
        let controller = Controller::place(
            Self::attach(&campus, "controller", "mgmt", 10, None)?,
            address("mgmt", 10),
            programs.clone(),
            directory,
            logs,
        );
        let operator = Operator::place(
            Self::attach(&campus, "operator", "mgmt", 20, None)?,
            programs.clone(),
            directory,
        );
        let mut gateways = BTreeMap::new();
        for name in GATEWAYS {
            let host = Host::create(&format!("gw-{name}"))?;
            let bridge = format!("br-{name}");
            topology::plug(&host, "uplink", None, &campus, &bridge, &format!("u-{name}"))?;
            host.address("uplink", address(name, 2), 24)?;
            host.default_route(address(name, 1))?;
            let ports = plans.iter().filter_map(|plan| match plan.socket {
                Socket::Gateway(gateway, port) => (gateway == name).then_some(port),
                Socket::Campus => None,
            });
            let ports: Vec<&str> = ports.collect();
            let gateway = Gateway::place(name, host, &ports, programs.clone(), directory, logs)?;
            gateways.insert(name, gateway);
        }
        let mut machines = BTreeMap::new();
        for plan in plans.iter().copied() {
            let host = match plan.socket {
                Socket::Campus => {
                    Self::attach(&campus, plan.name, plan.subnet, plan.last, Some(&plan.mac()))?
                }
                Socket::Gateway(gateway, port) => {
                    let gateway = &gateways[gateway].host;
                    let host = Host::create(plan.name)?;
                    topology::cable((&host, "eth0", Some(&plan.mac())), (gateway, port))?;
                    host.address("eth0", plan.address(), 24)?;
                    host.default_route(address(plan.subnet, 1))?;
                    host
                }
            };
            machines.insert(plan.name, Machine { plan, host });
        }
        // The intruder walks from socket to socket: it has a leg in every network with devices.
        let intruder = &machines["intruder"].host;
        for subnet in GATEWAYS {
            let (bridge, socket) = (format!("br-{subnet}"), format!("x-{subnet}"));
            topology::plug(intruder, subnet, None, &campus, &bridge, &socket)?;
            intruder.address(subnet, address(subnet, 66), 24)?;
        }
        Ok(Self {
            directory: directory.into(),
            logs: logs.into(),
            programs,
            campus,
            router,
            plans,
            machines,
            controller,
            operator,
            gateways,
        })
    }

    fn attach(
        campus: &Host,
        name: &str,
        subnet: &str,
        last: u8,
        mac: Option<&str>,
    ) -> Result<Host> {
        let host = Host::create(name)?;
        topology::plug(&host, "eth0", mac, campus, &format!("br-{subnet}"), &format!("p-{name}"))?;
        host.address("eth0", address(subnet, last), 24)?;
        host.default_route(address(subnet, 1))?;
        Ok(host)
    }

    /// A machine by name.
    ///
    /// # Panics
    /// If there is none of this name: that's a mistake in the caller.
    #[must_use]
    pub fn machine(&self, name: &str) -> &Machine {
        self.machines.get(name).unwrap_or_else(|| panic!("no machine is called {name:?}"))
    }

    /// All machines.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.plans.iter().filter_map(|plan| self.machines.get(plan.name))
    }

    /// The machines behind gateways.
    pub fn devices(&self) -> impl Iterator<Item = &Machine> {
        self.machines().filter(|machine| machine.plan.is_device())
    }

    /// Addresses of the machines behind gateways.
    #[must_use]
    pub fn device_addresses(&self) -> Vec<Ipv4Addr> {
        self.devices().map(Machine::address).collect()
    }

    /// A gateway by name.
    ///
    /// # Panics
    /// If there is none of this name: that's a mistake in the caller.
    pub fn gateway(&mut self, name: &str) -> &mut Gateway {
        self.gateways.get_mut(name).unwrap_or_else(|| panic!("no gateway is called {name:?}"))
    }

    /// Brings a spare gateway into a network, its uplink cabled, with no device at its ports.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn add_spare(&mut self, name: &'static str, subnet: &str, last: u8) -> Result<()> {
        let host = Host::create(&format!("gw-{name}"))?;
        let (bridge, socket) = (format!("br-{subnet}"), format!("s{last}-{subnet}"));
        topology::plug(&host, "uplink", None, &self.campus, &bridge, &socket)?;
        host.address("uplink", address(subnet, last), 24)?;
        host.default_route(address(subnet, 1))?;
        let (programs, logs) = (self.programs.clone(), self.logs.clone());
        let ports = ["port1", "port2"];
        let gateway = Gateway::place(name, host, &ports, programs, &self.directory, &logs)?;
        self.gateways.insert(name, gateway);
        Ok(())
    }

    /// Takes the power from a gateway: its agent and all its links are gone at once.
    ///
    /// # Errors
    /// If its agent wasn't running, or `ip` refuses.
    pub fn pull(&mut self, gateway: &str) -> Result<()> {
        let gateway = self.gateway(gateway);
        for interface in ["uplink", "port1", "port2"] {
            gateway.host.ip(&format!("link set {interface} down"))?;
        }
        gateway.kill()
    }

    /// Moves a device's cable from a gateway's port to the campus switch, as a technician patches it through.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn patch_through(&self, device: &str) -> Result<()> {
        let plan = self.machine(device).plan;
        let Socket::Gateway(gateway, port) = plan.socket else { return Ok(()) };
        let gateway = self.gateways.get(gateway).context("no such gateway")?;
        let socket = format!("d-{device}");
        topology::replug((&gateway.host, port), (&self.campus, &socket))?;
        self.campus.ip(&format!("link set {socket} master br-{}", plan.subnet)).map(|_| ())
    }

    /// Moves a device's cable from the campus switch to the port of the same name of another gateway.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn plug_into(&self, device: &str, gateway: &str) -> Result<()> {
        let Socket::Gateway(_, port) = self.machine(device).plan.socket else { return Ok(()) };
        let gateway = self.gateways.get(gateway).context("no such gateway")?;
        topology::replug((&self.campus, &format!("d-{device}")), (&gateway.host, port))
    }

    /// The intruder's interfaces in the devices' networks.
    ///
    /// # Errors
    /// If it has lost one.
    pub fn intruder_legs(&self) -> Result<Vec<Leg>> {
        let host = &self.machine("intruder").host;
        GATEWAYS
            .iter()
            .map(|subnet| {
                Ok(Leg {
                    interface: (*subnet).into(),
                    address: address(subnet, 66),
                    mac: host.mac(subnet)?,
                })
            })
            .collect()
    }

    /// Starts every gateway's agent. Not enrolled, they are wires.
    ///
    /// # Errors
    /// What a program said.
    pub fn start_wires(&mut self) -> Result<()> {
        for gateway in self.gateways.values_mut() {
            gateway.start()?;
        }
        for gateway in self.gateways.values_mut() {
            gateway.wait_running()?;
        }
        Ok(())
    }

    /// Makes the controller, and takes it over as operator `ana`.
    ///
    /// # Errors
    /// What a program said.
    pub fn start_controller(&mut self) -> Result<()> {
        let code = self.controller.init()?;
        self.controller.start()?;
        self.operator.claim(&code)
    }

    /// Invites every gateway, which then enrols and starts anew. Not approved, they are wires still.
    ///
    /// # Errors
    /// What a program said.
    pub fn enrol_gateways(&mut self) -> Result<()> {
        for gateway in self.gateways.values_mut() {
            let invite = self.operator.invite(gateway.name(), SITE)?;
            gateway.stop()?;
            gateway.enroll(&invite)?;
            gateway.start()?;
        }
        for gateway in self.gateways.values_mut() {
            gateway.wait_running()?;
        }
        Ok(())
    }

    /// All of these, one after another.
    ///
    /// # Errors
    /// What a program said.
    pub fn start_anteroom(&mut self) -> Result<()> {
        self.start_wires()?;
        self.start_controller()?;
        self.enrol_gateways()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_machines_share_a_name_an_address_or_a_socket() {
        let names: BTreeSet<_> = MACHINES.iter().map(|plan| plan.name).collect();
        let addresses: BTreeSet<_> = MACHINES.iter().map(Plan::address).collect();
        let macs: BTreeSet<_> = MACHINES.iter().map(Plan::mac).collect();
        assert_eq!([names.len(), addresses.len(), macs.len()], [MACHINES.len(); 3]);
        let sockets: BTreeSet<_> = MACHINES
            .iter()
            .filter_map(|plan| match plan.socket {
                Socket::Gateway(gateway, port) => Some((gateway, port)),
                Socket::Campus => None,
            })
            .collect();
        assert_eq!(sockets.len(), MACHINES.iter().filter(|plan| plan.is_device()).count());
    }

    #[test]
    fn the_hospital_stands_and_its_networks_are_routed() {
        let test = "hospital::tests::the_hospital_stands_and_its_networks_are_routed";
        if !crate::namespace::in_private_network(test) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let programs = Programs::of(crate::programs::Profile::Dev);
        let logs = directory.path().join("logs");
        let hospital = Hospital::build(programs, directory.path(), &logs).unwrap();
        let every = std::time::Duration::from_millis(10);
        let (ws, archive) = (hospital.machine("ws-1"), hospital.machine("archive-1"));
        let series = crate::ping::ping(&ws.host, archive.address(), 3, every).unwrap();
        assert_eq!(series.lost(), 0, "{series:?}");
        let names = ws.host.run("getent", &["hosts", "archive-1"]).unwrap();
        assert!(names.contains(&archive.address().to_string()), "{names}");
        // With no program in the gateways, nothing passes them.
        let ct = hospital.machine("ct-1").address();
        assert_eq!(crate::ping::ping(&ws.host, ct, 3, every).unwrap().received, 0);
    }
}
