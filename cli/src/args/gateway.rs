//! `anteroom gateway …`.

use std::path::PathBuf;
use std::time::Duration;

use anteroom_proto::name::Name;
use clap::{Args, Subcommand, ValueEnum};

use super::{ChangeArgs, Label, parse_label};
use crate::output::time::parse_duration;

/// What to do with gateways.
#[derive(Debug, Subcommand)]
pub enum GatewayCommand {
    /// Make an invite, with which a new gateway introduces itself to the controller
    #[command(
        after_help = "Example:\n  anteroom gateway invite imaging --site north --out imaging.invite\n\nThen, on the gateway: anteroom-agent enroll \"$(cat imaging.invite)\""
    )]
    Invite(GatewayInvite),
    /// List gateways that used an invite and wait for approval
    Pending,
    /// Let a gateway in, after comparing its fingerprint with its console or label
    #[command(
        after_help = "Example:\n  anteroom gateway approve imaging --fingerprint abcd-efgh-ijkl-mnop-qrst"
    )]
    Approve {
        /// The gateway's name, from its invite
        name: String,
        /// The fingerprint that the gateway shows (`anteroom-agent identity`); another one is refused
        #[arg(long, value_name = "FP")]
        fingerprint: Option<String>,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// List gateways
    List,
    /// Show everything about one gateway
    Show {
        /// Its name
        name: String,
    },
    /// Set labels of a gateway; `key=` removes one
    Label {
        /// Its name
        name: String,
        /// Labels such as floor=2
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<Label>,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Show a gateway's ports, and what its switch must be told
    #[command(after_help = "Example:\n  anteroom gateway ports imaging --switch cisco")]
    Ports {
        /// Its name
        name: String,
        /// Print the lines for the switch that the uplink is plugged into
        #[arg(long, value_enum, value_name = "KIND")]
        switch: Option<SwitchKind>,
    },
    /// Let peers meet a gateway's devices in the clear for a while: the gateway is out, its cable is patched through
    #[command(
        after_help = "Only what rules open passes, and only until the time is up. It is shown by status and why, and audited.\n\
            Without a controller in reach, --offline signs the order as a file: carry it to each gateway that speaks\n\
            with those devices, and type `anteroom-agent bypass FILE` there. docs/swap.md has the whole procedure.\n\n\
            Examples:\n  anteroom gateway bypass imaging --for 4h --reason \"power supply burnt\" --yes\n  \
            anteroom gateway bypass imaging --for 4h --reason \"power supply burnt\" --offline --out bypass.txt\n  \
            anteroom gateway bypass imaging --end --reason \"replaced\" --yes"
    )]
    Bypass(GatewayBypass),
    /// Put a spare gateway in the place of another one: it takes over devices, site and labels; the old one is revoked
    #[command(
        after_help = "The spare must have the same port names. One that waits for approval is approved by the same signature.\n\n\
            Example:\n  anteroom gateway replace imaging imaging-b --fingerprint abcd-efgh-ijkl-mnop-qrst --confirm imaging --reason \"power supply burnt\""
    )]
    Replace(GatewayReplace),
    /// Have gateways make new tunnel keys now; they do so by themselves every day
    #[command(
        after_help = "No packet is lost: the old key stays until every live peer has moved to the new one, and a day for those\nthat are offline. With --now it goes within half a minute, whoever still needs it: for a key that may have\nbeen stolen. Gateways that are offline are asked when they are back. Stock WireGuard clients keep the key that\ntheir configuration names.\n\n\
            Examples:\n  anteroom gateway rotate imaging\n  anteroom gateway rotate --all --now --yes --reason \"a backup of gateway disks was stolen\""
    )]
    Rotate(GatewayRotate),
    /// Replace a gateway's identity key in its place: the gateway makes another one, you approve it
    #[command(
        after_help = "The gateway is asked for a new key and offers it, vouched for by the key that it has; you sign it in. Tunnels stay up.\n\
            The old key is refused from then on, and wiped from the gateway once it holds what you signed. A gateway that is\n\
            offline is asked when it is back: type the same again then. --fingerprint compares the new key with what the gateway\n\
            itself shows (`anteroom-agent identity`): do so where somebody else may hold the old key.\n\n\
            Examples:\n  anteroom gateway rekey imaging --reason \"its disk was copied\"\n  \
            anteroom gateway rekey imaging --anew --reason \"copied again\" --yes\n  anteroom gateway rekey imaging --withdraw --reason \"not needed\""
    )]
    Rekey(GatewayRekey),
    /// Cut a gateway off for good: its key is never taken again, its devices lose the tunnel
    #[command(
        after_help = "Example:\n  anteroom gateway revoke imaging --reason \"stolen\" --confirm imaging"
    )]
    Revoke {
        /// Its name
        name: String,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// Arguments of `gateway invite`.
#[derive(Debug, Args)]
pub struct GatewayInvite {
    /// What to call the gateway
    pub name: Name,
    /// The site it stands in: addresses are unique within a site
    #[arg(long)]
    pub site: Name,
    /// How long the invite may be used
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    pub valid: Duration,
    /// Write the invite to this new file, readable by you only, instead of showing it
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Arguments of `gateway rotate`.
#[derive(Debug, Args)]
pub struct GatewayRotate {
    /// The gateway
    #[arg(required_unless_present = "all")]
    pub name: Option<String>,
    /// All gateways
    #[arg(long, conflicts_with = "name")]
    pub all: bool,
    /// Void the old keys at once
    #[arg(long)]
    pub now: bool,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Don't ask whether to go on
    #[arg(long)]
    pub yes: bool,
    /// How long to wait for the new keys
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Arguments of `gateway rekey`.
#[derive(Debug, Args)]
pub struct GatewayRekey {
    /// The gateway
    pub name: String,
    /// Have another key made, though the gateway offers one already
    #[arg(long)]
    pub anew: bool,
    /// Have the gateway forget keys that it offered and that nobody approved
    #[arg(long, conflicts_with_all = ["anew", "fingerprint"])]
    pub withdraw: bool,
    /// The new key's fingerprint, as the gateway shows it (`anteroom-agent identity`); another one is refused
    #[arg(long, value_name = "FP")]
    pub fingerprint: Option<String>,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// Whose configuration is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SwitchKind {
    /// Cisco IOS
    Cisco,
}

/// Arguments of `gateway bypass`.
#[derive(Debug, Args)]
pub struct GatewayBypass {
    /// The gateway that is out
    pub name: String,
    /// For how long, such as 4h; 72h at most
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, required_unless_present = "end")]
    pub lasts: Option<Duration>,
    /// End the bypass
    #[arg(long, conflicts_with = "lasts")]
    pub end: bool,
    /// What goes without a controller.
    #[command(flatten)]
    pub offline: OfflineArgs,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// What `gateway bypass` takes where no controller is in reach.
#[derive(Debug, Args)]
pub struct OfflineArgs {
    /// Sign the order as text, without a controller
    #[arg(long)]
    pub offline: bool,
    /// Write the order to this new file instead of showing it
    #[arg(long, value_name = "FILE", requires = "offline")]
    pub out: Option<PathBuf>,
}

/// Arguments of `gateway replace`.
#[derive(Debug, Args)]
pub struct GatewayReplace {
    /// The gateway that is out
    pub old: String,
    /// The spare
    pub new: String,
    /// The fingerprint that the spare shows (`anteroom-agent identity`), where it waits for approval; another one is refused
    #[arg(long, value_name = "FP")]
    pub fingerprint: Option<String>,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}
