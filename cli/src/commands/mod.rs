//! What each command does.

mod approve;
mod asset;
mod asset_import;
mod audit;
mod authority;
mod blast;
mod bypass;
mod cables;
mod client;
mod controller;
mod covered;
mod device;
mod device_change;
mod enrol;
mod export;
mod flows;
mod gateway;
mod holdings;
mod host;
mod learn;
mod login;
mod map;
mod mud;
mod operator;
mod policy;
mod policy_change;
mod ports;
mod rekey;
mod relay;
mod replace;
mod rollout;
mod rotate;
mod rules;
mod stale;
mod status;
mod why;

use self::enrol::Kind;
pub(crate) use self::policy::replace as replace_file;
use crate::args::{
    ClientCommand, Command, ControllerCommand, DeviceCommand, ExportCommand, GatewayCommand,
    OperatorCommand, RelayCommand,
};
use crate::error::{Error, Exit};
use crate::home::Home;
use crate::output::Output;
use crate::remote::Remote;

/// Does what `command` says.
pub(crate) fn run(command: Command, home: &Home, output: &mut Output<'_>) -> Result<Exit, Error> {
    match command {
        Command::Login(args) => login::login(&args, home, output),
        Command::Logout => login::logout(home, output),
        Command::Whoami => login::whoami(home, output),
        Command::Status(args) => status::status(&args, &mut open(home, output)?, output),
        Command::Why(args) => why::why(&args, &mut open(home, output)?, output),
        Command::Flows(args) => flows::flows(&args, &mut open(home, output)?, output),
        Command::Map(args) => map::map(&args, &mut open(home, output)?, output),
        Command::Blast(args) => blast::blast(&args, &mut open(home, output)?, output),
        Command::Gateway(command) => match command {
            GatewayCommand::Invite(args) => {
                enrol::invite(&args, Kind::Gateway, &mut open(home, output)?, output)
            }
            GatewayCommand::Pending => enrol::pending(&mut open(home, output)?, output),
            GatewayCommand::Approve { name, fingerprint, change } => enrol::approve(
                &name,
                fingerprint.as_deref(),
                change,
                &mut open(home, output)?,
                output,
            ),
            GatewayCommand::List => gateway::list(&mut open(home, output)?, output),
            GatewayCommand::Show { name } => gateway::show(&name, &mut open(home, output)?, output),
            GatewayCommand::Label { name, labels, change } => {
                gateway::label(&name, &labels, change, &mut open(home, output)?, output)
            }
            GatewayCommand::Ports { name, switch } => {
                ports::ports(&name, switch, &mut open(home, output)?, output)
            }
            GatewayCommand::Bypass(args) => bypass::bypass(args, home, output),
            GatewayCommand::Replace(args) => {
                replace::replace(args, &mut open(home, output)?, output)
            }
            GatewayCommand::Rotate(args) => rotate::rotate(&args, &mut open(home, output)?, output),
            GatewayCommand::Rekey(args) => rekey::rekey(args, &mut open(home, output)?, output),
            GatewayCommand::Revoke { name, change } => {
                gateway::revoke(&name, change, &mut open(home, output)?, output)
            }
        },
        Command::Device(command) => match command {
            DeviceCommand::List { new, wide, is, surface } => {
                device::list(new, wide, &is, &surface, &mut open(home, output)?, output)
            }
            DeviceCommand::Show { name } => device::show(&name, &mut open(home, output)?, output),
            DeviceCommand::Confirm(args) => {
                device_change::confirm(*args, &mut open(home, output)?, output)
            }
            DeviceCommand::Label { name, labels, change } => {
                device_change::label(&name, &labels, change, &mut open(home, output)?, output)
            }
            DeviceCommand::Mode(args) => rollout::mode(args, home, output),
            DeviceCommand::Keep { names, change } => {
                rollout::keep(&names, change, &mut open(home, output)?, output)
            }
            DeviceCommand::Back { names, force, change } => {
                rollout::back(&names, force, change, &mut open(home, output)?, output)
            }
            DeviceCommand::Bind(args) => replace::bind(args, &mut open(home, output)?, output),
            DeviceCommand::Quarantine { names, change } => {
                device_change::quarantine(&names, true, change, &mut open(home, output)?, output)
            }
            DeviceCommand::Release { names, change } => {
                device_change::quarantine(&names, false, change, &mut open(home, output)?, output)
            }
            DeviceCommand::Rules { files, shipped } => rules::rules(&files, shipped, home, output),
            DeviceCommand::Learn { out } => {
                rules::learn(out.as_deref(), &mut open(home, output)?, output)
            }
            DeviceCommand::OnFailure { name, choice, change } => {
                device_change::on_failure(&name, choice, change, &mut open(home, output)?, output)
            }
        },
        Command::Asset(command) => asset::run(command, &mut open(home, output)?, output),
        Command::Client(command) => match command {
            ClientCommand::Add(args) => client::add(args, &mut open(home, output)?, output),
            ClientCommand::Invite(args) => {
                enrol::invite(&args, Kind::Host, &mut open(home, output)?, output)
            }
            ClientCommand::Approve(args) => host::approve(args, &mut open(home, output)?, output),
            ClientCommand::List => client::list(&mut open(home, output)?, output),
            ClientCommand::Show { name } => client::show(&name, &mut open(home, output)?, output),
            ClientCommand::Revoke { name, change } => {
                client::revoke(&name, change, &mut open(home, output)?, output)
            }
        },
        Command::Policy(command) => policy::run(command, home, output),
        Command::Mud(command) => mud::run(command, &mut open(home, output)?, output),
        Command::Export(command) => match command {
            ExportCommand::Create(args) => export::create(&args, &mut open(home, output)?, output),
            ExportCommand::Verify { bundle, authority, former_operator } => {
                export::verify(&bundle, authority, former_operator, home, output)
            }
        },
        Command::Operator(command) => match command {
            OperatorCommand::List => operator::list(&open(home, output)?, output),
            OperatorCommand::Add { request, fingerprint, change } => {
                let remote = &mut open(home, output)?;
                authority::add(&request, fingerprint.as_deref(), change, remote, output)
            }
            OperatorCommand::Remove { name, change } => {
                authority::remove(&name, change, &mut open(home, output)?, output)
            }
            OperatorCommand::Recover { recovery_key, recovery_out, change } => {
                authority::recover(&recovery_key, &recovery_out, change, home, output)
            }
        },
        Command::Relay(command) => match command {
            RelayCommand::List => relay::list(&mut open(home, output)?, output),
            RelayCommand::Add(place) => relay::add(place, &mut open(home, output)?, output),
            RelayCommand::Replace(place) => relay::replace(place, &mut open(home, output)?, output),
            RelayCommand::Remove { name, change } => {
                relay::remove(&name, change, &mut open(home, output)?, output)
            }
        },
        Command::Controller(command) => match command {
            ControllerCommand::Restored { force, change } => {
                controller::restored(force, change, home, output)
            }
            ControllerCommand::Replace { code, force, change } => {
                controller::replace(&code, force, change, home, output)
            }
        },
        Command::Approve(args) => approve::approve(args, &mut open(home, output)?, output),
        Command::Audit(command) => audit::run(&command, &mut open(home, output)?, output),
    }
}

/// The controller, told of what was ordered without it.
fn open(home: &Home, output: &mut Output<'_>) -> Result<Remote, Error> {
    let mut remote = Remote::open(home)?;
    if let Err(error) = bypass::tell(&mut remote) {
        output.warn(format_args!(
            "the audit log hasn't heard yet of a bypass that was ordered offline: {error}"
        ))?;
    }
    Ok(remote)
}
