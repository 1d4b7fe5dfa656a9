//! Observe changes no byte of clear traffic, and no order (statement 7): captures of real devices and made-up traffic,
//! through a real gateway in both directions.

use anteroom_e2e::replay::{
    DEVICE, OTHER, Sided, capture_files, captures, ends, read, rename, renamed, sides,
};
use anteroom_e2e::wire::{End, Way, Wire, carry};
use anteroom_e2e::{Stage, fixture, own_programs};
use anteroom_lab::namespace::in_private_network;
use anteroom_lab::story::{approve_all, confirm_all, wait_for_inventory};

fn replay(test: &str, per_type: usize, most: usize) {
    let Some(programs) = own_programs() else { return };
    if !in_private_network(test) {
        return;
    }
    let Some(folder) = captures() else {
        eprintln!(
            "skipped {test}: no captures in ../shared/traffic (the repository doesn't bring them)"
        );
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut wire = Wire::start(&programs, directory.path(), 65_535).unwrap();
    let (mut files, mut count, mut bytes, mut run) = (0, [0, 0], 0, 0);
    for file in capture_files(&folder, per_type) {
        let mut frames = read(&file);
        frames.truncate(most);
        let (first, second) = ends(&frames);
        // Each end of the conversation is the device once.
        for device in [first, second] {
            run += 1;
            let sided = sides(rename(frames.clone(), run), renamed(device, run));
            let lent: Vec<(Way, &[u8])> =
                sided.iter().map(|(way, frame)| (*way, &frame[..])).collect();
            wire.carry(&lent).unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
            for (way, frame) in &sided {
                count[usize::from(*way == Way::In)] += 1;
                bytes += frame.len();
            }
        }
        files += 1;
    }
    assert!(count[0] > 1_000 && count[1] > 1_000, "{files} captures made {count:?} frames");
    println!(
        "{files} captures: {} frames out, {} in, {bytes} bytes, all alike",
        count[0], count[1]
    );
}

#[test]
fn captures_pass_a_wire_byte_for_byte_and_in_order() {
    replay("captures_pass_a_wire_byte_for_byte_and_in_order", 1, 2_000);
}

/// Every frame of every capture: `cargo test -p anteroom-e2e --test observe -- --ignored`.
#[test]
#[ignore = "takes a minute"]
fn all_captures_pass_a_wire_byte_for_byte_and_in_order() {
    replay("all_captures_pass_a_wire_byte_for_byte_and_in_order", usize::MAX, usize::MAX);
}

#[test]
fn made_up_traffic_passes_a_wire_byte_for_byte_and_in_order() {
    let test = "made_up_traffic_passes_a_wire_byte_for_byte_and_in_order";
    let Some(programs) = own_programs() else { return };
    if !in_private_network(test) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut wire = Wire::start(&programs, directory.path(), 9_000).unwrap();
    for _ in 0..3 {
        carry_made_up(&mut wire.port, &mut wire.uplink, 9_000);
    }
}

#[test]
fn made_up_traffic_of_an_observed_device_passes_byte_for_byte_and_in_order() {
    let test = "made_up_traffic_of_an_observed_device_passes_byte_for_byte_and_in_order";
    let Some(fixture) = fixture(test, Stage::Wires) else { return };
    let hospital = &fixture.hospital;
    for device in hospital.devices() {
        device.announce().unwrap();
    }
    approve_all(hospital).unwrap();
    wait_for_inventory(hospital).unwrap();
    confirm_all(hospital).unwrap();
    let file = hospital.operator.write_policy("policy.toml", anteroom_lab::story::POLICY).unwrap();
    hospital.operator.apply(&file, "first").unwrap();
    // The test speaks for the CT, whose own kernel is to be silent.
    let ct = hospital.machine("ct-1");
    ct.host.ip("address flush dev eth0").unwrap();
    ct.host.ip("link set eth0 arp off").unwrap();
    let mac = ct.host.mac("eth0").unwrap();
    let mut port = End::open(&ct.host, "eth0").unwrap();
    let mut uplink = End::open(&hospital.campus, "u-imaging").unwrap();
    let traffic: Vec<(String, Vec<Sided>)> = made_up(1_500);
    for (what, frames) in traffic {
        let frames: Vec<Sided> = frames
            .into_iter()
            .map(|(way, mut frame)| {
                for at in [0, 6] {
                    if frame[at..at + 6] == DEVICE {
                        frame[at..at + 6].copy_from_slice(&mac);
                    }
                }
                (way, frame)
            })
            .collect();
        let lent: Vec<(Way, &[u8])> =
            frames.iter().map(|(way, frame)| (*way, &frame[..])).collect();
        let ours = |frame: &[u8]| frame[6..12] == mac || frame[6..12] == OTHER;
        carry(&mut port, &mut uplink, &lent, ours)
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
}

fn carry_made_up(port: &mut End, uplink: &mut End, mtu: usize) {
    for (what, frames) in made_up(mtu) {
        let lent: Vec<(Way, &[u8])> =
            frames.iter().map(|(way, frame)| (*way, &frame[..])).collect();
        carry(port, uplink, &lent, |_| true).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
}

/// Traffic of each kind, both ways.
fn made_up(mtu: usize) -> Vec<(String, Vec<Sided>)> {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut kinds: Vec<(&str, Vec<Vec<u8>>)> = Vec::new();
    // A kernel that merged any of these would give them other ids, or one checksum for all.
    for (name, ids) in [("zero ids", [0_u16; 40]), ("fixed ids", [4_242; 40])] {
        let frames = ids
            .iter()
            .enumerate()
            .map(|(at, id)| tcp(*id, at as u32 * 1_000, 0x10, &[0x5a; 1_000], 4_096));
        kinds.push((name, frames.collect()));
    }
    let random_ids =
        (0..40).map(|at| tcp(next() as u16, at * 1_000, 0x10, &[0x5a; 1_000], 4_096)).collect();
    kinds.push(("random ids", random_ids));
    let rising = (0..40_u16).map(|at| tcp(at, u32::from(at) * 1_000, 0x18, &[0x5a; 1_000], 4_096));
    kinds.push(("rising ids, each pushed", rising.collect()));
    let windows = [0, 1, 3, 65_535, 9, 9, 0].iter().zip(0..);
    kinds.push((
        "odd windows",
        windows.map(|(w, at)| tcp(7, at * 10, 0x10, &[1; 10], *w)).collect(),
    ));
    let mut bad = Vec::new();
    for at in 0..20_u32 {
        let mut frame = tcp(at as u16, at * 500, 0x10, &[0x33; 500], 900);
        // Of TCP, and of IP.
        frame[if at % 2 == 0 { 50 } else { 24 }] ^= 0x0f;
        bad.push(frame);
    }
    kinds.push(("bad checksums", bad));
    let flags = (0..=255_u8).map(|flags| tcp(flags.into(), 5, flags, &[], 1_000)).collect();
    kinds.push(("every set of TCP flags, and no payload", flags));
    kinds.push((
        "802.1X",
        (0..5).map(|n| frame([1, 0x80, 0xc2, 0, 0, 3], 0x888e, &[n; 46])).collect(),
    ));
    kinds.push((
        "LLDP",
        (0..3).map(|n| frame([1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[n; 120])).collect(),
    ));
    kinds.push(("spanning tree", vec![frame([1, 0x80, 0xc2, 0, 0, 0], 38, &[0x42; 46])]));
    let tagged = |protocol: u16, control: u16, inner: &[u8]| {
        let whole = tcp(1, 1, 0x10, inner, 100);
        let tag = [protocol.to_be_bytes(), control.to_be_bytes()].concat();
        [&whole[..12], &tag, &whole[12..]].concat()
    };
    let tags = [(0x8100, 42), (0x8100, 0xa000), (0x8100, 0x7fff), (0x88a8, 100), (0x8100, 0)];
    kinds.push(("tagged", tags.iter().map(|(p, c)| tagged(*p, *c, &[9; 300])).collect()));
    let double = tags.iter().map(|(_, control)| {
        let inner = tagged(0x8100, *control, &[8; 100]);
        [&inner[..12], &[0x88, 0xa8, 0, 7], &inner[12..]].concat()
    });
    kinds.push(("tagged twice", double.collect()));
    let largest = tcp(3, 9, 0x10, &vec![0x6b; mtu - 40], 5);
    assert_eq!(largest.len(), mtu + 14);
    kinds.push(("as large as may be", vec![largest; 12]));
    let v6 = |len: usize| {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.resize(40 + len, 0x44);
        packet
    };
    kinds.push((
        "IPv6",
        [0, 8, 900].map(|len| frame([0x33, 0x33, 0, 0, 0, 1], 0x86dd, &v6(len))).to_vec(),
    ));
    kinds.push(("fragments, whole, overlapping and out of order", fragments()));
    let datagrams = (0..30).map(|n| udp(&vec![0x21; n * 7], n % 3 == 0));
    kinds.push(("UDP, some without a checksum", datagrams.collect()));
    let short = (14..60).map(|len| {
        let mut bytes = frame([0xff; 6], 0x88b5, &[0x77; 60]);
        bytes.truncate(len);
        bytes
    });
    kinds.push(("frames of each short length", short.collect()));
    let mut noise = Vec::new();
    for _ in 0..60 {
        let len = next() as usize % 400 + 1;
        let bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        noise.push(frame([0xff; 6], [0x0800, 0x0806, 0x86dd, 0x9000][len % 4], &bytes));
    }
    kinds.push(("noise under known types", noise));
    kinds
        .into_iter()
        .flat_map(|(name, frames)| {
            let back: Vec<Sided> = frames.iter().map(|bytes| (Way::In, reversed(bytes))).collect();
            let out: Vec<Sided> = frames.into_iter().map(|bytes| (Way::Out, bytes)).collect();
            let both = interleaved(&out, &back);
            [
                (format!("{name}, out"), out),
                (format!("{name}, in"), back),
                (format!("{name}, both"), both),
            ]
        })
        .collect()
}

fn interleaved(a: &[Sided], b: &[Sided]) -> Vec<Sided> {
    a.iter().zip(b).flat_map(|(a, b)| [a.clone(), b.clone()]).collect()
}

/// The same frame from the network.
fn reversed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[6..12].copy_from_slice(&OTHER);
    if frame[0] & 1 == 0 {
        frame[..6].copy_from_slice(&DEVICE);
    }
    if frame.len() > 34 && frame[12..14] == [8, 0] {
        let (source, destination) = (frame[26..30].to_vec(), frame[30..34].to_vec());
        frame[26..30].copy_from_slice(&destination);
        frame[30..34].copy_from_slice(&source);
    }
    frame
}

fn frame(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &DEVICE, &kind.to_be_bytes(), payload].concat()
}

fn ip(id: u16, word: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet =
        vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 20, 1, 11, 10, 20, 9, 77];
    packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&word.to_be_bytes());
    let sum = anteroom_lab::packet::checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    frame(OTHER, 0x0800, &packet)
}

