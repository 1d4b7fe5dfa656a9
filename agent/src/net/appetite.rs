//! How much is fetched from a socket in one turn.
//!
//! The kernel counts messages, and a message may be 60 bytes or 64 KiB. A turn must be long enough to be worth its
//! system calls, and short enough that what waits in other sockets isn't held up: an alarm behind a CT's images.

use std::cell::Cell;

/// Bytes that one turn is meant to fetch. Sealing or opening them takes a quarter of a millisecond.
const TURN: usize = 256 * 1024;

/// Messages asked for at first, and never fewer.
const LEAST: usize = 4;

/// How many messages to ask a socket for, which follows from how long the last ones were.
#[derive(Debug)]
pub(crate) struct Appetite(Cell<usize>);

impl Default for Appetite {
    fn default() -> Self {
        Self(Cell::new(LEAST))
    }
}

impl Appetite {
    /// How many messages to ask for, of at most `room`.
    pub(crate) fn ask(&self, room: usize) -> usize {
        self.0.get().min(room)
    }

    /// Takes note of what came.
    pub(crate) fn note(&self, messages: usize, bytes: usize) {
        if messages == 0 {
            return;
        }
        let fits = TURN.saturating_mul(messages) / bytes.max(1);
        self.0.set(fits.clamp(LEAST, self.0.get().saturating_mul(2)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_step_by_step_and_shrinks_at_once() {
        let appetite = Appetite::default();
        let asked = |messages, bytes| {
            appetite.note(messages, bytes);
            appetite.ask(32)
        };
        assert_eq!([asked(4, 400), asked(8, 800), asked(16, 1600), asked(1, 60)], [8, 16, 32, 32]);
        assert_eq!(asked(32, 32 * 65_536), LEAST, "long ones");
        assert_eq!(asked(0, 0), LEAST, "nothing says nothing");
        assert_eq!(asked(4, 4 * 1500), 8);
        assert_eq!(asked(usize::MAX, usize::MAX), LEAST);
        assert_eq!(asked(1, 0), 8);
    }
}
