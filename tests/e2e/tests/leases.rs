//! DHCP between real sockets through a real gateway, in enforce: from discover to renewal, through a relay, with leases
//! that change while the controller is dead, and beside those who pass for servers (statements 3 and 5).

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anteroom_agent_core::wire::dhcp::MessageType;
use anteroom_e2e::attack::{self, BROADCAST, Mac};
use anteroom_e2e::dhcp::{Client, Lease, Message, Offer, Relay, Server, kind};
use anteroom_e2e::wire::End;
use anteroom_e2e::{Fixture, Stage, drops, fixture, sum};
use anteroom_lab::hospital::{Hospital, address};
use anteroom_lab::process::Process;
use anteroom_lab::story::{
    POLICY, approve_all, confirm, device_names, open_tcp, wait_for_inventory,
};
use anteroom_lab::topology::{self, Host};
use anteroom_lab::{ping, programs, wait};
use anteroom_proto::mac::MacAddr;

const BEAT: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(60);

/// The server in the devices' own network, the one behind the router, and name and time for all.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 5);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 53);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);

const INFRASTRUCTURE: &str = r#"
[infrastructure.north]
dhcp = ["10.20.1.5", "10.20.1.1", "10.20.0.53"]
dns = ["10.20.0.53"]
ntp = ["10.20.0.53"]
"#;

fn at(last: u8) -> Ipv4Addr {
    address("imaging", last)
}

/// A hospital in enforce whose CT has its address from a server.
struct Stand {
    fixture: Fixture,
    near: Host,
    far: Host,
    server: Server,
    client: Client,
}

impl Stand {
    fn new(test: &str) -> Option<Self> {
        let fixture = fixture(test, Stage::Wires)?;
        let hospital = &fixture.hospital;
        for device in hospital.devices() {
            device.announce().unwrap();
        }
        approve_all(hospital).unwrap();
        wait_for_inventory(hospital).unwrap();
        for device in hospital.devices() {
            if device.plan.name != "ct-1" {
                confirm(hospital, device.plan.name, &[]).unwrap();
                continue;
            }
            let words = format!(
                "device confirm {} --name ct-1 --address 10.20.1.0/24 --prefix-len 24 --router {ROUTER} --label \
                 class=ct --label role=modality --reason plate --yes",
                device.plan.mac()
            );
            hospital.operator.ok(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
        }
        let policy = format!("{POLICY}{INFRASTRUCTURE}");
        let file = hospital.operator.write_policy("policy.toml", &policy).unwrap();
        hospital.operator.apply(&file, "first policy").unwrap();
        let near = plug(hospital, "near", "imaging", NEAR, ROUTER);
        let far = plug(hospital, "far", "mgmt", FAR, address("mgmt", 1));
        let offer = Offer { address: at(50), seconds: 3_600, answers: true };
        let server = Server::start(&near, "eth0", NEAR, offer).unwrap();
        let client = Client::new(&hospital.machine("ct-1").host, ROUTER).unwrap();
        client.lease(SOON).unwrap();
        let names = device_names(hospital);
        hospital.operator.mode(&names, "protect", "pilot").unwrap();
        hospital.operator.mode(&names, "enforce", "go").unwrap();
        Some(Self { fixture, near, far, server, client })
    }

    fn hospital(&self) -> &Hospital {
        &self.fixture.hospital
    }

    fn works(&self, lease: Lease) {
        works(self.hospital(), &self.client.host, lease);
    }
}

/// The CT reaches the PACS, and the PACS the CT, through the tunnel.
fn works(hospital: &Hospital, ct: &Host, lease: Lease) {
    let pacs = hospital.machine("pacs-1");
    let state = |error: anyhow::Error| -> ! {
        let gateways = ["imaging", "servers"].map(|name| hospital.gateways[name].status());
        panic!("{error:#}: {gateways:#?}")
    };
    wait::until_ok(SOON, "the CT to reach the PACS", || {
        let series = ping::ping(ct, pacs.address(), 5, BEAT)?;
        anyhow::ensure!(series.lost() == 0, "{series:?}");
        Ok(())
    })
    .unwrap_or_else(|error| state(error));
    let listener = ct.enter(|| TcpListener::bind((lease.address, 4_006))).unwrap().unwrap();
    wait::until_ok(SOON, "the PACS to reach the CT", || {
        open_tcp(&pacs.host, (lease.address, 4_006), Duration::from_secs(1)).map(drop)
    })
    .unwrap_or_else(|error| state(error));
    drop(listener);
}

fn plug(hospital: &Hospital, name: &str, subnet: &str, own: Ipv4Addr, router: Ipv4Addr) -> Host {
    let host = Host::create(name).unwrap();
    let bridge = format!("br-{subnet}");
    topology::plug(&host, "eth0", None, &hospital.campus, &bridge, &format!("h-{name}")).unwrap();
    host.address("eth0", own, 24).unwrap();
    host.default_route(router).unwrap();
    host
}

/// A server that answers each datagram with itself, until it is dropped.
struct Echo(Arc<AtomicBool>);

impl Echo {
    fn start(host: &Host, port: u16) -> Self {
        let socket = host.enter(|| UdpSocket::bind(("0.0.0.0", port))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while !ended.load(Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..length], from).ok();
                }
            }
        });
        Self(stop)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What a host's question to a port of the far server is answered with. It asks again, as such clients do.
