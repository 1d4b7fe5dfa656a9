//! A gateway that was stolen and is revoked: how soon every peer drops it, what its keys are worth then, and what its disk
//! tells (statements 4 and 10).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anteroom_agent::state::{Held, StateDir};
use anteroom_e2e::attack;
use anteroom_e2e::stolen::Stolen;
use anteroom_e2e::wire::End;
use anteroom_e2e::{Stage, fixture, snapshot};
use anteroom_lab::anteroom::Gateway;
use anteroom_lab::hospital::{Hospital, MACHINES, address};
use anteroom_lab::topology::Host;
use anteroom_lab::wait;
use anteroom_proto::intent::Member;
use anteroom_proto::relay::{FromRelay, Hello, MAX_FROM_RELAY, ToRelay, VERSIONS};
use anteroom_transport::endpoint;
use anteroom_transport::message::{MessageReader, MessageWriter};
use anteroom_transport::tls::Protocol;
use anyhow::{Context as _, ensure};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// How many peers a gateway's engine has.
fn peers(hospital: &Hospital, gateway: &str) -> anyhow::Result<usize> {
    let status = hospital.gateways[gateway].status()?;
    let peers = status["data_plane"]["engine"]["peers"].as_array();
    peers.map(Vec::len).with_context(|| format!("no peers in {status}"))
}

fn wait_dropped(hospital: &Hospital, gateway: &str) {
    wait::until_ok(DEADLINE, "the stolen gateway to be nobody's peer", || {
        let peers = peers(hospital, gateway)?;
        ensure!(peers == 0, "{gateway} has {peers} peers");
        Ok(())
    })
    .unwrap();
}

/// What a relay says to whoever shows the stolen key and the stolen pass.
fn ask_relay(gateway: &Gateway, at: SocketAddr) -> FromRelay {
    ask_relay_from(&gateway.host, &gateway.state, at)
}

/// The same, with what was stolen lying in `state`.
pub(super) fn ask_relay_from(host: &Host, state: &Path, at: SocketAddr) -> FromRelay {
    let state = StateDir::open(state).unwrap();
    let pass = state.relay_pass().unwrap().expect("there is a pass to steal");
    let enrolled = Held::load(&state).unwrap().enrolled.unwrap();
    let authority = enrolled.chain.as_ref().map_or(0, |chain| chain.newest().number);
    let newest = enrolled.chain.as_ref().unwrap().newest();
    let keys = newest.controller_keys();
    let hello = Hello {
        versions: VERSIONS,
        organisation: newest.organisation,
        authority,
        pass: Box::new(pass),
    };
    let talk = async {
        let link = endpoint::connect_for(at, &enrolled.identity, &keys, Protocol::Relay).await?;
        let (send, receive) = link.connection().open_bi().await?;
        let mut writer = MessageWriter::new(send);
        writer.send(&ToRelay::Hello(Box::new(hello))).await?;
        let mut reader = MessageReader::<FromRelay>::new(receive, MAX_FROM_RELAY);
        reader.next().await?.context("the relay says nothing")
    };
    let asked = host.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(DEADLINE, talk).await? })
    });
    asked.unwrap().unwrap()
}