fn tcp(id: u16, sequence: u32, flags: u8, payload: &[u8], window: u16) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40, 0, 104];
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0x50, flags]);
    segment.extend(window.to_be_bytes());
    segment.extend([0, 0, 0, 0]);
    segment.extend_from_slice(payload);
    let length = (segment.len() as u16).to_be_bytes();
    let pseudo = [&[10, 20, 1, 11, 10, 20, 9, 77, 0, 6][..], &length, &segment].concat();
    let sum = anteroom_lab::packet::checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(id, 0x4000, 6, &segment)
}

fn udp(payload: &[u8], summed: bool) -> Vec<u8> {
    let mut datagram = vec![0x13, 0x88, 0x13, 0x88];
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend(if summed { [0x12, 0x34] } else { [0, 0] });
    datagram.extend_from_slice(payload);
    ip(0, 0, 17, &datagram)
}

fn fragments() -> Vec<Vec<u8>> {
    let piece = |id: u16, offset: u16, more: bool, len: usize| {
        ip(id, (offset / 8) | if more { 0x2000 } else { 0 }, 17, &vec![0x3c; len])
    };
    vec![
        piece(1, 0, true, 800),
        piece(1, 800, true, 800),
        piece(1, 1_600, false, 77),
        piece(2, 800, false, 40),
        piece(2, 0, true, 800),
        piece(3, 0, true, 8),
        piece(3, 0, true, 800),
        piece(3, 400, false, 800),
        piece(4, 65_528, false, 100),
    ]
}
