//! Entry point.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anteroom::output::Terminal;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Quiet unless asked through RUST_LOG: what people need to know is printed by the commands themselves.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .init();
    let (mut out, mut err, mut input) =
        (io::stdout().lock(), io::stderr().lock(), io::stdin().lock());
    let interactive = io::stdin().is_terminal() && io::stderr().is_terminal();
    let coloured = io::stdout().is_terminal();
    let exit = anteroom::run(
        std::env::args_os(),
        Terminal { out: &mut out, err: &mut err, input: &mut input, interactive, coloured },
    );
    // A reader that went away has read all that it wanted.
    let _ = out.flush();
    ExitCode::from(exit.code())
}
