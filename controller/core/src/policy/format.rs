//! Canonical order and spacing, comments kept.

use std::collections::BTreeSet;

use toml_edit::{Array, Decor, DocumentMut, InlineTable, Item, RawString, Table, Value};

use super::parse::parse_all;
use crate::problem::{Problem, Problems};

/// Widest line that a list is kept on.
const MAX_WIDTH: usize = 100;
/// Keys in their order, sections first; others keep theirs, behind these.
const ORDER: [&str; 34] = [
    "format",
    "infrastructure",
    "external",
    "segment",
    "service",
    "rule",
    "test",
    "dhcp",
    "dns",
    "ntp",
    "routers",
    "prefixes",
    "review",
    "members",
    "externals",
    "match",
    "site",
    "label",
    "criticality",
    "sensitivity",
    "owner",
    "location",
    "two_person",
    "ports",
    "patient_data",
    "maintenance",
    "from",
    "to",
    "services",
    "expect",
    "clear",
    "essential",
    "expires",
    "reason",
];

/// `text` in canonical order and spacing, comments kept: sections in the order of the documentation, entries
/// in the order in which they stand. The meaning stays the same, and formatting again changes nothing.
///
/// # Errors
/// The place where `text` isn't TOML.
pub fn format(file: &str, text: &str) -> Result<String, Problems> {
    let text = text.replace("\r\n", "\n");
    let Ok(mut document) = text.parse::<DocumentMut>() else {
        let (_, mut problems) = parse_all(file, &text);
        if problems.is_empty() {
            let message = "not TOML".to_owned();
            problems.push(Problem {
                file: file.into(),
                line: 0,
                column: 0,
                key: String::new(),
                message,
            });
        }
        return Err(problems);
    };
    let mut position = 0;
    root(document.as_table_mut(), &mut position);
    let trailing = comments(document.trailing().as_str().unwrap_or_default());
    let gap = if trailing.is_empty() { "" } else { "\n" };
    document.set_trailing(format!("{gap}{trailing}"));
    let formatted = format!("{}\n", document.to_string().trim());
    // A layout that nobody thought of must not cost anyone a rule: what was there is left as it was.
    let means = |text: &str| parse_all(file, text).0.unplaced();
    Ok(if means(&formatted) == means(&text) { formatted } else { text })
}

fn rank(key: &str) -> usize {
    ORDER.iter().position(|known| *known == key).unwrap_or(ORDER.len())
}

/// The root: its own values first, then each section's tables in the order in which they stand.
fn root(table: &mut Table, position: &mut isize) {
    values(table);
    let mut sections: Vec<String> = table
        .iter()
        .filter(|(_, item)| matches!(item, Item::Table(table) if !table.is_dotted()))
        .map(|(key, _)| key.to_owned())
        .collect();
    sections.sort_by_key(|key| rank(key));
    for key in sections {
        let Some(Item::Table(section)) = table.get_mut(&key) else { continue };
        if !section.is_implicit() && bare(section) {
            section.set_implicit(true);
        }
        header(section, position);
    }
    for (_, item) in table.iter_mut() {
        if let Item::ArrayOfTables(array) = item {
            array.iter_mut().for_each(|table| header(table, position));
        }
    }
}

/// Whether a header says nothing that its children don't say.
fn bare(table: &Table) -> bool {
    let silent = |raw: Option<&RawString>| {
        raw.and_then(RawString::as_str).is_none_or(|text| !text.contains('#'))
    };
    !table.is_empty()
        && table.iter().all(|(_, item)| matches!(item, Item::Table(child) if !child.is_dotted()))
        && silent(table.decor().prefix())
        && silent(table.decor().suffix())
}

/// A table under a header, with the tables below it.
fn header(table: &mut Table, position: &mut isize) {
    table.set_position(Some(*position));
    *position += 1;
    let prefix = format!("\n{}", comments(text(table.decor().prefix())));
    let suffix = line_comment(text(table.decor().suffix()));
    *table.decor_mut() = Decor::new(prefix, suffix);
    values(table);
    let mut below: Vec<(isize, String)> = table
        .iter()
        .filter_map(|(key, item)| match item {
            Item::Table(child) if !child.is_dotted() => {
                Some((first_position(child), key.to_owned()))
            }
            _ => None,
        })
        .collect();
    below.sort();
    for (_, key) in below {
        if let Some(Item::Table(child)) = table.get_mut(&key) {
            header(child, position);
        }
    }
    for (_, item) in table.iter_mut() {
        if let Item::ArrayOfTables(array) = item {
            array.iter_mut().for_each(|table| header(table, position));
        }
    }
}

