//! The agent's one configuration file.
//!
//! ```toml
//! state = "/var/lib/anteroom-agent"      # identity, view; readable by root only
//! run = "/run/anteroom-agent"            # agent.sock lives here
//! [uplink]
//! interface = "eth0"                     # towards the network: the devices' clear traffic
//! # follow-port = true                   # the switch sees when the only device's cable is dead
//! [underlay]
//! listen = "0.0.0.0:51820"               # the gateway's own encrypted traffic
//! # interface = "eth2"                   # default: the uplink's interface
//! # backup = "eth3"                      # used while the other is dead; with an address and routes of its own
//! # advertise = ["10.20.1.2:51820"]      # default: the interface's addresses
//! # quic = 443                           # peers' QUIC is taken here too, for networks that block the tunnels' UDP
//! # management = ["tcp/22"]              # what else the gateway answers on these interfaces
//! [[port]]
//! name = "port1"
//! interface = "eth1"                     # towards a device
//! # unlisted = "pass"                   # MACs that nobody confirmed pass in the clear: for servers with many
//! # [offloads]                           # what a driver does wrong can be switched off; it costs speed only
//! # super_frames = false
//! # udp_segmentation = false
//! # udp_merging = false
//! # lanes = false                        # bulk takes lane 0 too, instead of tunnels of its own
//! # [flows]                              # as many connections as are remembered; each takes 190 bytes
//! # most = 65536                         # up to 1,000,000
//! # per-device = 16384                   # of one device, so that none takes the others' room
//! # [cores]
//! # lane_threads = 2                     # threads that seal and open bulk, beside the packet thread; 0 to 15, or "auto": as many as pay
//! # [keys]
//! # rotate = "24h"                       # how old a tunnel key gets, from "1m" to "90d"
//! # classic = "allowed"                  # "never": no packet goes to another gateway without a pre-shared key by ML-KEM-768
//! # [sensor]
//! # enabled = false                      # look at no first packets of flows for what devices let be seen of themselves
//! ```

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anteroom_proto::name::Name;
use anteroom_proto::service::Protocol;
use anteroom_proto::v1::Unlisted;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

mod cores;
mod host;
mod keys;
mod place;
mod sensor;
#[cfg(test)]
mod tests;

pub use cores::{Cores, LaneThreads, MAX_LANE_THREADS};
pub use host::Host;
pub use keys::{Classic, Keys, Rotate};
pub use sensor::Sensor;

use place::Place;

/// Where the file is unless the command line names another.
pub const DEFAULT_PATH: &str = "/etc/anteroom/agent.toml";

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What the operator of this machine decided: interfaces and paths. Everything else comes from the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of the state that outlives restarts: keys and the last view.
    pub state: PathBuf,
    /// Directory of what lives as long as the agent runs: its local socket.
    pub run: PathBuf,
    /// Whether this machine is a host: a member itself, by a TUN device, with no devices behind it.
    pub host: Option<Host>,
    /// Towards the network: the devices' clear traffic. A host has none: the TUN device stands here.
    pub uplink: Uplink,
    /// The gateway's own traffic.
    pub underlay: Underlay,
    /// Device ports, in the file's order; that order numbers them.
    pub ports: Vec<Port>,
    /// What kernel and network cards may do for the agent.
    pub offloads: Offloads,
    /// How many flows are remembered.
    pub flows: Flows,
    /// How the work is spread over the machine's cores.
    pub cores: Cores,
    /// How long a tunnel key lasts.
    pub keys: Keys,
    /// Whether what devices let be seen of themselves is read.
    pub sensor: Sensor,
}

/// How many flows are remembered at once. Memory is taken as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flows {
    /// In all.
    pub most: u32,
    /// Of one device.
    pub per_device: u32,
}

impl Flows {
    /// More than this many can't be asked for.
    pub const MAX: u32 = 1_000_000;
}

impl Default for Flows {
    fn default() -> Self {
        Self { most: 65_536, per_device: 16_384 }
    }
}

/// What may be done for speed, where it can be. All of it unless the file says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table [offloads]")]
pub struct Offloads {
    /// Hand over and take super-frames on uplink and ports.
    pub super_frames: bool,
    /// Cut runs of datagrams apart on the underlay (`UDP_SEGMENT`).
    pub udp_segmentation: bool,
    /// Merge datagrams on the underlay (`UDP_GRO`).
    pub udp_merging: bool,
    /// Bulk takes tunnels of its own to peers that can do so, past which alarms needn't wait.
    pub lanes: bool,
}

