//! `anteroom blast`.

use std::path::PathBuf;

use clap::Args;

use super::SurfaceArgs;

/// Arguments of `blast`.
#[derive(Debug, Args)]
pub struct BlastArgs {
    /// Only this device, client, or segment; the whole hospital unless given
    pub name: Option<String>,
    /// Also under this policy file, were all devices in enforce
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// At most so many devices, those that reach furthest
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// Which devices.
    #[command(flatten)]
    pub surface: SurfaceArgs,
}
