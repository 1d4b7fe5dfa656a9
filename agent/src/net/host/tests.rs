use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::topology::{self, Host};
use anteroom_proto::id::{GatewayId, MemberId, SiteId};
use anteroom_proto::intent::Client;
use anteroom_proto::key::{IdentityKey, TunnelSecret};
use anteroom_proto::mode::Mode;
use anteroom_proto::operation::PeerOperation;
use anteroom_proto::overlay::member_address;
use anteroom_transport::link::Carrier;
use anteroom_transport::tls::Protocol;
use anteroom_transport::{dial, egress};
use socket2::SockRef;

use super::*;
use crate::net::tun;
use crate::testkit::{ORGANISATION, Organisation};

/// The view of a host at 10.20.9.8, which shares rules with members at these addresses, the last of another site, and
/// with a client.
fn view(members: &[&[&str]]) -> View {
    let organisation = Organisation::new(&[]);
    let mut view = organisation.verified(&organisation.view(1, 1, Mode::Enforce));
    let own = &mut view.intent.devices[0].member;
    own.addresses = vec!["10.20.9.8/32".parse().unwrap()];
    let template = own.clone();
    let last = members.len();
    view.intent.members = (1_u8..)
        .zip(members)
        .map(|(number, addresses)| {
            let mut member = template.clone();
            member.id = MemberId::from_bytes([100 + number; 16]);
            member.addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
            if usize::from(number) == last {
                member.site = SiteId::of("elsewhere");
            }
            member
        })
        .collect();
    let id = MemberId::from_bytes([90; 16]);
    view.intent.clients.push(Client {
        id,
        key: TunnelSecret::from_bytes([9; 32]).public(),
        overlay: member_address(ORGANISATION, id),
        site: view.intent.site,
        address: Ipv4Addr::new(10, 20, 9, 70),
    });
    view
}

const SOME: [&[&str]; 4] = [
    &["10.20.1.10/32"],
    &["10.20.1.0/24"],
    &["10.20.1.11/32", "10.20.7.0/24", "10.20.9.8/32"],
    &["10.20.1.12/32"],
];

fn addresses(last: &[[u8; 4]]) -> BTreeSet<Ipv4Addr> {
    last.iter().copied().map(Ipv4Addr::from).collect()
}

#[test]
fn the_fixed_addresses_of_its_own_site_are_routed_and_nothing_wider() {
    let wanted = Wanted::of(&view(&SOME));
    assert_eq!(wanted.own, Some(Ipv4Addr::new(10, 20, 9, 8)));
    assert_eq!(wanted.to, addresses(&[[10, 20, 1, 10], [10, 20, 1, 11], [10, 20, 9, 70]]));
    let mut nobody = view(&SOME);
    nobody.intent.devices.clear();
    assert_eq!(Wanted::of(&nobody), Wanted::default());
    nobody = view(&SOME);
    nobody.intent.devices[0].member.addresses = vec!["10.20.9.0/24".parse().unwrap()];
    assert_eq!(Wanted::of(&nobody), Wanted::default());
}

/// A neighbour at 192.0.2.2, by whose cable this machine is 192.0.2.1, and which takes the way to member addresses by it.
struct Neighbour(Host);

impl Neighbour {
    fn new() -> Self {
        let far = Host::create("far").unwrap();
        for step in [
            "link add own0 type veth peer name far0 netns far",
            "address add 192.0.2.1/24 dev own0",
            "link set own0 up",
            "link set lo up",
        ] {
            topology::ip(step).unwrap();
        }
        for step in ["address add 192.0.2.2/24 dev far0", "link set far0 up"] {
            far.ip(step).unwrap();
        }
        for member in ["10.20.9.8", "10.20.9.9"] {
            far.ip(&format!("route add {member}/32 dev far0")).unwrap();
        }
        Self(far)
    }

    /// Whether it gets any answer of this machine under that address: nobody listens, so a refusal.
    fn reaches(&self, to: &str) -> bool {
        let to = SocketAddr::new(to.parse().unwrap(), 9);
        let tried = self.0.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)));
        tried.unwrap().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    /// Has it know this machine's Ethernet address for that one, without ARP.
    fn knows(&self, address: &str) {
        let shown = topology::ip("link show own0").unwrap();
        let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
        self.0.ip(&format!("neigh replace {address} lladdr {mac} dev far0")).unwrap();
    }
}

/// The TUN device, switched on, and who keeps its network.
async fn raised() -> (std::os::fd::OwnedFd, Network) {
    let interface: InterfaceName = "anteroom0".parse().unwrap();
    let device = tun::open(&interface, true).unwrap();
    let network = Network::new(Links::new().unwrap(), interface);
    network.switch_on().await.unwrap();
    (device, network)
}

