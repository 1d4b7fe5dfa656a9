//! Entry point.

use std::process::ExitCode;

fn main() -> ExitCode {
    anteroom_agent::cli::main()
}
