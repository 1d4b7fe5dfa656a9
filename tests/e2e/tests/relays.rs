//! The real programs, with a network between two gateways that lets no tunnel through for a while: the controller relays.

use std::time::Duration;

use anteroom_e2e::{Stage, fixture};
use anteroom_lab::hospital::Hospital;
use anteroom_lab::ping::Pinging;
use anteroom_lab::wait;
use serde_json::Value;

const BEAT: Duration = Duration::from_millis(5);
/// More pings than the test takes time for.
const MANY: u64 = 1_000_000;
/// How long anything may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a gateway says of the ways to its peers: whether a relay reaches them, and which packets take.
fn ways(hospital: &Hospital, gateway: &str) -> anyhow::Result<Vec<(Value, Value)>> {
    let status = hospital.gateways[gateway].status()?;
    let peers = status["data_plane"]["engine"]["peers"].as_array().cloned().unwrap_or_default();
    let way = |peer: &Value| (peer["path"].clone(), peer["relay"].clone());
    Ok(peers.iter().filter(|peer| peer["client"] != true).map(way).collect())
}

/// Waits until packets to all peers of both gateways go so.
fn wait_for(hospital: &Hospital, what: &str, path: &str, relayed: bool) {
    for gateway in ["imaging", "servers"] {
        wait::until_ok(DEADLINE, what, || {
            let ways = ways(hospital, gateway)?;
            let so = |(why, relay): &(Value, Value)| *why == path && relay.is_null() != relayed;
            if !ways.is_empty() && ways.iter().all(so) {
                return Ok(());
            }
            let status = hospital.gateways[gateway].status()?;
            anyhow::bail!("{gateway}: {ways:?}, {}", status["relays"])
        })
        .unwrap();
    }
}

#[test]
fn the_controller_relays_while_no_tunnel_gets_through_and_only_then() {
    let test = "the_controller_relays_while_no_tunnel_gets_through_and_only_then";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    wait_for(hospital, "direct paths with a relay behind them", "proved", false);
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    let pinging = Pinging::start(&ct.host, pacs, MANY, BEAT).unwrap();
    wait::until(DEADLINE, "pings", || (pinging.received() > 100).then_some(())).unwrap();

    // The router lets no tunnel through any more. The controller's port is another.
    let rule = "pref 10 ipproto udp dport 51820 blackhole";
    hospital.router.ip(&format!("rule add {rule}")).unwrap();
    wait_for(hospital, "packets to take the relay", "died", true);
    let before = pinging.received();
    wait::until(DEADLINE, "pings through the relay", || {
        (pinging.received() > before + 400).then_some(())
    })
    .unwrap();

    hospital.router.ip(&format!("rule del {rule}")).unwrap();
    wait_for(hospital, "packets to go directly", "proved", false);
    let before = pinging.received();
    wait::until(DEADLINE, "pings beside the relay", || {
        (pinging.received() > before + 400).then_some(())
    })
    .unwrap();
    let series = pinging.stop().unwrap();
    // One gap: from the direct path's end to the relay. It is about a second; a busy machine may be late, and lose some on
    // the way back, too. That nothing is lost there, and how soon, tests without a clock show.
    let gap = BEAT * u32::try_from(series.longest_gap).unwrap_or(u32::MAX);
    eprintln!("{gap:?} without an answer, {} pings sent, {} lost", series.sent, series.lost());
}
