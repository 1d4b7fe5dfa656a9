//! Clients: their keys, their configurations, and their end.

use std::os::unix::fs::PermissionsExt;

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::key::{IdentityKey, TunnelSecret};
use anteroom_proto::time::UnixMillis;

use crate::changes::{POLICY, hospital};
use crate::controller::Controller;
use crate::person::shown_plan;

const ADD: [&str; 8] =
    ["client", "add", "laptop-7", "--site", "north", "--address", "10.20.9.7", "--yes"];

/// `client add` with a key that is made here.
fn generated() -> Vec<&'static str> {
    [&ADD[..], &["--generate-key"]].concat()
}

/// A tunnel key of a gateway that enrolled with this seed, signed with the identity key of another.
fn tunnel_key(controller: &Controller, name: &str, signer: u8, seed: u8, serial: u64) {
    let gateway = controller.gateway_id(name);
    let mut state = controller.state();
    let binding = TunnelKeyBinding {
        organisation: state.model().organisation,
        gateway,
        x25519: TunnelSecret::from_bytes([seed; 32]).public(),
        ml_kem_768: None,
        serial,
        not_before: UnixMillis(0),
    };
    let signed = Signed::sign(&binding, &IdentityKey::from_seed(&[signer; 32]));
    state.tunnel_keys.entry(gateway).or_default().push(signed);
}

fn wireguard_key(seed: u8) -> String {
    TunnelSecret::from_bytes([seed; 32]).public().to_wireguard()
}

#[test]
fn a_client_gets_a_configuration_for_exactly_what_rules_open() {
    let (controller, ana) = hospital();
    tunnel_key(&controller, "imaging", 1, 51, 1);
    tunnel_key(&controller, "imaging", 1, 52, 2);
    // Whatever the gateway itself didn't sign is nobody's word.
    tunnel_key(&controller, "imaging", 9, 66, 3);
    let policy = format!(
        "{POLICY}[segment.service]\nmatch = {{ label.class = \"service\" }}\n\
         [rule.service]\nfrom = \"service\"\nto = \"ct-1\"\nservices = [\"vnc\"]\n"
    );
    let file = ana.write("policy.toml", &policy);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "x"]).ok();
    let added = ana
        .run(&[&["--json"], &generated()[..], &["--label", "class=service"]].concat())
        .ok()
        .json();
    let config = added["config"].as_str().unwrap();
    let (_, client) =
        controller.state().model().client_named("laptop-7").map(|(id, c)| (id, c.clone())).unwrap();
    let private = config.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap();
    let bytes = data_encoding::BASE64.decode(private.as_bytes()).unwrap();
    let secret = TunnelSecret::from_bytes(bytes.try_into().unwrap());
    assert_eq!(secret.public(), client.key, "the private half of what was signed");
    let expected = format!(
        "[Interface]\nPrivateKey = {private}\nAddress = 10.20.9.7/32\n\n# imaging: ct-1\n[Peer]\nPublicKey = {}\n\
         Endpoint = 192.0.2.1:51820\nAllowedIPs = 10.20.1.10/32\nPersistentKeepalive = 25\n",
        wireguard_key(52)
    );
    assert!(config.contains(&expected), "{config}\n{expected}");
    assert!(!controller.holds(private), "a private key left this machine");
    let shown = ana.run(&["client", "show", "laptop-7"]).ok().out;
    assert!(shown.contains("AllowedIPs = 10.20.1.10/32") && !shown.contains(private), "{shown}");
    let list = ana.run(&["client", "list"]).ok().out;
    assert!(list.contains("| laptop-7 | north | 10.20.9.7 | away  | ct-1"), "{list}");
    let why = ana.run(&["why", "laptop-7", "ct-1", "vnc"]).ok().out;
    assert!(why.contains("laptop-7 (client)") && why.contains("device mode ct-1 protect"), "{why}");

    // A controller that takes back the newer key, or all of them: what was seen here stands, and it is said.
    let shows = |expected: u8, remembered: bool| {
        let shown = ana.run(&["--json", "client", "show", "laptop-7"]).ok().json();
        let config = shown["config"].as_str().unwrap();
        assert!(config.contains(&format!("PublicKey = {}\n", wireguard_key(expected))), "{config}");
        assert_eq!(config.contains("# The controller shows an older key"), remembered, "{config}");
    };
    let imaging = controller.gateway_id("imaging");
    let served = controller.state().tunnel_keys.remove(&imaging).unwrap();
    shows(52, true);
    controller.state().tunnel_keys.insert(imaging, served[..1].to_vec());
    shows(52, true);
    controller.state().tunnel_keys.insert(imaging, served);
    shows(52, false);
    tunnel_key(&controller, "imaging", 1, 53, 3);
    shows(53, false);

    // Another policy, other peers: whoever must change their configuration is told.
    let wider = policy
        .replace("to = \"ct-1\"\nservices = [\"vnc\"]", "to = \"pacs-1\"\nservices = [\"vnc\"]");
    let file = ana.write("policy.toml", &wider);
    let ran = ana.run(&["policy", "apply", &file, "--yes", "--reason", "x"]).ok();
    assert!(ran.out.contains("Client laptop-7 needs other peers"), "{ran:#?}");
    let shown = ana.run(&["--json", "client", "show", "laptop-7"]).ok().json();
    assert_eq!(shown["peers"][0]["gateway"], "server-room");
    assert!(
        shown["config"].as_str().unwrap().contains("hasn't told its WireGuard key yet"),
        "{shown}"
    );
}