/// Where a table or the first of those below it stands. An implicit table has no place of its own.
fn first_position(table: &Table) -> isize {
    let own = if table.is_implicit() { None } else { table.position() };
    let below = table.iter().filter_map(|(_, item)| match item {
        Item::Table(child) => Some(first_position(child)),
        _ => None,
    });
    own.into_iter().chain(below).min().unwrap_or(isize::MAX)
}

/// The keys and values directly in a table.
fn values(table: &mut Table) {
    table.sort_values_by(|a, _, b, _| rank(a.get()).cmp(&rank(b.get())));
    for (mut key, item) in table.iter_mut() {
        match item {
            Item::Value(found) => {
                let width = key.get().len() + 3;
                let prefix = comments(text(key.leaf_decor().prefix()));
                *key.leaf_decor_mut() = Decor::new(prefix, " ");
                let suffix = line_comment(text(found.decor().suffix()));
                // The comment behind a list is none of the list's own.
                found.decor_mut().clear();
                if key.get() == "services"
                    && let Value::Array(services) = found
                {
                    once(services);
                }
                value(found, width + suffix.len());
                *found.decor_mut() = Decor::new(" ", suffix);
            }
            Item::Table(dotted) if dotted.is_dotted() => values(dotted),
            _ => {}
        }
    }
}

fn value(found: &mut Value, width: usize) {
    match found {
        Value::Array(array) => list(array, width),
        Value::InlineTable(table) if !table.to_string().contains(['#', '\n']) => inline(table),
        _ => {}
    }
}

fn inline(table: &mut InlineTable) {
    table.sort_values_by(|a, _, b, _| rank(a.get()).cmp(&rank(b.get())));
    table.set_trailing("");
    table.set_trailing_comma(false);
    let last = table.len().saturating_sub(1);
    for (at, (mut key, found)) in table.iter_mut().enumerate() {
        let end = if at == last { " " } else { "" };
        if let Value::InlineTable(dotted) = found
            && dotted.is_dotted()
        {
            inline_dotted(dotted, end);
            key.dotted_decor_mut().clear();
            continue;
        }
        *key.leaf_decor_mut() = Decor::new(" ", " ");
        value(found, 0);
        *found.decor_mut() = Decor::new(" ", end);
    }
}

/// `a.b = 1` inside an inline table: the space in front belongs to the last key of the path.
fn inline_dotted(table: &mut InlineTable, end: &str) {
    let last = table.len().saturating_sub(1);
    for (at, (mut key, found)) in table.iter_mut().enumerate() {
        let end = if at == last { end } else { "" };
        key.dotted_decor_mut().clear();
        if let Value::InlineTable(dotted) = found
            && dotted.is_dotted()
        {
            inline_dotted(dotted, end);
            continue;
        }
        *key.leaf_decor_mut() = Decor::new(" ", " ");
        value(found, 0);
        *found.decor_mut() = Decor::new(" ", end);
    }
}

fn list(array: &mut Array, width: usize) {
    // Comments inside a list stand where their author put them.
    if array.to_string().contains('#') {
        return;
    }
    array.iter_mut().for_each(|item| value(item, 0));
    array.fmt();
    array.set_trailing("");
    array.set_trailing_comma(false);
    if width + array.to_string().trim().len() <= MAX_WIDTH {
        return;
    }
    for item in array.iter_mut() {
        *item.decor_mut() = Decor::new("\n    ", "");
    }
    array.set_trailing("\n");
    array.set_trailing_comma(true);
}

/// Takes out what a list names again.
fn once(array: &mut Array) {
    if array.to_string().contains('#') {
        return;
    }
    let mut known = BTreeSet::new();
    array.retain(|item| item.as_str().is_none_or(|name| known.insert(name.to_owned())));
}

fn text(raw: Option<&RawString>) -> &str {
    raw.and_then(RawString::as_str).unwrap_or_default()
}

/// Whole lines of comments, trimmed, with one blank line where there were some.
fn comments(raw: &str) -> String {
    let mut out = String::new();
    let mut blank = false;
    for line in raw.lines().map(str::trim) {
        if line.is_empty() {
            blank = !out.is_empty();
            continue;
        }
        if blank {
            out.push('\n');
            blank = false;
        }
        out.push_str(line);
        out.push('\n');
    }
    if blank {
        out.push('\n');
    }
    out
}

/// A comment behind something on its line.
fn line_comment(raw: &str) -> String {
    match raw.trim() {
        "" => String::new(),
        comment => format!("  {comment}"),
    }
}
