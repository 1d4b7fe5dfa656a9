//! Tables with plain borders, which paste into a ticket as they are.

use comfy_table::{ContentArrangement, Table, presets};

/// A table of `rows` under `headers`.
#[must_use]
pub fn table(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    // Never wrapped: a line is a row for grep, and terminals wrap by themselves.
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headers.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}

/// Lines of "name: value", the values under each other. Empty values are left out.
#[must_use]
pub fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0) + 1;
    rows.iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{:<width$} {value}\n", format!("{name}:")))
        .collect()
}

/// `count` of something, in the right number.
#[must_use]
pub fn count(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// A number of bytes, short.
#[must_use]
pub fn bytes(count: u64) -> String {
    let mut value = count;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 10_000 {
            return format!("{value} {unit}");
        }
        value /= 1000;
    }
    format!("{value} PB")
}

/// What joins a list in a cell; a dash where there is nothing.
#[must_use]
pub fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let parts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_line_up() {
        let text = table(&["NAME", "MODE"], [vec!["ct-1".into(), "protect".into()]]);
        assert_eq!(text, "| NAME | MODE    |\n|------|---------|\n| ct-1 | protect |");
        assert_eq!(
            facts(&[("a", "1".into()), ("none", String::new()), ("long", "2".into())]),
            "a:    1\nlong: 2\n"
        );
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(9_999), "9999 B");
        assert_eq!(bytes(10_000), "10 kB");
        assert_eq!(bytes(u64::MAX), "18446 PB");
    }
}
