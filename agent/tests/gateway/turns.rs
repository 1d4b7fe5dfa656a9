//! The threads that carry traffic ask for short turns on a core.

use anteroom_agent::dataplane::Status;
use anteroom_agent::net::offload::Offload;
use anteroom_agent::slice;
use anteroom_lab::namespace::in_private_network;
use anteroom_lab::wait;

use crate::bench::{Bench, PATIENCE};

/// The numbers of this process's threads with this name.
fn threads(name: &str) -> Vec<i32> {
    let named = |id: &i32| {
        let told = std::fs::read_to_string(format!("/proc/self/task/{id}/comm"));
        told.is_ok_and(|told| told.trim() == name)
    };
    let entries = std::fs::read_dir("/proc/self/task").expect("this process has threads");
    let id = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.filter_map(|entry| id(entry.ok()?)).filter(named).collect()
}

/// What is told of the packet thread and of each lane thread, once each of them has begun.
fn told(status: &Status) -> Option<Vec<(String, Offload)>> {
    let threads = &status.threads;
    let lanes = (1..).zip(&threads.lanes);
    let lanes = lanes.map(|(n, lane)| Some((format!("lanes-{n}"), lane.short_turns.clone()?)));
    let packets = threads.short_turns.clone().map(|told| ("dataplane".to_owned(), told));
    std::iter::once(packets).chain(lanes).collect()
}

#[test]
fn what_the_status_says_of_turns_is_what_the_threads_have() {
    if !in_private_network("turns::what_the_status_says_of_turns_is_what_the_threads_have") {
        return;
    }
    let mut bench = Bench::new(1500, "");
    bench.config.offloads.lanes = true;
    bench.config.cores.lane_threads = anteroom_agent::config::LaneThreads::Count(2);
    let running = bench.start();
    let told = wait::until(PATIENCE, "all threads to begin", || told(&running.status()))
        .unwrap_or_else(|error| panic!("{error}: {:#?}", running.status()));
    assert_eq!(told.len(), 3, "{told:?}");
    for (name, told) in told {
        let [thread] = threads(&name)[..] else { panic!("not one {name}: {:?}", threads(&name)) };
        match told {
            Offload::On => {
                let turn = slice::of(thread).expect("the thread runs");
                assert_eq!(turn, Some(slice::SLICE), "{name}");
            }
            // Older kernels, and sandboxes that deny it.
            Offload::Off(reason) => assert!(!reason.is_empty(), "{name}"),
        }
    }
}
