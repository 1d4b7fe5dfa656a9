//! What a packet costs in the engine, piece by piece. `cargo bench -p anteroom-agent-core --bench hit`.

mod scene;

use std::hint::black_box;
use std::time::Duration;

use anteroom_agent_core::gso::Packets;
use anteroom_agent_core::wire::{parse_ethernet, parse_ipv4};
use anteroom_proto::mode::Mode;
use divan::{Bencher, counter::BytesCount};
use scene::{Out, Scene, Shape};

fn main() {
    divan::main();
}

/// A payload that makes packets of 128 bytes with their IP header.
const SMALL: usize = 100;

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    let mut frame = Vec::new();
    scene::frame_between(
        (scene::mac(0), scene::mac(1)),
        (scene::address(0), scene::address(1)),
        1,
        SMALL,
        &mut frame,
    );
    bencher.bench_local(|| {
        let ethernet = parse_ethernet(black_box(&frame), None).map(|frame| frame.payload);
        ethernet.and_then(parse_ipv4).map(|packet| packet.tuple())
    });
}

/// Without sealing.
#[divan::bench(args = [1, 1_000, 100_000, 1_000_000])]
fn port_to_tunnel(bencher: Bencher<'_, '_>, flows: usize) {
    let mut scene = Scene::new(Shape { flows, ..Shape::default() });
    let (mut out, mut frame, mut number) = (Out::default(), Vec::new(), 0);
    bencher.bench_local(|| {
        number = (number + 7_919) % flows;
        scene.udp_frame(number, SMALL, &mut frame);
        scene.feed_port(&mut frame, &mut out);
    });
}

/// Without sealing.
#[divan::bench(args = [10, 1_000, 100_000])]
fn port_to_tunnel_by_rules(bencher: Bencher<'_, '_>, rules: usize) {
    let mut scene = Scene::new(Shape { rules, peers: 100, ..Shape::default() });
    let (mut out, mut frame) = (Out::default(), Vec::new());
    bencher.bench_local(|| {
        scene.udp_frame(0, SMALL, &mut frame);
        scene.feed_port(&mut frame, &mut out);
    });
}

#[divan::bench]
fn port_to_tunnel_sealed(bencher: Bencher<'_, '_>) {
    let mut scene = Scene::new(Shape::default());
    let (mut out, mut frame) = (Out { seals: true, ..Out::default() }, Vec::new());
    bencher.bench_local(|| {
        scene.udp_frame(0, SMALL, &mut frame);
        scene.feed_port(&mut frame, &mut out);
    });
}

#[divan::bench]
fn super_frame_to_tunnel_sealed(bencher: Bencher<'_, '_>) {
    let mut scene = Scene::new(Shape::default());
    let (mut out, mut frame) = (Out { seals: true, ..Out::default() }, Vec::new());
    let vnet = scene.super_frame(&mut frame);
    bencher.counter(BytesCount::new(frame.len())).bench_local(|| {
        scene.feed_merged(vnet, &mut frame, &mut out);
    });
}

#[divan::bench]
fn cut(bencher: Bencher<'_, '_>) {
    let scene = Scene::new(Shape::default());
    let mut frame = Vec::new();
    let vnet = scene.super_frame(&mut frame);
    let bencher = bencher.counter(BytesCount::new(frame.len()));
    bencher.with_inputs(|| frame.clone()).bench_local_refs(|frame| {
        let mut packets = Packets::new(&mut frame[14..], 14, &vnet, 1_440).unwrap();
        while let Some(packet) = packets.next() {
            black_box(packet);
        }
    });
}

/// With opening.
#[divan::bench(sample_count = 20, sample_size = 500)]
fn tunnel_to_port(bencher: Bencher<'_, '_>) {
    let mut scene = Scene::new(Shape::default());
    scene.acquaint(&[0]);
    let mut sealed = scene.sealed(&[0; 20_000], SMALL).into_iter();
    let mut out = Out::default();
    bencher.bench_local(|| {
        if let Some(mut datagram) = sealed.next() {
            scene.feed_tunnel(&mut datagram, &mut out);
        }
    });
}

#[divan::bench]
fn uplink_to_port(bencher: Bencher<'_, '_>) {
    let mut scene = Scene::new(Shape { mode: Mode::Observe, flows: 0, ..Shape::default() });
    let (mut out, mut frame) = (Out::default(), Vec::new());
    bencher.bench_local(|| {
        let ends = (scene::address(1), scene::address(0));
        scene::frame_between((scene::mac(1), scene::mac(0)), ends, 1, SMALL, &mut frame);
        scene.feed_uplink(&mut frame, &mut out);
    });
}

/// A new flow each time: one verdict, and a place in the table.
#[divan::bench(args = [10, 1_000, 100_000])]
fn miss(bencher: Bencher<'_, '_>, rules: usize) {
    let mut scene = Scene::new(Shape { rules, peers: 100, ..Shape::default() });
    let (mut out, mut frame, mut number) = (Out::default(), Vec::new(), 0);
    bencher.bench_local(|| {
        number = (number + 1) % 3_000_000;
        scene.udp_frame(number, SMALL, &mut frame);
        scene.feed_port(&mut frame, &mut out);
    });
}

/// Taking over a view.
#[divan::bench(args = [(10, 10), (1_000, 1_000), (100_000, 3_000)], sample_count = 1, sample_size = 1)]
fn apply(bencher: Bencher<'_, '_>, (rules, peers): (usize, usize)) {
    let shape = Shape { rules, peers, flows: 0, ..Shape::default() };
    let view = scene::view(0, &shape);
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    let now = std::time::Instant::now();
    bencher.with_inputs(|| scene::engine(0, 0, now)).bench_local_values(|mut engine| {
        engine.apply(view.clone(), now);
        engine
    });
}

/// A second in the life of many tunnels of which none is up.
#[divan::bench(args = [10, 1_000, 3_000])]
fn a_second_of_timers(bencher: Bencher<'_, '_>, peers: usize) {
    let shape = Shape { peers, ..Shape::default() };
    let mut scene = Scene::new(shape);
    let mut out = Out::default();
    bencher.bench_local(|| {
        for _ in 0..10 {
            scene.now += Duration::from_millis(100);
            scene.near.handle_timeout(scene.now, &mut out);
        }
    });
}
