use super::*;

const GOOD: &str = r#"
state = "/var/lib/anteroom-agent"
run = "/run/anteroom-agent"
[uplink]
interface = "eth0"
[underlay]
listen = "0.0.0.0:51820"
advertise = ["10.20.1.2:51820"]
management = ["tcp/22", "icmp/echo"]
[[port]]
name = "port1"
interface = "eth1"
[[port]]
name = "port2"
interface = "eth2"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("agent.toml"), text).map_err(|e| e.to_string())
}

#[test]
fn a_full_file_is_read_as_written() {
    let config = parse(GOOD).unwrap();
    assert!(config.shares_uplink());
    assert_eq!(config.underlay.interface.as_str(), "eth0");
    assert_eq!(config.underlay.listen.port(), 51820);
    assert_eq!(
        config.underlay.management,
        [
            LocalService { protocol: Protocol::Tcp, port: 22 },
            LocalService { protocol: Protocol::IcmpEcho, port: 0 }
        ]
    );
    let ports: Vec<_> =
        config.ports.iter().map(|p| (p.name.as_str(), p.interface.as_str())).collect();
    assert_eq!(ports, [("port1", "eth1"), ("port2", "eth2")]);
}

#[test]
fn quic_has_a_port_of_its_own_or_the_tunnels() {
    let quic = |port: u16| {
        let listen = "listen = \"0.0.0.0:51820\"\n";
        parse(&GOOD.replacen(listen, &format!("{listen}quic = {port}\n"), 1)).unwrap().underlay
    };
    let none = parse(GOOD).unwrap().underlay;
    assert_eq!((none.quic, none.shares_port()), (None, false));
    assert_eq!((quic(443).quic, quic(443).shares_port()), (Some(443), false));
    assert_eq!((quic(51_820).quic, quic(51_820).shares_port()), (Some(51_820), true));
    let host = parse("[host]\n[underlay]\nlisten = '0.0.0.0:4000'\nquic = 4000\n").unwrap();
    assert!(host.underlay.shares_port());
}

#[test]
fn offloads_are_used_unless_the_file_excludes_them() {
    assert_eq!(parse(GOOD).unwrap().offloads, Offloads::default());
    let text = format!("{GOOD}[offloads]\nudp_merging = false\n");
    let offloads = parse(&text).unwrap().offloads;
    assert_eq!(offloads, Offloads { udp_merging: false, ..Offloads::default() });
    assert!(offloads.super_frames && offloads.udp_segmentation);
    let error = parse(&format!("{GOOD}[offloads]\nudp_merge = false\n")).unwrap_err();
    assert!(error.contains("unknown key") && error.contains("udp_merging"), "{error}");
}

