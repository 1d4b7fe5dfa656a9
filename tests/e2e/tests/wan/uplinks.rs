//! Two uplinks of one gateway: the second is taken when the first is dead or silent, whatever carries the packets, and nothing
//! is lost when the first is taken back.

use anteroom_e2e::{none_lost, with_underlay};
use anteroom_lab::ping::Series;
use anteroom_lab::stall::Stalls;
use anteroom_lab::topology::cable;
use anteroom_proto::v1::telemetry::FIRST_DIRECT;

use super::*;

/// Pings under way at most where none may be lost: fewer than any buffer on the way holds.
const WINDOW: usize = 32;

/// Which underlay a gateway says that it uses, and why.
fn underlay(hospital: &Hospital, gateway: &str) -> anyhow::Result<(String, String)> {
    let status = hospital.gateways[gateway].status()?;
    let underlays = &status["data_plane"]["underlays"];
    let word = |key: &str| underlays[key].as_str().map(str::to_owned);
    word("using").zip(word("why")).ok_or_else(|| anyhow::anyhow!("no underlays: {underlays}"))
}

fn wait_for_underlay(hospital: &Hospital, wanted: &str, why: &str, when: &str) {
    wait::until_ok(PATIENCE, &format!("{wanted} to be used {when}"), || {
        let found = underlay(hospital, "imaging")?;
        anyhow::ensure!(found.0 == wanted && found.1.contains(why), "{found:?}");
        Ok(())
    })
    .unwrap();
}

/// Gives the CT's gateway another way to the router, as its second uplink.
fn second_uplink(hospital: &mut Hospital) {
    let (near, far) = (Ipv4Addr::new(100, 64, 9, 2), Ipv4Addr::new(100, 64, 9, 1));
    let gateway = &hospital.gateways["imaging"].host;
    cable((gateway, "backup", None), (&hospital.router, "backup")).unwrap();
    gateway.address("backup", near, 24).unwrap();
    hospital.router.address("backup", far, 24).unwrap();
    gateway.ip(&format!("route add default via {far} dev backup metric 500")).unwrap();
    for interface in ["all", "uplink", "backup"] {
        let file = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        gateway.enter(|| std::fs::write(&file, "0")).unwrap().unwrap();
    }
    with_underlay(hospital, "imaging", "backup = \"backup\"");
}

/// How the first uplink fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    DeadCable,
    Silence,
}

impl Failure {
    const BOTH: [Self; 2] = [Self::DeadCable, Self::Silence];

    /// It, and a part of what the gateway says of it.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::DeadCable => ("a dead cable", "no carrier"),
            Self::Silence => ("silence", "nothing came back"),
        }
    }

    fn begin(self, hospital: &Hospital) {
        self.set(hospital, "down", "add");
    }

    fn end(self, hospital: &Hospital) {
        self.set(hospital, "up", "del");
    }

    fn set(self, hospital: &Hospital, link: &str, rule: &str) {
        if self == Self::DeadCable {
            hospital.campus.ip(&format!("link set u-imaging {link}")).unwrap();
            return;
        }
        let towards = format!("pref 11 to {}/32 blackhole", address("imaging", 2));
        for what in ["pref 10 iif imaging blackhole", &towards] {
            hospital.router.ip(&format!("rule {rule} {what}")).unwrap();
        }
    }
}

/// Ends the failure, and waits until the first uplink is used again and pings go on. Gives them, with how long the
/// machine stood still meanwhile.
fn comes_back(hospital: &Hospital, failure: Failure, by: &str) -> (Series, Duration) {
    let (ct, pacs) = ends(hospital);
    let what = format!("back after {}, {by}", failure.words().0);
    let stalls = Stalls::watch().unwrap();
    let series = Pinging::start_within(&ct.host, pacs.address(), u64::MAX, BEAT, WINDOW).unwrap();
    failure.end(hospital);
    wait_for_underlay(hospital, "uplink", "good again", &what);
    let back = series.received();
    wait::until(PATIENCE, "answers over the first uplink", || {
        (series.received() >= back + 60).then_some(())
    })
    .unwrap();
    (series.stop().unwrap(), stalls.worst())
}

#[test]
fn a_gateway_with_a_second_uplink_takes_it_when_the_first_is_dead_or_silent_and_goes_back() {
    let test = "uplinks::a_gateway_with_a_second_uplink_takes_it_when_the_first_is_dead_or_silent_and_goes_back";
    let Some(mut fixture) = hospital(test) else { return };
    second_uplink(&mut fixture.hospital);
    let hospital = &fixture.hospital;
    let (ct, pacs) = ends(hospital);
    let proved = |when: &str| {
        for (here, there) in [("imaging", "servers"), ("servers", "imaging")] {
            wait::until_ok(PATIENCE, &format!("a direct path {when}"), || {
                let now = way(hospital, here, there)?;
                anyhow::ensure!(now == ("proved".into(), false), "{here}: {now:?}");
                Ok(())
            })
            .unwrap();
        }
    };
    reaches(&ct.host, pacs.address(), "with two uplinks");
    proved("with two uplinks");
    wait_for_underlay(hospital, "uplink", "first", "at first");
    let mut talk = Talk::start(ct, pacs);
    talk.goes_on(PART as u64, "with two uplinks");

    let mut gaps = Vec::new();
    for failure in Failure::BOTH {
        let (what, why) = failure.words();
        let under_load = format!("{what} at the first uplink, under load");
        gaps.push(outage(ct, pacs, &under_load, || failure.begin(hospital)));
        wait_for_underlay(hospital, "backup", why, &format!("after {what}"));
        talk.goes_on(PART as u64, &format!("over the second uplink after {what}"));
        // The controller sees it too.
        hospital.operator.ok(&["status", "--wait", "60"]).unwrap();
        proved("over the second uplink");

        let (series, stall) = comes_back(hospital, failure, "directly");
        // Nothing forces this change: the second one is good until the first is.
        none_lost(&series, BEAT, stall, &format!("back after {what}"));
        talk.goes_on(PART as u64, &format!("over the first uplink again after {what}"));
        proved("over the first uplink again");
    }
    talk.stop();
    nothing_else_passes(hospital, "with two uplinks");
    assert!(gaps.iter().all(|gap| *gap < RECOVERY), "{gaps:?}");
}

