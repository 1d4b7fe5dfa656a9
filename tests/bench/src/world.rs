//! The cabling that every subject gets, for itself: two devices, a gateway, a cable, a gateway, two devices.
//!
//! ```text
//! dev-a ─ port0 ┐                          ┌ port0 ─ dev-b
//!               gw-a up0 ───────── up0 gw-b
//! dev-c ─ port1 ┘                          └ port1 ─ dev-d
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use anteroom_lab::topology::{self, Host};
use anteroom_lab::{programs, wait};
use anyhow::{Context as _, Result, bail};

/// How long a kernel may take to see a cable.
const PATIENCE: Duration = Duration::from_secs(10);

/// Length of every prefix here.
pub const PREFIX: u8 = 24;

/// The gateways' own addresses on the cable between them, `gw-a` first.
pub const UNDERLAY: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 7, 1), Ipv4Addr::new(192, 168, 7, 2)];

/// What the devices' and gateways' network cards can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Card {
    /// All that a virtual cable can: segments of up to 64 KiB go through it whole.
    Virtual,
    /// As a plain network card: no segmentation offload. The kernel cuts on the way out and merges on the way in.
    Plain,
}

/// How the devices are addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// One network: the gateways are cables to the devices.
    Flat,
    /// A network for each port: the gateways are the devices' routers.
    Routed,
}

/// One of the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// At `gw-a`: opens connections.
    A,
    /// At `gw-b`: answers.
    B,
    /// The second one at `gw-a`.
    C,
    /// The second one at `gw-b`.
    D,
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    const fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
            Self::C => 'c',
            Self::D => 'd',
        }
    }

    /// Which gateway it is at: 0 or 1.
    #[must_use]
    pub const fn gateway(self) -> usize {
        match self {
            Self::A | Self::C => 0,
            Self::B | Self::D => 1,
        }
    }

    /// Which port of that gateway it is at: 0 or 1.
    #[must_use]
    pub const fn port(self) -> usize {
        match self {
            Self::A | Self::B => 0,
            Self::C | Self::D => 1,
        }
    }

    /// Its Ethernet address.
    #[must_use]
    pub const fn mac(self) -> [u8; 6] {
        [0x00, 0x00, 0x5e, 0x00, 0x53, self.letter() as u8]
    }
}

/// The hosts of one subject.
#[derive(Debug)]
pub struct World {
    devices: [Host; 4],
    /// `gw-a` and `gw-b`.
    pub gateways: [Host; 2],
    addressing: Addressing,
}

impl World {
    /// Makes the hosts and lays the cables. `name` tells them from other subjects' hosts.
    ///
    /// # Errors
    /// If the kernel, `ip` or `ethtool` refuses.
    pub fn lay(name: &str, addressing: Addressing, card: Card) -> Result<Self> {
        let host = |role: String| Host::create(&format!("{name}-{role}"));
        let gateways = [host("gw-a".into())?, host("gw-b".into())?];
        let mut devices = Vec::new();
        for device in Device::ALL {
            let own = host(format!("dev-{}", device.letter()))?;
            let port = format!("port{}", device.port());
            topology::cable(
                (&own, "eth0", Some(&text(device.mac()))),
                (&gateways[device.gateway()], &port),
            )?;
            devices.push(own);
        }
        topology::cable((&gateways[0], "up0", None), (&gateways[1], "up0"))?;
        let devices = devices.try_into().map_err(|_| anyhow::anyhow!("there are four devices"))?;
        let world = Self { devices, gateways, addressing };
        for device in Device::ALL {
            let own = world.device(device);
            own.address("eth0", world.address(device), PREFIX)?;
            if addressing == Addressing::Routed {
                let gateway = &world.gateways[device.gateway()];
                let router = world.router(device);
                gateway.address(&format!("port{}", device.port()), router, PREFIX)?;
                own.default_route(router)?;
            }
        }
        for (gateway, address) in world.gateways.iter().zip(UNDERLAY) {
            gateway.address("up0", address, PREFIX)?;
            if addressing == Addressing::Routed {
                gateway.forward()?;
            }
        }
        if card == Card::Plain {
            for (host, interface) in world.ends() {
                make_plain(host, interface)?;
            }
        }
        for (host, interface) in world.ends() {
            wait::until(PATIENCE, "a live cable", || {
                host.ip(&format!("link show {interface}")).ok()?.contains("state UP").then_some(())
            })
            .with_context(|| format!("{interface} on {}", host.name()))?;
        }
        Ok(world)
    }

    /// The host that a device is.
    #[must_use]
    pub fn device(&self, device: Device) -> &Host {
        &self.devices[device as usize]
    }

    /// A device's address.
    #[must_use]
    pub fn address(&self, device: Device) -> Ipv4Addr {
        let number = 10 * (device.gateway() as u8 + 1) + device.port() as u8;
        match self.addressing {
            Addressing::Flat => Ipv4Addr::new(10, 0, 0, number),
            Addressing::Routed => {
                Ipv4Addr::new(10, device.gateway() as u8 + 1, device.port() as u8, number)
            }
        }
    }

    /// Where a routed device sends what isn't on its own network.
    fn router(&self, device: Device) -> Ipv4Addr {
        let [a, b, c, _] = self.address(device).octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// The prefix in which all routed devices of a gateway are.
    #[must_use]
    pub const fn behind(gateway: usize) -> (Ipv4Addr, u8) {
        (Ipv4Addr::new(10, gateway as u8 + 1, 0, 0), 16)
    }

    /// Every end of every cable.
    fn ends(&self) -> impl Iterator<Item = (&Host, &str)> {
        let devices = self.devices.iter().map(|host| (host, "eth0"));
        let gateways = self.gateways.iter();
        devices.chain(gateways.flat_map(|host| ["port0", "port1", "up0"].map(|name| (host, name))))
    }
}

/// A directory for programs' keys and state, in `/run`: there a private world has a file system of its own, in memory, of
/// which nothing is left however this program ends.
///
/// # Errors
/// If it can't be made.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    tempfile::tempdir_in("/run").context("making a directory in /run")
}

/// An Ethernet address as people write it.
#[must_use]
pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Takes segmentation offload away from an interface.
fn make_plain(host: &Host, interface: &str) -> Result<()> {
    let Some(ethtool) = programs::find("ethtool") else {
        bail!("plain cards are made by `ethtool`, which isn't installed: apt-get install ethtool");
    };
    let arguments = format!("-K {interface} tso off tx-udp-segmentation off gso on gro on");
    host.run(ethtool, &arguments.split(' ').collect::<Vec<_>>()).map(|_| ())
}
