//! `anteroom policy …`.

use std::path::PathBuf;

use clap::Subcommand;

use super::ChangeArgs;

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
