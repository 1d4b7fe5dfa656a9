//! Frames as the sensor reads them: several behind one another, so that streams come about.

use anteroom_proto::inventory::{MAX_VALUE, value};
use anteroom_sensor::{Gate, Look, Sensor, Sights, Way, capture};

/// Most frames of one input.
const MOST: usize = 64;

/// Takes `data` as a capture, and else as frames behind their lengths in two bytes.
///
/// # Panics
/// If an invariant doesn't hold.
pub fn run(data: &[u8]) {
    let (mut sensor, mut sights, mut gate) = (Sensor::new(), Sights::default(), Gate::new(1));
    let mut read = |frame: &[u8], at: u32| {
        let look = gate.look(frame, Way { port: 0, arrived: true }, at).unwrap_or(Look::Further);
        sensor.frame(frame, None, look, &mut sights);
        for sight in sights.drain() {
            assert!(!sight.who.mac.is_group(), "{sight:?}");
            assert!(sight.value.len() <= MAX_VALUE, "{sight:?}");
            assert_eq!(value(sight.value.as_bytes()).as_ref(), Some(&sight.value));
        }
    };
    if let Ok(frames) = capture::frames(data) {
        for (at, frame) in (0..).zip(frames.take(MOST)) {
            read(frame.bytes, at);
        }
        return;
    }
    let mut rest = data;
    for at in 0..MOST {
        let Some((length, after)) = rest.split_first_chunk::<2>() else { return };
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (frame, after) = after.split_at(length);
        read(frame, u32::try_from(at).unwrap_or(0));
        rest = after;
    }
}
