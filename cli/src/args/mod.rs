//! The words that may be typed, with their help.

mod asset;
mod blast;
mod client;
mod device;
mod export;
mod gateway;
mod mud;
mod policy;
mod relay;
mod surface;

use std::path::PathBuf;
use std::time::Duration;

use anteroom_proto::key::Hash;
use anteroom_proto::name::Name;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::time::parse_duration;

pub use asset::{AssetCommand, AssetImport, ListArgs, SureChoice};
pub use blast::BlastArgs;
pub use client::{ClientAdd, ClientApprove, ClientCommand};
pub use device::{DeviceBind, DeviceCommand, DeviceConfirm, DeviceMode, FailureChoice};
pub use export::{ExportCommand, ExportCreate};
pub use gateway::{
    GatewayBypass, GatewayCommand, GatewayInvite, GatewayRekey, GatewayReplace, GatewayRotate,
    OfflineArgs, SwitchKind,
};
pub use mud::MudCommand;
pub use policy::PolicyCommand;
pub use relay::{RelayCommand, RelayPlace};
pub use surface::{SortBy, SurfaceArgs, Wanted};

/// The command line as a whole.
#[derive(Debug, Parser)]
#[command(
    name = "anteroom",
    version,
    about = "Protects medical equipment with gateways in the wire: the operator's command line.",
    long_about = "Protects medical equipment that can't be patched, with small gateways in the wire in front of it. \
        This program is where people decide: which gateways belong, which devices stand behind them, who may \
        talk to whom, and how strictly that is kept. Every decision is signed here with your own key.",
    after_help = "Where to start:\n  \
        anteroom login SETUP-CODE --name ana    become the first operator of a new controller\n  \
        anteroom gateway invite imaging --site north\n  \
        anteroom status\n\n\
        Exit status: 0 done, 1 error, 2 something lags or is offline, 3 in force but not yet everywhere,\n\
        4 refused by the plan, 64 wrong usage or a confirmation is missing.",
    disable_help_subcommand = true,
    infer_subcommands = false
)]
pub struct Cli {
    /// Directory that holds your key and what you trust [default: $ANTEROOM_HOME or ~/.config/anteroom]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Print JSON for programs instead of tables for people
    #[arg(long, global = true)]
    pub json: bool,
    /// Speak also to a controller without a post-quantum key exchange: what is recorded of it may be read one day
    #[arg(long, global = true)]
    pub allow_classic: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Become an operator: claim a new controller, or make a key on a further machine
    #[command(after_help = "Examples:\n  \
        anteroom login anteroom-setup-1.pGVodHRwc4F4… --name ana\n  \
        anteroom login https://10.20.0.10:8443 --fingerprint 5b2f…e1 --name ben")]
    Login(Login),
    /// End the session with the controller; your key stays here
    Logout,
    /// Show who you are, and which controller and organisation you trust
    Whoami,
    /// Show how gateways and devices are, problems first (exit status 2 if something lags or is offline)
    #[command(
        after_help = "Examples:\n  anteroom status\n  anteroom status --wait 30     wait up to 30 s until all is well\n  anteroom status --watch"
    )]
    Status(Status),
    /// Explain why a connection passes or doesn't, and what to do about it
    #[command(
        after_help = "Ends are names of devices, segments or externals, or addresses; a service is a name, or protocol and port.\n\n\
        Examples:\n  anteroom why ct-1 pacs-1 dicom\n  anteroom why 10.20.9.9 pump-1 tcp/22"
    )]
    Why(Why),
    /// Show who talks to whom, and what became of it
    #[command(
        after_help = "Examples:\n  anteroom flows                 everything, newest first\n  anteroom flows ct-1 --dropped  what was dropped of this device\n  anteroom flows --would-drop    what enforce would drop, of observed devices too\n  anteroom flows --clear         what still goes in the clear\n  anteroom flows --criticality life-support --sort criticality"
    )]
    Flows(Flows),
    /// Draw who talks to whom: as text, for Graphviz, or as a picture
    #[command(
        after_help = "Examples:\n  anteroom map                       classes of devices, as text\n  anteroom map --each ct-1           one device and who it talks to\n  anteroom map --by segment          segments of the policy\n  anteroom map --format svg -o hospital.svg"
    )]
    Map(MapArgs),
    /// Show how far a device could reach if it fell: today, under the policy, under a draft of one
    #[command(
        after_help = "Counted are pairs of a member and a service. A member that nothing holds a device back from counts with every service that\nrules name; of the others, what rules open to it.\n\n\
        Examples:\n  anteroom blast                          the hospital, and the devices that reach furthest\n  anteroom blast pump-7\n  anteroom blast ct --policy draft.toml   a segment, under a draft too"
    )]
    Blast(BlastArgs),
    /// Gateways: the small appliances in front of the devices
    #[command(subcommand)]
    Gateway(GatewayCommand),
    /// Devices: the equipment behind the gateways
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Asset lists: what your books say that there is, against what gateways see
    #[command(subcommand)]
    Asset(AssetCommand),
    /// Clients: laptops and servers that speak WireGuard themselves
    #[command(subcommand)]
    Client(ClientCommand),
    /// Policy: the file that says who may talk to whom
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// MUD files (RFC 8520): what makers say that devices need, in and out
    #[command(subcommand)]
    Mud(MudCommand),
    /// Exports for auditors: inventory, network map and who can reach what, signed
    #[command(subcommand)]
    Export(ExportCommand),
    /// Operators: the people who may sign changes
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Relays: machines that carry sealed packets between gateways that can't reach each other directly
    #[command(subcommand)]
    Relay(RelayCommand),
    /// The controller: after a restore from a backup, or with another key
    #[command(subcommand)]
    Controller(ControllerCommand),
    /// Approve, as a second operator, what another one proposes
    #[command(
        after_help = "The plan is computed here, out of what is in force, and shown before anything is signed.\n\nExample:\n  anteroom device mode vent-1 enforce --confirm-within 15m --propose vent-1.json      (ada)\n  anteroom approve vent-1.json                                                        (ben)"
    )]
    Approve(Approve),
    /// Audit log: who changed what, when and why
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// Arguments of `login`.
#[derive(Debug, Args)]
pub struct Login {
    /// The setup code that `anteroom-controller init` printed, or the controller's address https://HOST:PORT
    #[arg(value_name = "SETUP-CODE|URL")]
    pub target: String,
    /// Your name in the audit log
    #[arg(long)]
    pub name: Name,
    /// SHA-256 of the controller's HTTPS certificate, from an operator or its console (with an address)
    #[arg(long, value_name = "HEX", value_parser = parse_certificate)]
    pub fingerprint: Option<Hash>,
    /// Hash of the first authority document, as `operator add` printed it to your colleague (with an address)
    #[arg(long, value_name = "HEX", value_parser = parse_certificate)]
    pub authority: Option<Hash>,
    /// Where to write the recovery key, to be kept offline (with a setup code)
    #[arg(long, value_name = "FILE", default_value = "anteroom-recovery.key")]
    pub recovery_out: PathBuf,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Wait up to so many seconds until all is well
    #[arg(long, value_name = "SECS", conflicts_with = "watch")]
    pub wait: Option<u64>,
    /// Show it again every two seconds
    #[arg(long)]
    pub watch: bool,
}

