use super::*;
use crate::table::Seeds;

fn device(byte: u8, mode: Mode) -> Device {
    Device {
        member: MemberId::from_bytes([byte; 16]),
        mode,
        stance: mode,
        quarantined: false,
        vlan: None,
        addresses: vec!["10.0.0.7/32".parse().unwrap()],
        held: Vec::new(),
        prefix_len: Some(24),
        router: None,
    }
}

fn stations(ports: u8, unknown_per_port: usize) -> Stations {
    let port = |at| PortConfig {
        name: format!("port{at}").parse().unwrap(),
        mac: mac(0xf0 + at),
        unlisted: Unlisted::Hold,
    };
    let ports: Vec<PortConfig> = (0..ports).map(port).collect();
    let limits = Limits { unknown_per_port, ..Limits::default() };
    Stations::new(&ports, &limits, Seeds::new(&[0; 32]).map())
}

fn mac(byte: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, byte])
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
fn start() -> Instant {
    Instant::now()
}

#[test]
fn devices_on_a_port_share_the_strictest_mode() {
    let mut stations = stations(2, 4);
    let (one, two) = (PortId::device(0), PortId::device(1));
    stations.confirm(vec![
        (one, mac(1), device(1, Mode::Protect)),
        (one, mac(2), device(2, Mode::Enforce)),
        (two, mac(3), device(3, Mode::Observe)),
    ]);
    let stance = |byte| stations.get(stations.find(mac(byte)).unwrap()).unwrap().stance();
    assert_eq!([stance(1), stance(2), stance(3)], [Mode::Enforce, Mode::Enforce, Mode::Observe]);
    assert!(stations.port(one).unwrap().holds() && !stations.port(two).unwrap().holds());
}

#[test]
fn who_was_held_is_so_no_longer_once_the_port_lets_unknown_addresses_pass() {
    let mut stations = stations(1, 4);
    let port = PortId::device(0);
    let at = |mode| vec![(port, mac(1), device(1, mode))];
    stations.confirm(at(Mode::Enforce));
    let Learnt::New(id) = stations.learn(port, mac(2), start()) else { panic!("no room") };
    stations.get_mut(id).unwrap().hold();
    for (mode, held) in [(Mode::Protect, true), (Mode::Observe, false), (Mode::Enforce, false)] {
        stations.confirm(at(mode));
        assert_eq!(stations.get(id).unwrap().held, held, "{mode}");
    }
}

#[test]
fn a_station_keeps_its_number_over_views() {
    let mut stations = stations(1, 4);
    let port = PortId::device(0);
    let Learnt::New(id) = stations.learn(port, mac(1), start()) else { panic!("no room") };
    stations.confirm(vec![(port, mac(1), device(1, Mode::Protect))]);
    assert_eq!(stations.find(mac(1)), Some(id));
    assert_eq!(stations.port(port).unwrap().unknown, 0);
    stations.confirm(Vec::new());
    assert_eq!(stations.get(id).unwrap().device, None);
    assert_eq!(stations.port(port).unwrap().unknown, 1);
}

#[test]
fn unknown_addresses_are_bounded_and_stale_ones_make_room() {
    let mut stations = stations(1, 2);
    let (port, now) = (PortId::device(0), start());
    for byte in 1..=2 {
        let Learnt::New(id) = stations.learn(port, mac(byte), now) else { panic!("no room") };
        stations.get_mut(id).unwrap().see(None, 0, None, UnixMillis(1), now);
    }
    assert_eq!(stations.learn(port, mac(3), now), Learnt::Full);
    let later = now + STALE + Duration::from_secs(1);
    assert_eq!(stations.learn(port, mac(3), later), Learnt::Replaced(StationId(0)));
    assert_eq!((stations.find(mac(1)), stations.len()), (None, 2));
}

#[test]
fn what_goes_on_speaking_is_told_again_and_what_is_silent_is_not() {
    let mut stations = stations(1, 2);
    let (port, now) = (PortId::device(0), start());
    let Learnt::New(id) = stations.learn(port, mac(1), now) else { panic!("no room") };
    let mut see = |wall| {
        let station = stations.get_mut(id).unwrap();
        station.see(None, 0, None, UnixMillis(wall), now);
        station.sights[0].take_news()
    };
    assert!(see(1), "it is new");
    assert!(!see(1));
    assert!(!see(TELL_AGAIN));
    assert!(see(TELL_AGAIN + 1), "it was told of an hour ago");
    assert!(!see(TELL_AGAIN + 2));
    // A clock that went back tells nothing anew.
    assert!(!see(0));
    assert!(!stations.get_mut(id).unwrap().sights[0].take_news(), "it is silent");
}
