//! Stock clients find their gateway: at their first try, and where it is by now.

use anteroom_e2e::{drops, with_underlay};
use anteroom_lab::topology::cable;

use super::*;

#[test]
fn each_handshake_of_a_stock_client_is_answered() {
    let Some(command) = Stock::WireguardGo.installed() else { return };
    let name = "found::each_handshake_of_a_stock_client_is_answered";
    let Some(fixture) = fixture(name, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let mut laptop = connected(&fixture, command);
    Pair::open(&laptop.host, to(hospital, "ct-1", 5900), SOON).unwrap().exchange(1000).unwrap();
    let config = laptop.config().to_owned();
    let unknown = || {
        ["imaging", "ward"].map(|name| {
            let drops = drops(&hospital.gateways[name]).unwrap();
            drops.get("peer-unknown").copied().unwrap_or_default()
        })
    };
    let before = unknown();
    for round in 0..20 {
        // Each start has an index of its own, drawn at random.
        laptop.start(&config).unwrap();
        wait::until(SOON, "both gateways to answer", || {
            let times = laptop.handshakes().ok()?;
            (times.len() == 2 && times.iter().all(|time| *time > 0)).then_some(())
        })
        .unwrap();
        assert_eq!(unknown(), before, "in round {round} one was answered at another try only");
    }
}

#[test]
fn a_stock_client_finds_its_gateway_at_another_address_and_by_another_uplink() {
    let Some(command) = Stock::WireguardGo.installed() else { return };
    let name = "found::a_stock_client_finds_its_gateway_at_another_address_and_by_another_uplink";
    let Some(mut fixture) = fixture(name, Stage::Enforced) else { return };
    let (near, far) = (Ipv4Addr::new(100, 64, 9, 2), Ipv4Addr::new(100, 64, 9, 1));
    let hospital = &fixture.hospital;
    let gateway = hospital.gateways["imaging"].host.clone();
    cable((&gateway, "backup", None), (&hospital.router, "backup")).unwrap();
    gateway.address("backup", near, 24).unwrap();
    hospital.router.address("backup", far, 24).unwrap();
    gateway.ip(&format!("route add default via {far} dev backup metric 500")).unwrap();
    for interface in ["all", "uplink", "backup"] {
        let file = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        gateway.enter(|| std::fs::write(&file, "0")).unwrap().unwrap();
    }
    gateway
        .enter(|| std::fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "1"))
        .unwrap()
        .unwrap();
    with_underlay(&mut fixture.hospital, "imaging", "backup = \"backup\"");

    let laptop = connected(&fixture, command);
    let hospital = &fixture.hospital;
    let router = address("imaging", 1);
    let mut there = Pair::open(&laptop.host, to(hospital, "ct-1", 5900), SOON).unwrap();
    there.exchange(10_000).unwrap();
    // It knows one address of its gateway, and is the one that speaks.
    let mut goes_on = |when: &str| {
        there.exchange(10_000).unwrap_or_else(|error| panic!("{when}: {error:#}"));
        let mut more = Pair::open(&laptop.host, to(hospital, "ct-1", 5900), SOON)
            .unwrap_or_else(|error| panic!("{when}: {error:#}"));
        more.exchange(1000).unwrap();
    };
    gateway.readdress("uplink", address("imaging", 90), 24, Some(router)).unwrap();
    goes_on("another address by hand");
    gateway.address("uplink", address("imaging", 91), 24).unwrap();
    gateway.ip(&format!("address del {}/24 dev uplink", address("imaging", 90))).unwrap();
    gateway.default_route(router).unwrap();
    goes_on("another address by DHCP");
    hospital.campus.ip("link set u-imaging down").unwrap();
    goes_on("the second uplink");
    hospital.campus.ip("link set u-imaging up").unwrap();
    wait::until(SOON, "the first uplink to be used again", || {
        let status = hospital.gateways["imaging"].status().ok()?;
        (status["data_plane"]["underlays"]["using"] == "uplink").then_some(())
    })
    .unwrap();
    goes_on("the first uplink again");
}