/// Arguments of `why`.
#[derive(Debug, Args)]
pub struct Why {
    /// Who opens the connection
    #[arg(value_name = "SRC")]
    pub from: String,
    /// To whom
    #[arg(value_name = "DST")]
    pub to: String,
    /// What for: a service such as dicom, or tcp/104
    pub service: String,
}

/// Arguments of `flows`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch that a person types")]
pub struct Flows {
    /// Only those of this device
    pub name: Option<String>,
    /// Only what was dropped
    #[arg(long, group = "verdict")]
    pub dropped: bool,
    /// Only what passed and would be dropped in enforce; of devices in observe what the policy in force says of it. Reads the whole history
    #[arg(long, group = "verdict")]
    pub would_drop: bool,
    /// Only what went in the clear
    #[arg(long, group = "verdict")]
    pub clear: bool,
    /// Go on showing what is new, until Ctrl-C
    #[arg(long)]
    pub follow: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Which devices.
    #[command(flatten)]
    pub surface: SurfaceArgs,
}

/// Arguments of `map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// Only what this device, or address, has to do with
    pub name: Option<String>,
    /// Draw devices by themselves, as --by device does
    #[arg(long, conflicts_with = "by")]
    pub each: bool,
    /// What to put together
    #[arg(long, value_enum, default_value_t = MapBy::Class)]
    pub by: MapBy,
    /// As what to draw it
    #[arg(long, value_enum, default_value_t = MapFormat::Text)]
    pub format: MapFormat,
    /// Write it to this new file instead of showing it
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Draw what was seen in the time up to now
    #[arg(long, value_name = "TIME", default_value = "14d", value_parser = parse_duration)]
    pub over: Duration,
    /// Which devices.
    #[command(flatten)]
    pub surface: SurfaceArgs,
}

/// What a map puts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MapBy {
    /// Devices of one class
    Class,
    /// Devices of one segment
    Segment,
    /// Nothing: each device by itself
    Device,
}

/// As what a map is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MapFormat {
    /// Lines of text
    Text,
    /// The language of Graphviz
    Dot,
    /// A picture for browsers and documents
    Svg,
}

