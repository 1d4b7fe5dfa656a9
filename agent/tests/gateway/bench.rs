//! A gateway between two hosts, in a private network.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anteroom_agent::config::Config;
use anteroom_agent::dataplane::{self, Handle, Setup, Status};
use anteroom_agent::net::packet::{FrameRing, PacketOptions, PacketSocket, Unfit};
use anteroom_agent::net::wiring::Wiring;
use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::config::TunnelIdentity;
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::lane;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{IdentityKey, TunnelSecret};

pub(crate) const DEVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(crate) const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 20);
pub(crate) const TUNNEL_PORT: u16 = 51820;
/// How long anything may take on a machine that has a lot else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A device, a gateway in front of it, and a host on the network.
pub(crate) struct Bench {
    pub(crate) device: Host,
    pub(crate) gateway: Host,
    pub(crate) network: Host,
    pub(crate) config: Config,
}

impl Bench {
    /// Lays the cables. `mtu` is for all of them. The gateway's kernel has IPv6 at its most talkative.
    pub(crate) fn new(mtu: u32, management: &str) -> Self {
        let [device, gateway, network] =
            ["device", "gateway", "network"].map(|name| Host::create(name).expect(name));
        gateway
            .enter(|| {
                for scope in ["all", "default"] {
                    let file = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                    std::fs::write(file, "0").ok();
                }
            })
            .expect("entering the gateway");
        let bench = Self { config: config(management), device, gateway, network };
        bench.plug_port(mtu);
        let mac = Some("00:00:5e:00:53:02");
        topology::cable((&bench.gateway, "up0", mac), (&bench.network, "eth0")).unwrap();
        bench.gateway.ip(&format!("link set up0 mtu {mtu}")).unwrap();
        bench.network.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
        bench.gateway.address("up0", GATEWAY, 24).unwrap();
        bench.network.address("eth0", NETWORK, 24).unwrap();
        bench
    }

    /// Lays the cable between the gateway's port and the device, with the gateway's end switched off, as it is before
    /// anything has isolated it.
    pub(crate) fn plug_port(&self, mtu: u32) {
        topology::ip(
            "link add name port0 netns gateway type veth peer name eth0 address 00:00:5e:00:53:10 netns device",
        )
        .unwrap();
        self.gateway.ip(&format!("link set port0 mtu {mtu}")).unwrap();
        self.device.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
        self.device.address("eth0", DEVICE, 24).unwrap();
    }

    /// Starts the data plane with an engine that has no view, and waits until frames flow.
    pub(crate) fn start(&self) -> Running {
        let running = self.start_dark();
        self.wait_live();
        running
    }

    /// As [`Bench::start`], and waits for no cable.
    pub(crate) fn start_dark(&self) -> Running {
        let config = self.config.clone();
        let (started, handle) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = self.gateway.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let mut setup = match Setup::prepare(&config, Wiring::of(&config, None)).await {
                    Ok(setup) => setup,
                    Err(error) => {
                        started.send(Err(error.to_string())).expect("the test waits");
                        return;
                    }
                };
                let warnings = setup.warnings().to_vec();
                let identity = TunnelIdentity {
                    gateway: GatewayId::from_bytes([7; 16]),
                    secret: TunnelSecret::from_bytes([9; 32]),
                    identity: IdentityKey::from_seed(&[9; 32]),
                    seed: [5; 32],
                };
                let now = Instant::now();
                let mut engine = Engine::new(setup.engine_config(), identity, now);
                if config.offloads.lanes {
                    let secret = TunnelSecret::from_bytes([8; 32]);
                    let runner = setup.run_lanes().expect("lane threads start");
                    engine.use_lanes(&secret, lane::USUAL, runner, now);
                }
                let handle = dataplane::spawn(setup, engine).map_err(|error| error.to_string());
                started.send(handle.map(|h| (h, warnings))).expect("the test waits");
                let _ = stopped.await;
            });
        });
        let (handle, warnings) =
            handle.recv().expect("the gateway's thread answers").expect("the data plane starts");
        Running { handle, warnings, stop: Some(stop), thread: Some(thread.expect("a thread")) }
    }

    /// Waits until the kernels send on the cables: they do so up to a second after both ends were switched on. Where
    /// the port is unplugged there is nothing to wait for.
    pub(crate) fn wait_live(&self) {
        let ends = [
            (&self.device, "eth0"),
            (&self.network, "eth0"),
            (&self.gateway, "up0"),
            (&self.gateway, "port0"),
        ];
        if self.gateway.ip("link show port0").is_err() {
            return;
        }
        Self::wait_ends(&ends);
    }

    /// As [`Bench::wait_live`], for the cable between gateway and network alone.
    pub(crate) fn wait_uplink_live(&self) {
        Self::wait_ends(&[(&self.network, "eth0"), (&self.gateway, "up0")]);
    }

    fn wait_ends(ends: &[(&Host, &str)]) {
        for (host, interface) in ends {
            let mut state = String::new();
            wait::until(PATIENCE, "a live cable", || {
                state = host.ip(&format!("link show {interface}")).unwrap();
                state.contains("state UP").then_some(())
            })
            .unwrap_or_else(|error| panic!("{error} at {host:?}: {state}"));
        }
    }

    /// A socket that hears and sends every frame of the device's interface.
    pub(crate) fn device_tap(&self) -> Tap {
        Tap::open(&self.device, "eth0")
    }

    /// A socket that hears and sends every frame of the network host's interface.
    pub(crate) fn network_tap(&self) -> Tap {
        Tap::open(&self.network, "eth0")
    }
}

