//! How the work is spread over the machine's cores.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// Most lane threads: a receiver index has four bits for who owns it, and the packet thread is one.
pub const MAX_LANE_THREADS: u8 = 15;

/// How the work is spread over the machine's cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table [cores]")]
pub struct Cores {
    /// Threads that seal and open bulk beside the packet thread.
    pub lane_threads: LaneThreads,
}

/// How many threads seal and open bulk beside the packet thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LaneThreads {
    /// As many as pay on this machine: the default.
    #[default]
    Auto,
    /// So many; with 0 the packet thread does it all.
    Count(u8),
}

impl LaneThreads {
    /// How many there are on a machine with so many cores.
    ///
    /// One alone takes over most of the packet thread's work and so gains little, at a quarter more processor time: two
    /// are the least that pay, and they want four cores. With four the packet thread is the limit.
    #[must_use]
    pub fn count(self, cores: usize) -> u8 {
        match (self, cores) {
            (Self::Count(count), _) => count,
            (Self::Auto, 0..=3) => 0,
            (Self::Auto, 4..=7) => 2,
            (Self::Auto, _) => 4,
        }
    }

    /// How many there are on a machine with so many cores, with lanes or without, and why: for `status`.
    #[must_use]
    pub fn choose(self, lanes: bool, cores: usize) -> (u8, String) {
        if !lanes {
            return (0, "none: lanes are off".into());
        }
        let count = self.count(cores);
        let number = if count == 0 { "none".into() } else { count.to_string() };
        let said = match (self, cores) {
            (Self::Count(_), _) => format!("{number}, as agent.toml says"),
            (Self::Auto, 1) => format!("{number}: there is one core"),
            (Self::Auto, _) => format!("{number}: there are {cores} cores"),
        };
        (count, said)
    }
}

impl<'de> Deserialize<'de> for LaneThreads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = LaneThreads;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"auto\" or a number from 0 to {MAX_LANE_THREADS}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LaneThreads, E> {
                let unknown = || E::invalid_value(de::Unexpected::Str(text), &self);
                (text == "auto").then_some(LaneThreads::Auto).ok_or_else(unknown)
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<LaneThreads, E> {
                let small = u8::try_from(count).ok().filter(|count| *count <= MAX_LANE_THREADS);
                let unknown = || E::invalid_value(de::Unexpected::Signed(count), &self);
                small.map(LaneThreads::Count).ok_or_else(unknown)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