/// What to do with operators.
#[derive(Debug, Subcommand)]
pub enum OperatorCommand {
    /// List operators and controllers, as the authority document names them
    List,
    /// Make somebody an operator, after comparing the fingerprint that their own machine shows
    #[command(
        after_help = "The new operator makes their key on their own machine, where it stays:\n  \
        anteroom login https://HOST:8443 --fingerprint HEX --name ben\n\n\
        That prints a request, which you sign here:\n  \
        anteroom operator add anteroom-operator-1.pGVodHRw… --fingerprint abcd-efgh-ijkl-mnop-qrst --reason \"night shift\""
    )]
    Add {
        /// The request that `anteroom login` printed on the new operator's machine
        #[arg(value_name = "REQUEST")]
        request: String,
        /// The fingerprint that the new operator reads out; another one is refused
        #[arg(long, value_name = "FP")]
        fingerprint: Option<String>,
        /// What every change takes.
        #[command(flatten)]
        change: AuthorityArgs,
    },
    /// Take an operator out: what they signed until now stays in force, and nothing that they sign after it counts
    #[command(
        after_help = "Example:\n  anteroom operator remove ben --reason \"has left\" --confirm ben"
    )]
    Remove {
        /// Their name
        name: Name,
        /// What every change takes.
        #[command(flatten)]
        change: AuthorityArgs,
    },
    /// Become the only operator with the recovery key, when every operator's key is lost
    #[command(
        after_help = "On a machine with a new key (`anteroom login https://HOST:8443 --fingerprint HEX --name zoe`):\n  \
        anteroom operator recover --recovery-key anteroom-recovery.key --recovery-out new-recovery.key --reason \"fire\" --confirm zoe"
    )]
    Recover {
        /// The file with the recovery key
        #[arg(long, value_name = "FILE")]
        recovery_key: PathBuf,
        /// Where to write the new recovery key, which takes the used one's place
        #[arg(long, value_name = "FILE")]
        recovery_out: PathBuf,
        /// What every change takes.
        #[command(flatten)]
        change: AuthorityArgs,
    },
}

/// What to do with the controller.
#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// Sign a controller back in that was restored from a backup, with the newest revision that you have seen
    #[command(
        after_help = "On the controller first: anteroom-controller restore --from BACKUP --dir DIR, and run it.\n\n\
        Best on the machine of whoever made the last change: that one knows what was revoked since the backup.\n\n\
        Example:\n  anteroom controller restored --reason \"disk failure\" --yes"
    )]
    Restored {
        /// Go on though a gateway says that it holds a newer revision than this machine knows
        #[arg(long)]
        force: bool,
        /// What every change takes.
        #[command(flatten)]
        change: AuthorityArgs,
    },
    /// Sign in a controller that has another key and certificate; on further machines, learn to know it
    #[command(
        after_help = "On the controller first: anteroom-controller restore --from BACKUP --dir DIR --new-key, or\nanteroom-controller new-key --dir DIR. Both print the code.\n\n\
        Example:\n  anteroom controller replace anteroom-controller-1.pGVodHRw… --reason stolen --yes"
    )]
    Replace {
        /// The code that the controller printed (`anteroom-controller code` prints it again)
        code: String,
        /// Go on though a gateway says that it holds a newer revision than this machine knows
        #[arg(long)]
        force: bool,
        /// What every change takes.
        #[command(flatten)]
        change: AuthorityArgs,
    },
}

/// What every change of the authority document takes.
#[derive(Debug, Clone, Default, Args)]
pub struct AuthorityArgs {
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Don't ask whether to go on
    #[arg(long)]
    pub yes: bool,
    /// The name that would be asked for where somebody loses their say
    #[arg(long, value_name = "NAME")]
    pub confirm: Option<Name>,
}

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List entries, newest last
    List {
        /// The newest so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Check the whole log: its chain of hashes, and the signature of every revision in it
    Verify,
}

/// Arguments of `approve`.
#[derive(Debug, Args)]
pub struct Approve {
    /// The file that another operator wrote with `--propose`
    pub file: PathBuf,
    /// Go on in spite of what the plan refuses; needs --reason
    #[arg(long, requires = "reason")]
    pub force: bool,
    /// What every change takes.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// What every change of the model takes.
#[derive(Debug, Clone, Default, Args)]
pub struct ChangeArgs {
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Don't ask whether to go on
    #[arg(long)]
    pub yes: bool,
    /// What else would be asked for where care can be cut off: a name, or the plan's id; may be repeated. The id of a plan that was shown before confirms
    /// this plan and no other, in place of --yes
    #[arg(long, value_name = "NAME|ID", value_delimiter = ',')]
    pub confirm: Vec<String>,
    /// Don't wait for the gateways to take the change over
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait for the gateways
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Where two operators must approve: change nothing yet, and write it to this file for another operator's `anteroom approve`
    #[arg(long, value_name = "FILE")]
    pub propose: Option<PathBuf>,
}

/// A label to set, or to remove where it has no value.
pub type Label = (Name, Option<String>);

fn parse_label(text: &str) -> Result<Label, String> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        format!("{text:?} is not a label: write class=ct, or class= to remove it")
    })?;
    let key: Name =
        key.parse().map_err(|error: anteroom_proto::name::ParseNameError| error.to_string())?;
    Ok((key, Some(value.to_owned()).filter(|value| !value.is_empty())))
}

fn parse_certificate(text: &str) -> Result<Hash, String> {
    let digits: String =
        text.chars().filter(|c| !matches!(c, ':' | ' ')).collect::<String>().to_ascii_lowercase();
    digits.parse().map_err(|_| {
        "expected the 64 hexadecimal digits of the certificate's SHA-256, as the controller's console shows them".into()
    })
}

#[cfg(test)]
mod tests;