/// The routes to members.
fn through() -> String {
    let all = topology::ip("route show table all").unwrap();
    let own = all.lines().filter(|line| line.contains("table 42919 "));
    own.map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_member_address_is_the_tun_devices_alone() {
    let name = "net::host::tests::a_member_address_is_the_tun_devices_alone";
    if !in_private_network(name) {
        return;
    }
    let far = Neighbour::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (device, network) = raised().await;
        assert_eq!(network.turned_away().await, Some(TurnedAway::default()), "there is no fence");
        assert_eq!(network.follow(&view(&SOME)).await, [""; 0]);
        assert!(far.reaches("192.0.2.1"), "the machine's other address is left alone");
        assert_eq!(network.turned_away().await, Some(TurnedAway::default()));
        assert!(!far.reaches("10.20.9.8"), "ARP is answered for it");
        let by_arp = network.turned_away().await.unwrap();
        assert!(by_arp.arp_in > 0, "{by_arp:?}");
        assert_eq!(TurnedAway { arp_in: 0, ..by_arp }, TurnedAway::default());
        far.knows("10.20.9.8");
        assert!(!far.reaches("10.20.9.8"), "it is reached by another interface");
        let reached = network.turned_away().await.unwrap();
        assert!(reached.packets_in > 0 && reached.packets_out == 0, "{reached:?}");
        // It speaks with itself, and with nobody by another interface.
        let speaks = |from: &str, to: &str| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"x", (to, 9)).map(|_| ()).map_err(|error| error.kind())
        };
        assert_eq!(speaks("10.20.9.8", "10.20.9.8"), Ok(()));
        assert_eq!(speaks("192.0.2.1", "192.0.2.2"), Ok(()));
        let refused = Err(ErrorKind::PermissionDenied);
        assert_eq!(speaks("10.20.9.8", "192.0.2.2"), refused);
        let spoken = network.turned_away().await.unwrap();
        assert_eq!(spoken.packets_out, 1, "{spoken:?}");

        // It moves, and the fence with it.
        let mut other = view(&SOME);
        other.intent.devices[0].member.addresses = vec!["10.20.9.9/32".parse().unwrap()];
        far.knows("10.20.9.9");
        assert_eq!(network.follow(&other).await, [""; 0]);
        assert!(!far.reaches("10.20.9.9"));
        assert_eq!(speaks("10.20.9.9", "192.0.2.2"), refused);
        let moved = network.turned_away().await.unwrap();
        assert!(moved.packets_in > spoken.packets_in, "{moved:?} after {spoken:?}");
        assert_eq!((moved.packets_out, moved.arp_out), (2, 0), "what was counted before stays");
        // Whoever has no member address any more has no fence either, nor has who ended.
        topology::ip("address add 10.20.9.8/32 dev own0").unwrap();
        assert!(far.reaches("10.20.9.8"), "it is the machine's own now");
        assert_eq!(network.follow(&other).await, [""; 0]);
        drop((network, device));
        topology::ip("address add 10.20.9.9/32 dev own0").unwrap();
        assert!(far.reaches("10.20.9.9"));
    });
}

#[test]
fn what_is_published_at_the_member_address_by_translation_is_the_tun_devices_alone_too() {
    let name = "net::host::tests::what_is_published_at_the_member_address_by_translation_is_the_tun_devices_alone_too";
    if !in_private_network(name) {
        return;
    }
    let far = Neighbour::new();
    far.knows("10.20.9.8");
    // As a container's engine does it: what comes for the address is somebody else's here, who answers under the address.
    for step in [
        "link add box0 type veth peer name inside",
        "link set box0 up",
        "address add 172.17.0.1/24 dev box0",
    ] {
        topology::ip(step).unwrap();
    }
    let inside = Host::create("inside").unwrap();
    topology::ip("link set inside netns inside").unwrap();
    inside.ip("address add 172.17.0.2/24 dev inside").unwrap();
    inside.ip("link set inside up").unwrap();
    inside.ip("route add default via 172.17.0.1").unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let rules = "add table ip boxes
        add chain ip boxes pre { type nat hook prerouting priority dstnat; }
        add chain ip boxes out { type nat hook postrouting priority srcnat; }
        add rule ip boxes pre ip daddr 10.20.9.8 dnat to 172.17.0.2
        add rule ip boxes out ip saddr 172.17.0.2 snat to 10.20.9.8";
    let nft = std::process::Command::new("nft").arg(rules).output().unwrap();
    assert!(nft.status.success(), "{nft:?}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (device, network) = raised().await;
        topology::ip("address add 10.20.9.8/32 dev lo").unwrap();
        assert!(far.reaches("10.20.9.8"), "without a fence it is reached");
        topology::ip("address del 10.20.9.8/32 dev lo").unwrap();
        assert_eq!(network.follow(&view(&SOME)).await, [""; 0]);
        assert!(!far.reaches("10.20.9.8"), "it is reached by another interface");
        // What the box sends under the address goes nowhere but by the device.
        let heard = far.0.enter(|| UdpSocket::bind("192.0.2.2:9000")).unwrap().unwrap();
        let sends = |to: &str| {
            let socket = inside.enter(|| UdpSocket::bind("172.17.0.2:0")).unwrap().unwrap();
            socket.send_to(b"x", to).unwrap();
        };
        heard.set_nonblocking(true).unwrap();
        sends("192.0.2.2:9000");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let told = network.turned_away().await.unwrap();
            if told.packets_out == 1 {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "not counted: {told:?}");
        }
        assert_eq!(heard.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(device);
    });
}