impl Default for Offloads {
    fn default() -> Self {
        Self { super_frames: true, udp_segmentation: true, udp_merging: true, lanes: true }
    }
}

/// The interface towards the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub interface: InterfaceName,
    /// Whether it is switched off while the only port's cable is dead, so that the network sees it.
    pub follow_port: bool,
}

/// Where the gateway's own encrypted traffic comes and goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The interface whose addresses are the gateway's own. Often the uplink's.
    pub interface: InterfaceName,
    /// A second one, which is used while the first is dead.
    pub backup: Option<InterfaceName>,
    /// Address and UDP port for tunnels.
    pub listen: SocketAddr,
    /// What peers are told to send to. Empty: the addresses of `interface` with the port of `listen`.
    pub advertise: Vec<SocketAddr>,
    /// UDP port at which peers may connect by QUIC, where the tunnels' own UDP doesn't get through. None: they can't. It may
    /// be the tunnels' own.
    pub quic: Option<u16>,
    /// Services of this machine that stay reachable from the underlay and the uplink.
    pub management: Vec<LocalService>,
}

impl Underlay {
    /// Whether peers' QUIC is taken at the tunnels' own port.
    #[must_use]
    pub fn shares_port(&self) -> bool {
        self.quic == Some(self.listen.port())
    }

    /// The interfaces by which the gateway's own traffic goes, the first one first.
    pub fn interfaces(&self) -> impl Iterator<Item = &InterfaceName> {
        std::iter::once(&self.interface).chain(&self.backup)
    }
}

/// A device port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// What the organisation calls it; attachments name it.
    pub name: Name,
    /// The interface.
    pub interface: InterfaceName,
    /// What becomes of Ethernet addresses that nobody confirmed, once a device on it has left observe.
    pub unlisted: Unlisted,
}

impl Config {
    /// More ports than this are refused.
    pub const MAX_PORTS: usize = 64;

