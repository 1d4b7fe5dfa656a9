//! No payload of a device's traffic is stored anywhere, and no private key leaves the machine that made it (statement 8).

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anteroom_agent::state::{Held, StateDir};
use anteroom_e2e::{Stage, fixture, snapshot};
use anteroom_lab::clinical::dicom::run_to_end;
use anteroom_lab::clinical::hl7::{self, Engine, Monitor};
use anteroom_lab::clinical::study::Study;
use anteroom_lab::process::{Process, wait_listening};
use anteroom_lab::programs;
use anteroom_lab::story::open_tcp;
use anteroom_lab::wait;
use anteroom_proto::invite::InviteCode;
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};

/// Stands in what devices say to each other.
const MARKERS: [&str; 3] = ["PHANTOM^ANTEROOM", "MARKER-IN-DICOM-7491", "MARKER-IN-DROPPED-2260"];

/// The forms in which bytes might be kept. Base64 in each of its three places, without the ends that depend on neighbours.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![bytes.to_vec(), HEXLOWER.encode(bytes).into_bytes()];
    // UTF-16 of either byte order: what is ASCII only differs by where the zeros stand.
    forms.push(bytes.iter().flat_map(|byte| [*byte, 0]).take(2 * bytes.len() - 1).collect());
    forms.push(HEXLOWER.encode(bytes).to_uppercase().into_bytes());
    for pad in 0..3 {
        let padded = [&vec![0; pad][..], bytes].concat();
        for text in [BASE64.encode(&padded), BASE64URL_NOPAD.encode(&padded)] {
            let text = text.trim_end_matches('=').as_bytes();
            forms.push(text[4.min(text.len())..text.len().saturating_sub(2)].to_vec());
        }
    }
    forms
}

/// Files below `root` but for those in `except` that hold the bytes in any form.
fn holding(root: &Path, bytes: &[u8], except: &[PathBuf]) -> Vec<PathBuf> {
    let forms = forms(bytes);
    snapshot(root)
        .into_iter()
        .filter(|(path, _)| !except.iter().any(|own| path.starts_with(own)))
        .filter(|(_, content)| {
            forms
                .iter()
                .any(|form| content.windows(form.len()).any(|window| window == form.as_slice()))
        })
        .map(|(path, _)| path)
        .collect()
}

#[test]
fn the_search_finds_what_is_there_in_each_form() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let secret = b"PHANTOM^ANTEROOM";
    std::fs::write(root.join("none"), "PHANTOM^ANTERROM").unwrap();
    let lines = [&b"xx"[..], secret, b"yyyy"].concat();
    std::fs::write(root.join("raw"), &lines).unwrap();
    std::fs::write(root.join("hex"), HEXLOWER.encode(&lines)).unwrap();
    for cut in 0..3 {
        std::fs::write(root.join(format!("base64-{cut}")), BASE64.encode(&lines[cut..])).unwrap();
    }
    let wide: Vec<u8> = lines.iter().flat_map(|byte| [0, *byte]).collect();
    std::fs::write(root.join("wide"), wide).unwrap();
    let found = holding(root, secret, &[root.join("raw")]);
    let names: Vec<_> =
        found.iter().map(|path| path.file_name().unwrap().to_string_lossy()).collect();
    assert_eq!(names, ["base64-0", "base64-1", "base64-2", "hex", "wide"]);
}

/// A conversation of `count` rounds about `marker`, opened by the first.
fn converse(
    from: &anteroom_lab::topology::Host,
    to: &anteroom_lab::hospital::Machine,
    port: u16,
    marker: &str,
) {
    let address = to.at(port);
    let listener = to.host.enter(|| std::net::TcpListener::bind(address)).unwrap().unwrap();
    let mut stream = open_tcp(from, (to.address(), port), Duration::from_secs(20)).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    let said = format!("PATIENT {marker} END").into_bytes();
    for _ in 0..20 {
        let mut heard = vec![0; said.len()];
        stream.write_all(&said).unwrap();
        other.read_exact(&mut heard).unwrap();
        other.write_all(&heard).unwrap();
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, said);
    }
}

