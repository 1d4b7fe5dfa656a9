//! `anteroom device …`.

use std::net::Ipv4Addr;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use clap::{Args, Subcommand};
use ipnet::Ipv4Net;

use super::{ChangeArgs, Label, parse_label};

/// What to do with devices.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// List confirmed devices, and what gateways saw that nobody has confirmed yet
    List {
        /// Only what nobody has confirmed yet
        #[arg(long)]
        new: bool,
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
    /// Set labels of a device; `key=` removes one
    #[command(after_help = "Example:\n  anteroom device label ct-1 class=ct vendor=siemens")]
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
        Examples:\n  anteroom device mode ct-1 pacs-1 protect\n  anteroom device mode ct-1 enforce --confirm ct-1 --reason \"observed for two weeks\"")]
    Mode(DeviceMode),
}

/// Arguments of `device confirm`.
#[derive(Debug, Args)]
pub struct DeviceConfirm {
    /// Its Ethernet address, as `anteroom device list --new` shows it
    pub mac: MacAddr,
    /// What to call it
    #[arg(long)]
    pub name: Name,
    /// An address of it, or a prefix such as 10.20.1.0/24 within which it may change; may be repeated
    #[arg(long = "address", value_name = "ADDRESS", value_parser = parse_address)]
    pub addresses: Vec<Ipv4Net>,
    /// Length of its network mask, such as 24
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub prefix_len: Option<u8>,
    /// Its router's address
    #[arg(long, value_name = "ADDRESS")]
    pub router: Option<Ipv4Addr>,
    /// A label such as class=ct; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<Label>,
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
