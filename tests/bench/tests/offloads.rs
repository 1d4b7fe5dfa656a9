//! Everything works without each thing that kernel and network card may do for the agent.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anteroom_bench::load::echo;
use anteroom_bench::organisation::{Attached, Opening, Organisation};
use anteroom_bench::tools::Tools;
use anteroom_bench::world::{Addressing, Card, Device, UNDERLAY, World};
use anteroom_lab::namespace;
use anteroom_lab::process::Process;
use anteroom_lab::programs::{Profile, Programs};

const PATIENCE: Duration = Duration::from_secs(30);
const OFFLOADS: [&str; 3] = ["super_frames", "udp_segmentation", "udp_merging"];

/// Starts both gateways, each with these offloads switched off. Returns their configurations too.
fn start(
    world: &World,
    agent: &Path,
    directory: &Path,
    off: [&[&str]; 2],
) -> Vec<(Process, String)> {
    let mut organisation = Organisation::new().expect("an organisation");
    for (gateway, address) in UNDERLAY.into_iter().enumerate() {
        let state = directory.join(format!("state-{gateway}"));
        organisation.enrol(state, SocketAddr::from((address, 51_820))).expect("enrolled");
    }
    for device in Device::ALL {
        organisation.devices.push(Attached {
            gateway: device.gateway(),
            port: device.port(),
            mac: device.mac(),
            address: world.address(device),
        });
    }
    let (from, to) = (vec![Device::A as usize], vec![Device::B as usize]);
    organisation.openings.push(Opening { from, to });
    organisation.sign().expect("signed");
    off.iter()
        .enumerate()
        .map(|(gateway, off)| {
            let [state, run] = ["state", "run"].map(|d| directory.join(format!("{d}-{gateway}")));
            let off: String = off.iter().map(|offload| format!("{offload} = false\n")).collect();
            let text = format!(
                "state = {state:?}\nrun = {run:?}\n[uplink]\ninterface = \"up0\"\n\
                 [underlay]\nlisten = \"0.0.0.0:51820\"\n\
                 [[port]]\nname = \"port1\"\ninterface = \"port0\"\n\
                 [[port]]\nname = \"port2\"\ninterface = \"port1\"\n[offloads]\n{off}"
            );
            let config = directory.join(format!("agent-{gateway}.toml"));
            std::fs::write(&config, text).expect("the configuration");
            let config = config.display().to_string();
            let host = &world.gateways[gateway];
            host.run(agent, &["ports", "isolate", "--config", &config]).expect("isolated");
            let mut command = host.command(agent);
            command.args(["--log", "warn", "run", "--config", &config]);
            let log = directory.join(format!("{gateway}.log"));
            (Process::spawn("agent", &mut command, &log).expect("the agent"), config)
        })
        .collect()
}

/// Bytes that tell where they stand.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
}

/// Sends a datagram. A gateway may have said that an earlier one was too big; the system tells that once, and cuts them
/// itself from then on.
fn send(socket: &UdpSocket, bytes: &[u8]) {
    let sent = socket.send(bytes).or_else(|error| match error.raw_os_error() {
        Some(nix::libc::EMSGSIZE) => socket.send(bytes),
        _ => Err(error),
    });
    assert_eq!(sent.unwrap(), bytes.len());
}

/// Sends the same bytes there and back over TCP, and datagrams of two sizes over UDP.
fn exchange(world: &World, what: &str) {
    let bytes = pattern(3 << 20);
    let to = world.address(Device::B);
    let listener = world
        .device(Device::B)
        .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5000)).unwrap())
        .unwrap();
    let far = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = vec![0; 3 << 20];
        stream.read_exact(&mut got).unwrap();
        stream.write_all(&got).unwrap();
    });
    let mut stream = world
        .device(Device::A)
        .enter(|| TcpStream::connect_timeout(&(to, 5000).into(), PATIENCE).unwrap())
        .unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(got == bytes, "{what}: TCP brought something else");
    far.join().unwrap();

    let bind = |device, port| {
        let host = world.device(device);
        host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap()
    };
    let (near, far) = (bind(Device::A, 0), bind(Device::B, 5001));
    far.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    near.connect((to, 5001)).unwrap();
    for size in [100, 1472] {
        let sent: Vec<Vec<u8>> =
            (0..200_u8).map(|fill| [&[fill], &pattern(size - 1)[..]].concat()).collect();
        let mut got = Vec::new();
        // No more at once than any socket's buffer takes.
        for burst in sent.chunks(20) {
            for bytes in burst {
                send(&near, bytes);
            }
            let (want, end) = (got.len() + burst.len(), Instant::now() + PATIENCE);
            while got.len() < want && Instant::now() < end {
                let mut room = vec![0; 2000];
                if let Ok(len) = far.recv(&mut room) {
                    room.truncate(len);
                    got.push(room);
                }
            }
        }
        assert!(got == sent, "{what}: {} of {} datagrams of {size} bytes", got.len(), sent.len());
    }
}

#[test]
fn each_offload_can_be_missing_at_either_end() {
    if !namespace::inside() {
        Programs::of(Profile::Dev).build(Profile::Dev, false).expect("the agent is built");
    }
    if !namespace::in_private_network("each_offload_can_be_missing_at_either_end") {
        return;
    }
    let agent = Tools::of(Profile::Dev).agent;
    let all = &OFFLOADS[..];
    let cases: [[&[&str]; 2]; 6] = [
        [&[], &[]],
        [&OFFLOADS[..1], &OFFLOADS[..1]],
        [&OFFLOADS[1..2], &OFFLOADS[1..2]],
        [&OFFLOADS[2..], &OFFLOADS[2..]],
        [all, &[]],
        [&[], all],
    ];
    for (number, off) in cases.into_iter().enumerate() {
        let what = format!("without {:?} here and {:?} there", off[0], off[1]);
        // Without super-frames nothing longer than a cable's packets may come, as from any network card.
        let whole = off.iter().all(|off| !off.contains(&OFFLOADS[0]));
        let card = if whole { Card::Virtual } else { Card::Plain };
        let world = World::lay(&format!("off{number}"), Addressing::Flat, card).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let agents = start(&world, &agent, directory.path(), off);
        echo::wait_answered(&world, (Device::A, Device::B), PATIENCE).unwrap_or_else(|error| {
            let said: Vec<String> = agents.iter().map(|(agent, _)| agent.tail()).collect();
            panic!("{what}: {error:#}\n{}", said.join("\n--\n"))
        });
        for (gateway, (_, config)) in agents.iter().enumerate() {
            // It says by its exit code that no controller is in sight.
            let output = world.gateways[gateway]
                .command(&agent)
                .args(["status", "--config", config])
                .output();
            let status = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
            for (offload, shown) in
                OFFLOADS.iter().zip(["super-frames", "udp segmentation", "udp merging"])
            {
                let row = status.lines().find(|line| line.contains(shown));
                let is_off = row.is_some_and(|row| row.contains("off"));
                assert_eq!(is_off, off[gateway].contains(offload), "{what}: {shown}:\n{status}");
            }
        }
        exchange(&world, &what);
    }
}
