//! A gateway's identity key is replaced in its place: traffic goes on, and who has a copy of the old key has nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anteroom_agent::state::{Held, StateDir};
use anteroom_e2e::{Stage, fixture, snapshot};
use anteroom_lab::hospital::Hospital;
use anteroom_lab::ping::Pinging;
use anteroom_lab::topology::Host;
use anteroom_lab::wait;
use anteroom_proto::id::BootId;
use anteroom_proto::relay::FromRelay;
use anteroom_proto::v1::{Hello, Reachable, Refusal, ToAgent, ToController, VERSIONS, frame};
use anteroom_transport::endpoint;
use anteroom_transport::message::{MessageReader, MessageWriter};
use anyhow::{Context as _, ensure};

use super::stolen::ask_relay_from;

const BEAT: Duration = Duration::from_millis(5);
const MANY: u64 = 1_000_000;
const DEADLINE: Duration = Duration::from_secs(90);
const REASON: [&str; 4] = ["--yes", "--reason", "its disk was copied", "--timeout"];

/// What the controller says to whoever has the keys in `state`.
fn ask_controller(host: &Host, state: &Path, at: SocketAddr) -> Refusal {
    let enrolled = Held::load(&StateDir::open(state).unwrap()).unwrap().enrolled.unwrap();
    let keys = enrolled.chain.as_ref().unwrap().newest().controller_keys();
    let hello = Hello {
        versions: VERSIONS,
        organisation: enrolled.enrolment.organisation,
        gateway: enrolled.enrolment.gateway,
        boot: BootId::from_bytes([9; 16]),
        agent_version: "a thief's".into(),
        capabilities: Vec::new(),
        authority: 1,
        applied: None,
        reachable: Reachable {
            endpoints: Vec::new(),
            keys: enrolled.ring.bindings(&enrolled.enrolment, &enrolled.identity),
            ports: Vec::new(),
            quic: None,
        },
        quic: None,
    };
    let talk = async {
        let link = endpoint::connect(at, &enrolled.identity, &keys).await?;
        let (send, receive) = link.connection().open_bi().await?;
        MessageWriter::new(send).send(&ToController::Hello(Box::new(hello))).await?;
        let mut reader = MessageReader::<ToAgent>::new(receive, frame::MAX_TO_AGENT);
        match reader.next().await?.context("the controller says nothing")? {
            ToAgent::Refused(refusal) => Ok(refusal),
            other => anyhow::bail!("a thief isn't refused: {other:?}"),
        }
    };
    let asked = host.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(DEADLINE, talk).await? })
    });
    asked.unwrap().unwrap()
}

/// A copy of a gateway's state, as somebody takes it who has the disk for a moment.
fn copy(hospital: &Hospital, gateway: &str, to: &Path) {
    let from = &hospital.gateways[gateway].state;
    for (path, bytes) in snapshot(from) {
        let to = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, bytes).unwrap();
    }
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
}

/// Waits until a gateway is back at controller and relay with the key that has this fingerprint.
fn wait_back(hospital: &Hospital, gateway: &str, fingerprint: &str) {
    wait::until_ok(DEADLINE, "the gateway to be back with its new key", || {
        let status = hospital.gateways[gateway].status()?;
        let own = &status["identity"]["fingerprint"];
        ensure!(
            own == fingerprint,
            "{gateway} has {own}, not {fingerprint}: {}",
            status["control"]
        );
        ensure!(!status["control"]["connected"].is_null(), "{}", status["control"]);
        let relays = status["relays"].as_array().cloned().unwrap_or_default();
        let connected = !relays.is_empty() && relays.iter().all(|relay| relay["connected"] == true);
        ensure!(connected, "{relays:?}");
        let on_disk = hospital.gateways[gateway].fingerprint()?;
        ensure!(on_disk == fingerprint, "on disk is {on_disk}");
        let shown = hospital.operator.json(&["gateway", "show", gateway])?;
        ensure!(shown["fingerprint"] == fingerprint && shown["state"] == "ok", "{shown}");
        Ok(())
    })
    .unwrap();
}

/// The fingerprint that the operator's last signed model has for a gateway.
fn approved(hospital: &Hospital, gateway: &str) -> String {
    let shown = hospital.operator.json(&["gateway", "show", gateway]).unwrap();
    shown["fingerprint"].as_str().unwrap().to_owned()
}

fn rekey(hospital: &Hospital, gateway: &str, timeout: &str, more: &[&str]) -> (i32, String) {
    let all = [&["gateway", "rekey", gateway], &REASON[..], &[timeout], more].concat();
    let outcome = hospital.operator.command(&all).unwrap();
    (outcome.code, outcome.to_string())
}

