//! Runs every kept input of every fuzzer through the same functions, so that what was found once stays found.

use std::path::Path;

use anteroom_fuzz_bodies::ALL;

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
