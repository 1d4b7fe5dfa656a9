//! `anteroom device …`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anteroom_proto::intent::OnFailure;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use clap::{Args, Subcommand, ValueEnum};
use ipnet::Ipv4Net;

use super::{ChangeArgs, Label, SurfaceArgs, parse_label};
use crate::output::time::parse_duration;

/// What to do with devices.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// List confirmed devices, and what gateways saw that nobody has confirmed yet
    #[command(
        after_help = "Examples:\n  anteroom device list --is class=infusion-pump\n  anteroom device list --is make=philips --is model=unknown"
    )]
    List {
        /// Only what nobody has confirmed yet
        #[arg(long)]
        new: bool,
        /// Every column: gateway, port, Ethernet address, labels and when it was last seen, too
        #[arg(long)]
        wide: bool,
        /// Only those that are taken for this: vendor, class, make, model, role, os or hostname, and a value or `unknown`; may be repeated
        #[arg(long, value_name = "FIELD=VALUE", value_parser = parse_label)]
        is: Vec<Label>,
        /// Which devices.
        #[command(flatten)]
        surface: SurfaceArgs,
    },
    /// Show everything about one device
    Show {
        /// Its name
        name: String,
    },
    /// Take a device that a gateway saw into the inventory, under a name
    #[command(
        after_help = "What the gateway saw is taken where you give nothing else.\n\nExample:\n  anteroom device confirm 02:00:00:00:01:0a --name ct-1 --label class=ct --yes"
    )]
    Confirm(Box<DeviceConfirm>),
    /// Set labels of a device; `key=` removes one. Labels called vendor, class, make, model, role, os or hostname win over what it is taken for
    #[command(after_help = "Some labels mean something to Anteroom:\n  \
        class        what it is, as in class=ct: suggestions, maps and segments go by it\n  \
        criticality  life-support, clinical or support: how much care hangs on it\n  \
        sensitivity  patient-data, internal or none: what its data tell of patients\n  \
        owner        who answers for it\n  \
        location     where it stands\n\
        What a device's labels don't say it has from its segments in the policy, which have keys by the same names.\n\n\
        Examples:\n  anteroom device label ct-1 class=ct make=siemens\n  \
        anteroom device label pump-7 criticality=life-support owner=\"Ward 3\" location=B2.14")]
    Label {
        /// Its name
        name: String,
        /// Labels such as class=ct
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<Label>,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Set the mode of one device, or of several at once
    #[command(after_help = "observe: a wire; everything passes and is recorded.\n\
        protect: what policy allows goes through the tunnel; the rest still passes and is recorded as would-drop.\n\
        enforce: what policy doesn't allow is dropped.\n\n\
        Enforce cuts off what policy doesn't allow, so it wants the names typed, or --confirm.\n\n\
        With --confirm-within the device goes back to protect by itself, unless `anteroom device keep` comes in time, and at\n\
        once when connections fail that were answered within the last two weeks. Its gateway does that with no controller.\n\n\
        Examples:\n  anteroom device mode ct-1 pacs-1 protect\n  anteroom device mode ct-1 enforce --confirm-within 15m --confirm ct-1 --reason \"observed for two weeks\"")]
    Mode(DeviceMode),
    /// Confirm a trial that `device mode … enforce --confirm-within` began: the device stays enforced
    #[command(
        after_help = "Example:\n  anteroom device keep ct-1 --yes --reason \"the round went well\""
    )]
    Keep {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Take devices back to the mode that they were in before
    #[command(
        after_help = "Example:\n  anteroom device back ct-1 --yes --reason \"images don't arrive\""
    )]
    Back {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Go on in spite of what the plan refuses; needs --reason
        #[arg(long, requires = "reason")]
        force: bool,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Say that a device is on another port or gateway now, or has another Ethernet address: it stays the same
    /// device, in the same mode
    #[command(
        after_help = "Examples:\n  anteroom device bind ct-1 --mac 02:00:00:00:01:0b --reason \"mainboard swapped\" --yes\n  anteroom device bind ct-1 --port port2 --reason \"port1 is broken\" --yes"
    )]
    Bind(DeviceBind),
    /// Leave devices only the rules that are marked essential, whatever their mode
    #[command(
        after_help = "It cuts off all other traffic, so it wants the names typed, or --confirm.\n\nExample:\n  anteroom device quarantine pump-7 --confirm pump-7 --reason \"behaves oddly\""
    )]
    Quarantine {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Give quarantined devices back what their rules allow
    #[command(
        after_help = "Example:\n  anteroom device release pump-7 --reason \"examined\" --yes"
    )]
    Release {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Check files of rules by which devices are recognised, and say what is read on this machine
    #[command(
        after_help = "Own rules lie in the directory `rules` beside your key; what has the name of a shipped rule takes its place. \
            docs/inventory.md says how they are written.\n\nExamples:\n  anteroom device rules\n  anteroom device rules our-pumps.toml"
    )]
    Rules {
        /// Files to check as if they lay there
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Print the shipped rules
        #[arg(long, conflicts_with = "files")]
        shipped: bool,
    },
    /// Learn from devices whose class or model operators confirmed what others like them look like
    #[command(
        after_help = "The result is a file of rules. In the directory `rules` beside your key it says of other devices which of the confirmed ones they \
            resemble; of what resembles none it says nothing.\n\nExample:\n  anteroom device learn -o ~/.config/anteroom/rules/learnt.toml"
    )]
    Learn {
        /// Write it to this new file instead of showing it
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Choose what a device's port does while its gateway's agent is dead
    #[command(
        after_help = "wire: the kernel forwards, as if no gateway were there. closed: nothing passes.\n\
            default: wire in observe and protect, closed in enforce.\n\n\
            Example:\n  anteroom device on-failure ventilator-3 wire --reason \"life support\" --yes"
    )]
    OnFailure {
        /// Its name
        name: String,
        /// What happens
        #[arg(value_enum)]
        choice: FailureChoice,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// What a port does while its gateway's agent is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailureChoice {
    /// As the mode has it
    Default,
    /// The kernel forwards
    Wire,
    /// Nothing passes
    Closed,
}

