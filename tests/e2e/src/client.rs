//! Stock WireGuard programs as clients: wireguard-go and boringtun-cli, set up by `wg`.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anteroom_lab::hospital::{Hospital, address};
use anteroom_lab::process::Process;
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;
use anteroom_lab::{namespace, programs};
use anyhow::{Context as _, Result, bail};

/// A stock WireGuard program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stock {
    /// The one in Go (Debian: wireguard-go).
    WireguardGo,
    /// The one in Rust (`cargo install boringtun-cli`), one thread.
    BoringtunCli,
}

/// Where a program is, in `PATH` or where the lab and the benchmark install theirs.
fn find(program: &str) -> Option<PathBuf> {
    let target = programs::target_directory();
    let tools =
        [programs::LAB_TOOLS, programs::BENCH_TOOLS].map(|tools| target.join(tools).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(tools);
    places.find_map(|place| place.join(program).canonicalize().ok())
}

impl Stock {
    /// Its command, in the foreground. `None` where it or `wg` isn't installed, which is said in a line.
    ///
    /// # Panics
    /// If what CI installs is missing where every test is required, as there.
    #[must_use]
    pub fn installed(self) -> Option<Vec<String>> {
        let (program, arguments): (&str, &[&str]) = match self {
            Self::WireguardGo => ("wireguard-go", &["--foreground"]),
            Self::BoringtunCli => {
                ("boringtun-cli", &["--foreground", "--disable-drop-privileges", "-t", "1"])
            }
        };
        let (Some(found), Some(_)) = (find(program), find("wg")) else {
            let missing = format!("{program} and wg (wireguard-tools) aren't both installed");
            let required = std::env::var_os(namespace::REQUIRE).is_some();
            assert!(self == Self::BoringtunCli || !required, "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        };
        let words = std::iter::once(found.display().to_string());
        Some(words.chain(arguments.iter().map(|word| (*word).to_owned())).collect())
    }
}

/// A key pair as WireGuard's own tool makes it: the private and the public half.
///
/// # Errors
/// What `wg` said.
pub fn key_pair() -> Result<(String, String)> {
    let private = run_wg("genkey", "")?;
    let public = run_wg("pubkey", &private)?;
    Ok((private, public))
}

fn run_wg(what: &str, input: &str) -> Result<String> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut command = Command::new("wg");
    let mut child = command.arg(what).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("wg {what} ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The network that the laptop is plugged into.
const NETWORK: &str = "mgmt";
/// Its WireGuard interface.
const INTERFACE: &str = "wg0";

/// A laptop with a stock WireGuard program.
#[derive(Debug)]
pub struct Laptop {
    /// Where it runs.
    pub host: Host,
    /// Its own address in the overlay, by which devices know it.
    pub address: Ipv4Addr,
    command: Vec<String>,
    directory: PathBuf,
    config: String,
    last: u8,
    process: Option<Process>,
}

impl Laptop {
    /// Plugs a laptop in. Nothing runs on it yet.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn place(
        hospital: &Hospital,
        command: Vec<String>,
        directory: &Path,
        own: Ipv4Addr,
    ) -> Result<Self> {
        let host = Host::create("laptop")?;
        let bridge = format!("br-{NETWORK}");
        topology::plug(&host, "eth0", None, &hospital.campus, &bridge, "p-laptop")?;
        let directory = directory.to_path_buf();
        let config = String::new();
        let laptop =
            Self { host, address: own, command, directory, config, last: 0, process: None };
        Ok(laptop)
    }

    /// Gives the laptop another address on the campus, in the old one's place.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn move_to(&mut self, last: u8) -> Result<()> {
        self.host.ip("address flush dev eth0")?;
        self.host.address("eth0", address(NETWORK, last), 24)?;
        self.host.default_route(address(NETWORK, 1))?;
        self.last = last;
        Ok(())
    }

    /// Where it is on the campus.
    #[must_use]
    pub fn at(&self) -> Ipv4Addr {
        address(NETWORK, self.last)
    }

    /// Takes over a configuration as wg-quick does: what `wg` doesn't know is done with `ip`.
    ///
    /// # Errors
    /// If the program doesn't come up, or `wg` refuses the configuration.
    pub fn start(&mut self, config: &str) -> Result<()> {
        self.stop()?;
        config.clone_into(&mut self.config);
        let (program, arguments) = self.command.split_first().context("no program")?;
        let mut command = self.host.command(program);
        command.args(arguments).arg(INTERFACE).env("WG_PROCESS_FOREGROUND", "1");
        let log = self.directory.join("logs/laptop.log");
        self.process = Some(Process::spawn("the laptop's WireGuard", &mut command, &log)?);
        let file = self.directory.join("laptop.conf");
        let for_wg = config.lines().filter(|line| !line.starts_with("Address"));
        std::fs::write(
            &file,
            for_wg.fold(String::new(), |mut text, line| {
                let _ = writeln!(text, "{line}");
                text
            }),
        )?;
        let file = file.display().to_string();
        // Not by `wg` itself: it takes a socket away that isn't listened at yet.
        wait::until_ok(Duration::from_secs(60), "the laptop's WireGuard to listen", || {
            Ok(UnixStream::connect(format!("/var/run/wireguard/{INTERFACE}.sock"))?)
        })?;
        wait::until_ok(Duration::from_secs(60), "the laptop's interface", || {
            self.wg(&["setconf", INTERFACE, &file])
        })?;
        self.host.ip(&format!("address add {}/32 dev {INTERFACE}", self.address))?;
        self.host.ip(&format!("link set {INTERFACE} mtu 1420 up"))?;
        for line in config.lines().filter_map(|line| line.strip_prefix("AllowedIPs = ")) {
            for net in line.split(", ") {
                self.host.ip(&format!("route add {net} dev {INTERFACE} src {}", self.address))?;
            }
        }
        Ok(())
    }

    /// The configuration that it has.
    #[must_use]
    pub fn config(&self) -> &str {
        &self.config
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.kill()?;
        wait::until(Duration::from_secs(60), "the laptop's interface to go", || {
            self.host.ip(&format!("link show {INTERFACE}")).is_err().then_some(())
        })?;
        Ok(())
    }

    /// Runs `wg` on the laptop.
    ///
    /// # Errors
    /// What it said.
    pub fn wg(&self, arguments: &[&str]) -> Result<String> {
        self.host.run("wg", arguments)
    }

    /// When each peer's last handshake was, in seconds since 1970; 0 for never.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn handshakes(&self) -> Result<Vec<u64>> {
        let text = self.wg(&["show", INTERFACE, "latest-handshakes"])?;
        let times = text.lines().filter_map(|line| line.split_whitespace().nth(1));
        times.map(|time| time.parse().with_context(|| format!("in {text:?}"))).collect()
    }

    /// Sets one of the interface's values.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn set(&self, arguments: &[&str]) -> Result<String> {
        self.wg(&[&["set", INTERFACE], arguments].concat())
    }
}