pub(crate) fn config(management: &str) -> Config {
    let text = format!(
        r#"
        [uplink]
        interface = "up0"
        [underlay]
        listen = "0.0.0.0:{TUNNEL_PORT}"
        management = [{management}]
        [[port]]
        name = "port-1"
        interface = "port0"
        "#
    );
    Config::parse(Path::new("bench.toml"), &text).expect("the bench's configuration")
}

/// A data plane at work. It ends when this is dropped.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) warnings: Vec<String>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Running {
    pub(crate) fn status(&self) -> Status {
        block_on(self.handle.status()).expect("the data plane runs")
    }

    /// Waits until the uplink (0) or the port (1) is open, or isn't: until the status says so, and whoever follows is told.
    pub(crate) fn wait_open(&self, index: usize, open: bool) {
        let mut told = self.handle.open();
        wait::until(PATIENCE, "the interface to open or close", || {
            let followed = told.borrow_and_update().get(index) == Some(&open);
            (self.status().interfaces[index].open == open && followed).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:#?}", self.status()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = block_on(self.handle.shutdown());
        self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the gateway's thread panicked");
        }
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) vnet: VnetHeader,
    pub(crate) vlan: Option<VlanTag>,
    pub(crate) bytes: Vec<u8>,
}

/// Hears what comes in at an interface, and sends whole frames there.
pub(crate) struct Tap {
    ears: PacketSocket,
    ring: FrameRing,
    heard: VecDeque<Heard>,
    mouth: anteroom_lab::packet::PacketSocket,
}

impl Tap {
    pub(crate) fn open(host: &Host, interface: &str) -> Self {
        host.enter(|| {
            let index = nix::net::if_::if_nametoindex(interface).expect("the interface");
            let options = PacketOptions { skip: None, super_frames: true, deaf: false };
            Self {
                ears: PacketSocket::open(index, options).expect("a packet socket"),
                ring: FrameRing::default(),
                heard: VecDeque::new(),
                mouth: anteroom_lab::packet::PacketSocket::open_on(interface, 3)
                    .expect("a packet socket"),
            }
        })
        .expect("entering the host")
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        self.mouth.send(frame).expect("sending a frame");
    }

    /// The next frame, if one comes in time.
    pub(crate) fn next(&mut self, limit: Duration) -> Option<Heard> {
        let end = Instant::now() + limit;
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Some(heard);
            }
            let mut unfit = Unfit::default();
            let fetched = self.ring.fetch(&self.ears, &mut unfit).expect("receiving");
            let heard = &mut self.heard;
            self.ring.lend(&mut unfit, |frames| {
                heard.extend(frames.iter().map(|frame| Heard {
                    vnet: frame.vnet,
                    vlan: frame.vlan,
                    bytes: frame.bytes.to_vec(),
                }));
            });
            assert_eq!(unfit, Unfit::default());
            if fetched == 0 {
                let left = end.checked_duration_since(Instant::now())?;
                let mut poll = [nix::poll::PollFd::new(
                    std::os::fd::AsFd::as_fd(&self.ears),
                    nix::poll::PollFlags::POLLIN,
                )];
                let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
                nix::poll::poll(&mut poll, millis).expect("polling");
            }
        }
    }

    /// The next frame that `wanted` takes; what comes before it goes into `passed`.
    pub(crate) fn find(
        &mut self,
        passed: &mut Vec<Heard>,
        wanted: impl Fn(&Heard) -> bool,
    ) -> Option<Heard> {
        self.find_within(PATIENCE, passed, wanted)
    }

    /// As [`Tap::find`], within a time.
    pub(crate) fn find_within(
        &mut self,
        limit: Duration,
        passed: &mut Vec<Heard>,
        wanted: impl Fn(&Heard) -> bool,
    ) -> Option<Heard> {
        let end = Instant::now() + limit;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match self.next(left) {
                Some(heard) if wanted(&heard) => return Some(heard),
                Some(heard) => passed.push(heard),
                None => return None,
            }
        }
        None
    }
}

/// An Ethernet frame from its parts.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), payload].concat()
}
