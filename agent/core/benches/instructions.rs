//! One case, so many times, for tools that count instructions:
//!
//! ```text
//! cargo bench -p anteroom-agent-core --bench instructions --no-run
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*Scene::feed_port' \
//!     target/release/deps/instructions-… port 10000
//! ```
//!
//! Divide what it collected by the number of times. Cases: `port`, `port-many` (100,000 flows in turn), `super`,
//! `uplink`, `tunnel`, each with its function of [`scene::Scene`] to be collected; sealing is left out.

mod scene;

use anteroom_proto::mode::Mode;
use scene::{Out, Scene, Shape};

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with("--"));
    let case = words.next().unwrap_or_else(|| "port".to_owned());
    let mut number =
        |otherwise| words.next().and_then(|word| word.parse().ok()).unwrap_or(otherwise);
    let (times, flows, rules, peers) = (number(100), number(1), number(10), number(1));
    let shape = Shape { flows, rules, peers, ..Shape::default() };
    let mut out = Out::default();
    let mut frame = Vec::new();
    match case.as_str() {
        "port" => {
            let mut scene = Scene::new(shape);
            for number in 0..times {
                // A step that has no factor in common with the number of flows.
                scene.udp_frame(number * 7_919 % flows, 86, &mut frame);
                scene.feed_port(&mut frame, &mut out);
            }
            assert_eq!(out.sent, times as u64);
        }
        "super" => {
            let mut scene = Scene::new(shape);
            for _ in 0..times {
                let vnet = scene.super_frame(&mut frame);
                scene.feed_merged(vnet, &mut frame, &mut out);
            }
            assert!(out.sent > times as u64);
        }
        "uplink" => {
            let mut scene = Scene::new(Shape { mode: Mode::Observe, flows: 0, ..shape });
            for _ in 0..times {
                let ends = (scene::address(1), scene::address(0));
                scene::frame_between((scene::mac(1), scene::mac(0)), ends, 1, 86, &mut frame);
                scene.feed_uplink(&mut frame, &mut out);
            }
            assert_eq!(out.frames, times as u64);
        }
        "tunnel" => {
            let mut scene = Scene::new(shape);
            let all: Vec<usize> = (0..times).map(|number| number * 7_919 % flows).collect();
            let known: Vec<usize> = (0..flows.min(times)).collect();
            scene.acquaint(&known);
            for mut datagram in scene.sealed(&all, 86) {
                scene.feed_tunnel(&mut datagram, &mut out);
            }
            assert_eq!(out.frames, times as u64);
        }
        other => panic!("no case {other:?}"),
    }
}
