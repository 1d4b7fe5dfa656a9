//! What devices and the network see of the cables behind the gateway.

use std::path::Path;
use std::time::{Duration, Instant};

use anteroom_agent::config::Config;
use anteroom_lab::namespace::in_private_network;
use anteroom_lab::topology::Host;
use anteroom_lab::{ping, wait};

use crate::bench::{Bench, NETWORK, PATIENCE, Running};

/// How often a machine has seen its cable go live or dead.
fn changes(host: &Host) -> u32 {
    let text = host.run("cat", &["/sys/class/net/eth0/carrier_changes"]).unwrap();
    text.trim().parse().unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

/// Longer than the uplink has to be dark before devices are shown that.
const LONGER: Duration = Duration::from_millis(1_600);

/// Shorter than that by enough for an agent that hears of it late.
const MOMENT: Duration = Duration::from_millis(600);

fn wait_uplink(bench: &Bench, live: bool) {
    let mut seen = String::new();
    wait::until(PATIENCE, if live { "a live uplink" } else { "a dead uplink" }, || {
        seen = bench.gateway.ip("link show up0").unwrap();
        (seen.contains("LOWER_UP") == live).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}"));
}

/// Pings for as long as [`LONGER`]; says how many were answered.
fn ping_on(bench: &Bench) -> u64 {
    const COUNT: u32 = 80;
    let count = u64::from(COUNT);
    let series = ping::ping(&bench.device, NETWORK, count, LONGER / COUNT).unwrap();
    count - series.lost()
}

#[test]
fn a_moments_loss_of_the_uplink_is_not_shown_to_devices() {
    if !in_private_network("carrier::a_moments_loss_of_the_uplink_is_not_shown_to_devices") {
        return;
    }
    let bench = Bench::new(1500, "");
    let running = bench.start();
    let mut moments = 0;
    for _ in 0..20 {
        let before = changes(&bench.device);
        let began = Instant::now();
        bench.network.ip("link set eth0 down").unwrap();
        wait_uplink(&bench, false);
        bench.network.ip("link set eth0 up").unwrap();
        wait_uplink(&bench, true);
        let dark = began.elapsed();
        bench.wait_live();
        running.wait_open(0, true);
        // A machine that is busy with other work made more of it than a moment: that may be shown.
        if dark > MOMENT {
            println!("the uplink was dark for {dark:?}: once more");
            continue;
        }
        assert!(ping_on(&bench) > 0, "{:?}", running.status());
        let after = changes(&bench.device);
        assert_eq!(after, before, "the device saw its cable go dead in {dark:?}");
        moments += 1;
        if moments == 3 {
            break;
        }
    }
    if moments == 0 {
        println!("20 times this machine took longer than {MOMENT:?} to run `ip` twice: no moment");
    }
    let before = changes(&bench.device);
    // The loss that lasts is shown, so the counter would have told.
    bench.network.ip("link set eth0 down").unwrap();
    wait::until(PATIENCE, "the device to see it", || {
        (changes(&bench.device) == before + 1).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {} changes", changes(&bench.device)));
}

#[test]
fn a_device_that_is_unplugged_is_no_matter_of_the_networks() {
    if !in_private_network("carrier::a_device_that_is_unplugged_is_no_matter_of_the_networks") {
        return;
    }
    let bench = Bench::new(1500, "");
    let running = bench.start();
    let before = changes(&bench.network);
    bench.device.ip("link set eth0 down").unwrap();
    running.wait_open(0, true);
    let gateway = ping::ping(&bench.network, crate::bench::GATEWAY, 80, LONGER / 80).unwrap();
    assert_eq!(gateway.lost(), 80, "the gateway answers no ping, and the time passes");
    assert_eq!(changes(&bench.network), before, "the network saw the uplink go dead");
    bench.device.ip("link set eth0 up").unwrap();
    running.wait_open(1, true);
    bench.wait_live();
    assert!(ping_on(&bench) > 0, "{:?}", running.status());
    assert_eq!(changes(&bench.network), before);
}

#[test]
fn nobody_sees_an_agent_restart_on_the_cable() {
    if !in_private_network("carrier::nobody_sees_an_agent_restart_on_the_cable") {
        return;
    }
    let bench = Bench::new(1500, "");
    drop(bench.start());
    let before = [changes(&bench.device), changes(&bench.network)];
    for _ in 0..3 {
        let running = bench.start();
        let answered = ping::ping(&bench.device, NETWORK, 10, Duration::from_millis(5)).unwrap();
        assert!(answered.lost() < 10, "{:?}", running.status());
        drop(running);
    }
    let after = [changes(&bench.device), changes(&bench.network)];
    assert_eq!(after, before, "device and network saw the cable change");
}

/// A gateway for one device, whose own traffic has an interface of its own, and whose uplink follows its port.
fn following() -> Bench {
    let mut bench = Bench::new(1500, "");
    bench.gateway.ip("link add own0 type veth peer name own1").unwrap();
    for end in ["own0", "own1"] {
        bench.gateway.ip(&format!("link set {end} up")).unwrap();
    }
    let text = "[uplink]\ninterface = \"up0\"\nfollow-port = true\n\
                [underlay]\ninterface = \"own0\"\nlisten = \"0.0.0.0:51820\"\n\
                [[port]]\nname = \"port-1\"\ninterface = \"port0\"\n";
    bench.config = Config::parse(Path::new("following.toml"), text).unwrap();
    bench
}

fn wait_carrier(host: &Host, live: bool) {
    let file = "/sys/class/net/eth0/carrier";
    let mut seen = String::new();
    wait::until(PATIENCE, if live { "a live cable" } else { "a dead cable" }, || {
        seen = host.run("cat", &[file]).unwrap();
        (seen.trim() == if live { "1" } else { "0" }).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {seen:?} at {host:?}"));
}

#[test]
fn where_the_uplink_follows_the_port_the_network_sees_a_device_that_is_gone() {
    let name = "carrier::where_the_uplink_follows_the_port_the_network_sees_a_device_that_is_gone";
    if !in_private_network(name) {
        return;
    }
    let bench = following();
    let running = bench.start();
    assert!(ping_on(&bench) > 0, "{:?}", running.status());
    // A moment isn't shown.
    let mut dark = LONGER;
    let mut before = 0;
    for _ in 0..20 {
        before = changes(&bench.network);
        let began = Instant::now();
        bench.device.ip("link set eth0 down").unwrap();
        bench.device.ip("link set eth0 up").unwrap();
        dark = began.elapsed();
        bench.wait_live();
        running.wait_open(1, true);
        if dark < MOMENT {
            break;
        }
    }
    assert!(ping_on(&bench) > 0, "{:?}", running.status());
    if dark < MOMENT {
        assert_eq!(changes(&bench.network), before, "the network saw it go dead in {dark:?}");
    } else {
        println!("20 times this machine took longer than {MOMENT:?} to run `ip` twice: no moment");
    }

    // What lasts is, and its end too: twice, as neither side may lock the other out.
    for _ in 0..2 {
        bench.device.ip("link set eth0 down").unwrap();
        wait_carrier(&bench.network, false);
        // An administrator who switches it on doesn't hide it.
        bench.gateway.ip("link set up0 up").unwrap();
        wait_carrier(&bench.network, false);
        bench.device.ip("link set eth0 up").unwrap();
        wait_carrier(&bench.network, true);
        bench.wait_live();
        wait_both_open(&running);
        assert!(ping_on(&bench) > 0, "{:?}", running.status());
    }

    // The other way round it is as ever.
    bench.network.ip("link set eth0 down").unwrap();
    wait_carrier(&bench.device, false);
    bench.network.ip("link set eth0 up").unwrap();
    wait_carrier(&bench.device, true);
    bench.wait_live();
    wait_both_open(&running);
    assert!(ping_on(&bench) > 0, "{:?}", running.status());

    // An agent that starts while the device is away shows it, and sees it return.
    bench.device.ip("link set eth0 down").unwrap();
    wait_carrier(&bench.network, false);
    drop(running);
    // Nobody would notice the device's return now.
    wait_carrier(&bench.network, true);
    let running = bench.start_dark();
    wait_carrier(&bench.network, false);
    bench.device.ip("link set eth0 up").unwrap();
    wait_carrier(&bench.network, true);
    bench.wait_live();
    wait_both_open(&running);
    assert!(ping_on(&bench) > 0, "{:?}", running.status());

    // One that is killed while it shows a dead device leaves the uplink off: the next one switches it on.
    drop(running);
    bench.gateway.ip("link set up0 down").unwrap();
    wait_carrier(&bench.network, false);
    let running = bench.start();
    wait_carrier(&bench.network, true);
    wait_both_open(&running);
    assert!(ping_on(&bench) > 0, "{:?}", running.status());
}

fn wait_both_open(running: &Running) {
    for index in [0, 1] {
        running.wait_open(index, true);
    }
}