#[test]
fn a_client_is_added_by_the_public_half_of_its_key() {
    let (controller, ana) = hospital();
    let key = wireguard_key(71);
    let add = |more: &[&str]| ana.run(&[&ADD[..], more].concat());
    let both = add(&["--key", &key, "--generate-key"]);
    assert!(both.fails(64).contains("cannot be used with"), "{both:#?}");
    let short = add(&["--key", &key[..40]]);
    assert!(short.fails(64).contains("is not a WireGuard key"), "{short:#?}");
    let low = add(&["--key", &data_encoding::BASE64.encode(&[0; 32])]);
    assert!(low.fails(64).contains("low order"), "{low:#?}");
    assert!(controller.state().model().clients.is_empty(), "nothing was changed");
    let added = add(&["--json", "--key", &key]).ok().json();
    let config = added["config"].as_str().unwrap();
    assert!(!config.contains("PrivateKey = ") && !config.contains("shown once"), "{config}");
    assert!(config.contains(&key) && config.contains("Address = 10.20.9.7/32"), "{config}");
    let model = controller.state().model();
    assert_eq!(model.clients.values().next().unwrap().key.to_wireguard(), key);
}

#[test]
fn a_client_is_added_by_the_plan_that_was_looked_at() {
    let (controller, ana) = hospital();
    let (key, other) = (wireguard_key(71), wireguard_key(72));
    let words = &ADD[..ADD.len() - 1];
    let add = |more: &[&str]| ana.run(&[words, more].concat());
    let looked_at = shown_plan(&add(&["--key", &key]), 64);
    assert_eq!(shown_plan(&add(&["--key", &key]), 64), looked_at, "nothing changed in between");
    let ran = add(&["--key", &other, "--confirm", &looked_at]);
    let text = ran.fails(4);
    assert!(
        text.contains(&format!("this is plan {}, and not {looked_at}", shown_plan(&ran, 4))),
        "{text}"
    );
    // One whose key is made here is another each time.
    let ran = add(&["--confirm", &looked_at]);
    assert!(ran.fails(64).contains("give its public half with --key"), "{ran:#?}");
    assert!(controller.state().model().clients.is_empty(), "nothing was changed");
    add(&["--key", &key, "--confirm", &looked_at]).ok();
    let ran = add(&["--key", &key, "--confirm", &looked_at]);
    assert!(ran.fails(1).contains("laptop-7"), "{ran:#?}");
    let model = controller.state().model();
    let keys: Vec<String> =
        model.clients.values().map(|client| client.key.to_wireguard()).collect();
    assert_eq!(keys, [key]);
}

#[test]
fn a_gateways_own_key_is_no_clients() {
    let (controller, ana) = hospital();
    tunnel_key(&controller, "imaging", 1, 51, 1);
    tunnel_key(&controller, "imaging", 1, 52, 2);
    // What imaging never signed is nobody's.
    tunnel_key(&controller, "imaging", 9, 66, 3);
    for seed in [51, 52] {
        let key = wireguard_key(seed);
        let refused = ana.run(&[&ADD[..], &["--key", &key]].concat()).fails(1).to_owned();
        assert!(refused.contains(&key) && refused.contains("gateway imaging's own"), "{refused}");
        assert!(controller.state().model().clients.is_empty(), "{seed}");
    }
    // It is remembered where it was seen, though the controller says nothing of it any more.
    controller.state().tunnel_keys.clear();
    let newest = wireguard_key(52);
    let refused = ana.run(&[&ADD[..], &["--key", &newest]].concat()).fails(1).to_owned();
    assert!(refused.contains("gateway imaging's own"), "{refused}");
    ana.run(&[&ADD[..], &["--key", &wireguard_key(66)]].concat()).ok();
}

