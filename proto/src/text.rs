//! Text that others wrote: names of devices, owners, what came off a wire.

/// Whether a character steers a terminal or the order in which what stands beside it is shown, or ends a line: text with it
/// could look like other text. Controls (Unicode's general category Cc), marks, embeddings, overrides and isolates of writing direction
/// (UAX #9), and separators of lines and paragraphs.
#[must_use]
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_text_around_is_told_from_text_of_any_script() {
        for bad in "\0\t\n\r\x1b\x7f\u{85}\u{9b}\u{61c}\u{200e}\u{200f}\u{202a}\u{202e}\u{2028}\u{2029}\u{2066}\u{2069}".chars() {
            assert!(steers(bad), "{bad:?}");
        }
        let good = "Häberli 放射線科 אשפוז الأشعة \u{200d}\u{a0}<\"&";
        assert!(!good.chars().any(steers));
    }
}
