//! `anteroom export …`.

use std::path::PathBuf;
use std::time::Duration;

use anteroom_proto::key::Hash;
use clap::{Args, Subcommand};

use super::parse_certificate;
use crate::output::time::parse_duration;

/// What to do with exports.
#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Write inventory, network map and who can reach what as a dated bundle, signed with your key
    #[command(
        after_help = "A name that ends in .zip makes one file, any other a directory. It holds one page for people (report.html), and JSON and CSV.\n\n\
        Examples:\n  anteroom export create audit-2027-01.zip\n  anteroom export create audit-2027-07.zip --since audit-2027-01.zip --over 180d"
    )]
    Create(ExportCreate),
    /// Check a bundle without any connection: that an operator signed it, and that no byte was changed since
    #[command(
        after_help = "Whoever isn't an operator gives the hash of the organisation's first authority document, which `anteroom whoami` shows to operators.\n\n\
        Example:\n  anteroom export verify audit-2027-01.zip --authority 5b2f…e1"
    )]
    Verify {
        /// The bundle: a zip file or a directory
        bundle: PathBuf,
        /// Hash of the organisation's first authority document [default: the one that this machine trusts]
        #[arg(long, value_name = "HEX", value_parser = parse_certificate)]
        authority: Option<Hash>,
        /// Take it although this machine knows that whoever signed it is no operator any more: you have asked when it was made
        #[arg(long)]
        former_operator: bool,
    },
}

/// Arguments of `export create`.
#[derive(Debug, Args)]
pub struct ExportCreate {
    /// A new directory, or a new file that ends in .zip
    #[arg(value_name = "DIR|FILE.zip")]
    pub out: PathBuf,
    /// Also say what differs from this earlier bundle
    #[arg(long, value_name = "BUNDLE")]
    pub since: Option<PathBuf>,
    /// Draw and review what was seen in the time up to now
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = parse_duration)]
    pub over: Duration,
}