#[test]
fn every_peer_drops_a_revoked_gateway_at_once_and_its_keys_are_useless() {
    let test = "stolen::every_peer_drops_a_revoked_gateway_at_once_and_its_keys_are_useless";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    // The gateway that both others speak with.
    hospital.gateway("servers").kill().unwrap();
    let hospital = &fixture.hospital;
    let servers = &hospital.gateways["servers"];
    let mut stolen = Stolen::take(servers).unwrap();
    let at = |name: &str| hospital.machine(name).address();
    let owner_of = |stolen: &Stolen, name: &str| {
        let members = &stolen.view.intent.members;
        let has = |member: &&Member| member.addresses.iter().any(|net| net.contains(&at(name)));
        members.iter().find(has).unwrap().gateway
    };
    let (imaging, ward) = (owner_of(&stolen, "ct-1"), owner_of(&stolen, "monitor-1"));
    wait::until(DEADLINE, "the thief's sessions with both", || {
        stolen.run(Duration::from_millis(50)).unwrap();
        (stolen.is_live(imaging) && stolen.is_live(ward)).then_some(())
    })
    .unwrap();
    let controller = SocketAddr::from((hospital.controller.address, 4433));
    let relay = ask_relay(servers, controller);
    assert!(matches!(relay, FromRelay::Welcome(_)), "so it can be told apart: {relay:?}");

    // The controller can't reach the ward's gateway for a while.
    let away = address("ward", 2);
    let ends = [format!("from {away}/32 dport 4433"), format!("to {away}/32 sport 4433")];
    let cuts = ["udp", "tcp"]
        .map(|over| ends.each_ref().map(|ends| format!("ipproto {over} {ends} blackhole")));
    let cuts = cuts.concat();
    for cut in &cuts {
        hospital.router.ip(&format!("rule add pref 11 {cut}")).unwrap();
    }

    // Packets that a rule opens, all the time, while an operator types the command.
    let mut end = End::open(&hospital.machine("ct-1").host, "eth0").unwrap();
    let revoked = AtomicBool::new(false);
    let mut came: Option<Instant> = None;
    let (mut sent, mut port) = (0_u32, 20_000_u16);
    let (start, done, outcome) = std::thread::scope(|scope| {
        let mut command = None;
        let mut last = None;
        loop {
            port = if port == 60_000 { 20_000 } else { port + 1 };
            let syn = attack::tcp(((at("pacs-1"), port), (at("ct-1"), 4_006)), 0x02);
            stolen.say(imaging, &syn).unwrap();
            sent += 1;
            stolen.run(Duration::from_millis(2)).unwrap();
            end.listen(Duration::from_millis(1)).unwrap();
            if end.take().iter().any(|frame| attack::is_marked(frame)) {
                came = Some(Instant::now());
            }
            if came.is_some() && command.is_none() {
                let revoked = &revoked;
                command = Some(scope.spawn(move || {
                    let start = Instant::now();
                    let words = ["gateway", "revoke", "servers", "--reason", "stolen", "--yes"];
                    let words = [&words[..], &["--confirm", "servers"]].concat();
                    let outcome = hospital.operator.command(&words).unwrap();
                    revoked.store(true, Relaxed);
                    (start, start.elapsed(), outcome)
                }));
            }
            if revoked.load(Relaxed) {
                last = last.or_else(|| Some(Instant::now()));
            }
            if last.is_some_and(|at: Instant| at.elapsed() > Duration::from_secs(2)) {
                break;
            }
        }
        command.expect("packets of the thief's came before").join().unwrap()
    });
    let after = came.unwrap().saturating_duration_since(start);
    println!("last of {sent} packets {after:?} after the command began; it took {done:?}");
    // Not everywhere, since the ward can't be reached: the command says so.
    assert!([0, 3].contains(&outcome.code), "{outcome}");
    assert!(after < done + Duration::from_secs(1), "{after:?}: {outcome}");
    wait_dropped(hospital, "imaging");

    // The ward's gateway follows as soon as the controller reaches it.
    assert_eq!(peers(hospital, "ward").unwrap(), 1, "it was told by somebody: {outcome}");
    for cut in &cuts {
        hospital.router.ip(&format!("rule del {cut}")).unwrap();
    }
    wait_dropped(hospital, "ward");

    // Its keys open nothing anywhere: no tunnel, not at the relay, not at the controller.
    drop(stolen);
    let mut again = Stolen::take(servers).unwrap();
    again.run(Duration::from_secs(6)).unwrap();
    assert_eq!(again.heard, 0, "a revoked gateway was answered");
    assert!(!again.is_live(imaging) && !again.is_live(ward));
    drop(again);
    let relay = ask_relay(servers, controller);
    assert!(matches!(relay, FromRelay::Refused(_)), "{relay:?}");
    let gateway = fixture.hospital.gateway("servers");
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    wait::until_ok(DEADLINE, "the controller to refuse it", || {
        let control = gateway.status()?["control"].clone();
        ensure!(control["last_error"].to_string().contains("revoked"), "{control}");
        Ok(())
    })
    .unwrap();
}

/// Whether these bytes stand somewhere in the files, and where.
fn found(files: &BTreeMap<std::path::PathBuf, Vec<u8>>, bytes: &[u8]) -> Option<String> {
    let has = |content: &[u8]| content.windows(bytes.len()).any(|window| window == bytes);
    let file = files.iter().find(|(_, content)| has(content))?;
    Some(file.0.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// What would give a device away: what it is, and the bytes.
fn traces(device: &Value, plan: &anteroom_lab::hospital::Plan) -> Vec<(&'static str, Vec<u8>)> {
    let hex = |text: &str| -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
        digits.chunks(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect()
    };
    let id = device["id"].as_str().unwrap();
    let id = id.rsplit('-').next().unwrap_or(id);
    vec![
        ("id", hex(id)),
        ("Ethernet address", hex(&plan.mac())),
        ("Ethernet address, as text", plan.mac().into_bytes()),
        ("IP address", plan.address().octets().to_vec()),
        ("IP address, as text", plan.address().to_string().into_bytes()),
        ("name", plan.name.as_bytes().to_vec()),
    ]
}

#[test]
fn a_stolen_disk_names_no_device_with_which_its_own_share_no_rule() {
    let test = "stolen::a_stolen_disk_names_no_device_with_which_its_own_share_no_rule";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let devices = hospital.operator.json(&["device", "list"]).unwrap();
    // By the lab's policy: whom each gateway's devices share a rule with, its own included.
    let known = BTreeMap::from([
        ("imaging", ["ct-1", "mri-1", "pacs-1"].as_slice()),
        ("ward", ["pump-1", "monitor-1", "hl7-1"].as_slice()),
        ("servers", ["pacs-1", "hl7-1", "ct-1", "mri-1", "pump-1", "monitor-1"].as_slice()),
    ]);
    for (gateway, known) in known {
        let directory: &Path = &hospital.gateways[gateway].state;
        let files = snapshot(directory);
        assert!(files.len() > 3, "{gateway}: {:?}", files.keys());
        for plan in MACHINES.iter().filter(|plan| plan.is_device()) {
            let all = devices.as_array().unwrap();
            let device = all.iter().find(|device| device["name"] == plan.name).unwrap();
            let traces = traces(device, plan);
            let there: Vec<String> = traces
                .iter()
                .filter_map(|(what, bytes)| Some(format!("{what} in {}", found(&files, bytes)?)))
                .collect();
            if known.contains(&plan.name) {
                // So the search finds what is there.
                let kinds = ["id in", "Ethernet address in"];
                for kind in kinds {
                    let is = there.iter().any(|trace| trace.starts_with(kind));
                    assert!(is, "{gateway} doesn't know {}: {there:?}, {device}", plan.name);
                }
            } else {
                assert!(there.is_empty(), "{gateway}'s disk tells of {}: {there:?}", plan.name);
            }
        }
    }
}