/// A connection between two hosts, both ends in this test's hands.
#[derive(Debug)]
pub struct Pair {
    /// The end that opened.
    pub opened: TcpStream,
    /// The end that answered.
    pub answered: TcpStream,
}

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Pair {
    /// `from` opens a connection to `to`, which answers.
    ///
    /// # Errors
    /// If it can't within `limit`.
    pub fn open(from: &Host, to: (&Host, Ipv4Addr, u16), limit: Duration) -> Result<Self> {
        let (host, ip, port) = to;
        let at = SocketAddr::from((ip, port));
        let listener = host.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        let opened = from.enter(|| TcpStream::connect_timeout(&at, limit))?;
        let opened = opened.with_context(|| format!("{} opening {at}", from.name()))?;
        let (answered, _) = listener.accept()?;
        for stream in [&opened, &answered] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        Ok(Self { opened, answered })
    }

    /// Carries `len` bytes each way.
    ///
    /// # Errors
    /// If they don't arrive as they were, or not in time.
    pub fn exchange(&mut self, len: usize) -> Result<()> {
        carry(&mut self.opened, &mut self.answered, len).context("from who opened")?;
        carry(&mut self.answered, &mut self.opened, len).context("from who answered")
    }
}

fn carry(from: &mut TcpStream, to: &mut TcpStream, len: usize) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let sent: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let mut got = vec![0; len];
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| from.write_all(&sent));
        to.read_exact(&mut got)?;
        writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    if got != sent {
        bail!("{len} bytes arrived altered");
    }
    Ok(())
}
