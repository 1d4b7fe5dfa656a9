//! A client whose keys are in an attacker's hands, and others on the wire to it: whatever they send in whatever order.

use super::clients::{CT_AT, LAPTOP_AT, MRI_AT, Out, Pair, SYN, at};
use super::*;
use crate::wire::Transport;

/// What happens next.
#[derive(Debug, Clone)]
enum Event {
    /// The laptop shakes hands.
    Handshake,
    /// The laptop sends this from one of its places.
    Says(u8, Vec<u8>),
    /// A datagram that the laptop sent before arrives once more, with a byte changed or none, from a place of anybody's.
    Again { which: usize, change: Option<(usize, u8)>, place: u8 },
    /// Bytes of anybody's, perhaps with the head of one of WireGuard's messages.
    Noise { kind: u8, bytes: Vec<u8>, place: u8 },
    /// The device sends something to the laptop.
    Device { from_port: u16, to_port: u16, flags: u8 },
    /// Time passes.
    Wait(u64),
    /// The agent starts anew with what it had learnt.
    Restart,
}

/// Whoever is nobody.
const STRANGER: u8 = 99;

fn any_place() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![1_u8, 2, STRANGER])
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let address = prop::sample::select(vec![
        LAPTOP_AT,
        CT_AT,
        MRI_AT,
        [10, 20, 1, 2],
        [10, 20, 1, 71],
        [10, 20, 4, 20],
        [10, 20, 9, 9],
        [255; 4],
        [224, 0, 0, 1],
        [0; 4],
    ]);
    let port = prop::sample::select(vec![5900_u16, 104, 50_000, 41_000, 67, 53, 22]);
    let flags = prop::sample::select(vec![0x02_u8, 0x12, 0x10, 0x18, 0x04, 0x00]);
    let whole = (address.clone(), address, port.clone(), port, flags, 0..8_u8, any::<u16>());
    let packet = whole.prop_map(|(from, to, near, far, flags, kind, word)| match kind {
        // Mostly as itself to the device.
        0..=3 => ipv4(LAPTOP_AT, CT_AT, 6, &tcp(near, far, flags, &[kind; 9])),
        4 => ipv4(from, to, 6, &tcp(near, far, flags, &[])),
        5 => ipv4(from, to, 17, &udp(near, far, &[1, 2, 3])),
        6 => ipv4(from, to, 1, &[8, 0, 0, 0, 0, 1, 0, 1]),
        // A fragment of something.
        _ => {
            let mut packet = ipv4(from, to, 6, &tcp(near, far, flags, &[7; 64]));
            packet[6..8].copy_from_slice(&(word & 0x3fff).to_be_bytes());
            packet[10..12].fill(0);
            let sum = crate::checksum::checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        }
    });
    prop_oneof![8 => packet, 1 => prop::collection::vec(any::<u8>(), 1..200)]
}

fn any_event() -> impl Strategy<Value = Event> {
    let change = prop::option::of((any::<usize>(), 1..=255_u8));
    let again = (any::<usize>(), change, any_place())
        .prop_map(|(which, change, place)| Event::Again { which, change, place });
    let noise = (0..6_u8, prop::collection::vec(any::<u8>(), 0..200), any_place())
        .prop_map(|(kind, bytes, place)| Event::Noise { kind, bytes, place });
    let port = prop::sample::select(vec![5900_u16, 104, 41_000, 23]);
    let flags = prop::sample::select(vec![0x02_u8, 0x12, 0x10]);
    let device = (port.clone(), port, flags)
        .prop_map(|(from_port, to_port, flags)| Event::Device { from_port, to_port, flags });
    prop_oneof![
        1 => Just(Event::Handshake),
        8 => (1..3_u8, any_packet()).prop_map(|(place, packet)| Event::Says(place, packet)),
        3 => again,
        2 => noise,
        2 => device,
        1 => prop::sample::select(vec![1_u64, 100, 6_000, 200_000]).prop_map(Event::Wait),
        1 => Just(Event::Restart),
    ]
}

/// What the laptop's two rules open: VNC at the device, and the answers to the device's DICOM.
fn is_open(packet: &crate::wire::Ipv4Packet<'_>) -> bool {
    let ends = packet.source.octets() == LAPTOP_AT && packet.destination.octets() == CT_AT;
    let opened = match packet.transport {
        Transport::Tcp { .. } if packet.fragment.is_none_or(|fragment| fragment.offset == 0) => {
            let answers = packet.source_port == 104 && packet.tcp_flags().0 != SYN;
            packet.destination_port == 5900 || answers
        }
        // What belongs to a fragment that was let through.
        _ => packet.fragment.is_some_and(|fragment| fragment.offset > 0),
    };
    ends && opened
}

