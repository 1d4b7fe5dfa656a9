//! Hosts, cables and switches: a host is a network namespace, a cable is a veth pair, a switch is a bridge.
//!
//! All of it must be made inside a private world (see [`crate::namespace`]).

use std::ffi::CStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use nix::libc;
use nix::sched::CloneFlags;

/// A network of its own with a name.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    namespace: File,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Host({})", self.inner.name)
    }
}

/// Runs `ip` with these arguments.
///
/// # Errors
/// What it said, if it failed.
pub fn ip(arguments: &str) -> Result<String> {
    let output = Command::new(crate::programs::ip())
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .context("starting `ip` (package iproute2)")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Host {
    /// Makes a host with a loopback interface and no IPv6.
    ///
    /// # Errors
    /// If the kernel or `ip` refuses.
    pub fn create(name: &str) -> Result<Self> {
        ip(&format!("netns add {name}"))?;
        let host = Self::open(name)?;
        host.enter(|| {
            // Absent where the kernel has no IPv6.
            for scope in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").ok();
            }
            // Three tries a second apart would make each "no such neighbour" take three seconds.
            std::fs::write("/proc/sys/net/ipv4/neigh/default/retrans_time_ms", "250").ok();
        })?;
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// A host that exists already.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn open(name: &str) -> Result<Self> {
        let path = format!("/run/netns/{name}");
        let namespace = File::open(&path).with_context(|| format!("no host is called {name:?}"))?;
        Ok(Self { inner: Arc::new(Inner { name: name.into(), namespace }) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Runs `ip` in this host.
    ///
    /// # Errors
    /// What it said, if it failed.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        ip(&format!("-n {} {arguments}", self.name()))
    }

    /// A command that will run in this host, with its own `/sys` and host name.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        self.adopt(&mut command);
        command
    }

    /// Makes `command` run in this host.
    pub fn adopt(&self, command: &mut Command) {
        let host = self.clone();
        // SAFETY: only system calls on descriptors and strings that exist already; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                // The lab blocks the terminal's signals; a program of a host takes its own.
                nix::sys::signal::SigSet::empty().thread_set_mask()?;
                nix::sched::setns(host.inner.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
                let name = host.inner.name.as_bytes();
                libc::sethostname(name.as_ptr().cast(), name.len());
                // A machine of the lab knows its neighbours' names and asks nobody's name server.
                bind(c"/run/lab/etc/hosts", c"/etc/hosts");
                bind(c"/run/lab/etc/resolv.conf", c"/etc/resolv.conf");
                // Denied in containers that hide parts of /sys; nothing here depends on it.
                libc::mount(
                    c"sysfs".as_ptr(),
                    c"/sys".as_ptr(),
                    c"sysfs".as_ptr(),
                    libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
                    std::ptr::null(),
                );
                Ok(())
            });
        }
    }

    /// Runs a program in this host to its end and gives back what it printed.
    ///
    /// # Errors
    /// If it can't be started, or fails: then with all that it printed.
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<String> {
        let program = program.as_ref();
        let shown = || format!("{} on {}", program.to_string_lossy(), self.name());
        let output = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", shown()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{} ended with {}: {}{}", shown(), output.status, text, errors.trim());
        }
        Ok(text)
    }

    /// Runs `work` in a thread that lives in this host: sockets that it opens are the host's.
    ///
    /// # Errors
    /// If the thread can't enter the host.
    ///
    /// # Panics
    /// If `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    nix::sched::setns(self.inner.namespace.as_fd(), CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("entering {}", self.name()))?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread that lives in this host.
    ///
    /// # Errors
    /// If there are no more threads to be had.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let host = self.clone();
        Ok(std::thread::Builder::new().name(host.name().into()).spawn(move || {
            nix::sched::setns(host.inner.namespace.as_fd(), CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("entering {}", host.name()))?;
            Ok(work())
        })?)
    }

    /// The descriptor of the network namespace, for programs that enter it by themselves.
    #[must_use]
    pub fn raw_namespace(&self) -> i32 {
        self.inner.namespace.as_raw_fd()
    }

    /// Gives an interface an address and brings it up.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn address(&self, interface: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        self.ip(&format!("address add {address}/{prefix} dev {interface}"))?;
        self.ip(&format!("link set {interface} up"))?;
        Ok(())
    }

    /// Gives an interface another address in the place of all that it has, as when DHCP hands out a new one. Routes
    /// through it go, but for a new one to `router`.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn readdress(
        &self,
        interface: &str,
        address: Ipv4Addr,
        prefix: u8,
        router: Option<Ipv4Addr>,
    ) -> Result<()> {
        self.ip(&format!("address flush dev {interface}"))?;
        self.address(interface, address, prefix)?;
        router.map_or(Ok(()), |router| self.default_route(router))
    }

    /// Sends what this host has no other way for to `router`.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn default_route(&self, router: Ipv4Addr) -> Result<()> {
        self.ip(&format!("route replace default via {router}")).map(|_| ())
    }

    /// The Ethernet address of an interface.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let links: serde_json::Value =
            serde_json::from_str(&self.ip(&format!("-json link show dev {interface}"))?)?;
        let text = links[0]["address"].as_str().unwrap_or_default();
        let octets: Vec<u8> =
            text.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
        octets.try_into().map_err(|_| {
            anyhow::anyhow!("{interface} on {} has no Ethernet address: {text:?}", self.name())
        })
    }

    /// Makes this host forward packets between its interfaces.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn forward(&self) -> Result<()> {
        self.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?
            .context("turning on forwarding")
    }

    /// Adds a switch: a bridge that forwards at once.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn switch(&self, bridge: &str) -> Result<()> {
        self.ip(&format!("link add name {bridge} type bridge forward_delay 0 mcast_snooping 0"))?;
        self.ip(&format!("link set {bridge} up"))?;
        Ok(())
    }
}

