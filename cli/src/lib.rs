//! The operator's command line of Anteroom.
//!
//! Everything that opens something is signed here, on the operator's machine, and only after this program has
//! checked what it was given and compiled the result itself. The controller is a store that may lie: each
//! answer that matters is verified against what operators signed.
//!
//! - [`args`]: the words that may be typed; [`commands`]: what each of them does;
//! - [`home`]: what stays on the operator's machine; [`client`] and [`remote`]: the way to the controller;
//! - [`lists`] and [`archive`]: files that others hand in, read with bounds;
//! - [`recorded`]: what gateways recorded of traffic, as the controller holds it;
//! - [`change`]: how every change is fetched, checked, shown, signed and followed;
//! - [`output`]: tables for people, JSON for programs.

#![forbid(unsafe_code)]

pub mod archive;
pub mod args;
pub mod change;
pub mod client;
pub mod commands;
pub mod error;
pub mod home;
pub mod lists;
pub mod output;
pub mod recognised;
pub mod recorded;
pub mod remote;
pub mod sightings;
mod standing;

use std::ffi::OsString;

use anteroom_transport::exchange::KeyExchange;
use clap::Parser;

use crate::args::Cli;
use crate::error::{Error, Exit};
use crate::home::Home;
use crate::output::{Output, Terminal};

/// Runs the command line `args`, the program's name first, and says with what status to exit.
pub fn run<I>(args: I, terminal: Terminal<'_>) -> Exit
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    let mut output = Output::new(terminal);
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    // Also where the rest can't be understood.
    output.set_json(args.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == "--json"));
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return output.usage(&error),
    };
    output.set_json(cli.json);
    let exchange = KeyExchange::allowing_classic(cli.allow_classic);
    let result = Home::locate(cli.home.as_deref())
        .map(|home| home.with_exchange(exchange))
        .map_err(Error::from)
        .and_then(|home| commands::run(cli.command, &home, &mut output));
    match result {
        Ok(exit) => exit,
        Err(error) => {
            let exit = error.exit();
            // A reader that went away, as `| head` does, is no failure worth words.
            if !error.is_broken_pipe() {
                output.error(&error);
            }
            exit
        }
    }
}