#[test]
fn an_address_that_the_machine_has_already_is_no_members() {
    let name = "net::host::tests::an_address_that_the_machine_has_already_is_no_members";
    if !in_private_network(name) {
        return;
    }
    let far = Neighbour::new();
    topology::ip("address add 10.20.9.8/32 dev own0").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (device, network) = raised().await;
        let problems = network.follow(&view(&SOME)).await;
        assert!(problems.len() == 1 && problems[0].contains("own address already"), "{problems:?}");
        assert_eq!(network.problems().await, problems, "as status has it");
        assert!(far.reaches("10.20.9.8"), "it is left to what it was for");
        assert_eq!(through(), "");
        // Nobody had members reached in the clear by that.
        let send = |mark: u32| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            SockRef::from(&socket).set_mark(mark).unwrap();
            let to = |to: &str| socket.send_to(b"x", (to, 9)).map_err(|error| error.kind());
            (to("10.20.1.10"), to("192.0.2.2"))
        };
        topology::ip("route add 10.20.1.10/32 dev own0").unwrap();
        let refused = Err(ErrorKind::PermissionDenied);
        assert_eq!(send(0), (refused, Ok(1)));
        assert_eq!(send(MARK), (Ok(1), Ok(1)), "the agent's own");
        assert_eq!(network.turned_away().await.unwrap().packets_out, 1);
        topology::ip("address del 10.20.9.8/32 dev own0").unwrap();
        assert_eq!(network.keep().await, [""; 0]);
        assert_eq!(network.problems().await, [""; 0]);
        assert!(!far.reaches("10.20.9.8"));
        assert_eq!(send(0), (Ok(1), Ok(1)), "by the device");
        // Nor by whoever takes the rule away, which is put back.
        let rules = || topology::ip("-d rule show").unwrap();
        assert!(rules().contains("lookup 42919 proto kernel"), "{}", rules());
        topology::ip("rule del table 42919").unwrap();
        assert_eq!(send(0), (refused, Ok(1)));
        assert_eq!(network.keep().await, [""; 0]);
        assert_eq!(send(0), (Ok(1), Ok(1)));
        drop(device);
    });
}

#[test]
fn whatever_a_peer_says_where_it_is_members_are_reached_by_the_device_and_peers_beside_it() {
    let name = "net::host::tests::whatever_a_peer_says_where_it_is_members_are_reached_by_the_device_and_peers_beside_it";
    if !in_private_network(name) {
        return;
    }
    // Somebody is where a member is, and the machine has a way there.
    let far = Neighbour::new();
    far.0.ip("address add 10.20.1.10/32 dev far0").unwrap();
    topology::ip("route add 10.20.1.10/32 dev own0").unwrap();
    let there: SocketAddr = "10.20.1.10:9000".parse().unwrap();
    let tcp = far.0.enter(|| TcpListener::bind(there)).unwrap().unwrap();
    let udp = far.0.enter(|| UdpSocket::bind(there)).unwrap().unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    egress::mark(MARK);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (device, network) = raised().await;
        let mut view = view(&SOME);
        view.operation.peers.push(PeerOperation {
            gateway: GatewayId::from_bytes([80; 16]),
            endpoints: vec![there],
            keys: Vec::new(),
            quic: None,
        });
        assert_eq!(network.follow(&view).await, [""; 0]);
        let way = |marked: &str| topology::ip(&format!("route get 10.20.1.10 {marked}")).unwrap();
        assert!(
            way("").contains("dev anteroom0") && way("").contains("src 10.20.9.8"),
            "{}",
            way("")
        );
        assert!(way(&format!("mark {MARK}")).contains("dev own0"));
        // The agent's tunnels and its connections are what is marked, other programs' aren't.
        let underlay = crate::net::udp::UdpSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        assert_eq!(SockRef::from(&underlay).mark().unwrap(), MARK);
        let identity = IdentityKey::from_seed(&[7; 32]);
        for carrier in [Carrier::Tcp, Carrier::Quic] {
            let identity = identity.clone();
            let dialling = tokio::spawn(async move {
                let keys = [identity.public()];
                dial::over(carrier, there, &identity, &keys, Protocol::Control).await.map(|_| ())
            });
            let (tcp, udp) = (tcp.try_clone().unwrap(), udp.try_clone().unwrap());
            let coming = tokio::task::spawn_blocking(move || match carrier {
                Carrier::Tcp => tcp.accept().unwrap().1,
                Carrier::Quic => udp.recv_from(&mut [0; 2000]).unwrap().1,
            });
            let from = tokio::time::timeout(Duration::from_secs(60), coming).await;
            let from = from.unwrap_or_else(|_| panic!("{carrier}: nothing came")).unwrap();
            assert_eq!(from.ip().to_string(), "192.0.2.1", "{carrier}");
            dialling.abort();
        }
        // It ends: the rule goes with it, and where it was killed the next one finds it.
        assert_eq!(network.keep().await, [""; 0]);
        let rules = || topology::ip("rule show").unwrap();
        assert_eq!(rules().matches("0xa7a7").count(), 1, "{}", rules());
        network.leave().await;
        assert!(!rules().contains("0xa7a7"), "{}", rules());
        drop(device);
    });
}