#[test]
fn a_client_is_added_once_and_its_key_goes_where_it_is_told() {
    let (controller, ana) = hospital();
    let file = ana.path("laptop-7.conf");
    let path = file.display().to_string();
    let ran = ana.run(&[&generated()[..], &["--out", &path]].concat()).ok();
    let text = std::fs::read_to_string(&file).unwrap();
    let private = text.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap();
    assert!(!ran.out.contains(private) && ran.out.contains(&path), "{ran:#?}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let revisions = controller.state().revisions.len();
    let ran = ana.run(&[&generated()[..], &["--out", &path]].concat());
    assert!(ran.fails(1).contains("is there already"), "{ran:#?}");
    let ran = ana.run(&generated());
    assert_eq!(ran.fails(1), "error: the name laptop-7 is taken by another client");
    let ran = ana.run(&[
        "client",
        "add",
        "laptop-8",
        "--site",
        "nort",
        "--address",
        "10.20.9.8",
        "--generate-key",
        "--yes",
    ]);
    assert!(ran.fails(1).contains("no site \"nort\"; did you mean \"north\"?"), "{ran:#?}");
    let ran = ana.run(&[
        "client",
        "add",
        "laptop-8",
        "--site",
        "north",
        "--address",
        "10.20.1.10",
        "--generate-key",
        "--yes",
    ]);
    assert!(ran.fails(1).contains("10.20.1.10 is taken by \"ct-1\""), "{ran:#?}");
    assert_eq!(controller.state().revisions.len(), revisions, "nothing was changed");
    let status = ana.run(&["--json", "status"]);
    assert_eq!(status.json()["clients"][0]["name"], "laptop-7");
}

#[test]
fn a_client_is_revoked_by_name_and_for_a_reason() {
    let (controller, ana) = hospital();
    tunnel_key(&controller, "imaging", 1, 51, 1);
    ana.run(&generated()).ok();
    let ran = ana.run(&["client", "revoke", "laptop-7", "--yes"]);
    assert!(ran.fails(64).contains("reason"), "{ran:#?}");
    let ran = ana.run(&["client", "revoke", "laptop-7", "--reason", "stolen", "--yes"]);
    assert!(ran.fails(64).contains("laptop-7"), "{ran:#?}");
    let ran =
        ana.run(&["client", "revoke", "laptop-9", "--reason", "stolen", "--confirm", "laptop-9"]);
    assert!(
        ran.fails(1).contains("no client \"laptop-9\"; did you mean \"laptop-7\"?"),
        "{ran:#?}"
    );
    // A policy that still names it doesn't stand in the way.
    let file = ana.write(
        "policy.toml",
        &format!(
            "{POLICY}[rule.service]\nfrom = \"laptop-7\"\nto = \"ct-1\"\nservices = [\"vnc\"]\n"
        ),
    );
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "x"]).ok();
    let words = ["client", "revoke", "laptop-7", "--reason", "stolen", "--confirm", "laptop-7"];
    let ran = ana.run(&words).ok();
    assert!(ran.out.contains("a client that was revoked: take it out"), "{ran:#?}");
    let model = controller.state().model();
    assert!(model.clients.is_empty() && model.former_clients.len() == 1);
    let shown = ana.run(&["client", "show", "laptop-7"]);
    assert_eq!(shown.fails(1), "error: no client \"laptop-7\"");
    ana.run(&generated()).ok();
    let model = controller.state().model();
    let (new, old) = (model.clients.values().next(), model.former_clients.values().next());
    assert_ne!(new.unwrap().key, old.unwrap().key);
}

/// The text of the one QR code in what was printed.
fn qr_code(printed: &str) -> String {
    let is_drawn = |line: &&str| {
        !line.is_empty() && line.chars().all(|c| " \u{2580}\u{2584}\u{2588}".contains(c))
    };
    let rows: Vec<Vec<char>> =
        printed.lines().filter(is_drawn).map(|line| line.chars().collect()).collect();
    assert!(!rows.is_empty(), "no QR code: {printed}");
    let dark = |x: usize, y: usize| {
        let half = if y.is_multiple_of(2) { '\u{2580}' } else { '\u{2584}' };
        [half, '\u{2588}'].contains(&rows[y / 2][x])
    };
    let (width, height) = (rows[0].len() * 4, rows.len() * 8);
    let mut picture = rqrr::PreparedImage::prepare_from_greyscale(width, height, |x, y| {
        if dark(x / 4, y / 4) { 0 } else { 255 }
    });
    let grids = picture.detect_grids();
    assert_eq!(grids.len(), 1, "{printed}");
    grids[0].decode().unwrap().1
}

