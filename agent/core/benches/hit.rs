//! What a packet costs in the engine, piece by piece. `cargo bench -p anteroom-agent-core --bench hit`.

mod scene;

use std::hint::black_box;
use std::time::Duration;

use anteroom_agent_core::gso::Packets;
use anteroom_agent_core::wire::{parse_ethernet, parse_ipv4};
use anteroom_proto::mode::Mode;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use scene::{Out, Scene, Shape};

fn main() {
    divan::main();
}

/// A payload that makes packets of 128 bytes with their IP header.
const SMALL: usize = 100;
/// Sizes of the flow table.
const FLOWS: [usize; 4] = [1, 1_000, 100_000, 1_000_000];
/// From one flow to the next: a prime, so that all have their turn and neighbours don't follow each other.
const STEP: usize = 7_919;

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
#[divan::bench(args = FLOWS)]
fn port_to_tunnel(bencher: Bencher<'_, '_>, flows: usize) {
    let mut scene = Scene::new(Shape { flows, ..Shape::default() });
    let (mut out, mut frame, mut number) = (Out::default(), Vec::new(), 0);
    bencher.bench_local(|| {
        number = (number + STEP) % flows;
        scene.udp_frame(number, SMALL, &mut frame);
        scene.feed_port(&mut frame, &mut out);
    });
}

/// Without sealing, 16 frames at once.
#[divan::bench(args = FLOWS)]
fn batch_to_tunnel(bencher: Bencher<'_, '_>, flows: usize) {
    let mut scene = Scene::new(Shape { flows, ..Shape::default() });
    let (mut out, mut number) = (Out::default(), 0);
    let mut frames = vec![Vec::new(); 16];
    bencher.counter(ItemsCount::new(frames.len())).bench_local(|| {
        for frame in &mut frames {
            number = (number + STEP) % flows;
            scene.udp_frame(number, SMALL, frame);
        }
        scene.feed_ports(&mut frames, &mut out);
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

/// From a frame to the sealed datagram in the sink.
#[divan::bench(args = FLOWS)]
fn seal_to_sink(bencher: Bencher<'_, '_>, flows: usize) {
    let mut scene = Scene::new(Shape { flows, ..Shape::default() });
    let (mut out, mut frame) = (Out { seals: true, ..Out::default() }, Vec::new());
    let mut number = 0;
    bencher.bench_local(|| {
        number = (number + STEP) % flows;
        scene.udp_frame(number, SMALL, &mut frame);
        scene.feed_port(&mut frame, &mut out);
    });
}

/// From a frame of 64 KiB to the run of sealed datagrams in the sink.
#[divan::bench]
fn super_frame_to_sink(bencher: Bencher<'_, '_>) {
    let mut scene = Scene::new(Shape::default());
    let mut out = Out { seals: true, ..Out::default() };
    let mut frame = Vec::new();
    let vnet = scene.super_frame(&mut frame);
    let bencher = bencher.counter(BytesCount::new(frame.len()));
    // Cutting writes into the frame, so each time it is a new one.
    bencher.with_inputs(|| frame.clone()).bench_local_refs(|frame| {
        let before = out.sent;
        scene.feed_merged(vnet, frame, &mut out);
        assert!(out.sent > before + 40, "it was cut and sealed");
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

/// From a sealed datagram to the frame in the sink.
#[divan::bench(args = FLOWS, sample_count = 20, sample_size = 500)]
fn datagram_to_frame(bencher: Bencher<'_, '_>, flows: usize) {
    let mut scene = Scene::new(Shape { flows, ..Shape::default() });
    // As many as there are samples, and those that set the clock's overhead.
    let used: Vec<usize> = (0..20_000).map(|number| number * STEP % flows).collect();
    scene.acquaint(&used[..flows.min(used.len())]);
    let mut sealed = scene.sealed(&used, SMALL).into_iter();
    let mut out = Out::default();
    bencher.bench_local(|| {
        if let Some(mut datagram) = sealed.next() {
            scene.feed_tunnel(&mut datagram, &mut out);
        }
    });
}

/// From 40 sealed datagrams of one stream, as the kernel merges them, to one frame in the sink: opened and coalesced.
#[divan::bench(sample_count = 20, sample_size = 20)]
fn coalesce(bencher: Bencher<'_, '_>) {
    let mut scene = Scene::new(Shape::default());
    let mut runs = scene.sealed_runs(1_000).into_iter();
    let mut out = Out::default();
    bencher.counter(BytesCount::new(scene::RUN)).bench_local(|| {
        if let Some((mut datagrams, segment)) = runs.next() {
            scene.feed_run(&mut datagrams, segment, &mut out);
            out.frames_are(1);
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
