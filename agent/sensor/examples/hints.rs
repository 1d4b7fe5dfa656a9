//! Shows what captures let be seen: `cargo run -p anteroom-sensor --example hints -- FILE…`.

use std::collections::BTreeMap;

use anteroom_sensor::{Look, Sensor, Sights, capture};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args_os().skip(1) {
        let bytes = std::fs::read(&path)?;
        let (mut sensor, mut sights) = (Sensor::new(), Sights::default());
        let mut seen = BTreeMap::new();
        for frame in capture::frames(&bytes)? {
            sensor.frame(frame.bytes, None, Look::Further, &mut sights);
            for sight in sights.drain() {
                *seen.entry(sight).or_insert(0_u64) += 1;
            }
        }
        println!("{}", path.display());
        for (sight, times) in seen {
            println!("  {} {} {:?} ({times})", sight.who.mac, sight.kind, sight.value);
        }
    }
    Ok(())
}