#[test]
fn an_identity_key_is_replaced_in_its_place_and_no_ping_is_lost() {
    let test = "rekey::an_identity_key_is_replaced_in_its_place_and_no_ping_is_lost";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let thief = fixture.directory().join("thief");
    let hospital = &fixture.hospital;
    let controller = SocketAddr::from((hospital.controller.address, 4433));
    let first = approved(hospital, "imaging");
    wait_back(hospital, "imaging", &first);
    copy(hospital, "imaging", &thief);
    let seed = StateDir::open(&thief).unwrap().identity().unwrap().unwrap().to_seed();
    // Another machine, from which the controller can be reached.
    let elsewhere = &hospital.gateways["ward"].host;

    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    let pinging = Pinging::start(&ct.host, pacs, MANY, BEAT).unwrap();
    let flowing = |more: u64| {
        let before = pinging.received();
        wait::until(DEADLINE, "pings", || (pinging.received() > before + more).then_some(()))
            .unwrap();
    };
    flowing(100);
    // Twice in a row, with tunnel keys that change in between: they are bound by the new key.
    let mut before = first;
    for _ in 0..2 {
        let (code, said) = rekey(hospital, "imaging", "50s", &[]);
        assert_eq!(code, 0, "{said}");
        let after = approved(hospital, "imaging");
        assert_ne!(before, after, "{said}");
        assert!(said.contains(&before) && said.contains(&after), "{said}");
        wait_back(hospital, "imaging", &after);
        flowing(200);
        let rotate = ["gateway", "rotate", "imaging", "--timeout", "50s", "--reason", "drill"];
        hospital.operator.ok(&rotate).unwrap();
        flowing(200);
        before = after;
    }
    let series = pinging.stop().unwrap();
    assert_eq!(series.lost(), 0, "{series:?}");
    let stolen = Held::load(&StateDir::open(&thief).unwrap()).unwrap().enrolled.unwrap().ring;
    let stolen: Vec<_> = stolen.all().map(|key| key.secret.public().to_wireguard()).collect();
    wait::until_ok(DEADLINE, "the tunnel keys on the copied disk to be given up", || {
        let status = hospital.gateways["imaging"].status()?;
        let keys = status["control"]["keys"].as_array().cloned().unwrap_or_default();
        let held = |key: &&serde_json::Value| {
            stolen.iter().any(|stolen| key["key"] == **stolen) && key["serves"] != "clients"
        };
        ensure!(!keys.is_empty() && !keys.iter().any(|key| held(&key)), "{keys:?}");
        Ok(())
    })
    .unwrap();
    eprintln!("{} pings, none lost", series.sent);
    let audit = hospital.operator.json(&["audit", "list"]).unwrap().to_string();
    for said in ["gateway rekey ask", "gateway rekey", "its disk was copied", &before] {
        assert!(audit.contains(said), "{said} isn't in {audit}");
    }

    // Who has a copy of the old key has nothing, and the disk has no copy of it any more.
    let refusal = ask_controller(elsewhere, &thief, controller);
    assert!(refusal.message.contains("another identity key"), "{refusal:?}");
    let relay = ask_relay_from(elsewhere, &thief, controller);
    assert!(matches!(relay, FromRelay::Refused(_)), "{relay:?}");
    for (path, bytes) in snapshot(&hospital.gateways["imaging"].state) {
        let found = bytes.windows(seed.len()).any(|part| part == seed.as_slice());
        assert!(!found, "the old key is in {}", path.display());
    }

    // A gateway that is away is asked when it is back.
    let hospital = &mut fixture.hospital;
    let old = approved(hospital, "servers");
    hospital.gateway("servers").kill().unwrap();
    wait::until_ok(DEADLINE, "the controller to miss it", || {
        let shown = hospital.operator.json(&["gateway", "show", "servers"])?;
        ensure!(shown["online"] == false, "{shown}");
        Ok(())
    })
    .unwrap();
    let (code, said) = rekey(hospital, "servers", "1s", &[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("offline") && approved(hospital, "servers") == old, "{said}");
    hospital.gateway("servers").start().unwrap();
    let servers = &hospital.gateways["servers"];
    let offered = wait::until_ok(DEADLINE, "it to offer a key", || {
        let offered = servers.command(&["identity", "--json"])?.json()?;
        offered["offered"][0].as_str().map(str::to_owned).context("nothing offered")
    })
    .unwrap();
    // It is gone again before it is approved, and hears of that by being refused with the old key.
    wait::until_ok(DEADLINE, "the controller to have the offer", || {
        let again =
            ["gateway", "rekey", "servers", "--reason", "look", "--fingerprint", "no", "--yes"];
        let outcome = hospital.operator.command(&again)?;
        ensure!(outcome.code == 4 && outcome.stderr.contains(&offered), "{outcome}");
        Ok(())
    })
    .unwrap();
    hospital.gateway("servers").kill().unwrap();
    let (code, said) = rekey(hospital, "servers", "1s", &["--fingerprint", &offered]);
    assert_eq!(code, 3, "{said}");
    assert_eq!(approved(hospital, "servers"), offered);
    // Typed again, by somebody who doesn't know.
    let (code, said) = rekey(hospital, "servers", "1s", &[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("approved") && !said.contains("stolen"), "{said}");
    hospital.gateway("servers").start().unwrap();
    wait_back(hospital, "servers", &offered);
    let pinging = Pinging::start(&hospital.machine("ct-1").host, pacs, MANY, BEAT).unwrap();
    wait::until(DEADLINE, "pings", || (pinging.received() > 100).then_some(())).unwrap();
    pinging.stop().unwrap();
}
