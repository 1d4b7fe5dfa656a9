//! The real agent, as a process, in front of two devices.

use std::time::Duration;

use anteroom_agent::state::StateDir;
use anteroom_lab::process::Process;
use anteroom_lab::stream::Stream;
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;
use anteroom_proto::id::MemberId;
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use nix::sys::signal::Signal;

use crate::bench::{GATEWAY, NETWORK, PATIENCE, frame};
use crate::testkit::{self, Organisation};

/// Addresses of the two devices' and the network's interfaces.
pub(crate) const MACS: [[u8; 6]; 3] =
    [[0, 0, 0x5e, 0, 0x53, 0x10], [0, 0, 0x5e, 0, 0x53, 0x11], [0, 0, 0x5e, 0, 0x53, 0x20]];

/// The network's place in [`MACS`].
pub(crate) const NET: usize = 2;

/// A beat of the streams.
pub(crate) const EVERY: Duration = Duration::from_millis(1);

/// More frames than can be under way in an agent's and a kernel's queues at this beat.
const SOME: u64 = 100;

/// Two devices, a gateway with the real program on it, and a host on the network.
pub(crate) struct Appliance {
    /// The devices, then the network.
    pub(crate) hosts: [Host; 3],
    pub(crate) gateway: Host,
    pub(crate) directory: tempfile::TempDir,
    agent: Option<Process>,
}