fn asks(host: &Host, port: u16) -> Option<Vec<u8>> {
    let socket = host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 512];
    (0..10).find_map(|_| {
        socket.send_to(b"what is it?", (FAR, port)).unwrap();
        socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
    })
}

/// Ends of all that a device said in the clear, and other frames of its own as they were.
fn said(uplink: &mut End, device: Mac) -> (Vec<attack::Ends>, Vec<Vec<u8>>) {
    uplink.listen(Duration::from_millis(100)).unwrap();
    let own = uplink.take().into_iter().filter(|frame| frame[6..12] == device);
    let (mut datagrams, mut others) = (Vec::new(), Vec::new());
    for frame in own {
        match attack::datagram(&frame) {
            Some((ends, _)) => datagrams.push(ends),
            None => others.push(frame),
        }
    }
    (datagrams, others)
}

#[test]
fn leases_are_got_renewed_relayed_and_changed_while_the_controller_is_dead() {
    let test = "leases_are_got_renewed_relayed_and_changed_while_the_controller_is_dead";
    let Some(mut stand) = Stand::new(test) else { return };
    let mac = stand.client.host.mac("eth0").unwrap();
    let mut uplink = End::open(&stand.hospital().campus, "u-imaging").unwrap();

    // In enforce, from the first word to a renewal.
    let first = stand.client.lease(SOON).unwrap();
    assert_eq!((first.address, first.server), (at(50), NEAR));
    stand.works(first);
    assert!(stand.client.renew(first, SOON).unwrap(), "renewed");
    stand.works(first);
    let (_dns, _ntp) = (Echo::start(&stand.far, 53), Echo::start(&stand.far, 123));
    for port in [53, 123] {
        assert_eq!(asks(&stand.client.host, port).as_deref(), Some(&b"what is it?"[..]), "{port}");
    }
    let (datagrams, others) = said(&mut uplink, mac);
    let kinds: std::collections::BTreeSet<u16> = datagrams.iter().map(|(_, to)| to.1).collect();
    assert_eq!(kinds, [53, 67, 123].into(), "in the clear: {datagrams:?}");
    let arp: Vec<_> = others.iter().filter(|frame| frame[12..14] != [8, 6]).collect();
    assert!(arp.is_empty(), "in the clear: {arp:02x?}");

    // Another address while the controller is dead: the peers follow, and the old one is nobody's.
    stand.fixture.hospital.controller.kill().unwrap();
    stand.server.give(|offer| offer.address = at(51));
    assert!(!stand.client.renew(first, SOON).unwrap(), "refused: it has another address now");
    let second = stand.client.lease(SOON).unwrap();
    assert_eq!(second.address, at(51));
    stand.works(second);
    let pacs = &stand.hospital().machine("pacs-1").host;
    stand.client.host.ip("address add 10.20.1.50/24 dev eth0").unwrap();
    let _old = stand.client.host.enter(|| TcpListener::bind((at(50), 4_006))).unwrap().unwrap();
    let refused = open_tcp(pacs, (at(50), 4_006), Duration::from_millis(700));
    assert!(refused.is_err(), "an address that was given up");

    // Through a relay, from a server behind the router.
    stand.server.give(|offer| offer.answers = false);
    let offer = Offer { address: at(52), seconds: 3_600, answers: true };
    let far = Server::start(&stand.far, "eth0", FAR, offer).unwrap();
    let _relay = Relay::start(&stand.hospital().router, "imaging", ROUTER, FAR).unwrap();
    drop(_old);
    let third = stand.client.lease(SOON).unwrap();
    assert_eq!((third.address, third.server), (at(52), FAR));
    stand.works(third);
    // It renews at the server itself, which is behind the router.
    assert!(stand.client.renew(third, SOON).unwrap(), "renewed past the relay");
    stand.works(third);
    // Gateways that start anew go on under it, with no controller in sight. The device's own is stopped in good order:
    // killed within a second of a new lease, it wouldn't know of it until the device renews.
    for name in ["imaging", "servers"] {
        let gateway = stand.fixture.hospital.gateway(name);
        if name == "imaging" {
            gateway.stop().unwrap();
        } else {
            gateway.kill().unwrap();
        }
        gateway.start().unwrap();
        gateway.wait_running().unwrap();
    }
    stand.works(third);
    far.end().unwrap();
    stand.server.end().unwrap();
}

