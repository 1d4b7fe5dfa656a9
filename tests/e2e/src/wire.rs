//! A real agent between two cables, with the test at both far ends: for what a wire may and may not do.

use std::path::Path;
use std::time::{Duration, Instant};

use anteroom_lab::packet::PacketSocket;
use anteroom_lab::process::Process;
use anteroom_lab::programs::Programs;
use anteroom_lab::topology::{self, Host};
use anteroom_lab::{programs, wait};
use anyhow::{Context as _, Result, bail};

/// How long frames may take through a gateway.
const PATIENCE: Duration = Duration::from_secs(30);

/// Most frames under way at once: less than any buffer holds.
const WINDOW: usize = 64;

/// An end of a cable, where whole frames go in and come out.
#[derive(Debug)]
pub struct End {
    socket: PacketSocket,
    /// What came out since [`End::take`].
    heard: Vec<Vec<u8>>,
}

impl End {
    /// Opens the interface of a host.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open(host: &Host, interface: &str) -> Result<Self> {
        let socket = host.enter(|| PacketSocket::open_on(interface, 3))??;
        Ok(Self { socket, heard: Vec::new() })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.socket.send(frame) {
                Ok(()) => return Ok(()),
                Err(error)
                    if error.raw_os_error() == Some(nix::libc::ENOBUFS)
                        && start.elapsed() < PATIENCE =>
                {
                    std::thread::yield_now();
                }
                Err(error) => bail!("sending {} bytes: {error}", frame.len()),
            }
        }
    }

    /// Reads what has come, for `limit` if nothing has yet.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn listen(&mut self, mut limit: Duration) -> Result<()> {
        while let Some(frame) = self.socket.receive_whole(limit)? {
            self.heard.push(frame);
            limit = Duration::ZERO;
        }
        Ok(())
    }

    /// What came out since the last time.
    pub fn take(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.heard)
    }

    /// What has come so far.
    #[must_use]
    pub fn heard(&self) -> &[Vec<u8>] {
        &self.heard
    }

    /// Frames that found no room in this end's own buffer: then the test is blind, not the gateway bad.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn missed(&self) -> Result<u32> {
        Ok(self.socket.missed()?)
    }
}

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the device to the network.
    Out,
    /// From the network to the device.
    In,
}

/// A device's cable, a gateway with a real agent that isn't enrolled, and the network's cable.
#[derive(Debug)]
pub struct Wire {
    /// The host at the device's end. It has no address.
    pub device: Host,
    /// The gateway.
    pub gateway: Host,
    /// The host at the network's end. It has no address.
    pub network: Host,
    /// The device's end.
    pub port: End,
    /// The network's end.
    pub uplink: End,
    agent: Process,
}

impl Wire {
    /// Lays the cables with this MTU, and starts the agent. Merging of packets is on at first, where `ethtool` is there
    /// to switch it on: the agent must see to it itself.
    ///
    /// # Errors
    /// If the kernel, `ip` or the agent refuses.
    pub fn start(programs: &Programs, directory: &Path, mtu: u32) -> Result<Self> {
        let device = Host::create("device")?;
        let gateway = Host::create("gateway")?;
        let network = Host::create("network")?;
        topology::cable((&gateway, "port1", None), (&device, "eth0"))?;
        topology::cable((&gateway, "uplink", None), (&network, "eth0"))?;
        for (host, interface) in
            [(&gateway, "port1"), (&gateway, "uplink"), (&device, "eth0"), (&network, "eth0")]
        {
            host.ip(&format!("link set {interface} mtu {mtu}"))?;
        }
        let ethtool = programs::find("ethtool");
        if let Some(ethtool) = &ethtool {
            for interface in ["port1", "uplink"] {
                gateway.run(ethtool, &["-K", interface, "gro", "on"])?;
            }
        } else {
            eprintln!("ethtool isn't installed: that the agent stops merging isn't tried here");
        }
        std::fs::create_dir_all("/run/wire")?;
        let config = directory.join("agent.toml");
        let state = directory.join("state").display().to_string();
        std::fs::write(
            &config,
            format!(
                "state = {state:?}\nrun = \"/run/wire\"\n\n[uplink]\ninterface = \"uplink\"\n\n[underlay]\nlisten = \
                 \"0.0.0.0:51820\"\n\n[[port]]\nname = \"port1\"\ninterface = \"port1\"\n"
            ),
        )?;
        let mut command = gateway.command(&programs.agent);
        command.arg("run").arg("--config").arg(&config);
        let agent = Process::spawn("anteroom-agent", &mut command, &directory.join("agent.log"))?;
        let (port, uplink) = (End::open(&device, "eth0")?, End::open(&network, "eth0")?);
        let mut wire = Self { device, gateway, network, port, uplink, agent };
        wire.wait()?;
        for (ethtool, interface) in
            ethtool.iter().flat_map(|tool| [(tool, "port1"), (tool, "uplink")])
        {
            let features = wire.gateway.run(ethtool, &["-k", interface])?;
            if !features.contains("generic-receive-offload: off") {
                bail!("a wire whose {interface} merges packets: {features}");
            }
        }
        Ok(wire)
    }

