//! `anteroom mud …`.

use std::path::PathBuf;

use anteroom_proto::name::Name;
use clap::Subcommand;

/// What to do with MUD files.
#[derive(Debug, Subcommand)]
pub enum MudCommand {
    /// Write what the policy permits the devices of a class as a MUD file
    #[command(
        after_help = "CLASS is a value of the label `class`, or the name of a segment or device.\n\n\
        Example:\n  anteroom mud export pump --url https://mud.hospital.example/pump.json -o pump.json"
    )]
    Export {
        /// Which devices
        class: String,
        /// Where the file will be served: it says so in itself
        #[arg(long, value_name = "URL", default_value = "https://invalid.example/not-served")]
        url: String,
        /// Write it to this new file instead of showing it
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Draft rules out of a maker's MUD file, each with what was seen of it; nothing is put into force
    #[command(
        after_help = "The file is read from disk; nothing is ever fetched because a device names it.\n\n\
        Examples:\n  anteroom mud import pump.json --for pump -o policy.toml\n  \
        anteroom mud import pump.json --for pump --peer my-controller=pump-server -o policy.toml"
    )]
    Import {
        /// The MUD file
        file: PathBuf,
        /// Whose it is: a value of the label `class`, or the name of a segment or device
        #[arg(long = "for", value_name = "CLASS")]
        class: String,
        /// Who is meant by a word of the file, such as my-controller or a DNS name; may be repeated
        #[arg(long = "peer", value_name = "WORD=NAME", value_parser = parse_peer)]
        peers: Vec<(String, Name)>,
        /// Extend this policy file, not the policy in force
        #[arg(long, value_name = "FILE")]
        extend: Option<PathBuf>,
        /// Write it to this file instead of showing it; only the extended file is replaced
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

fn parse_peer(text: &str) -> Result<(String, Name), String> {
    // A URI has equals signs of its own.
    let (word, name) = text
        .rsplit_once('=')
        .ok_or_else(|| format!("{text:?} names nobody: write my-controller=NAME"))?;
    let name =
        name.parse().map_err(|error: anteroom_proto::name::ParseNameError| error.to_string())?;
    Ok((word.to_owned(), name))
}
