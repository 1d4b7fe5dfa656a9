//! `anteroom gateway …`.

use std::path::PathBuf;
use std::time::Duration;

use anteroom_proto::name::Name;
use clap::{Args, Subcommand};

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