/// `restarted`: a gateway that started anew can't know which initiations are old, as any WireGuard. It answers a copy
/// once, and that moves nothing.
fn check(out: &Out, restarted: bool) {
    for (port, frame) in &out.frames {
        assert_eq!(*port, PortId::device(0), "not the device's port: {frame:02x?}");
        assert_eq!(frame[..6], mac(10).0, "not to the device: {frame:02x?}");
        if frame[12..14] != [8, 0] {
            continue;
        }
        let packet = crate::wire::parse_ipv4(&frame[14..]).expect("a packet comes out whole");
        assert!(is_open(&packet), "no rule opens {packet:?}");
    }
    // What the gateway said to the laptop was carried there; anything else is for its other peer.
    for (to, datagram) in &out.datagrams {
        let responds = restarted && datagram.len() == 92 && datagram[0] == 2;
        assert!(*to != at(STRANGER) || responds, "a stranger is told {datagram:02x?}");
    }
}

fn happens(pair: &mut Pair, event: &Event, said: &mut Vec<Vec<u8>>) -> Out {
    match event {
        Event::Handshake => {
            pair.from = at(1);
            said.push(pair.handshake());
            Out::default()
        }
        Event::Says(place, packet) => {
            let datagram = pair.sealed(packet);
            said.push(datagram.clone());
            pair.from = at(*place);
            pair.arrives(&datagram)
        }
        Event::Again { which, change, place } => {
            let Some(mut datagram) = said.get(which % said.len().max(1)).cloned() else {
                return Out::default();
            };
            if let Some((at, bits)) = change {
                let at = at % datagram.len();
                datagram[at] ^= bits;
            }
            stray(pair, *place, &datagram)
        }
        Event::Noise { kind, bytes, place } => {
            let len = [0, 148, 92, 64, 80, 32][usize::from(*kind)];
            let mut datagram = bytes.clone();
            if len > 0 {
                datagram.resize(len, 0x5a);
                datagram[..4].copy_from_slice(&[(*kind).min(4), 0, 0, 0]);
            }
            stray(pair, *place, &datagram)
        }
        Event::Device { from_port, to_port, flags } => {
            let segment = tcp(*from_port, *to_port, *flags, &[]);
            pair.device_sends(&ipv4(CT_AT, LAPTOP_AT, 6, &segment))
        }
        Event::Wait(millis) => pair.wait(Duration::from_millis(*millis)),
        Event::Restart => {
            let learned = pair.engine.learned();
            assert!(learned.clients.iter().all(|client| client.at != at(STRANGER)), "{learned:?}");
            pair.engine = engine(Limits::default(), pair.now);
            pair.engine.restore(learned);
            pair.engine.apply(super::clients::with_laptop([Mode::Enforce; 2], 70), pair.now);
            Out::default()
        }
    }
}

/// Something that the laptop's program didn't send just now: nothing is answered there.
fn stray(pair: &mut Pair, place: u8, datagram: &[u8]) -> Out {
    let mut bytes = datagram.to_vec();
    let mut out = Out::default();
    let mut batch = [RxDatagram { from: at(place), segment: bytes.len(), bytes: &mut bytes }];
    pair.engine.handle_datagrams(&mut batch, pair.now, &mut out);
    out
}

/// Lets all this happen, and looks at everything that comes of it.
fn opens_nothing_more(events: &[Event]) {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    let (mut said, mut restarted) = (Vec::new(), false);
    for event in events {
        pair.received.clear();
        let out = happens(&mut pair, event, &mut said);
        restarted |= matches!(event, Event::Restart);
        check(&out, restarted);
        for packet in &pair.received {
            let packet = crate::wire::parse_ipv4(packet).expect("a packet comes out whole");
            assert_eq!(packet.source.octets(), CT_AT, "{packet:?}");
            assert_eq!(packet.destination.octets(), LAPTOP_AT, "{packet:?}");
        }
    }
    check(&pair.wait(Duration::from_millis(10)), restarted);
    let places = pair.engine.learned().clients;
    assert!(places.iter().all(|client| client.at != at(STRANGER)), "{places:?}");
}

#[test]
fn a_client_may_shake_hands_as_often_as_it_likes() {
    opens_nothing_more(&vec![Event::Handshake; 60]);
    let says = Event::Says(1, ipv4(LAPTOP_AT, CT_AT, 6, &tcp(50_000, 5900, SYN, &[])));
    let calls = Event::Device { from_port: 41_000, to_port: 104, flags: SYN };
    let restarts = [Event::Restart, calls, says, Event::Handshake];
    opens_nothing_more(&restarts.iter().cycle().take(60).cloned().collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_stolen_client_opens_nothing_beyond_its_rules_and_strangers_hear_nothing(
        events in prop::collection::vec(any_event(), 1..60),
    ) {
        opens_nothing_more(&events);
    }
}