/// Has DCMTK send a study. False, said in a line, where it isn't installed.
fn send_study(
    from: &anteroom_lab::hospital::Machine,
    to: &anteroom_lab::hospital::Machine,
    aside: &Path,
) -> bool {
    let (Some(sender), Some(taker)) = (programs::find("storescu"), programs::find("storescp"))
    else {
        assert!(std::env::var_os("ANTEROOM_REQUIRE_NAMESPACES").is_none(), "DCMTK isn't installed");
        eprintln!("passed over: DICOM, for DCMTK isn't installed");
        return false;
    };
    let study = Study::write(&aside.join("study"), 1, 1).unwrap();
    assert!(study.patient.starts_with(MARKERS[0]), "{}", study.patient);
    let mut command = to.host.command(taker);
    command.args(["--ignore", "--aetitle", "PACS_ONE", "104"]);
    let mut archive =
        Process::spawn("storescp", &mut command, &aside.join("storescp.log")).unwrap();
    wait_listening(&to.host, 104, &mut archive, Duration::from_secs(60)).unwrap();
    wait::until_ok(Duration::from_secs(60), "the study to be sent", || {
        let mut command = from.host.command(&sender);
        command.args(["--timeout", "10", "-aet", "CT_ONE", "-aec", "PACS_ONE"]);
        command.arg(to.address().to_string()).arg("104").args(&study.files);
        run_to_end(command, Duration::from_secs(30)).map(|_| ())
    })
    .unwrap();
    archive.kill().unwrap();
    true
}

/// A request by HTTP with `marker` wherever a name may stand in one.
fn request(
    from: &anteroom_lab::topology::Host,
    to: &anteroom_lab::hospital::Machine,
    marker: &str,
) {
    let listener = to.host.enter(|| std::net::TcpListener::bind(to.at(8_081))).unwrap().unwrap();
    let mut stream = open_tcp(from, (to.address(), 8_081), Duration::from_secs(20)).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    let asked = format!(
        "GET /patients/{marker}?name={marker} HTTP/1.1\r\nHost: pump-1\r\nUser-Agent: anteroom-viewer/1\r\nReferer: http://ris/{marker}\r\nCookie: name={marker}\r\nAuthorization: Basic {marker}\r\nContent-Length: {}\r\n\r\n{marker}",
        marker.len()
    );
    stream.write_all(asked.as_bytes()).unwrap();
    let mut heard = vec![0; asked.len()];
    other.read_exact(&mut heard).unwrap();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nServer: pump/2\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n<p>{marker}</p>",
        marker.len() + 7
    );
    other.write_all(answer.as_bytes()).unwrap();
    let mut heard = vec![0; answer.len()];
    stream.read_exact(&mut heard).unwrap();
}

