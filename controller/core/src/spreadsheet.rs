//! Tables as CSV, for whoever opens them in a spreadsheet program.

/// Comma-separated values (RFC 4180) with `headers` first.
///
/// Much of what stands in them was written by devices and by others' lists. A spreadsheet program takes a cell that begins with `=`, `+`, `-`, `@`,
/// a tab or a carriage return for a formula, so such a cell gets an apostrophe in front, which the program shows as text.
#[must_use]
pub fn csv(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = String::new();
    line(&mut text, headers.iter().copied());
    for row in rows {
        line(&mut text, row.iter().map(String::as_str));
    }
    text
}

fn line<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>) {
    for (place, cell) in cells.enumerate() {
        if place > 0 {
            text.push(',');
        }
        text.push('"');
        // Some programs look behind spaces, too.
        if cell.trim_start_matches(' ').starts_with([
            '=', '+', '-', '@', '\t', '\r', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
        ]) {
            text.push('\'');
        }
        for c in cell.chars() {
            match c {
                '"' => text.push_str("\"\""),
                // A line is a row.
                c if c.is_control() => text.push(' '),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_cell_is_a_formula_and_no_cell_ends_early() {
        let text = csv(&["A", "B"], [vec!["=cmd|' /C calc'!A0".into(), "say \"x\",\n-1".into()]]);
        assert_eq!(text, "\"A\",\"B\"\r\n\"'=cmd|' /C calc'!A0\",\"say \"\"x\"\", -1\"\r\n");
        for bad in ["+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\r=1"] {
            assert!(csv(&[], [vec![bad.into()]]).contains("\"'"), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(cells in proptest::collection::vec("[ -~äß]{0,12}", 1..6)) {
            let text = csv(&["A"], [cells.clone()]);
            let mut reader = ::csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
            let row = reader.records().next().unwrap().unwrap();
            let read: Vec<&str> = row.iter().collect();
            prop_assert_eq!(read.len(), cells.len());
            for (read, cell) in read.iter().zip(&cells) {
                prop_assert!(read == cell || read.strip_prefix('\'') == Some(cell.as_str()));
                prop_assert!(!read.trim_start().starts_with(['=', '+', '-', '@']));
            }
        }
    }
}
