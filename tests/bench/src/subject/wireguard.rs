//! WireGuard programs that make a TUN interface and are told what to do over a local socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anteroom_lab::process::Process;
use anteroom_lab::topology::Host;
use anteroom_lab::wait;
use anteroom_proto::key::TunnelSecret;
use anyhow::{Context as _, Result, bail};

use super::Kind;
use crate::tools::Tools;
use crate::world::{UNDERLAY, World};

/// Where the tunnels end.
const PORT: u16 = 51_820;
/// What WireGuard leaves of 1,500 bytes, as its own tools set it.
const MTU: u16 = 1_420;
/// How long a program may take to open its socket.
const PATIENCE: Duration = Duration::from_secs(10);

/// The command that runs such a program in the foreground.
pub(super) fn command(kind: &Kind, tools: &Tools, host: &Host, interface: &str) -> Result<Command> {
    let mut command;
    match kind {
        Kind::WireguardGo => {
            command = host.command(tools.wireguard_go()?);
            command.arg("-f").env("LOG_LEVEL", "error");
        }
        _ => {
            command = host.command(tools.boringtun()?);
            command.args(["--foreground", "--disable-drop-privileges"]);
            if *kind == Kind::BoringtunOne {
                command.args(["--threads", "1"]);
            }
        }
    }
    command.arg(interface);
    Ok(command)
}

/// Gives both ends their keys and routes.
pub(super) fn configure(
    world: &World,
    interfaces: &[String; 2],
    processes: &mut [Process],
) -> Result<()> {
    let secrets = [TunnelSecret::from_bytes([0x51; 32]), TunnelSecret::from_bytes([0x52; 32])];
    for (gateway, interface) in interfaces.iter().enumerate() {
        let far = 1 - gateway;
        let (network, length) = World::behind(far);
        let orders = format!(
            "set=1\nprivate_key={}\nlisten_port={PORT}\nreplace_peers=true\npublic_key={}\n\
             endpoint={}:{PORT}\nreplace_allowed_ips=true\nallowed_ip={network}/{length}\n\n",
            hex(secrets[gateway].as_bytes()),
            hex(secrets[far].public().as_bytes()),
            UNDERLAY[far],
        );
        let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
        wait::until_ok(PATIENCE, "a WireGuard program to open its socket", || {
            processes[gateway].must_run()?;
            tell(&socket, &orders)
        })?;
        let host = &world.gateways[gateway];
        host.ip(&format!("link set {interface} mtu {MTU} up"))?;
        host.ip(&format!("route add {network}/{length} dev {interface}"))?;
    }
    Ok(())
}

/// Sends orders (WireGuard's "cross-platform userspace" protocol) and reads whether they were taken.
fn tell(socket: &Path, orders: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(orders.as_bytes())?;
    let mut answer = String::new();
    let mut piece = [0; 256];
    while !answer.ends_with("\n\n") {
        match stream.read(&mut piece)? {
            0 => break,
            length => answer.push_str(&String::from_utf8_lossy(&piece[..length])),
        }
    }
    if !answer.lines().any(|line| line == "errno=0") {
        bail!("{} answered {:?}", socket.display(), answer.trim());
    }
    Ok(())
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).concat()
}