#[test]
fn a_qr_code_holds_the_very_configuration_and_is_drawn_where_the_key_is_shown() {
    let (controller, ana) = hospital();
    tunnel_key(&controller, "imaging", 1, 51, 1);
    let rule = "[rule.service]\nfrom = \"laptop-7\"\nto = \"ct-1\"\nservices = [\"vnc\"]\n";
    // No flag at all: the key is made here. Without peers a code would lead nowhere.
    let ran = ana.run(&ADD).ok();
    assert!(ran.out.contains("No QR code") && !ran.out.contains('\u{2588}'), "{}", ran.out);
    let file = ana.write("policy.toml", &format!("{POLICY}{rule}"));
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "x"]).ok();
    let revoke = ["client", "revoke", "laptop-7", "--reason", "x", "--confirm", "laptop-7"];
    ana.run(&revoke).ok();

    let ran = ana.run(&ADD).ok();
    assert!(!ran.out.contains('\x1b'), "no colours where there is no terminal: {}", ran.out);
    let read = qr_code(&ran.out);
    let told = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let config = &ran.out[ran.out.find("[Interface]").unwrap()..];
    let text: Vec<&str> =
        config.lines().take_while(|line| !line.starts_with("Revision")).filter(told).collect();
    let text: Vec<&str> = text.into_iter().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(read.lines().collect::<Vec<_>>(), text);
    assert!(read.contains("PrivateKey = ") && read.contains("[Peer]"), "{read}");
    assert!(
        read.contains("Endpoint = 192.0.2.1:51820") && read.contains("AllowedIPs = 10.20.1.10/32"),
        "{read}"
    );
    ana.run(&revoke).ok();

    // On a terminal it is black on white, whatever the terminal's own colours are.
    let typed = ana.type_in(&ADD, "").ok();
    let coloured: Vec<&str> = typed.out.lines().filter(|line| line.contains('\x1b')).collect();
    assert!(coloured.len() > 20, "{}", typed.out);
    assert!(
        coloured.iter().all(|line| line.starts_with("\x1b[30;107m") && line.ends_with("\x1b[0m"))
    );
    ana.run(&revoke).ok();

    let file = ana.path("laptop-7.conf").display().to_string();
    let key = wireguard_key(71);
    for without in [&["--no-qr"][..], &["--out", &file], &["--key", &key], &["--json"]] {
        let ran = ana.run(&[&ADD[..], without].concat()).ok();
        assert!(!ran.out.contains('\u{2588}'), "{without:?}: {}", ran.out);
        ana.run(&revoke).ok();
    }
}

#[test]
fn a_client_of_a_gateway_that_nobody_can_find_isnt_added() {
    let (controller, ana) = hospital();
    let rule = "[segment.service]\nmatch = { label.class = \"service\" }\n\
                [rule.service]\nfrom = \"service\"\nto = \"ct-1\"\nservices = [\"vnc\"]\n";
    let file = ana.write("policy.toml", &format!("{POLICY}{rule}"));
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "x"]).ok();
    let revisions = controller.state().revisions.len();
    // It has told no key, and then one but no address.
    for unreachable in [false, true] {
        controller.state().unreachable = unreachable;
        let ran = ana.run(&[&ADD[..], &["--label", "class=service"]].concat());
        let said = ran.fails(1);
        assert!(
            said.contains("no address or no WireGuard key is known of imaging")
                && said.contains("Nothing was changed"),
            "{said}"
        );
        assert_eq!(controller.state().revisions.len(), revisions);
        tunnel_key(&controller, "imaging", 1, 51, 1);
    }
    controller.state().unreachable = false;
    ana.run(&[&ADD[..], &["--label", "class=service"]].concat()).ok();
    let bad = ana.run(&[
        "client",
        "add",
        "Laptop 7",
        "--site",
        "north",
        "--address",
        "10.20.9.8",
        "--yes",
    ]);
    assert!(bad.fails(64).contains("Laptop 7"), "{bad:#?}");
}