impl Appliance {
    /// Lays the cables and writes the configuration. The agent isn't running.
    pub(crate) fn new() -> Self {
        let hosts = ["device-0", "device-1", "network"].map(|name| Host::create(name).expect(name));
        let gateway = Host::create("gateway").expect("gateway");
        for (host, (interface, mac)) in
            hosts.iter().zip(["port0", "port1", "up0"].into_iter().zip(MACS))
        {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            topology::ip(&format!(
                "link add name {interface} netns gateway type veth peer name eth0 address {mac} netns {}",
                host.name()
            ))
            .unwrap();
            host.ip("link set eth0 up").unwrap();
        }
        gateway.address("up0", GATEWAY, 24).unwrap();
        hosts[NET].address("eth0", NETWORK, 24).unwrap();
        let directory = tempfile::tempdir().expect("a directory");
        let shown = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "state = {:?}\nrun = {:?}\n[uplink]\ninterface = \"up0\"\n[underlay]\nlisten = \"0.0.0.0:51820\"\n\
             [[port]]\nname = \"port1\"\ninterface = \"port0\"\n\
             [[port]]\nname = \"port2\"\ninterface = \"port1\"\n",
            shown("state"),
            shown("run"),
        );
        std::fs::write(directory.path().join("agent.toml"), config).expect("the configuration");
        Self { hosts, gateway, directory, agent: None }
    }

    /// Makes it a gateway that holds a view: a device in each of these modes, in the ports' order.
    pub(crate) fn hold(&self, devices: &[(Mode, OnFailure)]) {
        let organisation = Organisation::new(&[testkit::nowhere()]);
        let mut intent = testkit::intent(testkit::GATEWAY, Mode::Observe);
        let template = intent.devices.remove(0);
        for (number, (mode, on_failure)) in (0..).zip(devices) {
            let mut device = template.clone();
            device.member.id = MemberId::from_bytes([7 + number; 16]);
            device.member.mac = MacAddr(MACS[usize::from(number)]);
            device.member.addresses = vec![format!("10.0.0.{}/32", 10 + number).parse().unwrap()];
            (device.member.mode, device.on_failure) = (*mode, *on_failure);
            device.port = format!("port{}", number + 1).parse().unwrap();
            intent.devices.push(device);
        }
        let view = organisation.view_of(&intent, 1, 1);
        let state = self.state_dir();
        state.identity_or_new().unwrap();
        state.write_enrolment(&organisation.enrolment()).unwrap();
        state.write_authority(&organisation.followed()).unwrap();
        if devices.iter().any(|(mode, _)| *mode == Mode::Enforce) {
            state.mark_enforced().unwrap();
        }
        state.write_view(&view).unwrap();
    }

    pub(crate) fn state_dir(&self) -> StateDir {
        StateDir::open(&self.directory.path().join("state")).expect("the state directory")
    }

    /// Does what is done at boot before the agent starts.
    pub(crate) fn boot(&self) {
        let config = self.directory.path().join("agent.toml").display().to_string();
        let program = env!("CARGO_BIN_EXE_anteroom-agent");
        self.gateway.run(program, &["ports", "isolate", "--config", &config]).expect("isolated");
    }

    /// Removes the packet filter, as a power cut does, and leaves the interfaces on.
    pub(crate) fn forget_filter(&self) {
        let config = self.directory.path().join("agent.toml").display().to_string();
        let program = env!("CARGO_BIN_EXE_anteroom-agent");
        self.gateway.run(program, &["ports", "release", "--config", &config]).expect("released");
        for port in ["port0", "port1"] {
            self.gateway.ip(&format!("link set {port} up")).unwrap();
        }
    }

    /// Starts the agent; doesn't wait.
    pub(crate) fn start(&mut self) {
        let mut command = self.gateway.command(env!("CARGO_BIN_EXE_anteroom-agent"));
        command.args(["--log", "info,anteroom_agent::dataplane=debug", "run", "--config"]);
        command.arg(self.directory.path().join("agent.toml"));
        let log = self.directory.path().join("agent.log");
        self.agent = Some(Process::spawn("anteroom-agent", &mut command, &log).expect("the agent"));
    }

    /// Waits until the agent answers on its local socket. It does so once its data plane runs, or is held shut.
    pub(crate) fn wait_running(&mut self) {
        let socket = self.directory.path().join("run/agent.sock");
        let pid = self.agent().id();
        let began = wait::until(PATIENCE, "the agent to answer", || {
            let config = self.directory.path().join("agent.toml").display().to_string();
            let program = env!("CARGO_BIN_EXE_anteroom-agent");
            let output = self
                .gateway
                .command(program)
                .args(["status", "--json", "--config", &config])
                .output()
                .ok()?;
            String::from_utf8_lossy(&output.stdout).contains("\"uptime_ms\"").then_some(())
        });
        began.unwrap_or_else(|error| panic!("{error} at {socket:?} (pid {pid}):\n{}", self.log()));
        // A kernel sends on a new cable a moment after both ends were switched on.
        for (host, interface) in
            self.hosts.iter().map(|host| (host, "eth0")).chain([(&self.gateway, "up0")])
        {
            wait::until(PATIENCE, "a live cable", || {
                host.ip(&format!("link show {interface}")).ok()?.contains("state UP").then_some(())
            })
            .unwrap_or_else(|error| panic!("{error} at {host:?}\n{}", self.log()));
        }
    }

    pub(crate) fn agent(&self) -> &Process {
        self.agent.as_ref().expect("the agent was started")
    }

    /// All that the agent has logged.
    pub(crate) fn log(&self) -> String {
        self.agent.as_ref().map(Process::output).unwrap_or_default()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.agent.take().expect("the agent runs").kill().expect("it can be killed");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.agent().signal(signal).expect("the agent runs");
    }

    /// Stops it in order.
    pub(crate) fn stop(&mut self) {
        let mut agent = self.agent.take().expect("the agent runs");
        let status = agent.stop(PATIENCE).expect("it ends");
        assert!(status.success(), "{status}:\n{}", agent.tail());
    }

    /// Broadcasts numbered frames from one of the hosts to another.
    pub(crate) fn stream(&self, from: usize, to: usize) -> Stream {
        self.stream_of(from, to, &frame(MACS[to], MACS[from], 0x88b5, &[]))
    }

    /// Numbered frames behind these headers.
    pub(crate) fn stream_of(&self, from: usize, to: usize, headers: &[u8]) -> Stream {
        Stream::start((&self.hosts[from], "eth0"), (&self.hosts[to], "eth0"), headers, EVERY)
            .expect("a stream")
    }

    /// As [`Appliance::stream_of`], where the receiving kernel takes a tag of `tag` bytes off.
    pub(crate) fn stream_untagged(
        &self,
        from: usize,
        to: usize,
        headers: &[u8],
        tag: usize,
    ) -> Stream {
        let [from, to] = [from, to].map(|host| (&self.hosts[host], "eth0"));
        Stream::start_changed(from, to, headers, headers.len() - tag, EVERY).expect("a stream")
    }

    /// Streams both ways between a device and the network, that pass already.
    pub(crate) fn both_ways(&self, device: usize) -> [Stream; 2] {
        let streams = [self.stream(device, NET), self.stream(NET, device)];
        for stream in &streams {
            self.wait_more(stream);
        }
        streams
    }

    /// Waits until so much of each was sent that some would have come through.
    pub(crate) fn hold_on(&self, streams: &[Stream]) {
        for stream in streams {
            let before = stream.sent();
            wait::until(PATIENCE, "frames to be sent", || {
                (stream.sent() >= before + SOME).then_some(())
            })
            .unwrap_or_else(|error| panic!("{error}:\n{}", self.log()));
        }
    }

    /// Waits until more of a stream comes through.
    pub(crate) fn wait_more(&self, stream: &Stream) {
        let before = stream.received();
        wait::until(PATIENCE, "frames to pass", || {
            (stream.received() >= before + SOME).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}, {before} did before:\n{}", self.log()));
    }
}
