//! What each command does.

mod audit;
mod device;
mod device_change;
mod enrol;
mod flows;
mod gateway;
mod login;
mod operator;
mod policy;
mod policy_change;
mod status;
mod why;

use crate::args::{Command, DeviceCommand, GatewayCommand, OperatorCommand};
use crate::error::{Error, Exit};
use crate::home::Home;
use crate::output::Output;
use crate::remote::Remote;

/// Does what `command` says.
pub(crate) fn run(command: Command, home: &Home, output: &mut Output<'_>) -> Result<Exit, Error> {
    let open = || Remote::open(home);
    match command {
        Command::Login(args) => login::login(&args, home, output),
        Command::Logout => login::logout(home, output),
        Command::Whoami => login::whoami(home, output),
        Command::Status(args) => status::status(&args, &mut open()?, output),
        Command::Why(args) => why::why(&args, &mut open()?, output),
        Command::Flows(args) => flows::flows(&args, &mut open()?, output),
        Command::Gateway(command) => match command {
            GatewayCommand::Invite(args) => enrol::invite(&args, &mut open()?, output),
            GatewayCommand::Pending => enrol::pending(&mut open()?, output),
            GatewayCommand::Approve { name, fingerprint, change } => {
                enrol::approve(&name, fingerprint.as_deref(), change, &mut open()?, output)
            }
            GatewayCommand::List => gateway::list(&mut open()?, output),
            GatewayCommand::Show { name } => gateway::show(&name, &mut open()?, output),
            GatewayCommand::Label { name, labels, change } => {
                gateway::label(&name, &labels, change, &mut open()?, output)
            }
            GatewayCommand::Revoke { name, change } => {
                gateway::revoke(&name, change, &mut open()?, output)
            }
        },
        Command::Device(command) => match command {
            DeviceCommand::List { new } => device::list(new, &mut open()?, output),
            DeviceCommand::Show { name } => device::show(&name, &mut open()?, output),
            DeviceCommand::Confirm(args) => device_change::confirm(*args, &mut open()?, output),
            DeviceCommand::Label { name, labels, change } => {
                device_change::label(&name, &labels, change, &mut open()?, output)
            }
            DeviceCommand::Mode(args) => device_change::mode(args, home, output),
        },
        Command::Policy(command) => policy::run(command, home, output),
        Command::Operator(OperatorCommand::List) => operator::list(&open()?, output),
        Command::Audit(command) => audit::run(&command, &mut open()?, output),
    }
}