impl FailureChoice {
    /// The same as operators sign it.
    #[must_use]
    pub const fn on_failure(self) -> OnFailure {
        match self {
            Self::Default => OnFailure::Default,
            Self::Wire => OnFailure::Wire,
            Self::Closed => OnFailure::Closed,
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Wire => "wire",
            Self::Closed => "closed",
        }
    }
}

/// Arguments of `device bind`.
#[derive(Debug, Args)]
pub struct DeviceBind {
    /// Its name
    pub name: String,
    /// The gateway that it stands behind now
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// The port that it is on now
    #[arg(long, value_name = "PORT")]
    pub port: Option<Name>,
    /// Its Ethernet address now
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddr>,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// Arguments of `device confirm`.
#[derive(Debug, Args)]
pub struct DeviceConfirm {
    /// Its Ethernet address, as `anteroom device list --new` shows it
    pub mac: MacAddr,
    /// What to call it
    #[arg(long)]
    pub name: Name,
    /// An address of it, or a prefix such as 10.20.1.0/24 within which it may change; may be repeated. Default: the address
    /// that it was seen to speak from, unless somebody else seems to have it
    #[arg(long = "address", value_name = "ADDRESS", value_parser = parse_address)]
    pub addresses: Vec<Ipv4Net>,
    /// Length of its network mask, such as 24
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub prefix_len: Option<u8>,
    /// Its router's address
    #[arg(long, value_name = "ADDRESS")]
    pub router: Option<Ipv4Addr>,
    /// Pin its router's Ethernet address: nobody else becomes its router, and a swapped router needs a new confirm
    #[arg(long, value_name = "MAC")]
    pub router_mac: Option<MacAddr>,
    /// What its port does while the gateway's agent is dead; default: wire, and closed in enforce
    #[arg(long, value_name = "CHOICE", value_enum)]
    pub on_failure: Option<FailureChoice>,
    /// A label such as class=ct; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<Label>,
    /// Take class, make and model as labels from what it is taken for, where that is 80 % sure or more and --label says nothing else
    #[arg(long)]
    pub recognised: bool,
    /// The gateway that it stands behind, where several saw it
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// Go on in spite of what the plan refuses, as when an enforced device comes back behind another gateway; needs --reason
    #[arg(long, requires = "reason")]
    pub force: bool,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// Arguments of `device mode`.
#[derive(Debug, Args)]
pub struct DeviceMode {
    /// Names of devices, then the mode: observe, protect or enforce
    #[arg(required = true, num_args = 2.., value_names = ["NAME", "MODE"])]
    pub words: Vec<String>,
    /// Enforce on trial: back to protect after this time, such as 15m, unless `anteroom device keep` confirms
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub confirm_within: Option<Duration>,
    /// Connections that the plan says would break don't end the trial
    #[arg(long, requires = "confirm_within")]
    pub accept_breaks: bool,
    /// Go on in spite of what the plan refuses; needs --reason
    #[arg(long, requires = "reason")]
    pub force: bool,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}

fn parse_address(text: &str) -> Result<Ipv4Net, String> {
    let error =
        || format!("{text:?} is not an IPv4 address or prefix: write 10.20.1.10 or 10.20.1.0/24");
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Ipv4Net::from(address));
    }
    let net: Ipv4Net = text.parse().map_err(|_| error())?;
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(format!("{text:?} has bits set behind its prefix: did you mean {}?", net.trunc()))
    }
}
