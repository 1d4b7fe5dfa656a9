//! `anteroom policy …`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::{ChangeArgs, SurfaceArgs};
use crate::output::time::parse_duration;

/// What to do with the policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Write a policy file to start from, made of the devices that are confirmed
    Init {
        /// Write it to this new file instead of showing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Bring a policy file into the usual order and spacing
    Fmt {
        /// The file
        file: PathBuf,
        /// Change nothing; exit status 1 if it isn't in order
        #[arg(long)]
        check: bool,
    },
    /// Check a policy file; works without a controller, and with one also checks the names of devices
    Check {
        /// The file
        file: PathBuf,
    },
    /// Show what a policy file would change, and which recorded traffic it would break
    #[command(
        after_help = "Example:\n  anteroom policy plan policy.toml --out change.plan\n  anteroom policy apply change.plan --reason \"ticket 4711\""
    )]
    Plan {
        /// The policy file
        file: PathBuf,
        /// Write the plan to this file, to be applied as it is
        #[arg(long, value_name = "PLAN")]
        out: Option<PathBuf>,
        /// Of what it would break, which devices' traffic to show; the plan stays the same.
        #[command(flatten)]
        surface: SurfaceArgs,
    },
    /// Learn a policy from the recorded traffic: an ordinary file, with the evidence on each rule
    #[command(
        after_help = "What is in force, or in the extended file, stays line by line; what is new stands behind it. Read it before you apply it.\n\n\
        Examples:\n  anteroom policy suggest -o policy.toml\n  anteroom policy suggest --extend policy.toml -o policy.toml\n  anteroom policy suggest --mud pump=alaris.json -o policy.toml\n  anteroom policy simulate policy.toml --over 14d"
    )]
    Suggest {
        /// Write it to this file instead of showing it; only the extended file is replaced
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Extend this file instead of the policy in force
        #[arg(long, value_name = "FILE")]
        extend: Option<PathBuf>,
        /// Also hear a maker's MUD file for a class of devices: what it names and nobody did yet becomes rules, and what was seen beyond it is told; may be repeated
        #[arg(long = "mud", value_name = "CLASS=FILE", value_parser = parse_mud)]
        muds: Vec<(String, PathBuf)>,
    },
    /// Show which recorded traffic a policy file would have dropped, were devices in enforce (exit status 4 if any)
    #[command(
        after_help = "Examples:\n  anteroom policy simulate policy.toml --over 14d\n  anteroom policy simulate policy.toml --device pump-1"
    )]
    Simulate {
        /// The policy file
        file: PathBuf,
        /// Judge what was seen in the time up to now
        #[arg(long, value_name = "TIME", default_value = "14d", value_parser = parse_duration)]
        over: Duration,
        /// Only this device in enforce, the others in their modes; may be repeated
        #[arg(long = "device", value_name = "NAME")]
        devices: Vec<String>,
        /// Which devices' traffic.
        #[command(flatten)]
        surface: SurfaceArgs,
    },
    /// Review what is stale: rules that no flow used, externals past their day of review, devices that weren't seen
    #[command(
        after_help = "Also says what is new and what is settled since the last review that was recorded.\n\n\
        Example:\n  anteroom policy stale --over 90d --record"
    )]
    Stale {
        /// Stale is what wasn't used or seen in the time up to now
        #[arg(long, value_name = "TIME", default_value = "90d", value_parser = parse_duration)]
        over: Duration,
        /// Keep this review here, for the next one to be compared with
        #[arg(long)]
        record: bool,
        /// Which devices; the review that is kept has all.
        #[command(flatten)]
        surface: SurfaceArgs,
    },
    /// Put a policy file, or a plan made of it, into force
    #[command(
        after_help = "A plan is refused if anybody changed something since it was made.\n\nExample:\n  anteroom policy apply policy.toml --reason \"ticket 4711\""
    )]
    Apply {
        /// The policy file, or a plan from `policy plan --out`
        file: PathBuf,
        /// Go on in spite of what the plan refuses; needs --reason
        #[arg(long, requires = "reason")]
        force: bool,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Bring the policy of an earlier revision back, as a new revision
    Rollback {
        /// The revision's number, from `policy history`
        number: u64,
        /// Go on in spite of what the plan refuses; needs --reason
        #[arg(long, requires = "reason")]
        force: bool,
        /// What every change takes.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// List all revisions, newest first
    History,
    /// Print the policy in force, or that of a revision
    Show {
        /// The revision's number
        number: Option<u64>,
    },
    /// Show what differs between the policies of two revisions
    Diff {
        /// The older revision
        from: u64,
        /// The newer one; the one in force unless given
        to: Option<u64>,
    },
}

fn parse_mud(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((class, file)) if !class.is_empty() && !file.is_empty() => {
            Ok((class.to_owned(), PathBuf::from(file)))
        }
        _ => Err(format!("{text:?} names no class and file: write pump=alaris.json")),
    }
}