#[test]
fn flows_are_bounded_as_the_file_says_and_a_wrong_bound_is_named() {
    let flows = |text: &str| parse(&format!("{GOOD}[flows]\n{text}\n")).map(|config| config.flows);
    assert_eq!(parse(GOOD).unwrap().flows, Flows { most: 65_536, per_device: 16_384 });
    assert_eq!(flows("most = 1000000"), Ok(Flows { most: 1_000_000, per_device: 16_384 }));
    assert_eq!(flows("most = 1000"), Ok(Flows { most: 1_000, per_device: 1_000 }));
    let both = flows("most = 1000000\nper-device = 500000");
    assert_eq!(both, Ok(Flows { most: 1_000_000, per_device: 500_000 }));
    for (text, words) in [
        ("most = 0", "agent.toml:17: flows.most: must be from 1 to 1000000"),
        ("most = 1000001", "flows.most: must be from 1 to 1000000"),
        ("per-device = 0", "flows.per-device: must be from 1"),
        (
            "most = 10\nper-device = 11",
            "agent.toml:18: flows.per-device: one device can't have more",
        ),
        ("max = 10", "unknown key"),
    ] {
        let error = flows(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn lane_threads_are_as_many_as_pay_unless_the_file_says_otherwise() {
    let with = |text: &str| parse(&format!("{GOOD}{text}\n"));
    let cores =
        |text: &str| with(&format!("[offloads]\nlanes = true\n[cores]\n{text}")).map(|c| c.cores);
    let error = with("[offloads]\nlanes = false\n[cores]\nlane_threads = 2").unwrap_err();
    assert!(error.contains("lane_threads") && error.contains("lanes = true"), "{error}");
    for threads in ["", "[cores]\nlane_threads = 0", "[cores]\nlane_threads = \"auto\""] {
        let off = with(&format!("[offloads]\nlanes = false\n{threads}")).unwrap();
        let (count, why) = off.cores.lane_threads.choose(off.offloads.lanes, 16);
        assert!(count == 0 && why.contains("lanes are off"), "{threads}: {count}, {why}");
    }
    assert_eq!(parse(GOOD).unwrap().cores.lane_threads, LaneThreads::Auto);
    assert_eq!(cores("").unwrap().lane_threads, LaneThreads::Auto);
    assert_eq!(cores("lane_threads = \"auto\"").unwrap().lane_threads, LaneThreads::Auto);
    let auto = [1, 2, 3, 4, 8, 16].map(|cores| LaneThreads::Auto.choose(true, cores));
    assert_eq!(auto.clone().map(|(count, _)| count), [0, 0, 0, 2, 4, 4]);
    assert_eq!(
        (auto[0].1.as_str(), auto[1].1.as_str()),
        ("none: there is one core", "none: there are 2 cores")
    );
    assert_eq!(auto[4].1, "4: there are 8 cores");
    assert_eq!(LaneThreads::Count(0).choose(true, 16).1, "none, as agent.toml says");
    for count in [0, 1, MAX_LANE_THREADS] {
        let set = cores(&format!("lane_threads = {count}")).unwrap().lane_threads;
        assert_eq!(set, LaneThreads::Count(count));
        assert_eq!([1, 2, 4, 64].map(|cores| set.count(cores)), [count; 4]);
    }
    for wrong in ["16", "-1", "300", "\"many\"", "true", "1.5"] {
        let error = cores(&format!("lane_threads = {wrong}")).unwrap_err();
        assert!(error.contains("\"auto\" or a number from 0 to 15"), "{wrong}: {error}");
    }
    let error = cores("lanes = 3").unwrap_err();
    assert!(error.contains("unknown key") && error.contains("lane_threads"), "{error}");
}

#[test]
fn addresses_that_nobody_listed_are_held_unless_a_port_is_set_to_pass_them() {
    let text = GOOD.replace("name = \"port2\"", "name = \"port2\"\nunlisted = \"pass\"");
    let unlisted: Vec<_> = parse(&text).unwrap().ports.iter().map(|port| port.unlisted).collect();
    assert_eq!(unlisted, [Unlisted::Hold, Unlisted::Pass]);
}

#[test]
fn paths_and_the_underlays_interface_have_defaults() {
    let config = parse(
        "[uplink]\ninterface = 'eth0'\n[underlay]\ninterface = 'eth9'\nlisten = '[::]:51820'\n[[port]]\nname = 'a'\ninterface = 'eth1'",
    )
    .unwrap();
    assert_eq!(config.state, Path::new("/var/lib/anteroom-agent"));
    assert_eq!(config.run, Path::new("/run/anteroom-agent"));
    assert!(!config.shares_uplink());
}

#[test]
fn every_mistake_is_named_with_line_and_key() {
    let cases = [
        (
            "interface = \"eth0\"",
            "interfce = \"eth0\"",
            "agent.toml:5: uplink.interfce: unknown key",
        ),
        ("run =", "rum =", "agent.toml:3: rum: unknown key `rum`"),
        (
            "\"port2\"",
            "\"port1\"",
            "agent.toml:14: port[1].name: \"port1\" is already the port of line 11",
        ),
        (
            "\"eth2\"",
            "\"eth1\"",
            "agent.toml:15: port[1].interface: \"eth1\" is already in use on line 12",
        ),
        (
            "\"eth1\"",
            "\"eth0\"",
            "agent.toml:12: port[0].interface: \"eth0\" is already in use on line 5",
        ),
        (
            "\"eth2\"",
            "\"eth2/x\"",
            "agent.toml:15: port[1].interface: \"eth2/x\" can't be a network",
        ),
        ("\"eth2\"", "7", "agent.toml:15: port[1].interface: invalid type: integer"),
        ("\"port2\"", "\"Port 2\"", "agent.toml:14: port[1].name: \"Port 2\" can't be a name"),
        ("0.0.0.0:51820", "0.0.0.0:0", "agent.toml:7: underlay.listen: needs a fixed UDP port"),
        ("0.0.0.0:51820", "0.0.0.0", "agent.toml:7: underlay.listen: invalid socket address"),
        ("10.20.1.2:51820", "0.0.0.0:51820", "agent.toml:8: underlay.advertise[0]: peers can't"),
        (
            "listen = \"0.0.0.0:51820\"\n",
            "listen = \"0.0.0.0:51820\"\nquic = 0\n",
            "agent.toml:8: underlay.quic: needs a fixed UDP port",
        ),
        ("tcp/22", "tcp/0", "agent.toml:9: underlay.management: \"tcp/0\" has no port"),
        ("tcp/22", "ssh", "agent.toml:9: underlay.management: \"ssh\" isn't a service"),
        ("\"/run/", "\"run/", "agent.toml:3: run: must be an absolute path"),
        ("[uplink]", "[uplink", "agent.toml:4: "),
        (
            "[underlay]\nlisten = \"0.0.0.0:51820\"\n",
            "[underlay]\n",
            "agent.toml:6: underlay: missing key `listen`",
        ),
        ("name = \"port1\"\n", "", "agent.toml:10: port[0]: missing key `name`"),
        (
            "name = \"port1\"\n",
            "name = \"port1\"\nunlisted = \"drop\"\n",
            "agent.toml:12: port[0].unlisted: unknown variant `drop`, expected `hold` or `pass`",
        ),
    ];
    for (right, wrong, expected) in cases {
        assert!(GOOD.contains(right), "{right:?} isn't in the good file");
        let message = parse(&GOOD.replacen(right, wrong, 1)).expect_err(wrong);
        assert!(message.starts_with(expected), "for {wrong:?}\n  got {message}\n  not {expected}");
        assert!(!message.contains('\n'), "{message:?} has several lines");
    }
}

#[test]
fn ports_are_needed_and_bounded() {
    let head = "[uplink]\ninterface = 'up'\n[underlay]\nlisten = '0.0.0.0:1'\n";
    assert!(parse(head).unwrap_err().contains("no device port"));
    let ports = |n: usize| {
        (0..n).map(|i| format!("[[port]]\nname = 'p{i}'\ninterface = 'e{i}'\n")).collect::<String>()
    };
    assert_eq!(parse(&format!("{head}{}", ports(64))).unwrap().ports.len(), 64);
    let message = parse(&format!("{head}{}", ports(65))).unwrap_err();
    assert!(message.contains("port[64].name: more than 64 ports"), "{message}");
}

#[test]
fn a_missing_or_binary_file_is_an_error_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    let message = Config::load(&path).unwrap_err().to_string();
    assert!(message.contains("agent.toml: can't be read"), "{message}");
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let message = Config::load(&path).unwrap_err().to_string();
    assert!(message.contains("agent.toml: can't be read"), "{message}");
}

#[test]
fn a_host_needs_one_line_and_has_no_ports() {
    let config = parse("[host]\n").unwrap();
    let host = config.host.as_ref().unwrap();
    assert_eq!((host.interface.as_str(), &host.underlay), ("anteroom0", &None));
    assert_eq!(config.underlay.listen, "0.0.0.0:51820".parse().unwrap());
    assert_eq!((config.ports.len(), config.ports[0].name.as_str()), (1, "host"));
    let text = "[host]\ninterface = 'tun7'\n[underlay]\nlisten = '[::]:4000'\ninterface = 'eth0'\n";
    let config = parse(text).unwrap();
    let host = config.host.as_ref().unwrap();
    assert_eq!(host.underlay.as_ref().map(InterfaceName::as_str), Some("eth0"));
    assert_eq!((host.interface.as_str(), config.underlay.listen.port()), ("tun7", 4000));
    for (text, expected) in [
        ("[host]\n[uplink]\ninterface = 'eth0'\n", "agent.toml:2: uplink: a host has neither"),
        (
            "[host]\n[[port]]\nname = 'p'\ninterface = 'e'\n",
            "agent.toml:3: port[0].name: a host has",
        ),
        ("[host]\nmtu = 7\n", "agent.toml:2: host.mtu: unknown key"),
        ("[host]\ninterface = 'a/b'\n", "agent.toml:2: host.interface: \"a/b\" can't be"),
        (
            "[host]\n[underlay]\nlisten = '0.0.0.0:1'\ninterface = 'anteroom0'\n",
            "agent.toml:4: underlay.interface: is the TUN device",
        ),
        (
            "[host]\n[underlay]\nlisten = '0.0.0.0:1'\nmanagement = ['tcp/22']\n",
            "agent.toml:4: underlay.management[0]: is for gateways",
        ),
        (
            "[host]\n[underlay]\nlisten = '0.0.0.0:0'\n",
            "agent.toml:3: underlay.listen: needs a fixed",
        ),
        ("state = '/s'\n", "agent.toml:1: missing key `uplink`"),
    ] {
        let message = parse(text).expect_err(text);
        assert!(message.starts_with(expected), "for {text:?}\n  got {message}\n  not {expected}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[\\[\\]a-z.=\"0-9\n ]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(at in 0..GOOD.len(), with in proptest::prelude::any::<char>()) {
        let mut text = GOOD.to_owned();
        text.replace_range(at..=at, &with.to_string());
        let _ = parse(&text);
    }
}

#[test]
fn an_uplink_follows_a_port_only_where_nothing_else_depends_on_it() {
    let single = "[uplink]\ninterface = 'eth0'\nfollow-port = true\n[underlay]\ninterface = 'eth9'\n\
                  listen = '0.0.0.0:51820'\n[[port]]\nname = 'a'\ninterface = 'eth1'\n";
    assert!(parse(single).unwrap().uplink.follow_port);
    assert!(!parse(&single.replace("true", "false")).unwrap().uplink.follow_port);
    assert!(!parse(GOOD).unwrap().uplink.follow_port);
    let second = format!("{single}[[port]]\nname = 'b'\ninterface = 'eth2'\n");
    assert_eq!(
        parse(&second).unwrap_err(),
        "agent.toml:3: uplink.follow-port: one device's cable would cut off the others: it is for a gateway with a \
         single port"
    );
    assert_eq!(
        parse(&single.replace("interface = 'eth9'\n", "")).unwrap_err(),
        "agent.toml:3: uplink.follow-port: the gateway itself would be cut off with its device: give it an \
         underlay.interface of its own"
    );
    assert!(parse(&single.replace("true", "1")).unwrap_err().contains("follow-port"));
}

#[test]
fn a_second_underlay_is_an_interface_of_its_own_and_a_gateways() {
    let with = |backup: &str| {
        let line = format!("[underlay]\nbackup = \"{backup}\"");
        parse(&GOOD.replace("[underlay]", &line))
    };
    assert_eq!(parse(GOOD).unwrap().underlay.backup, None);
    let second = with("eth9").unwrap().underlay.backup;
    assert_eq!(second.as_ref().map(InterfaceName::as_str), Some("eth9"));
    let first = parse(GOOD).unwrap();
    let error = with(first.underlay.interface.as_str()).unwrap_err();
    assert!(error.contains("underlay.backup: is the first underlay itself"), "{error}");
    let error = with(first.ports[0].interface.as_str()).unwrap_err();
    assert!(error.contains("is already in use"), "{error}");
    let host = "[host]\n[underlay]\nlisten = \"0.0.0.0:51820\"\nbackup = \"eth9\"\n";
    let error = parse(host).unwrap_err();
    assert!(error.contains("underlay.backup: is for gateways"), "{error}");
}

/// The keys that a page of settings has in a table's part: those in back quotes at the beginning of a row.
fn described(page: &str, table: &str) -> Vec<String> {
    let part = page.split("\n### ").find_map(|part| part.strip_prefix(table)).unwrap_or_default();
    let row = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    part.lines().take_while(|line| !line.starts_with("## ")).filter_map(row).collect()
}

#[test]
fn the_page_of_all_settings_has_every_key_and_no_other() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
    let page = std::fs::read_to_string(page).unwrap();
    let agent = page.split("\n## `").find(|part| part.starts_with("agent.toml`")).unwrap();
    for (title, header) in [
        ("At the top", ""),
        ("`[host]`", "[host]"),
        ("`[uplink]`", "[uplink]"),
        ("`[underlay]`", "[underlay]"),
        ("`[[port]]`", "[[port]]"),
        ("`[offloads]`", "[offloads]"),
        ("`[flows]`", "[flows]"),
        ("`[cores]`", "[cores]"),
        ("`[keys]`", "[keys]"),
        ("`[sensor]`", "[sensor]"),
    ] {
        // What doesn't exist is answered with what does.
        let error = parse(&format!("{header}\nno-such-key = 1\n")).unwrap_err();
        let (_, expected) = error.split_once("expected ").expect(&error);
        let mut known: Vec<String> =
            expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(!known.is_empty(), "{title}: {error}");
        let mut described = described(agent, title);
        known.sort();
        described.sort();
        assert_eq!(
            described, known,
            "docs/settings.md, agent.toml, {title}; the agent says: {error}"
        );
    }
}
