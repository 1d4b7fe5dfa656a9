//! `anteroom client …`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anteroom_proto::key::TunnelPublicKey;
use anteroom_proto::name::Name;
use clap::{Args, Subcommand};

use super::{ChangeArgs, GatewayInvite, Label, parse_label};

/// What to do with clients.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Add a client and show its configuration, as text and as a QR code
    #[command(
        after_help = "With --key, the machine makes its own key, and the private half never leaves it: in a WireGuard app choose to\n\
        add an empty tunnel, which shows the public key; elsewhere `wg genkey | tee private.key | wg pubkey` prints it. In\n\
        what is shown, a line says where that private key goes.\n\n\
        Without it, the key is made here and shown once, in the configuration and in the QR code, which WireGuard's apps\n\
        read with a camera. It is stored nowhere and sent to nobody; but whoever sees it on its way is the client, so hand\n\
        it over as you would a password.\n\n\
        Its peers are the gateways of the devices that rules open to it by now, so apply those first: a segment such as\n\
        match = { label.class = \"service\" } has a client in it as soon as it is added with that label.\n\n\
        Examples:\n  anteroom client add laptop-7 --site north --address 10.20.9.7 --label class=service --out laptop-7.conf\n  \
        anteroom client add laptop-8 --site north --address 10.20.9.8 --label class=service \\\n    \
        --key 'xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg='"
    )]
    Add(ClientAdd),
    /// Make an invite for a machine that runs anteroom-agent in host mode: its keys and paths stay current by themselves
    #[command(
        after_help = "On the machine, /etc/anteroom/agent.toml needs one line, [host], and `anteroom-agent enroll CODE` takes the\n\
        invite. Then: anteroom client approve NAME --address IP\n\n\
        Example:\n  anteroom client invite reading-1 --site north"
    )]
    Invite(GatewayInvite),
    /// Make a machine that used its invite a client, after comparing the fingerprint that it shows
    #[command(
        after_help = "Example:\n  anteroom client approve reading-1 --address 10.20.9.8 --label class=reading"
    )]
    Approve(ClientApprove),
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

/// Arguments of `client approve`.
#[derive(Debug, Args)]
pub struct ClientApprove {
    /// Its name, from its invite
    pub name: String,
    /// An IPv4 address of its own, by which devices know it: one that nobody at the site has
    #[arg(long, value_name = "IP")]
    pub address: Ipv4Addr,
    /// The fingerprint that the machine shows (`anteroom-agent identity`); another one is refused
    #[arg(long, value_name = "FP")]
    pub fingerprint: Option<String>,
    /// Labels such as class=reading; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<Label>,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
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
    /// The public half of its WireGuard key, in base64, made on its own machine
    #[arg(long, value_name = "BASE64", value_parser = parse_wireguard_key, conflicts_with = "generate_key")]
    pub key: Option<TunnelPublicKey>,
    /// Make its key here, as is done without --key: the private half is shown once, with --json too
    #[arg(long)]
    pub generate_key: bool,
    /// Labels such as class=service; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<Label>,
    /// Write the configuration to a new file that only you can read, instead of showing it
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Draw no QR code. There is one where the private key is shown: not with --key, --out or --json
    #[arg(long)]
    pub no_qr: bool,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}

fn parse_wireguard_key(text: &str) -> Result<TunnelPublicKey, String> {
    TunnelPublicKey::from_wireguard(text).map_err(|error| error.to_string())
}