/// Puts one file in the place of another, where both exist.
fn bind(source: &CStr, target: &CStr) {
    // SAFETY: both paths end in NUL; no file system type and no data are needed.
    unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            std::ptr::null(),
            libc::MS_BIND,
            std::ptr::null(),
        );
    }
}

/// Tells all hosts each other's names, and that there is no name server.
///
/// # Errors
/// If the files can't be written.
pub fn names(hosts: &[(String, Ipv4Addr)]) -> Result<()> {
    let directory = Path::new("/run/lab/etc");
    std::fs::create_dir_all(directory)?;
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for (name, address) in hosts {
        text.push_str(&format!("{address} {name}\n"));
    }
    std::fs::write(directory.join("hosts"), text)?;
    std::fs::write(directory.join("resolv.conf"), "# no name server\n")?;
    Ok(())
}

/// Lays a cable between two hosts' new interfaces and brings both up. `mac` is for the first.
///
/// # Errors
/// If `ip` refuses.
pub fn cable(from: (&Host, &str, Option<&str>), to: (&Host, &str)) -> Result<()> {
    let address = from.2.map(|mac| format!("address {mac}")).unwrap_or_default();
    ip(&format!(
        "link add name {} netns {} {address} type veth peer name {} netns {}",
        from.1,
        from.0.name(),
        to.1,
        to.0.name()
    ))?;
    from.0.ip(&format!("link set {} up", from.1))?;
    to.0.ip(&format!("link set {} up", to.1))?;
    Ok(())
}

/// Plugs a host's new interface into a switch.
///
/// # Errors
/// If `ip` refuses.
pub fn plug(
    host: &Host,
    interface: &str,
    mac: Option<&str>,
    switch: &Host,
    bridge: &str,
    socket: &str,
) -> Result<()> {
    cable((host, interface, mac), (switch, socket))?;
    switch.ip(&format!("link set {socket} master {bridge}")).map(|_| ())
}

/// Takes the far end of a cable out of one host and puts it into another, under another name: what hangs at the near
/// end keeps its interface, and sees its link go down and up again.
///
/// # Errors
/// If `ip` refuses.
pub fn replug(from: (&Host, &str), to: (&Host, &str)) -> Result<()> {
    from.0.ip(&format!("link set {} down", from.1))?;
    from.0.ip(&format!("link set {} netns {} name {}", from.1, to.0.name(), to.1))?;
    to.0.ip(&format!("link set {} up", to.1)).map(|_| ())
}

/// Takes all hosts away, with their cables: another hospital can be built. What still runs on them stays where it is.
///
/// # Errors
/// If `ip` refuses.
pub fn clear() -> Result<()> {
    for line in ip("netns list")?.lines() {
        if let Some(name) = line.split_whitespace().next() {
            ip(&format!("netns del {name}"))?;
        }
    }
    std::fs::remove_dir_all("/run/lab").context("removing what the hosts shared")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_on_a_switch_reach_each_other() {
        let test = "topology::tests::hosts_on_a_switch_reach_each_other";
        if !crate::namespace::in_private_network(test) {
            return;
        }
        let switch = Host::create("switch").unwrap();
        switch.switch("br0").unwrap();
        let ends: Vec<Host> = (1..=2_u8)
            .map(|n| {
                let host = Host::create(&format!("host-{n}")).unwrap();
                let mac = format!("00:00:5e:00:53:{n:02x}");
                plug(&host, "eth0", Some(&mac), &switch, "br0", &format!("p{n}")).unwrap();
                host.address("eth0", Ipv4Addr::new(10, 0, 0, n), 24).unwrap();
                assert_eq!(host.mac("eth0").unwrap(), [0, 0, 0x5e, 0, 0x53, n]);
                host
            })
            .collect();
        let listener =
            ends[1].enter(|| std::net::TcpListener::bind("10.0.0.2:80")).unwrap().unwrap();
        ends[0].enter(|| std::net::TcpStream::connect("10.0.0.2:80")).unwrap().unwrap();
        drop(listener);
        assert_eq!(ends[0].run("uname", &["-n"]).unwrap().trim(), "host-1");
        let error = ends[0].run("sh", &["-c", "echo so; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("so") && error.contains("host-1"), "{error}");
        assert!(Host::open("nobody").unwrap_err().to_string().contains("nobody"));
    }
}