#[test]
fn address_and_routes_follow_the_view_and_what_is_the_machines_own_stays() {
    let name =
        "net::host::tests::address_and_routes_follow_the_view_and_what_is_the_machines_own_stays";
    if !in_private_network(name) {
        return;
    }
    for step in [
        "link add own0 type veth peer name far0",
        "address add 192.0.2.1/24 dev own0",
        "link set own0 up",
        "link set far0 up",
        "route add 10.20.1.11/32 dev own0",
        "route add default via 192.0.2.254",
    ] {
        topology::ip(step).unwrap();
    }
    let routes = || topology::ip("route show").unwrap();
    let before = routes();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let interface: InterfaceName = "anteroom0".parse().unwrap();
        let network = Network::new(Links::new().unwrap(), interface.clone());
        assert!(network.follow(&view(&SOME)).await.is_empty(), "there is no device yet");
        assert_eq!(routes(), before);
        let device = tun::open(&interface, true).unwrap();
        network.switch_on().await.unwrap();
        assert_eq!(network.keep().await, [""; 0]);
        let now = through();
        assert_eq!(now.lines().count(), 3, "{now}");
        for to in ["10.20.1.10", "10.20.1.11", "10.20.9.70"] {
            assert!(now.contains(&format!("{to} dev anteroom0 ")), "{now}");
            let way = topology::ip(&format!("route get {to}")).unwrap();
            let right = way.contains("dev anteroom0") && way.contains("src 10.20.9.8");
            assert!(right, "whatever else leads there: {way}");
        }
        let shown = topology::ip("-4 address show dev anteroom0").unwrap();
        assert!(shown.contains("inet 10.20.9.8/32") && shown.contains("mtu 1420"), "{shown}");
        // Doing it again changes nothing.
        assert_eq!((network.keep().await, through()), (vec![], now));

        // Another view, in which the host itself has moved, too.
        let mut other = view(&[&["10.20.1.13/32"], &["10.9.9.9/32"]]);
        other.intent.devices[0].member.addresses = vec!["10.20.9.9/32".parse().unwrap()];
        assert_eq!(network.follow(&other).await, [""; 0]);
        let now = through();
        assert!(now.contains("10.20.1.13 ") && now.contains("src 10.20.9.9"), "{now}");
        assert!(!now.contains("10.20.1.10") && !now.contains("src 10.20.9.8"), "{now}");
        // Somebody takes things away.
        topology::ip("route flush table 42919").unwrap();
        topology::ip("rule del table 42919").unwrap();
        topology::ip("address del 10.20.9.9/32 dev anteroom0").unwrap();
        assert_eq!(network.keep().await, [""; 0]);
        assert_eq!(through(), now);
        assert!(topology::ip("route get 10.20.1.13").unwrap().contains("dev anteroom0"));
        // It is nobody any more.
        other.intent.devices.clear();
        assert_eq!(network.follow(&other).await, [""; 0]);
        assert_eq!(through(), "");
        assert_eq!(topology::ip("-4 address show dev anteroom0").unwrap(), "");
        assert!(!topology::ip("rule show").unwrap().contains("0xa7a7"));
        assert_eq!(routes(), before);
        drop(device);
    });
    assert_eq!(routes(), before);
}
