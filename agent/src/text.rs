//! Text that others wrote, made fit for logs and terminals.

use anteroom_proto::text::steers;

/// Longest text from elsewhere that is kept, in characters.
const MAX_TEXT: usize = 300;

/// Text from elsewhere, cut short, and without what could upset a terminal or a log.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| !steers(*c)).take(MAX_TEXT).collect()
}

/// Text that goes to a terminal, where others may have written parts of it: as long as it is. It keeps its lines.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if steers(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cant_steer_a_terminal() {
        let evil = "a\x1b[2Jb\r\n\u{202e}c\u{9b}1m";
        assert_eq!(plain(evil), "a[2Jbc1m");
        assert_eq!(printable(evil), "a\u{fffd}[2Jb\u{fffd}\n\u{fffd}c\u{fffd}1m");
        assert_eq!(plain(&"x".repeat(2_000)).len(), MAX_TEXT);
    }
}
