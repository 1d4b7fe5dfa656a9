//! `anteroom asset …`.

use std::path::PathBuf;

use anteroom_proto::name::Name;
use clap::{Args, Subcommand, ValueEnum};

use super::ChangeArgs;

/// What to do with asset lists.
#[derive(Debug, Subcommand)]
pub enum AssetCommand {
    /// Hold asset lists against what gateways see: what matches, what is missing, what nobody listed, what contradicts itself
    #[command(
        after_help = "A list is CSV (as Excel writes it, columns known by their headers), FHIR Device resources (JSON, a Bundle, or NDJSON),\n\
        or MDS2 forms (.xlsx). Nothing of it is sent anywhere or kept.\n\n\
        A row is a device by its Ethernet address before all else, then by serial number, host name, and address.\n\n\
        Examples:\n  anteroom asset compare assets.csv\n  anteroom asset compare assets.csv ct.mds2.xlsx --column mac=\"LAN 1\" --csv > report.csv\n  \
        anteroom --json asset compare devices.ndjson"
    )]
    Compare {
        /// The lists
        #[command(flatten)]
        lists: ListArgs,
        /// Print it as CSV, for a spreadsheet
        #[arg(long)]
        csv: bool,
    },
    /// Take what lists say of devices over as labels, and confirm devices that they know; signed like any other change
    #[command(
        after_help = "Nothing that operators have set is replaced, unless --overwrite says so.\n\n\
        Examples:\n  anteroom asset import assets.csv --reason \"ticket 4711\"\n  \
        anteroom asset import assets.csv --take owner,location,vendor,model,serial\n  \
        anteroom asset import assets.csv --new     also confirm what was seen and listed, under the list's names"
    )]
    Import(Box<AssetImport>),
}

/// Which lists, and how to read them.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// CSV, FHIR or MDS2 files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Which column of a CSV holds what: name, mac, address, hostname, serial, owner, location, criticality, class, vendor, model, or a label of your own; may be repeated
    #[arg(long = "column", value_name = "FIELD=HEADER", value_parser = parse_column)]
    pub columns: Vec<(String, String)>,
    /// Only devices of this site: addresses are unique within one
    #[arg(long, value_name = "NAME")]
    pub site: Option<Name>,
}

/// Arguments of `asset import`.
#[derive(Debug, Args)]
pub struct AssetImport {
    /// The lists
    #[command(flatten)]
    pub lists: ListArgs,
    /// What to take over: labels such as owner or class, serial, hostname, and name, which renames devices
    #[arg(
        long,
        value_name = "FIELD",
        value_delimiter = ',',
        default_value = "owner,location,criticality"
    )]
    pub take: Vec<Name>,
    /// From how sure a match on
    #[arg(long, value_enum, default_value_t = SureChoice::High)]
    pub sure: SureChoice,
    /// Also where operators have set something else
    #[arg(long)]
    pub overwrite: bool,
    /// Also confirm devices that nobody has confirmed and whose Ethernet address a list has, in observe, under its name
    #[arg(long)]
    pub new: bool,
    /// Go on in spite of what the plan refuses; needs --reason
    #[arg(long, requires = "reason")]
    pub force: bool,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// From how sure a match on something is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SureChoice {
    /// By Ethernet address or serial number, with nothing that speaks against it
    Certain,
    /// By Ethernet address or serial number
    High,
    /// Also by a host name
    Medium,
    /// Also by an address alone
    Low,
}

fn parse_column(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((field, header)) if !field.trim().is_empty() && !header.trim().is_empty() => {
            Ok((field.trim().to_owned(), header.trim().to_owned()))
        }
        _ => Err(format!("{text:?} names no column: write mac=\"MAC address\"")),
    }
}
