//! Answers of somebody who passes for a listed server.

use super::*;

/// What somebody beside the server makes of a client's broadcast, which everyone on the link can read.
fn forge(world: &mut World, kind: u8, transaction: u32, yours: Ipv4Addr) {
    let (mac, forger) = (world.hosts[A1].mac, (world.hosts[INTRUDER].mac, at(2)));
    for to_all in [true, false] {
        let lease = Some(86_400);
        let forged = Message { yours, lease, ..Message::new(kind, transaction, mac) };
        world.put(INTRUDER, forged.answer(forger, to_all));
        settle(world);
    }
}

#[test]
fn an_answer_after_the_servers_own_counts_for_nothing() {
    for (seed, mode) in [(15, Mode::Protect), (16, Mode::Enforce)] {
        let mut world = world(seed, mode, true);
        lease(&mut world, A1, at(50), 3600);
        let transaction = 0x1000 + 50;
        forge(&mut world, kind::ACK, transaction, at(99));
        forge(&mut world, kind::NAK, transaction, Ipv4Addr::UNSPECIFIED);
        assert_eq!(held(&mut world, A1), [at(50)], "{mode:?}");
        expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
        expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    }
}

#[test]
fn a_device_whose_lease_was_lost_here_gets_it_back_by_renewing() {
    for (seed, mode) in [(17, Mode::Protect), (18, Mode::Enforce)] {
        let mut world = world(seed, mode, true);
        lease(&mut world, A1, at(50), 3600);
        let (mac, server) = (world.hosts[A1].mac, world.hosts[SERVER].mac);
        // Asked again, and answered by somebody who was quicker than the server.
        world.put(A1, Message::new(kind::REQUEST, 71, mac).broadcast());
        settle(&mut world);
        forge(&mut world, kind::ACK, 71, at(99));
        assert_eq!(held(&mut world, A1), [at(99)], "{mode:?}");
        let renew = |world: &mut World, source: Ipv4Addr, transaction: u32| {
            world.clear_campus();
            let message =
                Message { client: source, ..Message::new(kind::REQUEST, transaction, mac) };
            let bytes = packet::udp((source, 68), (at(2), 67), &message.bytes());
            world.put(A1, packet::frame(server, mac, 0x0800, &bytes));
            settle(world);
            last_dhcp(world, SERVER).is_some_and(|last| last.transaction == transaction)
        };
        let arrived = renew(&mut world, at(50), 72);
        let state = status(&mut world, A1);
        assert!(arrived, "{mode:?}: the renewal didn't arrive: {state:#?}");
        let ack = Message {
            client: at(50),
            yours: at(50),
            lease: Some(3600),
            ..Message::new(kind::ACK, 72, mac)
        };
        world.put(SERVER, ack.answer((server, at(2)), false));
        settle(&mut world);
        assert_eq!(held(&mut world, A1), [at(50)], "{mode:?}");
        expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
        // Nothing but a renewal gets out so, and nobody else's address.
        lease(&mut world, A2, at(60), 3600);
        for (transaction, source) in [(73, at(60)), (74, at(2)), (75, Ipv4Addr::new(10, 20, 9, 9))]
        {
            assert!(!renew(&mut world, source, transaction), "{mode:?}: {source}");
        }
        world.clear_campus();
        for (port, payload) in [(68, &b"not DHCP"[..]), (40_000, b"anything")] {
            let bytes = packet::udp((at(77), port), (at(2), 67), payload);
            world.put(A1, packet::frame(server, mac, 0x0800, &bytes));
        }
        settle(&mut world);
        let heard = &world.hosts[SERVER].seen;
        assert!(heard.iter().all(|frame| frame[6..12] != mac.0), "{mode:?}: {heard:02x?}");
    }
}

/// Who has a listed server's address answers first. It is an address and no identity, so he is heard.
#[test]
fn who_passes_for_a_listed_server_gives_nobody_what_is_anothers() {
    for (seed, mode) in [(19, Mode::Protect), (20, Mode::Enforce)] {
        let mut world = world(seed, mode, true);
        lease(&mut world, A1, at(50), 3600);
        lease(&mut world, A2, at(60), 3600);
        let (mac, impostor) = (world.hosts[A1].mac, (world.hosts[INTRUDER].mac, at(2)));
        let genuine = (world.hosts[SERVER].mac, at(2));
        let pacs = world.hosts[PACS].address;
        let ask = |world: &mut World, transaction: u32| {
            world.clear_campus();
            world.put(A1, Message::new(kind::REQUEST, transaction, mac).broadcast());
            settle(world);
        };
        let give = |world: &mut World, who: usize, by, transaction: u32, yours: Ipv4Addr| {
            let ack =
                Message { yours, lease: Some(3600), ..Message::new(kind::ACK, transaction, mac) };
            world.put(who, ack.answer(by, false));
            settle(world);
        };
        // Another device's, the server's, the router's, a member's elsewhere, and what is outside of the prefix.
        for (transaction, yours) in (200..).zip([at(60), at(2), at(1), pacs, [10, 20, 9, 9].into()])
        {
            ask(&mut world, transaction);
            give(&mut world, INTRUDER, impostor, transaction, yours);
            let state = status(&mut world, A1);
            assert!(!state.held.contains(&yours), "{mode:?}: {yours}: {state:#?}");
            if mode == Mode::Enforce {
                let heard =
                    last_dhcp(&world, A1).is_some_and(|last| last.transaction == transaction);
                assert!(!heard, "{yours} reached the device");
                world.hosts[A1].address = yours;
                expect(&mut world, A1, PACS, DICOM, Way::None);
                world.hosts[A1].address = at(50);
            }
            // Neither what the device has nor its question ends by it: the server's own answer comes through.
            assert_eq!(held(&mut world, A1), [at(50)], "{mode:?}: {yours}");
            expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
            give(&mut world, SERVER, genuine, transaction, at(50));
            let last = last_dhcp(&world, A1).unwrap();
            assert_eq!((last.transaction, last.yours), (transaction, at(50)), "{mode:?}: {yours}");
            assert_eq!(held(&mut world, A2), [at(60)], "{mode:?}: {yours}");
            expect(&mut world, A2, PACS, DICOM, Way::Tunnel);
            expect(&mut world, PACS, A2, BACK, Way::Tunnel);
        }
        // A free one he can give, and the first word is the last: the device and its gateway hold the same, and the
        // server's own, a moment later, reaches neither in enforce.
        ask(&mut world, 300);
        give(&mut world, INTRUDER, impostor, 300, at(99));
        assert_eq!(held(&mut world, A1), [at(99)], "{mode:?}");
        give(&mut world, SERVER, genuine, 300, at(50));
        assert_eq!(held(&mut world, A1), [at(99)], "{mode:?}: the second answer");
        if mode == Mode::Enforce {
            let last = last_dhcp(&world, A1).unwrap();
            assert_eq!((last.transaction, last.yours), (300, at(99)), "both believe the same");
        }
        world.hosts[A1].address = at(99);
        world.hosts[A1].forget();
        settle(&mut world);
        expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
        // The genuine server says its own answer twice: the same as once.
        ask(&mut world, 301);
        give(&mut world, SERVER, genuine, 301, at(50));
        give(&mut world, SERVER, genuine, 301, at(50));
        assert_eq!(held(&mut world, A1), [at(50)], "{mode:?}: said twice");
    }
}