    /// Waits until frames pass both ways.
    fn wait(&mut self) -> Result<()> {
        let probe = |last: u8| {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, last, 0x88, 0xb5]);
            frame.resize(60, 0x77);
            frame
        };
        wait::until_ok(Duration::from_secs(60), "frames to pass the gateway", || {
            self.agent.must_run()?;
            self.port.send(&probe(1))?;
            self.uplink.send(&probe(2))?;
            self.uplink.listen(Duration::from_millis(50))?;
            self.port.listen(Duration::from_millis(50))?;
            let (out, back) = (self.uplink.take(), self.port.take());
            if out.contains(&probe(1)) && back.contains(&probe(2)) {
                return Ok(());
            }
            bail!("{} frames out, {} in", out.len(), back.len())
        })
        .with_context(|| self.agent.tail())?;
        // What of the probes is late mustn't be taken for something else: nothing overtakes the last ones.
        self.port.send(&probe(3))?;
        self.uplink.send(&probe(4))?;
        wait::until_ok(Duration::from_secs(60), "the last probes to pass", || {
            self.uplink.listen(Duration::from_millis(50))?;
            self.port.listen(Duration::from_millis(50))?;
            let passed =
                (self.uplink.heard().contains(&probe(3)), self.port.heard().contains(&probe(4)));
            if passed == (true, true) { Ok(()) } else { bail!("out, in: {passed:?}") }
        })
        .with_context(|| self.agent.tail())?;
        self.port.take();
        self.uplink.take();
        Ok(())
    }

    /// Sends frames in this order, each in at its own end, and says how what comes out differs: another number, other
    /// bytes, or another order in either direction.
    ///
    /// # Errors
    /// The first difference in each direction.
    pub fn carry(&mut self, frames: &[(Way, &[u8])]) -> Result<()> {
        carry(&mut self.port, &mut self.uplink, frames, |_| true).with_context(|| self.agent.tail())
    }
}

/// As [`Wire::carry`], between any two ends. What `counts` doesn't take is somebody else's.
///
/// # Errors
/// The first difference in each direction.
pub fn carry(
    port: &mut End,
    uplink: &mut End,
    frames: &[(Way, &[u8])],
    counts: impl Fn(&[u8]) -> bool,
) -> Result<()> {
    let mut sent = [0, 0];
    let mut got: [Vec<Vec<u8>>; 2] = Default::default();
    for part in frames.chunks(WINDOW) {
        for (way, frame) in part {
            match way {
                Way::Out => port.send(frame)?,
                Way::In => uplink.send(frame)?,
            }
            sent[usize::from(*way == Way::In)] += 1;
        }
        let deadline = Instant::now() + PATIENCE;
        while (got[0].len() < sent[0] || got[1].len() < sent[1]) && Instant::now() < deadline {
            uplink.listen(Duration::from_millis(u64::from(got[0].len() < sent[0])))?;
            port.listen(Duration::from_millis(u64::from(got[1].len() < sent[1])))?;
            got[0].extend(uplink.take().into_iter().filter(|frame| counts(frame)));
            got[1].extend(port.take().into_iter().filter(|frame| counts(frame)));
        }
        if got[0].len() < sent[0] || got[1].len() < sent[1] {
            break;
        }
    }
    let missed = port.missed()? + uplink.missed()?;
    if missed > 0 {
        bail!("{missed} frames found no room in the test's own buffers");
    }
    for (way, got) in [Way::Out, Way::In].into_iter().zip(&got) {
        let expected: Vec<&[u8]> =
            frames.iter().filter(|(of, _)| *of == way).map(|(_, frame)| *frame).collect();
        let same = expected.iter().zip(got).take_while(|(a, b)| **a == b.as_slice()).count();
        if same < expected.len() || got.len() != expected.len() {
            bail!(
                "{way:?}: {} frames went in and {} came out; number {same} went in as\n{:02x?}\nand came out as\n{:02x?}",
                expected.len(),
                got.len(),
                expected.get(same),
                got.get(same)
            );
        }
    }
    Ok(())
}
