//! Runs every kept input of every fuzzer through the same functions, so that what was found once stays found.

use std::path::Path;

use anteroom_fuzz_bodies::{ALL, Body};

#[test]
fn every_kept_input_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    for (name, body) in ALL {
        let directory = corpus.join(name);
        let mut files: Vec<_> = std::fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{} is empty", directory.display());
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            if std::panic::catch_unwind(|| body(&bytes)).is_err() {
                panic!("{name} fails with {}", file.display());
            }
        }
    }
}

/// What no fuzzer needs to find: nothing, little, and much of the same.
#[test]
fn plain_inputs_hold() {
    for (_, body) in ALL {
        body(&[]);
        for byte in 0..=255 {
            body(&[byte]);
            body(&[byte; 3]);
            body(&[byte; 700]);
        }
    }
}

/// What the sensor reads comes from anybody: its kept inputs, with some bytes changed, doubled, left out or taken from another one.
#[test]
fn kept_inputs_of_the_sensor_hold_however_they_are_changed() {
    change("sensor", anteroom_fuzz_bodies::sensor::run);
}

/// Conversations, changed in the same way: however they are cut, the same is told of them.
#[test]
fn kept_conversations_hold_however_they_are_changed() {
    change("streams", anteroom_fuzz_bodies::streams::run);
}

fn change(name: &str, body: Body) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let inputs: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |most: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % u64::try_from(most.max(1)).unwrap()).unwrap()
    };
    // More of them: `ANTEROOM_FUZZ_ROUNDS=1000000`.
    let rounds = std::env::var("ANTEROOM_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok());
    for round in 0..rounds.unwrap_or(3_000) {
        let mut bytes = inputs[below(inputs.len())].clone();
        for _ in 0..=below(6) {
            let (at, length) = (below(bytes.len()), below(12));
            let end = (at + length).min(bytes.len());
            match below(5) {
                0 => bytes[at..end].iter_mut().for_each(|byte| *byte ^= 1 << (round % 8)),
                1 => bytes[at..end].fill([0, 0xff, 0x7f, 0x80][round % 4]),
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let doubled = bytes[at..end].to_vec();
                    bytes.splice(at..at, doubled);
                }
                _ => {
                    let other = &inputs[below(inputs.len())];
                    let from = below(other.len());
                    let part = &other[from..(from + 64).min(other.len())];
                    bytes.splice(at..end, part.iter().copied());
                }
            }
        }
        if std::panic::catch_unwind(|| body(&bytes)).is_err() {
            panic!("{name}: round {round} fails with {bytes:02x?}");
        }
    }
}
