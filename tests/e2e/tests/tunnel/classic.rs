//! A gateway whose owner has written `classic = "never"`, and a peer that has lost its ML-KEM keys.

use std::time::Duration;

use anteroom_e2e::{Stage, drops, fixture, talk};
use anteroom_lab::hospital::{Hospital, Machine};
use anteroom_lab::ping::{self, Pinging};
use anteroom_lab::wait;
use anyhow::{Context as _, ensure};
use serde_json::Value;

const BEAT: Duration = Duration::from_millis(20);
const MANY: u64 = 1_000_000;
const DEADLINE: Duration = Duration::from_secs(120);

/// What imaging says of servers.
fn peer(hospital: &Hospital) -> anyhow::Result<Value> {
    let id = hospital.gateways["servers"].status()?["data_plane"]["engine"]["gateway"].clone();
    let status = hospital.gateways["imaging"].status()?;
    let peers = status["data_plane"]["engine"]["peers"].as_array().context("peers")?;
    let peer = peers.iter().find(|peer| peer["gateway"] == id);
    peer.cloned().with_context(|| status.to_string())
}

fn wait_for(hospital: &Hospital, what: &str, so: impl Fn(&Value) -> bool) {
    wait::until_ok(DEADLINE, what, || {
        let peer = peer(hospital)?;
        ensure!(peer["live"] == true && so(&peer["psk"]), "{peer}");
        Ok(())
    })
    .unwrap();
}

fn refused(hospital: &Hospital) -> u64 {
    drops(&hospital.gateways["imaging"]).unwrap().get("classic").copied().unwrap_or(0)
}

/// That pings are answered, whoever begins.
fn passes(ends: [&Machine; 2], when: &str) {
    for (from, to) in [(ends[0], ends[1]), (ends[1], ends[0])] {
        wait::until_ok(DEADLINE, &format!("pings {when}"), || {
            let series = ping::ping(&from.host, to.address(), 10, BEAT)?;
            ensure!(series.lost() == 0, "from {}: {series:?}", from.plan.name);
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn where_classic_is_never_nothing_passes_to_or_from_a_peer_without_ml_kem_keys_until_it_has_some() {
    let test = "classic::where_classic_is_never_nothing_passes_to_or_from_a_peer_without_ml_kem_keys_until_it_has_some";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    talk::allow(&fixture.hospital);
    let imaging = fixture.hospital.gateway("imaging");
    imaging.stop().unwrap();
    let text = std::fs::read_to_string(&imaging.config).unwrap();
    std::fs::write(&imaging.config, format!("{text}\n[keys]\nclassic = \"never\"\n")).unwrap();
    imaging.start().unwrap();
    imaging.wait_running().unwrap();
    let [ct, pacs] = ["ct-1", "pacs-1"].map(|name| fixture.hospital.machine(name).clone());
    wait_for(&fixture.hospital, "a pre-shared key", |psk| psk == "ml-kem-768");
    passes([&ct, &pacs], "with a pre-shared key");

    // The peer loses its ML-KEM keys, and no controller has it make others.
    fixture.hospital.controller.kill().unwrap();
    let servers = fixture.hospital.gateway("servers");
    servers.stop().unwrap();
    std::fs::remove_file(servers.state.join("kem-keys")).unwrap();
    servers.start().unwrap();
    servers.wait_running().unwrap();
    let hospital = &fixture.hospital;
    let lacks = |psk: &Value| psk.as_str().is_some_and(|psk| psk != "ml-kem-768");
    wait_for(hospital, "a tunnel without a pre-shared key", lacks);
    let begun = refused(hospital);
    let both = [(&ct, &pacs), (&pacs, &ct)]
        .map(|(from, to)| Pinging::start(&from.host, to.address(), MANY, BEAT).unwrap());
    // The peer's own setting lets it send all the same, once it has waited.
    wait::until_ok(DEADLINE, "packets of the peer's to be refused", || {
        let (refused, peer) = (refused(hospital) - begun, peer(hospital)?);
        ensure!(refused > 50, "{refused} refused, {peer}");
        Ok(())
    })
    .unwrap();
    wait::until_ok(DEADLINE, "the status to say why nothing goes", || {
        let status = hospital.gateways["imaging"].status()?;
        let said = status["problems"].to_string();
        let why = ["no packet goes to", "(classic: ", "under [keys] in agent.toml"];
        ensure!(why.iter().all(|part| said.contains(part)), "{said}");
        Ok(())
    })
    .unwrap();
    for pinging in both {
        let series = pinging.stop().unwrap();
        assert!(series.sent > 50 && series.received == 0, "{series:?}, {:?}", peer(hospital));
    }

    // The controller passes on the key that the peer makes then.
    fixture.hospital.controller.start().unwrap();
    let hospital = &fixture.hospital;
    wait_for(hospital, "a pre-shared key again", |psk| psk == "ml-kem-768");
    passes([&ct, &pacs], "with a pre-shared key again");
    let before = refused(hospital);
    passes([&ct, &pacs], "with nothing refused");
    assert_eq!(refused(hospital), before);
}
