//! Bad input to each program: one clear message that names the place, nothing that was saved changes, no panic.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anteroom_e2e::{Stage, differences, fixture, snapshot};
use anteroom_lab::anteroom::Outcome;
use anteroom_lab::hospital::SITE;
use anteroom_lab::story::{POLICY, approve_all, open_tcp, refused};

/// The message, which must be short, and one of the exit codes for "nothing was done".
#[track_caller]
fn assert_refused(outcome: &Outcome, words: &[&str]) {
    let code = outcome.code;
    assert!([1, 4, 64].contains(&code), "exit code {code}: {outcome}");
    if let Err(error) = refused(outcome, code, words) {
        panic!("{error:#}");
    }
    assert!(outcome.stderr.lines().count() <= 12, "a long message: {outcome}");
}

#[test]
fn a_controller_refuses_what_is_not_for_it_and_goes_on() {
    let test = "a_controller_refuses_what_is_not_for_it_and_goes_on";
    let Some(mut fixture) = fixture(test, Stage::Built) else { return };
    let directory = fixture.directory().to_path_buf();
    let hospital = &mut fixture.hospital;
    let code = hospital.controller.init().unwrap();

    // A second init over the first would forget every key.
    let state = hospital.controller.directory.display().to_string();
    let before = snapshot(&hospital.controller.directory);
    let again =
        hospital.controller.command(&["init", "--dir", &state, "--advertise", "10.20.0.10"]);
    assert_refused(&again.unwrap(), &[&state]);
    let changed = differences(&before, &snapshot(&hospital.controller.directory));
    assert!(changed.is_empty(), "{changed:?}");

    // No controller there; a broken address; no directory.
    let nowhere = hospital.controller.command(&["run", "--dir", "/nonexistent"]).unwrap();
    assert_refused(&nowhere, &["/nonexistent"]);

    hospital.controller.start().unwrap();
    let operator = &hospital.operator;

    // Setup codes with a part cut off, a letter changed, and of another kind.
    let mut changed = code.clone();
    let last = changed.pop().unwrap();
    changed.push(if last == 'a' { 'b' } else { 'a' });
    for wrong in
        ["", "anteroom-setup-1.", "anteroom-invite-1.abc", &code[..code.len() / 2], &changed]
    {
        let outcome = operator.command(&["login", wrong, "--name", "eve"]).unwrap();
        assert!(outcome.code != 0, "{wrong:?} was taken: {outcome}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    }
    let empty = snapshot(&operator.home);
    let secrets: Vec<_> = empty.keys().filter(|file| !file.ends_with("lock")).collect();
    assert!(secrets.is_empty(), "a refused login left {secrets:?}");

    // Noise on both ports: not TLS, an endless request, datagrams of every first byte.
    let to = (hospital.controller.address, 8443);
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0xff; 20_000]] {
        let mut stream = open_tcp(&operator.host, to, Duration::from_secs(3)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        stream.write_all(noise).ok();
        let _answer = stream.read(&mut [0; 64]);
    }
    let quic = std::net::SocketAddr::from((hospital.controller.address, 4433));
    operator
        .host
        .enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            for first in 0..=255_u8 {
                for length in [1_usize, 21, 1200] {
                    let mut datagram = vec![first; length];
                    datagram[length / 2] = 1;
                    socket.send_to(&datagram, quic).unwrap();
                }
            }
        })
        .unwrap();
    hospital.controller.process().unwrap().must_run().unwrap();

    // The code still works, and works once.
    hospital.operator.claim(&code).unwrap();
    let other = hospital.operator.with_home(&directory.join("eve"));
    let recovery = directory.join("eve.key").display().to_string();
    let late =
        other.command(&["login", &code, "--name", "eve", "--recovery-out", &recovery]).unwrap();
    assert_refused(&late, &[]);
    let log = hospital.controller.process().unwrap().output();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn mistakes_in_commands_and_policies_are_named_and_change_nothing() {
    let test = "mistakes_in_commands_and_policies_are_named_and_change_nothing";
    let Some(mut fixture) = fixture(test, Stage::Built) else { return };
    let directory = fixture.directory().to_path_buf();
    let hospital = &mut fixture.hospital;
    let code = hospital.controller.init().unwrap();
    hospital.controller.start().unwrap();
    hospital.operator.claim(&code).unwrap();
    let operator = &hospital.operator;
    let history = || operator.json(&["policy", "history"]).unwrap().to_string();
    let before = history();

    let file = operator.write_policy("good.toml", POLICY).unwrap();
    for (from, to, words) in [
        ("[\"dicom\", \"ping\"]", "[\"dicm\"]", &["dicm", "dicom"][..]),
        ("format = 1", "format = 99", &["format"]),
        ("format = 1", "format = 1\nfromat = 1", &["fromat"]),
        ("10.20.4.21/32", "10.20.4.21/33", &["10.20.4.21/33"]),
        ("members = [\"pacs-1\"]", "members = [", &[]),
        ("[segment.ct]", "[external.dicom]", &[]),
        ("from = \"monitors\"", "from = \"monitor\"", &["monitor"]),
    ] {
        let text = POLICY.replacen(from, to, 1);
        assert_ne!(text, POLICY, "{from:?} isn't in the policy");
        let wrong = operator.write_policy("wrong.toml", &text).unwrap();
        let mut words = words.to_vec();
        words.push("wrong.toml:");
        for command in [
            &["policy", "check", &wrong][..],
            &["policy", "apply", &wrong, "--reason", "x", "--yes"],
        ] {
            let outcome = operator.command(command).unwrap();
            assert_refused(&outcome, &words);
        }
    }
    let missing = operator.command(&["policy", "check", "/nonexistent.toml"]).unwrap();
    assert_refused(&missing, &["/nonexistent.toml"]);
    let binary = directory.join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe, 0, 1]).unwrap();
    let outcome = operator.command(&["policy", "check", &binary.display().to_string()]).unwrap();
    assert_refused(&outcome, &["binary.toml"]);

    // Things that aren't there, and changes without a word of consent.
    for command in [
        &["gateway", "approve", "nobody", "--yes"][..],
        &["gateway", "revoke", "nobody", "--reason", "x", "--confirm", "nobody", "--yes"],
        &["device", "mode", "nobody", "protect", "--reason", "x", "--yes"],
        &["device", "mode", "ct-1", "portect", "--reason", "x", "--yes"],
        &["device", "confirm", "00:00:5e:00:53:77", "--name", "x", "--yes"],
        &["device", "confirm", "not-a-mac", "--name", "x", "--yes"],
        &["policy", "rollback", "77", "--reason", "x", "--yes"],
        &["policy", "apply", &file, "--reason", "x"],
        &["gateway", "invite", "a name with spaces", "--site", SITE],
        &["why", "nobody", "ct-1", "dicom"],
        &["frobnicate"],
    ] {
        let outcome = operator.command(command).unwrap();
        assert!(outcome.code != 0, "{outcome}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
        assert!(!outcome.stderr.trim().is_empty(), "it said nothing: {outcome}");
    }
    assert_eq!(history(), before);

    // A home that belongs to nobody, and one with a file cut short.
    let stranger = operator.with_home(&directory.join("stranger"));
    assert_refused(&stranger.command(&["status"]).unwrap(), &["login"]);
    for file in snapshot(&operator.home).into_keys() {
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        let damaged = operator.command(&["whoami"]).unwrap();
        assert!(!damaged.stderr.contains("panicked"), "{}: {damaged}", file.display());
        let changed = operator.command(&["gateway", "invite", "x", "--site", SITE]).unwrap();
        assert!(!changed.stderr.contains("panicked"), "{}: {changed}", file.display());
        std::fs::write(&file, &whole).unwrap();
    }
    operator.ok(&["whoami"]).unwrap();
    hospital.controller.process().unwrap().must_run().unwrap();
    let log = hospital.controller.process().unwrap().output();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn an_agent_refuses_bad_invites_configurations_and_requests() {
    let test = "an_agent_refuses_bad_invites_configurations_and_requests";
    let Some(mut fixture) = fixture(test, Stage::Built) else { return };
    let hospital = &mut fixture.hospital;
    let code = hospital.controller.init().unwrap();
    hospital.controller.start().unwrap();
    hospital.operator.claim(&code).unwrap();
    let invite = hospital.operator.invite("imaging", SITE).unwrap();
    let gateway = &hospital.gateways["imaging"];

    let before = snapshot(&gateway.state);
    let mut changed = invite.clone();
    let last = changed.pop().unwrap();
    changed.push(if last == 'a' { 'b' } else { 'a' });
    for wrong in
        ["", "nonsense", "anteroom-invite-1.", &invite[..invite.len() - 7], &changed, &code]
    {
        let outcome = gateway.command(&["enroll", wrong]).unwrap();
        assert!(outcome.code != 0, "{wrong:?} was taken: {outcome}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
        assert!(outcome.stderr.lines().count() <= 12, "a long message: {outcome}");
    }
    let after = snapshot(&gateway.state);
    let changes: Vec<_> = differences(&before, &after)
        .into_iter()
        .filter(|file| after.get(file).is_some_and(|bytes| !bytes.is_empty()))
        .collect();
    assert!(changes.is_empty(), "refused invites left {changes:?}");

    // Each mistake in the configuration is named with its line and key.
    let good = std::fs::read_to_string(&gateway.config).unwrap();
    for (from, to, words) in [
        ("[underlay]", "[underlays]", &["underlays"][..]),
        ("listen = \"0.0.0.0:51820\"", "listen = \"everywhere\"", &["listen"]),
        ("interface = \"port1\"", "interface = \"port2\"", &["port2"]),
        ("name = \"port1\"", "name = \"port1", &[]),
        ("interface = \"port2\"", "interfaces = \"port2\"", &["interfaces"]),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from:?} isn't in the configuration");
        std::fs::write(&gateway.config, text).unwrap();
        let mut words = words.to_vec();
        words.push("agent.toml:");
        for command in [&["enroll", &invite][..], &["run"]] {
            let outcome = gateway.command(command).unwrap();
            assert!(outcome.code != 0, "{outcome}");
            if let Err(error) = refused(&outcome, outcome.code, &words) {
                panic!("{error:#}");
            }
        }
    }
    std::fs::write(&gateway.config, &good).unwrap();

    // Not running.
    let outcome = gateway.command(&["status"]).unwrap();
    assert!(outcome.code != 0 && !outcome.stderr.contains("panicked"), "{outcome}");

    // Not enrolled, it runs as a wire, and shows nobody's identity.
    let gateway = hospital.gateway("imaging");
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    gateway.stop().unwrap();
    let outcome = gateway.command(&["identity"]).unwrap();
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");

    // The invite is still good, and good for one identity.
    let gateway = hospital.gateway("imaging");
    gateway.enroll(&invite).unwrap();
    let other = &hospital.gateways["ward"];
    let outcome = other.command(&["enroll", &invite]).unwrap();
    assert!(outcome.code != 0 && !outcome.stderr.contains("panicked"), "{outcome}");

    // Noise on the local socket.
    let gateway = hospital.gateway("imaging");
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    let socket = format!("/run/lab/{}/agent.sock", gateway.host.name());
    for noise in [&b"{}\n"[..], b"\xff\xff\xff\xff", &[0; 100_000], b"status"] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(noise).ok();
        stream.shutdown(std::net::Shutdown::Write).ok();
        let _answer = stream.read(&mut [0; 4096]);
    }
    for command in [
        &["why", "nowhere", "10.20.4.11", "tcp/104"][..],
        &["why", "10.20.1.11", "10.20.4.11", "tcp/99999"],
        &["flows", "--limit", "-1"],
    ] {
        let outcome = gateway.command(command).unwrap();
        assert!(outcome.code != 0 && !outcome.stderr.contains("panicked"), "{outcome}");
    }
    gateway.status().unwrap();
    let log = gateway.process().unwrap().output();
    assert!(!log.contains("panicked"), "{log}");

    // A saved view that was tampered with is refused, not believed.
    gateway.kill().unwrap();
    for file in snapshot(&gateway.state).into_keys() {
        let whole = std::fs::read(&file).unwrap();
        if whole.is_empty() {
            continue;
        }
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&file, &flipped).unwrap();
        let outcome = gateway.command(&["identity"]).unwrap();
        assert!(!outcome.stderr.contains("panicked"), "{}: {outcome}", file.display());
        std::fs::write(&file, &whole).unwrap();
    }
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
}

#[test]
fn approving_with_the_wrong_fingerprint_is_refused() {
    let test = "approving_with_the_wrong_fingerprint_is_refused";
    let Some(fixture) = fixture(test, Stage::Wires) else { return };
    let hospital = &fixture.hospital;
    let other = hospital.gateways["ward"].fingerprint().unwrap();
    let outcome = hospital
        .operator
        .command(&[
            "gateway",
            "approve",
            "imaging",
            "--fingerprint",
            &other,
            "--reason",
            "x",
            "--yes",
        ])
        .unwrap();
    assert_refused(&outcome, &["fingerprint"]);
    let list = hospital.operator.json(&["gateway", "list"]).unwrap().to_string();
    assert!(!list.contains("imaging"), "{list}");
    approve_all(hospital).unwrap();
    let list = hospital.operator.json(&["gateway", "list"]).unwrap().to_string();
    assert!(list.contains("imaging"), "{list}");
}
