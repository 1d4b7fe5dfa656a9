//! `relay …`.

use anteroom_proto::key::PublicKey;
use anteroom_proto::name::Name;
use anteroom_proto::relay::code::RelayCode;
use clap::{Args, Subcommand};

use super::AuthorityArgs;

/// What to do with relays.
#[derive(Debug, Subcommand)]
pub enum RelayCommand {
    /// List relays, controllers included, and which gateways are connected to them
    List,
    /// Have gateways use a relay, on a machine that holds no controller
    #[command(
        after_help = "On the relay first: anteroom-controller relay-init --dir DIR --advertise HOST:PORT --authority HEX\n\
        (`anteroom whoami` shows the hash), and run it. Both print the code.\n\n\
        Examples:\n  anteroom relay add north --code anteroom-relay-1.omNrZXk… --reason \"second building\" --yes\n  \
        anteroom relay add north relay.example:443 10.20.0.11:443 --key 5b2f…e1 --reason \"second building\" --yes"
    )]
    Add(RelayPlace),
    /// Put another key, or other addresses, in a relay's place: the old one may be in other hands
    #[command(
        after_help = "One signed step: gateways leave the old relay with the document that names the new one.\n\n\
        Example:\n  anteroom relay replace north --code anteroom-relay-1.omNrZXk… --reason stolen --yes"
    )]
    Replace(RelayPlace),
    /// Take a relay out: gateways leave it, and it sends everyone away
    #[command(after_help = "Example:\n  anteroom relay remove north --reason stolen --yes")]
    Remove {
        /// Its name
        name: Name,
        /// What every change takes.
        #[command(flatten)]
        change: AuthorityArgs,
    },
}

/// A relay's name, and where it is.
#[derive(Debug, Args)]
#[group(id = "known", required = true, multiple = false, args = ["key", "code"])]
pub struct RelayPlace {
    /// What operators call it
    pub name: Name,
    /// Where gateways reach it, as host:port, best first (with --key; in place of the code's with --code)
    #[arg(value_name = "ADDRESS")]
    pub addresses: Vec<String>,
    /// Its key, as its console shows it
    #[arg(long, value_name = "HEX", requires = "addresses")]
    pub key: Option<PublicKey>,
    /// What `anteroom-controller relay` printed: key and addresses
    #[arg(long)]
    pub code: Option<RelayCode>,
    /// What every change takes.
    #[command(flatten)]
    pub change: AuthorityArgs,
}
