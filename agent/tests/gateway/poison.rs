//! False ARP in the name of the gateway's own router.

use std::time::Duration;

use anteroom_agent_core::wire::arp::{ArpPacket, Operation};
use anteroom_lab::namespace::in_private_network;
use anteroom_lab::ping::{self, Pinging, Series};
use anteroom_lab::wait;
use anteroom_proto::mac::MacAddr;

use crate::bench::{Bench, GATEWAY, NETWORK, PATIENCE, Tap};

const IMPOSTOR: MacAddr = MacAddr([2, 0x66, 0, 0, 0, 0x66]);
const GATEWAY_MAC: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 2]);
const BEAT: Duration = Duration::from_millis(10);

/// What an impostor at `mac` can say: each kind of ARP, to all and to the gateway alone.
fn lies(mac: MacAddr) -> Vec<Vec<u8>> {
    let mut lies = Vec::new();
    for operation in [Operation::Request, Operation::Reply] {
        for target in [NETWORK, GATEWAY] {
            for to in [MacAddr::BROADCAST, GATEWAY_MAC] {
                let target_mac = match operation {
                    Operation::Request => MacAddr([0; 6]),
                    Operation::Reply => GATEWAY_MAC,
                };
                let packet =
                    ArpPacket { operation, sender_mac: mac, sender: NETWORK, target_mac, target };
                lies.push(packet.to_frame(to, mac).to_vec());
            }
        }
    }
    lies
}

/// Lies for two seconds while the gateway pings its router, then lets it ping for `after`.
fn ping_under_lies(bench: &Bench, mouth: &Tap, after: Duration) -> Series {
    let pinging = Pinging::start(&bench.gateway, NETWORK, 1_000_000, BEAT).unwrap();
    for round in 0..40 {
        for lie in lies(IMPOSTOR) {
            mouth.send(&lie);
        }
        // An impostor who changes his address each time.
        for lie in lies(MacAddr([2, 0x66, 0, 0, 1, round])) {
            mouth.send(&lie);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(after);
    pinging.stop().unwrap()
}

fn neighbour(bench: &Bench) -> String {
    bench.gateway.ip(&format!("neighbour show {NETWORK}")).unwrap()
}

fn wait_pinned(bench: &Bench, mac: &str) {
    let mut seen = String::new();
    wait::until(PATIENCE, "the router to be pinned", || {
        seen = neighbour(bench);
        (seen.contains("PERMANENT") && seen.contains(mac)).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {seen:?}, expected {mac}"));
}

#[test]
fn false_arp_about_the_gateways_router_costs_no_packet() {
    if !in_private_network("poison::false_arp_about_the_gateways_router_costs_no_packet") {
        return;
    }
    let bench = Bench::new(1500, "");
    bench.network.ip("link set eth0 address 00:00:5e:00:53:20").unwrap();
    bench.gateway.ip(&format!("route add default via {NETWORK}")).unwrap();
    let tap = bench.network_tap();
    // What it would be without an agent, which shows that the lies are good ones.
    drop(bench.start());
    assert_eq!(ping::ping(&bench.gateway, NETWORK, 5, BEAT).unwrap().lost(), 0);
    let bare = ping_under_lies(&bench, &tap, Duration::from_secs(10));
    println!(
        "without the agent: {} of {} pings lost, the longest stall {} ms",
        bare.lost(),
        bare.sent,
        bare.longest_gap * 10
    );
    assert!(bare.longest_gap > 100, "the kernel alone believes nobody either: {bare:?}");

    bench.gateway.ip("neighbour flush dev up0").unwrap();
    let running = bench.start();
    assert_eq!(ping::ping(&bench.gateway, NETWORK, 5, BEAT).unwrap().lost(), 0);
    wait_pinned(&bench, "00:00:5e:00:53:20");
    let series = ping_under_lies(&bench, &tap, Duration::from_millis(500));
    println!("with it: {} of {} pings lost", series.lost(), series.sent);
    assert!(series.sent > 150 && series.lost() == 0, "{series:?}: {}", neighbour(&bench));

    // Somebody who takes the entry away: it is put back, and the gateway goes on.
    bench.gateway.ip("neighbour flush dev up0 nud permanent").unwrap();
    wait_pinned(&bench, "00:00:5e:00:53:20");

    // A router that was swapped says so, and nobody has the old address any more.
    bench.network.ip("link set eth0 address 00:00:5e:00:53:21").unwrap();
    let swapped = MacAddr([0, 0, 0x5e, 0, 0x53, 0x21]);
    let series = Pinging::start(&bench.gateway, NETWORK, 1_000_000, BEAT).unwrap();
    tap.send(&lies(swapped)[0]);
    wait_pinned(&bench, "00:00:5e:00:53:21");
    assert_eq!(ping::ping(&bench.gateway, NETWORK, 20, BEAT).unwrap().lost(), 0);
    let series = series.stop().unwrap();
    println!("router swapped: {} ms", series.longest_gap * 10);
    assert!(series.longest_gap < 3_000, "{series:?}");

    // The agent gone, the kernel finds its neighbours by itself.
    drop(running);
    assert!(!neighbour(&bench).contains("PERMANENT"), "{}", neighbour(&bench));
    assert_eq!(ping::ping(&bench.gateway, NETWORK, 5, BEAT).unwrap().lost(), 0);
}

#[test]
fn what_an_administrator_made_permanent_is_left_alone() {
    if !in_private_network("poison::what_an_administrator_made_permanent_is_left_alone") {
        return;
    }
    let bench = Bench::new(1500, "");
    bench.gateway.ip(&format!("route add default via {NETWORK}")).unwrap();
    let theirs = "00:00:5e:00:53:77";
    bench
        .gateway
        .ip(&format!("neighbour replace {NETWORK} lladdr {theirs} dev up0 nud permanent"))
        .unwrap();
    let running = bench.start();
    let tap = bench.network_tap();
    for lie in lies(IMPOSTOR) {
        tap.send(&lie);
    }
    // Longer than it takes to follow a router that is gone.
    std::thread::sleep(Duration::from_secs(5));
    let seen = neighbour(&bench);
    assert!(seen.contains(theirs) && seen.contains("PERMANENT"), "{seen}");
    drop(running);
    let seen = neighbour(&bench);
    assert!(seen.contains(theirs) && seen.contains("PERMANENT"), "{seen}");
}
