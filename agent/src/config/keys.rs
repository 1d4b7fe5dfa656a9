//! How long a tunnel key lasts, and what may go without a pre-shared key.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// The tunnel keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table [keys]")]
pub struct Keys {
    /// How old a key gets before the gateway makes a new one.
    pub rotate: Rotate,
    /// Whether packets may go to another gateway under X25519 alone.
    pub classic: Classic,
}

/// Whether packets may go to another gateway without a pre-shared key by ML-KEM-768.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Classic {
    /// Where one of the two can't have one, or the two come to none in time and never did.
    #[default]
    Allowed,
    /// Never: they wait.
    Never,
}

/// How old a tunnel key gets: a day, unless the file says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotate(Duration);

impl Rotate {
    /// Shorter is refused: peers need time to move.
    const LEAST: Duration = Duration::from_secs(60);
    /// Longer is refused: no key may live long.
    const MOST: Duration = Duration::from_secs(90 * 86_400);

    /// The age.
    #[must_use]
    pub const fn every(self) -> Duration {
        self.0
    }
}

impl Default for Rotate {
    fn default() -> Self {
        Self(Duration::from_secs(86_400))
    }
}

impl<'de> Deserialize<'de> for Rotate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let unit = |unit: &str| match unit {
            "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(86_400),
            _ => None,
        };
        let split = text.len() - text.chars().last().map_or(0, char::len_utf8);
        let (number, last) = text.split_at(split);
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = number
            .parse::<u64>()
            .ok()
            .filter(|_| digits)
            .zip(unit(last))
            .and_then(|(number, unit)| number.checked_mul(unit));
        match seconds.map(Duration::from_secs) {
            Some(age) if (Self::LEAST..=Self::MOST).contains(&age) => Ok(Self(age)),
            _ => {
                let shown: String = text.chars().take(40).collect();
                Err(de::Error::custom(format!(
                    "{shown:?} is no age for a tunnel key: write \"24h\", or anything from \"1m\" to \"90d\""
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_is_allowed_unless_it_is_said_otherwise() {
        let read = |text: &str| toml::from_str::<Keys>(text).map(|keys| keys.classic);
        assert_eq!(read("").unwrap(), Classic::Allowed);
        assert_eq!(read("classic = \"allowed\"").unwrap(), Classic::Allowed);
        assert_eq!(read("classic = \"never\"").unwrap(), Classic::Never);
        let error = read("classic = false").unwrap_err().to_string();
        assert!(error.contains("classic"), "{error}");
        let error = read("classic = \"no\"").unwrap_err().to_string();
        assert!(error.contains("`allowed` or `never`"), "{error}");
    }

    #[test]
    fn ages_are_read_and_bounded() {
        let read = |text: &str| {
            toml::from_str::<Keys>(&format!("rotate = {text:?}")).map(|keys| keys.rotate.every())
        };
        for (text, seconds) in [("1m", 60), ("60s", 60), ("24h", 86_400), ("90d", 7_776_000)] {
            assert_eq!(read(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for text in
            ["", "h", "59s", "91d", "24", "-1h", "+1h", "1 h", "1w", "99999999999999999999d", "1µ"]
        {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("\"1m\" to \"90d\""), "{text}: {error}");
        }
        assert_eq!(Keys::default().rotate.every(), Duration::from_secs(86_400));
    }
}
