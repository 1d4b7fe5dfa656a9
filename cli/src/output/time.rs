//! Moments and durations as people and programs read them.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anteroom_proto::time::UnixMillis;
use serde::{Serialize, Serializer};

/// The time by this machine's clock.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A moment that is written as RFC 3339, in UTC: to the second for people, to the millisecond for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub UnixMillis);

impl Moment {
    fn text(self, decimals: usize) -> String {
        let stamp =
            i64::try_from(self.0.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        stamp.map_or_else(
            || "a time that no calendar holds".to_owned(),
            |stamp| format!("{stamp:.decimals$}"),
        )
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(0))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text(3))
    }
}

/// How long before `now` a moment was, such as "3 min ago".
#[must_use]
pub fn ago(moment: UnixMillis, now: UnixMillis) -> String {
    let Some(passed) = now.0.checked_sub(moment.0) else {
        let ahead = moment.0 - now.0;
        // Clocks of two machines are seldom the same to the second.
        return if ahead < 5_000 { "now".into() } else { format!("in {}", span(ahead)) };
    };
    if passed < 1_000 { "now".into() } else { format!("{} ago", span(passed)) }
}

fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The duration in `text`: a number with `s`, `m`, `h` or `d`, such as `24h`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a duration: write 90s, 10m, 24h or 7d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(error()),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    let count: u64 = digits.parse().map_err(|_| error())?;
    // Ten years: longer is a slip of the finger.
    count
        .checked_mul(scale)
        .filter(|seconds| *seconds <= 3_650 * 86_400)
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is longer than ten years"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc_3339() {
        let moment = Moment(UnixMillis(1_764_000_000_250));
        assert_eq!(moment.to_string(), "2025-11-24T16:00:00Z");
        assert_eq!(serde_json::to_string(&moment).unwrap(), "\"2025-11-24T16:00:00.250Z\"");
        assert_eq!(Moment(UnixMillis(u64::MAX)).to_string(), "a time that no calendar holds");
    }

    #[test]
    fn the_past_is_told_in_one_unit() {
        let now = UnixMillis(1_000_000_000_000);
        for (passed, text) in [
            (0, "now"),
            (2_000, "2 s ago"),
            (180_000, "3 min ago"),
            (3 * 3_600_000, "3 h ago"),
            (9 * 86_400_000, "9 days ago"),
        ] {
            assert_eq!(ago(UnixMillis(now.0 - passed), now), text);
        }
        assert_eq!(ago(UnixMillis(now.0 + 2_000), now), "now");
        assert_eq!(ago(UnixMillis(now.0 + 180_000), now), "in 3 min");
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        for bad in
            ["", "h", "5", "-5s", "5w", "1.5h", "99999999999999999999s", "9999999d", "5 s", "ä"]
        {
            assert!(parse_duration(bad).is_err(), "{bad} was taken");
        }
    }
}