/// What carries the packets of two gateways where no tunnel gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The controller's relay.
    Relay,
    /// QUIC to the peer, which this gateway connects to.
    QuicThatItMade,
    /// QUIC to the peer, which connects to this gateway.
    QuicThatItTook,
}

/// Waits until packets between the two take it.
fn wait_for_carrier(hospital: &Hospital, by: By, when: &str) {
    for (here, there) in [("imaging", "servers"), ("servers", "imaging")] {
        wait::until_ok(2 * PATIENCE, &format!("packets to go by {by:?} {when}"), || {
            let peer = peer(hospital, here, there)?;
            let direct = peer["relay"].as_u64().map(|number| number >= FIRST_DIRECT.into());
            anyhow::ensure!(direct == Some(by != By::Relay), "{here}: {peer}");
            let control = hospital.gateways[here].status()?["control"].clone();
            anyhow::ensure!(!control["connected"].is_null(), "{here}: {control}");
            anyhow::ensure!(control["over_tcp"] == false, "{here}: {control}");
            Ok(())
        })
        .unwrap();
    }
}

/// `mtu` is the second uplink's.
fn where_only_quic_passes(test: &str, by: By, mtu: u16) {
    let Some(mut fixture) = hospital(test) else { return };
    let hospital = &mut fixture.hospital;
    second_uplink(hospital);
    for end in [&hospital.gateways["imaging"].host, &hospital.router] {
        end.ip(&format!("link set backup mtu {mtu}")).unwrap();
    }
    let taker = match by {
        By::Relay => None,
        By::QuicThatItMade => Some("servers"),
        By::QuicThatItTook => Some("imaging"),
    };
    if let Some(gateway) = taker {
        with_underlay(hospital, gateway, "quic = 443");
    }
    let hospital = &fixture.hospital;
    // No tunnel, and no TCP to the controller's port, by either uplink.
    for what in ["pref 5 ipproto udp dport 51820", "pref 6 ipproto tcp dport 4433"] {
        hospital.router.ip(&format!("rule add {what} blackhole")).unwrap();
    }
    let (ct, pacs) = ends(hospital);
    wait_for_carrier(hospital, by, "at first");
    wait_for_underlay(hospital, "uplink", "first", "at first");
    let mut talk = Talk::start(ct, pacs);
    talk.goes_on(PART as u64, "where only QUIC passes");
    let mut gaps = Vec::new();
    for failure in Failure::BOTH {
        let (what, why) = failure.words();
        let under_load = format!("{what} at the first uplink, by {by:?}, under load");
        gaps.push(outage(ct, pacs, &under_load, || failure.begin(hospital)));
        wait_for_underlay(hospital, "backup", why, &format!("after {what}"));
        talk.goes_on(PART as u64, &format!("over the second uplink after {what}"));
        hospital.operator.ok(&["status", "--wait", "60"]).unwrap();
        wait_for_carrier(hospital, by, "over the second uplink");
        let (series, stall) = comes_back(hospital, failure, &format!("by {by:?}"));
        none_lost(&series, BEAT, stall, &format!("back after {what}, by {by:?}"));
        talk.goes_on(PART as u64, &format!("over the first uplink again after {what}"));
        wait_for_carrier(hospital, by, "over the first uplink again");
    }
    talk.stop();
    nothing_else_passes(hospital, "with two uplinks, by QUIC");
    assert!(gaps.iter().all(|gap| *gap < RECOVERY), "{gaps:?}");
}

#[test]
fn where_only_quic_to_relays_passes_a_second_uplink_is_taken_and_the_way_back_loses_nothing() {
    let test = "uplinks::where_only_quic_to_relays_passes_a_second_uplink_is_taken_and_the_way_back_loses_nothing";
    where_only_quic_passes(test, By::Relay, 1500);
}

#[test]
fn where_only_quic_that_it_made_passes_a_second_uplink_is_taken_and_the_way_back_loses_nothing() {
    let test = "uplinks::where_only_quic_that_it_made_passes_a_second_uplink_is_taken_and_the_way_back_loses_nothing";
    where_only_quic_passes(test, By::QuicThatItMade, 1500);
}

#[test]
fn where_only_quic_that_it_took_passes_a_second_uplink_is_taken_and_the_way_back_loses_nothing() {
    let test = "uplinks::where_only_quic_that_it_took_passes_a_second_uplink_is_taken_and_the_way_back_loses_nothing";
    where_only_quic_passes(test, By::QuicThatItTook, 1500);
}

#[test]
fn where_only_quic_to_relays_passes_a_second_uplink_is_taken_that_carries_less_in_one_piece() {
    let test = "uplinks::where_only_quic_to_relays_passes_a_second_uplink_is_taken_that_carries_less_in_one_piece";
    where_only_quic_passes(test, By::Relay, 1300);
}