#[test]
fn neither_payloads_nor_others_private_keys_are_stored_anywhere() {
    let test = "neither_payloads_nor_others_private_keys_are_stored_anywhere";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    let machine = |name: &str| hospital.machine(name).clone();
    let engine = Engine::start(&machine("hl7-1").host, hl7::PORT).unwrap();
    let monitor = Monitor::start(
        &machine("monitor-1").host,
        machine("hl7-1").at(hl7::PORT),
        Duration::from_millis(20),
    )
    .unwrap();
    // DICOM by DCMTK, where it is installed: a patient's name stands in what is sent. The study isn't part of what is searched.
    let aside = tempfile::tempdir().unwrap();
    let sent = send_study(&machine("ct-1"), &machine("pacs-1"), aside.path());
    // Through the tunnel, in the clear to an external, and of a device in observe.
    converse(&machine("ct-1").host, &machine("pacs-1"), 104, MARKERS[1]);
    converse(&machine("ct-1").host, &machine("archive-1"), 104, MARKERS[1]);
    hospital.operator.mode(&["pump-1"], "observe", "for the test").unwrap();
    converse(&machine("ws-1").host, &machine("pump-1"), 8_080, MARKERS[1]);
    request(&machine("ws-1").host, &machine("pump-1"), MARKERS[1]);
    // What is dropped is remembered for `why`: not with its content.
    let (pump, pacs) = (machine("mri-1"), machine("hl7-1").at(9_999));
    let socket = pump.host.enter(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    for _ in 0..50 {
        socket.send_to(MARKERS[2].as_bytes(), pacs).unwrap();
    }
    wait::until_ok(Duration::from_secs(60), "the drops to be reported", || {
        let flows = hospital.operator.json(&["flows", "--dropped"])?.to_string();
        anyhow::ensure!(flows.contains("9999"), "{flows}");
        Ok(())
    })
    .unwrap();
    let heard = "20 messages of the monitor to be acknowledged";
    wait::until(Duration::from_secs(60), heard, || {
        (monitor.count().acknowledged >= 20).then_some(())
    })
    .unwrap();
    let count = monitor.finish(&engine, Duration::from_secs(60));
    assert!(count.acknowledged >= 20 && count.lost == 0, "{count:?}");
    // What the gateways read of the devices is stored, though nothing else of what was sent.
    let database = hospital.controller.directory.clone();
    let mut wanted = vec!["hl7.senderMONITOR-1", "http.serverpump/2"];
    if sent {
        wanted.extend(["dicom.calling-aeCT_ONE", "dicom.called-aePACS_ONE"]);
    }
    wait::until_ok(Duration::from_secs(60), "the hints to be stored", || {
        for hint in &wanted {
            // As a row of the table has it: its kind and its value, one behind the other.
            let found = holding(&database, hint.as_bytes(), &[]);
            anyhow::ensure!(!found.is_empty(), "no {hint}");
        }
        Ok(())
    })
    .unwrap();
    // Orderly ends, so that everything that is written at the end is written.
    for gateway in hospital.gateways.values_mut() {
        gateway.stop().unwrap();
    }
    hospital.controller.process().unwrap().stop(Duration::from_secs(10)).unwrap();

    let root = hospital.directory.clone();
    let files = snapshot(&root);
    assert!(files.len() > 30, "{:?}", files.keys());
    for marker in MARKERS {
        let found = holding(&root, marker.as_bytes(), &[]);
        assert!(found.is_empty(), "{marker} stands in {found:?}");
    }

    // Each private key stands on its own machine only.
    let mut keys: Vec<(String, Vec<u8>, PathBuf)> = Vec::new();
    for (name, gateway) in &hospital.gateways {
        let held = Held::load(&StateDir::open(&gateway.state).unwrap()).unwrap();
        let enrolled = held.enrolled.unwrap();
        keys.push((
            format!("{name}'s identity"),
            enrolled.identity.to_seed().to_vec(),
            gateway.state.clone(),
        ));
        keys.push((
            format!("{name}'s tunnel"),
            enrolled.ring.newest().secret.as_bytes().to_vec(),
            gateway.state.clone(),
        ));
        let invite = root.join(format!("operator/{name}.invite"));
        let code: InviteCode = std::fs::read_to_string(&invite).unwrap().trim().parse().unwrap();
        keys.push((format!("{name}'s invite"), code.seed.0, invite));
    }
    let home = &hospital.operator.home;
    for (name, file) in [
        ("the operator's", home.join("operator.key")),
        ("the recovery", hospital.operator.desk.join("recovery.key")),
        ("the controller's", hospital.controller.directory.join("identity.key")),
    ] {
        let text = std::fs::read_to_string(&file).unwrap();
        let body = text.trim().rsplit('.').next().unwrap();
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).unwrap();
        keys.push((name.into(), bytes[..32].to_vec(), file));
    }
    let https = hospital.controller.directory.join("https.key");
    let pem = std::fs::read_to_string(&https).unwrap();
    keys.push(("the HTTPS".into(), pem.lines().nth(2).unwrap().as_bytes().to_vec(), https));
    for (name, bytes, own) in keys {
        assert!(!holding(&home_of(&own), &bytes, &[]).is_empty(), "{name} key isn't even at home");
        let found = holding(&root, &bytes, std::slice::from_ref(&own));
        assert!(found.is_empty(), "{name} key stands in {found:?}");
    }
}

/// Where to look for a key at home: its directory.
fn home_of(own: &Path) -> PathBuf {
    if own.is_dir() { own.into() } else { own.parent().unwrap_or(own).into() }
}
