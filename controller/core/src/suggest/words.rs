//! Names, keys, lists and dates as a policy file has them, and how sure something is.

use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use toml_edit::Value;

use super::Confidence;
use super::facts::Pair;
use crate::policy::key;

/// What can stand in a name.
pub(super) fn word(text: &str) -> String {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let text: String = text.to_lowercase().chars().map(|c| if fits(c) { c } else { '-' }).collect();
    let text = text.trim_start_matches(['-', '_']);
    if text.is_empty() { "unnamed".to_owned() } else { text.to_owned() }
}

/// At most so many bytes of it.
pub(super) fn cut(text: &str, most: usize) -> &str {
    text.get(..most.min(text.len())).unwrap_or(text)
}

/// A name as a key.
pub(super) fn quoted(name: &str) -> String {
    name.parse::<Name>().map_or_else(|_| quote(name), |name| key(&name))
}

/// Text as a TOML string.
pub(super) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// A list, on several lines where one would be too long.
pub(super) fn array(items: &[String]) -> String {
    let line = format!("[{}]", items.join(", "));
    if line.len() <= 100 { line } else { format!("[\n    {},\n]", items.join(",\n    ")) }
}

/// A day.
pub(super) fn date(at: UnixMillis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| "1970-01-01".to_owned(), |at| at.strftime("%Y-%m-%d").to_string())
}

/// How sure a rule is after what was seen of it, by how many at each end of those who get it.
pub(super) fn confidence(sum: &Pair, froms: u64, tos: u64, sizes: [u64; 2]) -> Confidence {
    let most = |seen: u64, size: u64| seen * 5 >= size * 4;
    match sum.days.count_ones() {
        14.. if most(froms, sizes[0]) && most(tos, sizes[1]) => Confidence::High,
        7.. if froms * 5 >= sizes[0] || froms >= 3 => Confidence::Medium,
        _ => Confidence::Low,
    }
}
