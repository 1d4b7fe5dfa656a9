//! Tables as CSV, for whoever opens them in a spreadsheet program.

use anteroom_proto::text::steers;

/// Comma-separated values (RFC 4180) with `headers` first.
///
/// Much of what stands in them was written by devices and by others' lists. A spreadsheet program takes a cell that begins with `=`, `+`, `-`, `@`,
/// a tab or a carriage return for a formula, so such a cell gets an apostrophe in front, which the program shows as text. Where commas stand in numbers, programs
/// cut at semicolons instead, quotes or not, so what follows one is guarded in the same way.
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
        if cell.starts_with(['\t', '\r']) || is_formula(cell) {
            text.push('\'');
        }
        for (at, c) in cell.char_indices() {
            match c {
                ';' if is_formula(&cell[at + 1..]) => text.push_str(";'"),
                '"' => text.push_str("\"\""),
                // A line is a row, and nothing in it looks like something else.
                c if steers(c) => text.push(' '),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.push_str("\r\n");
}

/// Whether a program would compute `cell`. Some look behind spaces, and control characters become such.
fn is_formula(cell: &str) -> bool {
    let skipped = |c: char| c.is_whitespace() || steers(c) || c == '"';
    cell.trim_start_matches(skipped)
        .starts_with(['=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_cell_is_a_formula_and_no_cell_ends_early() {
        let text = csv(&["A", "B"], [vec!["=cmd|' /C calc'!A0".into(), "say \"x\",\n-1".into()]]);
        assert_eq!(text, "\"A\",\"B\"\r\n\"'=cmd|' /C calc'!A0\",\"say \"\"x\"\", -1\"\r\n");
        for bad in [
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            "  =1",
            "\r=1",
            "\n=1",
            "\0=1",
            "\u{a0}=1",
            "\"=1",
            "\u{202e}=1",
        ] {
            assert!(csv(&[], [vec![bad.into()]]).contains("\"'"), "{bad:?}");
            let behind = csv(&[], [vec![format!("x;{bad};y")]]);
            assert!(behind.contains("x;'"), "where semicolons part cells: {behind:?}");
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
                let plain = |text: &str| text.replace('\'', "");
                prop_assert_eq!(plain(read), plain(cell));
                for part in read.split(';') {
                    prop_assert!(!part.trim_start().starts_with(['=', '+', '-', '@']));
                }
            }
        }
    }
}