#[test]
fn whoever_passes_for_a_server_of_addresses_names_or_time_is_not_heard() {
    let test = "whoever_passes_for_a_server_of_addresses_names_or_time_is_not_heard";
    let Some(stand) = Stand::new(test) else { return };
    let hospital = stand.hospital();
    let lease = stand.client.lease(SOON).unwrap();
    stand.works(lease);
    let (ct, pacs) = (stand.client.host.clone(), hospital.machine("pacs-1").address());
    let (ct_mac, mri) = (ct.mac("eth0").unwrap(), hospital.machine("mri-1"));
    let mri_mac = mri.host.mac("eth0").unwrap();
    let pinging = ping::Pinging::start(&ct, pacs, 1_000_000, BEAT).unwrap();
    let (mut port, beside) =
        (End::open(&ct, "eth0").unwrap(), End::open(&mri.host, "eth0").unwrap());
    let campus = End::open(&hospital.campus, "u-imaging").unwrap();
    let mut uplink = End::open(&hospital.campus, "u-imaging").unwrap();
    let own = hospital.machine("intruder").host.mac("imaging").unwrap();
    let near = stand.near.mac("eth0").unwrap();
    let router = hospital.router.mac("imaging").unwrap();

    // The CT has just asked: the worst moment. The attacker knows what it asked.
    stand.server.give(|offer| offer.answers = false);
    let transaction = stand.client.discover().unwrap();
    let name = ct.enter(|| UdpSocket::bind((lease.address, 5_300))).unwrap().unwrap();
    let time = ct.enter(|| UdpSocket::bind((lease.address, 123))).unwrap().unwrap();
    name.send_to(b"?", (FAR, 53)).unwrap();
    time.send_to(b"?", (FAR, 123)).unwrap();
    wait::until(SOON, "the CT's question", || {
        let heard = stand.server.take_heard();
        heard.iter().any(|message| message.transaction == transaction).then_some(())
    })
    .unwrap();
    drop(stand.server.take_heard());

    let answers = |server: Ipv4Addr, from: Mac| {
        let mut frames = Vec::new();
        for kind in [kind::OFFER, kind::ACK, kind::NAK] {
            let message = Message {
                yours: at(99),
                server: Some(server),
                lease: Some(60),
                ..Message::new(kind, transaction, MacAddr(ct_mac))
            };
            for (mac, to) in [
                (BROADCAST, Ipv4Addr::BROADCAST),
                (ct_mac, Ipv4Addr::BROADCAST),
                (ct_mac, at(99)),
                (ct_mac, lease.address),
            ] {
                let packet = attack::udp(((server, 67), (to, 68)), &message.bytes());
                frames.push(attack::frame(mac, from, 0x0800, &packet));
            }
        }
        for (service, port) in [(53, 5_300), (123, 123)] {
            let packet = attack::udp(((server, service), (lease.address, port)), &[0x81; 48]);
            frames.push(attack::frame(ct_mac, from, 0x0800, &packet));
        }
        frames
    };
    // From the device beside it, as anybody; from the campus, as anybody who isn't listed.
    let mut from_device = Vec::new();
    for (server, mac) in [
        (NEAR, mri_mac),
        (NEAR, near),
        (FAR, router),
        (FAR, mri_mac),
        (ROUTER, router),
        (ROUTER, mri_mac),
        (mri.address(), mri_mac),
        (lease.address, ct_mac),
    ] {
        from_device.extend(answers(server, mac));
    }
    // And as the CT itself, or as a client that wants what the CT has.
    for mac in [mri_mac, ct_mac] {
        for kind in [kind::RELEASE, kind::DECLINE, kind::REQUEST, kind::DISCOVER] {
            let message = Message {
                client: lease.address,
                requested: Some(lease.address),
                server: Some(NEAR),
                ..Message::new(kind, 0x7777, MacAddr(ct_mac))
            };
            for from in [lease.address, Ipv4Addr::UNSPECIFIED, mri.address()] {
                for (to, target) in [(BROADCAST, Ipv4Addr::BROADCAST), (near, NEAR)] {
                    let packet = attack::udp(((from, 68), (target, 67)), &message.bytes());
                    from_device.push(attack::frame(to, mac, 0x0800, &packet));
                }
            }
        }
    }
    let mut from_campus = Vec::new();
    for (server, mac) in [
        (at(66), own),
        (at(66), near),
        (lease.address, own),
        (pacs, router),
        (Ipv4Addr::new(198, 51, 100, 9), router),
        (Ipv4Addr::UNSPECIFIED, own),
        (Ipv4Addr::BROADCAST, own),
    ] {
        from_campus.extend(answers(server, mac));
    }
    let gateway = &hospital.gateways["imaging"];
    let before = sum(&drops(gateway).unwrap());
    let all = (from_device.len() + from_campus.len()) as u64;
    for frame in &from_device {
        beside.send(frame).unwrap();
    }
    for frame in &from_campus {
        campus.send(frame).unwrap();
    }
    wait::until_ok(SOON, "the gateway to have counted them", || {
        let counted = sum(&drops(gateway)?) - before;
        anyhow::ensure!(counted >= all * 9 / 10, "{counted} of {all}");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", drops(gateway)));
    port.listen(Duration::from_millis(200)).unwrap();
    let heard: Vec<_> = port.heard().iter().filter(|frame| attack::is_marked(frame)).collect();
    assert!(heard.is_empty(), "the CT heard {heard:02x?}");
    uplink.listen(Duration::from_millis(50)).unwrap();
    let passed: Vec<_> = uplink.heard().iter().filter(|frame| attack::is_marked(frame)).collect();
    assert!(passed.is_empty(), "the campus heard {passed:02x?}");
    let told = stand.server.take_heard();
    assert!(told.iter().all(|message| message.transaction != 0x7777), "{told:?}");

    // What wasn't listed from the campus is now the listed one: the device's own exchange goes on as if nothing was.
    stand.server.give(|offer| offer.answers = true);
    assert!(stand.client.renew(lease, SOON).unwrap(), "renewed");
    assert!(
        stand.server.take_heard().iter().any(|m| m.message_type == MessageType::Request),
        "the server was asked"
    );
    wait::until(SOON, "pings", || (pinging.received() > 50).then_some(())).unwrap();
    let series = pinging.stop().unwrap();
    assert!(series.sent > 50 && series.lost() == 0, "{series:?}");
    stand.works(lease);
    println!("{all} frames of impostors, none heard");
}

#[test]
fn stock_programs_get_and_renew_a_lease_through_a_gateway_in_enforce() {
    let test = "stock_programs_get_and_renew_a_lease_through_a_gateway_in_enforce";
    let Some(busybox) = programs::find("busybox") else {
        eprintln!("skipped: busybox, with udhcpc and udhcpd, isn't installed");
        return;
    };
    let Some(stand) = Stand::new(test) else { return };
    let Stand { fixture, near, far: _, server, client } = stand;
    // Its place is another's now.
    server.end().unwrap();
    let (hospital, ct) = (&fixture.hospital, &client.host);
    let directory = fixture.directory();
    let (leases, config, script) = (
        directory.join("udhcpd.leases"),
        directory.join("udhcpd.conf"),
        directory.join("udhcpc.sh"),
    );
    std::fs::write(&leases, "").unwrap();
    let text = format!(
        "start 10.20.1.60\nend 10.20.1.60\ninterface eth0\nlease_file {}\npidfile {}\nmax_leases 1\nmin_lease 5\noption subnet \
         255.255.255.0\noption router 10.20.1.1\noption lease 12\n",
        leases.display(),
        directory.join("udhcpd.pid").display()
    );
    std::fs::write(&config, text).unwrap();
    let text = "#!/bin/sh\necho \"$1 $ip\"\ncase \"$1\" in bound|renew) ip addr replace $ip/24 dev eth0; ip route \
                replace default via $router;; esac\n";
    std::fs::write(&script, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let log = |name: &str| hospital.logs.join(format!("{name}.log"));
    ct.ip("address flush dev eth0").unwrap();
    let mut serve = near.command(&busybox);
    serve.args(["udhcpd", "-f"]).arg(&config);
    let mut serving = Process::spawn("udhcpd", &mut serve, &log("udhcpd")).unwrap();
    let mut ask = ct.command(&busybox);
    ask.args(["udhcpc", "-f", "-i", "eth0", "-t", "20", "-T", "1", "-s"]).arg(&script);
    let mut asking = Process::spawn("udhcpc", &mut ask, &log("udhcpc")).unwrap();
    let said = |word: &str, limit: u64, asking: &mut Process, serving: &mut Process| {
        wait::until_ok(Duration::from_secs(limit), word, || {
            asking.must_run()?;
            serving.must_run()?;
            anyhow::ensure!(asking.output().contains(word), "{}", asking.output());
            Ok(())
        })
        .unwrap();
    };
    said("bound 10.20.1.60", 60, &mut asking, &mut serving);
    let lease = Lease { address: at(60), server: NEAR };
    works(hospital, ct, lease);
    // Half of the lease later it renews by a packet to the server alone.
    said("renew 10.20.1.60", 60, &mut asking, &mut serving);
    works(hospital, ct, lease);
}
