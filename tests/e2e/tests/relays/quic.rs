//! QUIC between gateways, with no relay in between.

use super::*;

/// Has the agent of a gateway start anew with peers' QUIC taken at this port.
pub(super) fn take_quic(hospital: &mut Hospital, gateway: &str, port: u16) {
    with_underlay(hospital, gateway, &format!("quic = {port}"));
}

/// A stranger looks for QUIC there, in all ways that a server would have to answer.
pub(super) fn nobody_answers(stranger: &Host, to: SocketAddr) {
    stranger
        .enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            // Of a version that nobody speaks, which asks for those that are spoken; and of a connection that was.
            let mut unknown = vec![0_u8; 1_200];
            unknown[..7].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1]);
            let mut old = vec![7_u8; 1_200];
            old[0] = 0x40;
            for probe in [unknown, old] {
                socket.send_to(&probe, to).unwrap();
                let heard = socket.recv_from(&mut [0; 2_048]);
                assert!(heard.is_err(), "{to} answers: {heard:?}");
            }
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for protocol in [Protocol::Direct, Protocol::Relay] {
                    let [own, theirs] = [1, 2].map(|seed| IdentityKey::from_seed(&[seed; 32]));
                    let keys = [theirs.public()];
                    let asking = endpoint::connect_for(to, &own, &keys, protocol);
                    // Any word at all ends the wait: also a refusal.
                    let heard = tokio::time::timeout(Duration::from_secs(2), asking).await;
                    assert!(heard.is_err(), "{to} answers: {heard:?}");
                }
            });
        })
        .unwrap();
}

#[test]
fn gateways_that_take_quic_of_each_other_need_no_relay_where_no_tunnel_gets_through() {
    let test =
        "quic::gateways_that_take_quic_of_each_other_need_no_relay_where_no_tunnel_gets_through";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    for gateway in ["imaging", "servers"] {
        take_quic(hospital, gateway, 443);
    }
    wait_for(hospital, "direct paths with a relay behind them", "proved", false);
    let (ct, pacs) = (hospital.machine("ct-1").host.clone(), hospital.machine("pacs-1").address());
    let pinging = Pinging::start(&ct, pacs, MANY, BEAT).unwrap();
    let more = |what: &str| {
        let before = pinging.received();
        wait::until(DEADLINE, what, || (pinging.received() > before + 400).then_some(())).unwrap();
    };
    more("pings");

    let rule = "pref 10 ipproto udp dport 51820 blackhole";
    hospital.router.ip(&format!("rule add {rule}")).unwrap();
    wait_until(hospital, "packets to go by QUIC", |why, relay| {
        why == "died" && relay.as_u64().is_some_and(|number| number >= FIRST_DIRECT.into())
    });
    more("pings by QUIC");
    for gateway in ["imaging", "servers"] {
        let text = hospital.gateways[gateway].command(&["status"]).unwrap().stdout;
        assert!(text.contains("quic: WireGuard's own path stopped answering"), "{text}");
        let at = SocketAddr::from((hospital::address(gateway, 2), 443));
        nobody_answers(&hospital.machine("intruder").host, at);
    }
    // With no relay left at all.
    hospital.controller.kill().unwrap();
    for gateway in ["imaging", "servers"] {
        wait::until_ok(DEADLINE, "the relay to be gone", || {
            let status = hospital.gateways[gateway].status()?;
            let relays = status["relays"].as_array().cloned().unwrap_or_default();
            let gone = relays.iter().all(|relay| relay["connected"] == false);
            if gone { Ok(()) } else { anyhow::bail!("{gateway}: {relays:?}") }
        })
        .unwrap();
    }
    more("pings by QUIC with no relay");

    hospital.router.ip(&format!("rule del {rule}")).unwrap();
    wait_for(hospital, "packets to go directly", "proved", false);
    more("pings beside QUIC");
    let series = pinging.stop().unwrap();
    let gap = BEAT * u32::try_from(series.longest_gap).unwrap_or(u32::MAX);
    eprintln!("{gap:?} without an answer, {} pings sent, {} lost", series.sent, series.lost());
}

