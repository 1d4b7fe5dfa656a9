//! `anteroom client …`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anteroom_proto::name::Name;
use clap::{Args, Subcommand};

use super::{ChangeArgs, Label, parse_label};

/// What to do with clients.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Add a client: makes its key here and prints its configuration, once
    #[command(
        after_help = "The configuration is for any WireGuard app or wg-quick. Its private key is shown once and stored nowhere:\n\
        hand it over as you would a password.\n\n\
        Example:\n  anteroom client add laptop-7 --site north --address 10.20.9.7 --label class=service --out laptop-7.conf"
    )]
    Add(ClientAdd),
    /// List clients
    List,
    /// Show everything about one client, and the peers that its configuration must have now
    Show {
        /// Its name
        name: String,
    },
    /// Cut a client off for good, at once; to come back it is added anew, with another key
    #[command(
        after_help = "Example:\n  anteroom client revoke laptop-7 --reason \"stolen\" --confirm laptop-7"
    )]
    Revoke {
        /// Its name
        name: String,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// Arguments of `client add`.
#[derive(Debug, Args)]
pub struct ClientAdd {
    /// What to call it
    pub name: Name,
    /// The site that its address belongs to
    #[arg(long)]
    pub site: Name,
    /// An IPv4 address of its own, by which devices know it: one that nobody at the site has
    #[arg(long, value_name = "IP")]
    pub address: Ipv4Addr,
    /// Labels such as class=service; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<Label>,
    /// Write the configuration to a new file that only you can read, instead of showing it
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}
