//! Modes of a device, and the path that a pair of them takes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How far a device has come on the path from watched to protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// A wire: everything passes byte for byte, flows are recorded, nothing is tunnelled.
    Observe,
    /// What policy allows rides the tunnel; the rest passes in the clear and is recorded as `would-drop`.
    Protect,
    /// What policy doesn't allow is dropped.
    Enforce,
    /// A mode that a newer operator signed and this program doesn't know: nothing matches for the device.
    Unrecognised,
}

/// Text that isn't a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a mode: choose observe, protect or enforce")]
pub struct ParseModeError {
    /// What was read, cut to a length that fits a message.
    pub text: String,
}

impl Mode {
    /// The word for the mode.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Protect => "protect",
            Self::Enforce => "enforce",
            Self::Unrecognised => "unrecognised",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = ParseModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "observe" => Ok(Self::Observe),
            "protect" => Ok(Self::Protect),
            "enforce" => Ok(Self::Enforce),
            _ => Err(ParseModeError { text: text.chars().take(40).collect() }),
        }
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.parse().unwrap_or(Self::Unrecognised))
    }
}

/// The path of a pair of members, as the operators' modes have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairPath {
    /// In the clear, as without a gateway.
    Clear,
    /// In the clear where the rule says `clear = true`, and nowhere else.
    ClearIfRuleSays,
    /// Through the tunnel.
    Tunnel,
    /// Nowhere: one end has a mode that this program doesn't know, or is observed while the other is a client.
    None,
}

impl PairPath {
    /// The path of two members with these modes. Symmetric.
    #[must_use]
    pub const fn of(a: Mode, b: Mode) -> Self {
        match (a, b) {
            (Mode::Unrecognised, _) | (_, Mode::Unrecognised) => Self::None,
            (Mode::Observe, Mode::Enforce) | (Mode::Enforce, Mode::Observe) => {
                Self::ClearIfRuleSays
            }
            (Mode::Observe, _) | (_, Mode::Observe) => Self::Clear,
            (Mode::Protect | Mode::Enforce, Mode::Protect | Mode::Enforce) => Self::Tunnel,
        }
    }

    /// The path of a member with this mode and an external.
    #[must_use]
    pub const fn with_external(mode: Mode) -> Self {
        Self::of(mode, Mode::Observe)
    }

    /// The path of a device with this mode and a client, which knows no other than the tunnel: an observed device,
    /// which never uses that, has none.
    #[must_use]
    pub const fn with_client(mode: Mode) -> Self {
        match mode {
            Mode::Protect | Mode::Enforce => Self::Tunnel,
            Mode::Observe | Mode::Unrecognised => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_is_the_designs() {
        use Mode::{Enforce, Observe, Protect, Unrecognised};
        let expected = [
            (Observe, Observe, PairPath::Clear),
            (Observe, Protect, PairPath::Clear),
            (Observe, Enforce, PairPath::ClearIfRuleSays),
            (Protect, Protect, PairPath::Tunnel),
            (Protect, Enforce, PairPath::Tunnel),
            (Enforce, Enforce, PairPath::Tunnel),
            (Enforce, Unrecognised, PairPath::None),
        ];
        for (a, b, path) in expected {
            assert_eq!(PairPath::of(a, b), path, "{a} beside {b}");
            assert_eq!(PairPath::of(b, a), path, "{b} beside {a}");
        }
    }
}