#[test]
fn where_one_udp_port_is_all_that_passes_quic_takes_over_on_it_when_tunnels_are_blocked_by_content()
{
    let test = "quic::where_one_udp_port_is_all_that_passes_quic_takes_over_on_it_when_tunnels_are_blocked_by_content";
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    talk::allow(hospital);
    for gateway in ["imaging", "servers"] {
        // Lanes have sockets of their own on that port, whatever the machine.
        let config = &hospital.gateway(gateway).config;
        let text = std::fs::read_to_string(config).unwrap();
        assert!(!text.contains("[cores]"), "{text}");
        std::fs::write(config, format!("{text}\n[cores]\nlane_threads = 2\n")).unwrap();
        take_quic(hospital, gateway, 51_820);
    }
    let ends = ["imaging", "servers"].map(|gateway| hospital::address(gateway, 2));
    // Between the two nothing else passes, to the port or from it; what they are blocked by is put in front of that.
    let rule = |script: &str| {
        let arguments: Vec<&str> = script.split_whitespace().collect();
        hospital.router.run(&nft, &arguments).unwrap();
    };
    rule("add table ip between");
    rule("add chain ip between blocked { type filter hook forward priority 0 ; }");
    rule("add chain ip between one { type filter hook forward priority 10 ; }");
    for (from, to) in [(ends[0], ends[1]), (ends[1], ends[0])] {
        let both = format!("ip saddr {from} ip daddr {to}");
        rule(&format!("add rule ip between one {both} udp sport 51820 udp dport 51820 accept"));
        rule(&format!("add rule ip between one {both} drop"));
    }
    wait_for(hospital, "direct paths with a relay behind them", "proved", false);
    let (ct, pacs) = (hospital.machine("ct-1").host.clone(), hospital.machine("pacs-1").address());
    let pinging = Pinging::start(&ct, pacs, MANY, BEAT).unwrap();
    let more = |what: &str| {
        let before = pinging.received();
        wait::until(DEADLINE, what, || (pinging.received() > before + 400).then_some(())).unwrap();
    };
    more("pings");
    let [from, to] = ["ct-1", "pacs-1"].map(|name| hospital.machine(name).clone());
    wait::until_ok(DEADLINE, "lanes", || {
        talk::transfer(&from, &to, 4 << 20);
        let status = hospital.gateways["servers"].status()?;
        let lanes = &status["data_plane"]["engine"]["lanes"];
        let ready = |lane: &Value| lane["ready"].as_u64().is_some_and(|ready| ready > 0);
        ensure!(lanes.as_object().is_some_and(|lanes| lanes.values().any(ready)), "{lanes}");
        Ok(())
    })
    .unwrap();
    rule("add rule ip between blocked udp dport 51820 @th,64,8 < 0x40 drop");
    wait_until(hospital, "packets to go by QUIC", |why, relay| {
        why == "died" && relay.as_u64().is_some_and(|number| number >= FIRST_DIRECT.into())
    });
    more("pings by QUIC");
    talk::transfer(&from, &to, 256 << 10);
    for gateway in ["imaging", "servers"] {
        let status = hospital.gateways[gateway].status().unwrap();
        let at = hospital::address(gateway, 2);
        assert_eq!(
            status["direct"]["listening"], "0.0.0.0:51820",
            "{gateway}: {}",
            status["direct"]
        );
        eprintln!("{gateway}: handed over, and without room: {}", status["direct"]["strays"]);
        nobody_answers(&hospital.machine("intruder").host, SocketAddr::from((at, 51_820)));
    }
    hospital.controller.kill().unwrap();
    more("pings by QUIC with no relay");
    // One end is killed and started anew: the other hears of it, and they meet again on the one port.
    let gateway = hospital.gateway("servers");
    gateway.kill().unwrap();
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    more("pings after a restart");

    let hospital = &fixture.hospital;
    hospital.router.run(&nft, &["flush", "chain", "ip", "between", "blocked"]).unwrap();
    // A peer that neither QUIC nor a relay reaches has nothing to choose from, and no reason for what it takes.
    wait_until(hospital, "packets to go directly", |why, relay| {
        relay.is_null() && (why == "proved" || why.is_null())
    });
    more("pings beside QUIC");
    let series = pinging.stop().unwrap();
    let gap = BEAT * u32::try_from(series.longest_gap).unwrap_or(u32::MAX);
    eprintln!("{gap:?} without an answer, {} pings sent, {} lost", series.sent, series.lost());
}