    /// Reads and checks the file.
    ///
    /// # Errors
    /// Where it can't be read, isn't TOML, has an unknown key or a value that doesn't fit; with file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read { file: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(unreadable)?.len();
        if size > MAX_FILE {
            return Err(ConfigError::Invalid {
                file: path.to_owned(),
                line: 1,
                key: String::new(),
                problem: format!(
                    "the file has {size} bytes, more than the {MAX_FILE} that are read"
                ),
            });
        }
        Self::parse(path, &std::fs::read_to_string(path).map_err(unreadable)?)
    }

    /// Checks `text`, which errors call `file`.
    ///
    /// # Errors
    /// As [`Config::load`], but for reading.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let place = Place { file, text };
        let raw: RawConfig =
            toml::from_str(text).map_err(|e| place.error(e.span(), &sentence(e.message())))?;
        raw.check(&place)
    }

    /// Whether uplink and underlay are one interface, as on a gateway with a single network cable.
    #[must_use]
    pub fn shares_uplink(&self) -> bool {
        self.uplink.interface == self.underlay.interface
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: can't be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}: {}{problem}", file.display(), prefix(key))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The key with the tables around it; empty where the file as a whole is meant.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

fn prefix(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{key}: ") }
}

/// A name that the kernel could give to an interface: 1 to 15 bytes, printable, without `/` and `:`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InterfaceName(Box<str>);

impl InterfaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=15).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
            && !matches!(text, "." | ".." | "lo" | "all" | "default");
        if fits {
            Ok(Self(text.into()))
        } else {
            let text: String = text.chars().take(40).collect();
            Err(format!("{text:?} can't be a network interface: `ip link` lists their names"))
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for InterfaceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A service of this machine: a protocol and a port, as `tcp/22`, or `icmp/echo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LocalService {
    /// The protocol.
    pub protocol: Protocol,
    /// The port; 0 for ICMP echo.
    pub port: u16,
}

impl FromStr for LocalService {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |digits: &str| match digits.parse() {
            Ok(port) if port != 0 && !digits.starts_with('+') => Ok(port),
            _ => Err(format!("{text:?} has no port from 1 to 65535")),
        };
        match text.split_once('/') {
            Some(("tcp", digits)) => Ok(Self { protocol: Protocol::Tcp, port: port(digits)? }),
            Some(("udp", digits)) => Ok(Self { protocol: Protocol::Udp, port: port(digits)? }),
            Some(("icmp", "echo")) => Ok(Self { protocol: Protocol::IcmpEcho, port: 0 }),
            _ => Err(format!(
                "{:?} isn't a service: write \"tcp/22\", \"udp/161\" or \"icmp/echo\"",
                text.chars().take(40).collect::<String>()
            )),
        }
    }
}

impl<'de> Deserialize<'de> for LocalService {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "the agent's configuration")]
struct RawConfig {
    #[serde(default = "default_state")]
    state: Spanned<PathBuf>,
    #[serde(default = "default_run")]
    run: Spanned<PathBuf>,
    host: Option<Spanned<host::RawHost>>,
    uplink: Option<Spanned<RawUplink>>,
    underlay: Option<RawUnderlay>,
    #[serde(default)]
    port: Vec<RawPort>,
    #[serde(default)]
    offloads: Offloads,
    #[serde(default)]
    flows: RawFlows,
    #[serde(default)]
    cores: Cores,
    #[serde(default)]
    keys: Keys,
    #[serde(default)]
    sensor: Sensor,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [flows]")]
struct RawFlows {
    most: Option<Spanned<u32>>,
    #[serde(rename = "per-device")]
    per_device: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [uplink]")]
struct RawUplink {
    interface: Spanned<InterfaceName>,
    #[serde(rename = "follow-port")]
    follow_port: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [underlay]")]
struct RawUnderlay {
    interface: Option<Spanned<InterfaceName>>,
    backup: Option<Spanned<InterfaceName>>,
    listen: Spanned<SocketAddr>,
    #[serde(default)]
    advertise: Vec<Spanned<SocketAddr>>,
    quic: Option<Spanned<u16>>,
    #[serde(default)]
    management: Vec<Spanned<LocalService>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [[port]]")]
struct RawPort {
    name: Spanned<Name>,
    interface: Spanned<InterfaceName>,
    unlisted: Option<Spanned<Unlisted>>,
}

fn default_state() -> Spanned<PathBuf> {
    Spanned::new(0..0, "/var/lib/anteroom-agent".into())
}

fn default_run() -> Spanned<PathBuf> {
    Spanned::new(0..0, "/run/anteroom-agent".into())
}

/// Most entries of a list in `[underlay]`.
const MAX_LIST: usize = 16;

impl RawConfig {
    fn check(self, place: &Place<'_>) -> Result<Config, ConfigError> {
        for path in [&self.state, &self.run] {
            if !path.get_ref().is_absolute() {
                return Err(place.error(Some(path.span()), "must be an absolute path"));
            }
        }
        if self.host.is_some() {
            return self.host(place);
        }
        let Self {
            state, run, uplink, underlay, port, offloads, flows, cores, keys, sensor, ..
        } = self;
        let missing = |table: &str| {
            let problem = format!(
                "missing key `{table}`: a gateway has an uplink, an underlay and ports, and a host has [host]"
            );
            place.error(None, &problem)
        };
        let uplink = uplink.ok_or_else(|| missing("uplink"))?.into_inner();
        let underlay = underlay.ok_or_else(|| missing("underlay"))?;
        underlay.check(place)?;
        let underlay_interface = underlay.interface.unwrap_or_else(|| uplink.interface.clone());
        let listen = *underlay.listen.get_ref();
        check_lanes(offloads, cores, place)?;
        if port.is_empty() {
            return Err(place.error(None, "no device port: add a [[port]] with name and interface"));
        }
        if let Some(extra) = port.get(Config::MAX_PORTS) {
            return Err(place.error(
                Some(extra.name.span()),
                &format!("more than {} ports", Config::MAX_PORTS),
            ));
        }
        let mut names = HashMap::new();
        let mut interfaces = HashMap::from([
            (uplink.interface.get_ref().clone(), place.line(uplink.interface.span())),
            (underlay_interface.get_ref().clone(), place.line(underlay_interface.span())),
        ]);
        if let Some(backup) = &underlay.backup {
            if backup.get_ref() == underlay_interface.get_ref() {
                return Err(place.error(
                    Some(backup.span()),
                    "is the first underlay itself: name an interface that leads another way",
                ));
            }
            let line = place.line(backup.span());
            interfaces.entry(backup.get_ref().clone()).or_insert(line);
        }
        for RawPort { name, interface, .. } in &port {
            if let Some(line) = names.insert(name.get_ref(), place.line(name.span())) {
                return Err(place.error(
                    Some(name.span()),
                    &format!("{:?} is already the port of line {line}", name.get_ref()),
                ));
            }
            let span = interface.span();
            if let Some(line) =
                interfaces.insert(interface.get_ref().clone(), place.line(span.clone()))
            {
                return Err(place.error(
                    Some(span),
                    &format!(
                        "\"{}\" is already in use on line {line}; each port needs an interface of its own",
                        interface.get_ref()
                    ),
                ));
            }
        }
        let follow_port = uplink.follow_port.filter(|follow| *follow.get_ref());
        if let Some(follow) = &follow_port {
            let shared = uplink.interface.get_ref() == underlay_interface.get_ref();
            let problem = match (port.get(1), shared) {
                (Some(_), _) => Some(
                    "one device's cable would cut off the others: it is for a gateway with a single port",
                ),
                (None, true) => Some(
                    "the gateway itself would be cut off with its device: give it an underlay.interface of its own",
                ),
                (None, false) => None,
            };
            if let Some(problem) = problem {
                return Err(place.error(Some(follow.span()), problem));
            }
        }
        Ok(Config {
            state: state.into_inner(),
            run: run.into_inner(),
            host: None,
            uplink: Uplink {
                interface: uplink.interface.into_inner(),
                follow_port: follow_port.is_some(),
            },
            underlay: Underlay {
                interface: underlay_interface.into_inner(),
                backup: underlay.backup.map(Spanned::into_inner),
                listen,
                advertise: underlay.advertise.into_iter().map(Spanned::into_inner).collect(),
                quic: underlay.quic.map(Spanned::into_inner),
                management: underlay.management.into_iter().map(Spanned::into_inner).collect(),
            },
            ports: port
                .into_iter()
                .map(|p| Port {
                    name: p.name.into_inner(),
                    interface: p.interface.into_inner(),
                    unlisted: p.unlisted.map_or(Unlisted::Hold, Spanned::into_inner),
                })
                .collect(),
            offloads,
            flows: flows.check(place)?,
            cores,
            keys,
            sensor,
        })
    }
}

impl RawUnderlay {
    fn check(&self, place: &Place<'_>) -> Result<(), ConfigError> {
        let listen = *self.listen.get_ref();
        if listen.port() == 0 {
            return Err(place.error(
                Some(self.listen.span()),
                "needs a fixed UDP port, as in \"0.0.0.0:51820\": peers and firewalls are told it",
            ));
        }
        if listen.ip().is_multicast() {
            return Err(place.error(Some(self.listen.span()), "is a multicast address"));
        }
        for address in &self.advertise {
            if address.get_ref().port() == 0 || !reachable(address.get_ref().ip()) {
                return Err(place.error(
                    Some(address.span()),
                    "peers can't send there: write an address and port, as in \"10.20.1.2:51820\"",
                ));
            }
        }
        if let Some(quic) = &self.quic {
            let problem = match *quic.get_ref() {
                0 => "needs a fixed UDP port, as in 443: peers and firewalls are told it",
                _ => "",
            };
            if !problem.is_empty() {
                return Err(place.error(Some(quic.span()), problem));
            }
        }
        place.bounded(&self.advertise)?;
        place.bounded(&self.management)
    }
}

fn check_lanes(offloads: Offloads, cores: Cores, place: &Place<'_>) -> Result<(), ConfigError> {
    if !offloads.lanes && matches!(cores.lane_threads, LaneThreads::Count(1..)) {
        return Err(place.error(
            None,
            "[cores] lane_threads are for lanes, which are off: set lanes = true under [offloads], or leave \
             lane_threads out",
        ));
    }
    Ok(())
}

impl RawFlows {
    /// A bound that isn't named is the usual one; of one device never more than in all.
    fn check(self, place: &Place<'_>) -> Result<Flows, ConfigError> {
        let usual = Flows::default();
        let most = self.most.as_ref().map_or(usual.most, |most| *most.get_ref());
        let per_device = self.per_device.as_ref().map(|bound| *bound.get_ref());
        for bound in [&self.most, &self.per_device].into_iter().flatten() {
            if !(1..=Flows::MAX).contains(bound.get_ref()) {
                let problem = format!("must be from 1 to {}", Flows::MAX);
                return Err(place.error(Some(bound.span()), &problem));
            }
        }
        if let Some(bound) = self.per_device.filter(|bound| *bound.get_ref() > most) {
            let problem = format!("one device can't have more flows than all, which is {most}");
            return Err(place.error(Some(bound.span()), &problem));
        }
        Ok(Flows { most, per_device: per_device.unwrap_or(usual.per_device.min(most)) })
    }
}

fn reachable(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || broadcast)
}

/// serde's words for an unknown key, with what a person does about it.
fn sentence(message: &str) -> String {
    message.replace("unknown field", "unknown key").replace("missing field", "missing key")
}
