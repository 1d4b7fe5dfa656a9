//! Keys that change while no tunnel gets through, and a relay that stands alone or QUIC between the two gateways carries all.

use anteroom_e2e::none_lost;
use anteroom_lab::wan::conditions::Conditions;
use anteroom_lab::wan::link::Link;

use super::*;

/// Puts the controller, and with it its relay, so far away that a relay nearby is taken before it.
fn far_controller(hospital: &Hospital) -> Link {
    let router = &hospital.router;
    let mac = router.mac("mgmt").unwrap().map(|byte| format!("{byte:02x}")).join(":");
    router.ip("link delete mgmt").unwrap();
    let campus = Attach::Switch(&hospital.campus, "br-mgmt");
    let link = Link::lay("far", Attach::Host(router, "mgmt"), campus, 5).unwrap();
    router.ip(&format!("link set mgmt address {mac}")).unwrap();
    router.address("mgmt", hospital::address("mgmt", 1), 24).unwrap();
    link.set_both(&Conditions::default().delayed(Duration::from_millis(20), Duration::ZERO));
    link
}

/// Has the gateways change identity and tunnel keys one after the other, each time when `carried` has seen what packets take, while the
/// CT pings the PACS. No ping is lost.
fn keys_change(hospital: &Hospital, by: &str, carried: impl Fn()) {
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    let stalls = Stalls::watch().unwrap();
    let pinging = Pinging::start_within(&ct.host, pacs, MANY, BEAT, WINDOW).unwrap();
    let flowing = |what: &str| {
        let before = pinging.received();
        wait::until(DEADLINE, &format!("pings {what}, {by}"), || {
            (pinging.received() > before + 200).then_some(())
        })
        .unwrap();
    };
    let fingerprint = |gateway: &str| {
        let shown = hospital.operator.json(&["gateway", "show", gateway]).unwrap();
        shown["fingerprint"].as_str().unwrap().to_owned()
    };
    let in_use = |gateway: &str| {
        let status = hospital.gateways[gateway].status()?;
        let keys = status["control"]["keys"].as_array().context("keys")?;
        let key = keys.iter().find(|key| key["serves"] != "clients").context("a key")?;
        key["key"].as_str().map(str::to_owned).context("its name")
    };
    flowing("at first");
    for gateway in ["imaging", "servers"] {
        carried();
        let (identity, tunnel) = (fingerprint(gateway), in_use(gateway).unwrap());
        let rekey = ["gateway", "rekey", gateway, "--yes", "--reason", "drill", "--timeout", "50s"];
        hospital.operator.ok(&rekey).unwrap();
        assert_ne!(fingerprint(gateway), identity, "{gateway} has its old identity key");
        flowing(&format!("with another identity key of {gateway}"));
        carried();
        let rotate = ["gateway", "rotate", gateway, "--timeout", "50s", "--reason", "drill"];
        hospital.operator.ok(&rotate).unwrap();
        wait::until_ok(DEADLINE, "another tunnel key", || {
            let now = in_use(gateway)?;
            ensure!(now != tunnel, "{gateway} still has {now}");
            Ok(())
        })
        .unwrap();
        flowing(&format!("with another tunnel key of {gateway}"));
    }
    none_lost(&pinging.stop().unwrap(), BEAT, stalls.worst(), &format!("keys changed {by}"));
}

#[test]
fn keys_change_without_a_loss_while_a_relay_that_stands_alone_carries_all() {
    let test = "keys::keys_change_without_a_loss_while_a_relay_that_stands_alone_carries_all";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let mut relays = Relays { fixture, running: Vec::new() };
    let _far = far_controller(&relays.fixture.hospital);
    let code = relays.start("east", "ws-1", 4_500);
    relays.signed(&["relay", "add", "east", "--code", &code]);
    relays.wait_for_guests(&["east"]);
    let (_, east) = relays.keys().remove(0);
    // While there is no controller it is the only one; it stays so, for the controller is far when it comes back.
    relays.fixture.hospital.controller.kill().unwrap();
    let router = relays.fixture.hospital.router.clone();
    router.ip("rule add pref 10 ipproto udp dport 51820 blackhole").unwrap();
    let by_east = |relays: &Relays| {
        for gateway in ["imaging", "servers"] {
            wait::until_ok(DEADLINE, "packets to go by the relay nearby", || {
                let used = relays.in_use(gateway)?;
                ensure!(used.as_ref() == Some(&east), "{gateway} takes {used:?}, not {east}");
                Ok(())
            })
            .unwrap();
        }
    };
    by_east(&relays);
    relays.fixture.hospital.controller.start().unwrap();
    relays.wait_for_guests(&["east"]);
    let hospital = &relays.fixture.hospital;
    hospital.operator.ok(&["status", "--wait", "60"]).unwrap();
    keys_change(hospital, "by a relay that stands alone", || by_east(&relays));
    by_east(&relays);
}

#[test]
fn keys_change_without_a_loss_while_quic_between_the_two_carries_all() {
    let test = "keys::keys_change_without_a_loss_while_quic_between_the_two_carries_all";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    for gateway in ["imaging", "servers"] {
        quic::take_quic(&mut fixture.hospital, gateway, 443);
    }
    let hospital = &fixture.hospital;
    hospital.router.ip("rule add pref 10 ipproto udp dport 51820 blackhole").unwrap();
    let by_quic = || {
        wait_until(hospital, "packets to go by QUIC", |_, relay| {
            relay.as_u64().is_some_and(|number| number >= FIRST_DIRECT.into())
        });
    };
    by_quic();
    keys_change(hospital, "by QUIC between the two", by_quic);
    by_quic();
}