#[test]
fn a_machine_with_an_agent_of_its_own_is_invited_approved_shown_and_revoked() {
    let (controller, ana) = hospital();
    let invite = ["--json", "client", "invite", "reading-1", "--site", "north"];
    let made = ana.run(&invite).ok().json();
    let ports = std::mem::replace(&mut controller.state().ports, vec!["host"]);
    controller.enrol(made["invite"].as_str().unwrap(), 90);
    // Another that runs as a gateway does, by an invite for a client: each is sent to the other command.
    controller.state().ports = ports;
    let other = ana.run(&["--json", "client", "invite", "spare-1", "--site", "north"]).ok().json();
    controller.enrol(other["invite"].as_str().unwrap(), 92);
    let ran = ana.run(&["client", "approve", "spare-1", "--address", "10.20.9.9", "--yes"]);
    assert!(ran.fails(1).contains("`anteroom gateway approve spare-1`"), "{ran:#?}");
    let ran = ana.run(&["gateway", "approve", "reading-1", "--yes"]);
    assert!(ran.fails(1).contains("`anteroom client approve reading-1"), "{ran:#?}");
    controller.state().ports = vec!["host"];
    let pending = ana.run(&["gateway", "pending"]).ok().out;
    assert!(pending.contains("reading-1"), "{pending}");
    let approve = |address: &str| {
        ana.run(&[
            "client",
            "approve",
            "reading-1",
            "--address",
            address,
            "--label",
            "class=reading",
            "--yes",
        ])
    };
    let ran = approve("10.20.1.10");
    assert!(ran.fails(1).contains("10.20.1.10 is taken by \"ct-1\""), "{ran:#?}");
    // Where its own machine is, and a gateway.
    for (address, whose) in [("10.20.1.2", "this client's machine"), ("192.0.2.1", "the gateway")] {
        let ran = approve(address);
        let said = ran.fails(1);
        let expected = format!("{address} is where {whose}");
        assert!(said.contains(&expected) && said.contains("Nothing was changed"), "{said}");
    }
    let ran = ana.run(&[
        "client",
        "approve",
        "reading-1",
        "--address",
        "10.20.9.8",
        "--fingerprint",
        "aaaa",
        "--yes",
    ]);
    assert!(ran.fails(4).contains("has the fingerprint"), "{ran:#?}");
    // Looked at first, and confirmed by the plan's id.
    let words =
        ["client", "approve", "reading-1", "--address", "10.20.9.8", "--label", "class=reading"];
    let looked_at = shown_plan(&ana.run(&words), 64);
    assert_eq!(shown_plan(&ana.run(&words), 64), looked_at, "nothing changed in between");
    ana.run(&["device", "label", "ct-1", "floor=2", "--yes"]).ok();
    let ran = ana.run(&[&words[..], &["--confirm", &looked_at]].concat());
    let now = shown_plan(&ran, 4);
    assert!(ran.fails(4).contains(&format!("this is plan {now}, and not {looked_at}")), "{ran:#?}");
    ana.run(&[&words[..], &["--confirm", &now]].concat()).ok();
    let model = controller.state().model();
    let (_, host) = model.host_named("reading-1").unwrap();
    assert_eq!(host.labels.values().next().map(String::as_str), Some("reading"));

    let rule = "[rule.reading]\nfrom = \"reading-1\"\nto = \"ct-1\"\nservices = [\"dicom\"]\n";
    let file = ana.write("policy.toml", &format!("{POLICY}{rule}"));
    let ran = ana.run(&["policy", "apply", &file, "--yes", "--reason", "x"]).ok();
    assert!(ran.out.contains("anteroom device mode ct-1 protect"), "ct-1 is observed: {}", ran.out);
    ana.run(&ADD).ok();
    let list = ana.run(&["client", "list"]).ok().out;
    assert!(
        list.contains("reading-1") && list.contains("ct-1") && list.contains("laptop-7"),
        "{list}"
    );
    let list = ana.run(&["--json", "client", "list"]).ok().json();
    assert_eq!((&list[0]["name"], &list[1]["kind"]), (&"laptop-7".into(), &"agent".into()));
    let shown = ana.run(&["client", "show", "reading-1"]).ok().out;
    assert!(shown.contains("with an agent of its own") && shown.contains("10.20.9.8"), "{shown}");
    let ran = ana.run(&["device", "mode", "reading-1", "observe", "--yes"]);
    assert!(ran.fails(1).contains("speaks through tunnels only"), "{ran:#?}");
    assert!(ana.run(&invite).fails(1).contains("already"));

    let revoke = ["client", "revoke", "reading-1", "--reason", "stolen", "--confirm", "reading-1"];
    ana.run(&revoke).ok();
    let model = controller.state().model();
    assert!(model.host_named("reading-1").is_none() && model.gateway_named("reading-1").is_none());
    assert_eq!(ana.run(&["client", "show", "reading-1"]).code, 1);
    let made = ana.run(&invite).ok().json();
    controller.enrol(made["invite"].as_str().unwrap(), 91);
    approve("10.20.9.8").ok();
}
