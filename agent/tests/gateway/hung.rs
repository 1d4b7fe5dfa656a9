//! One thread of the agent hangs while all others go on.

use std::time::Duration;

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::stream::Passage;
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mode::Mode;

use crate::appliance::{Appliance, NET};
use crate::closed::{everything, nothing_passed};

/// What an outage may last in a test: the promise is 500 ms, and a machine may be busy.
const BOUND: Duration = Duration::from_secs(3);

/// The thread that frames go through.
const WORKER: &str = "dataplane";

/// A device in enforce at the first port, one in observe at the second.
fn appliance() -> Appliance {
    let mut appliance = Appliance::new();
    appliance.hold(&[(Mode::Enforce, OnFailure::Default), (Mode::Observe, OnFailure::Default)]);
    appliance.start();
    appliance.wait_running();
    appliance
}

#[test]
fn a_worker_that_hangs_alone_leaves_a_wire_and_closes_what_is_enforced() {
    if !in_private_network(
        "hung::a_worker_that_hangs_alone_leaves_a_wire_and_closes_what_is_enforced",
    ) {
        return;
    }
    let appliance = appliance();
    let threads = appliance.agent().threads().unwrap();
    let worker = threads.iter().find(|(_, name)| name == WORKER).map(|(id, _)| *id);
    let worker = worker.unwrap_or_else(|| panic!("no worker among {threads:?}"));
    for round in 0..3 {
        let streams = appliance.both_ways(1);
        let hung = appliance.agent().hang(worker).unwrap();
        streams.iter().for_each(|stream| appliance.wait_more(stream));
        if round == 0 {
            let marker = appliance.stream(1, NET);
            appliance.wait_more(&marker);
            for pair in [(0, NET), (0, 1)] {
                nothing_passed(&appliance, "hung", everything(&appliance, pair), Some(&marker));
            }
        }
        drop(hung);
        streams.iter().for_each(|stream| appliance.wait_more(stream));
        for stream in streams {
            let passage = stream.stop().unwrap();
            println!("round {round}: {passage:?}");
            assert_eq!(passage.doubled, 0, "{passage:?}\n{}", appliance.log());
            assert!(passage.outage_within(BOUND), "{passage:?}\n{}", appliance.log());
        }
    }
}

#[test]
fn any_other_thread_that_hangs_alone_costs_no_frame() {
    if !in_private_network("hung::any_other_thread_that_hangs_alone_costs_no_frame") {
        return;
    }
    let appliance = appliance();
    let threads = appliance.agent().threads().unwrap();
    let others: Vec<_> = threads.iter().filter(|(_, name)| name != WORKER).collect();
    assert!(others.len() >= 2 && others.len() < threads.len(), "{threads:?}");
    for (id, name) in others {
        // A machine that holds up the worker itself for longer than a beat lasts says nothing about the other threads.
        let mut tries = 0;
        loop {
            let before = late(&appliance);
            let passages = pass_while_hung(&appliance, *id);
            println!("{name}: {passages:?}");
            let whole = passages.iter().all(|passage| (passage.lost(), passage.doubled) == (0, 0));
            tries += 1;
            if whole {
                break;
            }
            let held_up = late(&appliance) > before;
            assert!(held_up && tries < 10, "{name}: {passages:?}\n{}", appliance.log());
            println!("the worker was held up as well: once more");
        }
    }
}

/// How often the worker has found that it couldn't beat in time.
fn late(appliance: &Appliance) -> usize {
    appliance.log().matches("the kernel forwarded for it").count()
}

/// What passes both ways while a thread of the agent hangs for about a second.
fn pass_while_hung(appliance: &Appliance, thread: i32) -> [Passage; 2] {
    let streams = appliance.both_ways(1);
    let hung = appliance.agent().hang(thread).unwrap();
    // Far longer than a beat lasts: it must not depend on this thread.
    let before: u64 = streams[0].sent();
    anteroom_lab::wait::until(Duration::from_secs(30), "a second's frames", || {
        (streams[0].sent() > before + 700).then_some(())
    })
    .unwrap();
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    drop(hung);
    streams.map(|stream| stream.stop().unwrap())
}
