//! Typed reading of TOML with places: each value that isn't what it should be becomes one problem.

use std::ops::Range;

use anteroom_proto::name::Name;
use toml_edit::{Datetime, Document, Item, TableLike, Value};

use crate::policy::{At, Position};
use crate::problem::{Problem, Problems, did_you_mean};

/// Most items in one list.
const MAX_ITEMS: usize = 20_000;
/// Longest text that isn't a name, in bytes.
const MAX_TEXT: usize = 1000;

/// Reads one text and gathers what is wrong with it.
pub(crate) struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
    pub(crate) problems: Problems,
    /// Services that were named, with the path of who named them: they are looked up once all are read.
    pub(crate) services: Vec<(String, At<Name>)>,
}

/// A table, with the path that problems in it are to name.
pub(crate) struct Entry<'a> {
    pub(crate) path: String,
    pub(crate) position: Position,
    pub(crate) table: &'a dyn TableLike,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self { file, text, lines, problems: Problems::default(), services: Vec::new() }
    }

    /// The text as TOML. None where it is longer than `most` bytes or isn't TOML, which is a problem then.
    pub(crate) fn document(&mut self, most: usize) -> Option<Document<&'a str>> {
        let text = self.text;
        if text.len() > most {
            let message = format!("{} bytes are more than the {most} that are read", text.len());
            self.problem(Position::default(), "", message);
            return None;
        }
        Document::parse(text)
            .map_err(|error| {
                let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
                self.problem_at(error.span(), "", format!("not TOML: {message}"));
            })
            .ok()
    }

    pub(crate) fn position(&self, span: Option<Range<usize>>) -> Position {
        let Some(span) = span else { return Position::default() };
        let line = self.lines.partition_point(|start| *start <= span.start);
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let before = self.text.get(start..span.start).unwrap_or_default();
        // Counting characters of an endless line again and again would take long.
        let column = if before.len() > 1000 { before.len() } else { before.chars().count() };
        Position { line, column: column + 1 }
    }

    pub(crate) fn problem(&mut self, position: Position, key: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line: position.line,
            column: position.column,
            key: key.to_owned(),
            message: message.into(),
        });
    }

    pub(crate) fn problem_at(
        &mut self,
        span: Option<Range<usize>>,
        key: &str,
        message: impl Into<String>,
    ) {
        let position = self.position(span);
        self.problem(position, key, message);
    }

    /// The entries of a section such as `[rule.NAME]`, with their names.
    pub(crate) fn entries<'d>(
        &mut self,
        section: &'static str,
        item: &'d Item,
        most: usize,
    ) -> Vec<(Name, Entry<'d>)> {
        let Some(table) = item.as_table_like() else {
            self.problem_at(item.span(), section, format!("write [{section}.NAME] and its keys"));
            return Vec::new();
        };
        if table.len() > most {
            self.problem_at(
                item.span(),
                section,
                format!("{} entries are more than the {most} that are read", table.len()),
            );
            return Vec::new();
        }
        let mut entries = Vec::new();
        for (key, item) in table.iter() {
            let span = table.get_key_value(key).and_then(|(key, _)| key.span()).or(item.span());
            let position = self.position(span);
            let path = format!("{section}.{}", cut(key));
            let name = match key.parse::<Name>() {
                Ok(name) => name,
                Err(error) => {
                    self.problem(position, &path, error.to_string());
                    continue;
                }
            };
            match item.as_table_like() {
                Some(table) => entries.push((name, Entry { path, position, table })),
                None => self.problem(
                    position,
                    &path,
                    format!("write [{path}] and its keys, not {}", kind(item)),
                ),
            }
        }
        entries
    }

    /// Reports each key of `entry` that isn't `known`.
    pub(crate) fn only(&mut self, entry: &Entry<'_>, known: &[&str]) {
        for (key, item) in entry.table.iter() {
            if known.contains(&key) {
                continue;
            }
            let span =
                entry.table.get_key_value(key).and_then(|(key, _)| key.span()).or(item.span());
            let mut hint = did_you_mean(key, known.iter().copied());
            if hint.is_empty() {
                hint = format!("; known here: {}", known.join(", "));
            }
            self.problem_at(span, &entry.path, format!("unknown key \"{}\"{hint}", cut(key)));
        }
    }

    /// The value of `key`, or a problem where it must be there.
    pub(crate) fn required<'d>(
        &mut self,
        entry: &Entry<'d>,
        key: &str,
        example: &str,
    ) -> Option<&'d Item> {
        let item = entry.table.get(key);
        if item.is_none() {
            self.problem(
                entry.position,
                &entry.path,
                format!("\"{key}\" is missing: write {key} = {example}"),
            );
        }
        item
    }

    pub(crate) fn wrong_type(&mut self, entry: &Entry<'_>, key: &str, item: &Item, example: &str) {
        let message = format!("\"{key}\" can't be {}: write {key} = {example}", kind(item));
        self.problem_at(item.span(), &entry.path, message);
    }

    /// The text of `key`, where it is there.
    pub(crate) fn text(
        &mut self,
        entry: &Entry<'_>,
        key: &str,
        example: &str,
    ) -> Option<At<String>> {
        let item = entry.table.get(key)?;
        let Some(text) = item.as_str() else {
            self.wrong_type(entry, key, item, example);
            return None;
        };
        let position = self.position(item.span());
        if text.len() > MAX_TEXT {
            let message = format!("\"{key}\" is longer than {MAX_TEXT} bytes");
            self.problem(position, &entry.path, message);
            return None;
        }
        Some(At { value: text.to_owned(), position })
    }

    /// The name in `key`, which must be there.
    pub(crate) fn name(&mut self, entry: &Entry<'_>, key: &str, example: &str) -> Option<At<Name>> {
        self.required(entry, key, example)?;
        let text = self.text(entry, key, example)?;
        self.read_name(&entry.path, &text)
    }

    pub(crate) fn read_name(&mut self, path: &str, text: &At<String>) -> Option<At<Name>> {
        match text.value.parse() {
            Ok(value) => Some(At { value, position: text.position }),
            Err(error) => {
                let error: anteroom_proto::name::ParseNameError = error;
                self.problem(text.position, path, error.to_string());
                None
            }
        }
    }

    /// The truth of `key`: false where it isn't there.
    pub(crate) fn truth(&mut self, entry: &Entry<'_>, key: &str) -> bool {
        let Some(item) = entry.table.get(key) else { return false };
        item.as_bool().unwrap_or_else(|| {
            self.wrong_type(entry, key, item, "true");
            false
        })
    }

    /// The date or time of `key`, where it is there.
    pub(crate) fn datetime(
        &mut self,
        entry: &Entry<'_>,
        key: &str,
        example: &str,
    ) -> Option<At<Datetime>> {
        let item = entry.table.get(key)?;
        let Some(value) = item.as_datetime() else {
            self.wrong_type(entry, key, item, example);
            return None;
        };
        Some(At { value: *value, position: self.position(item.span()) })
    }

    /// The list of texts in `key`: empty where it isn't there.
    pub(crate) fn texts(&mut self, entry: &Entry<'_>, key: &str, example: &str) -> Vec<At<String>> {
        let Some(item) = entry.table.get(key) else { return Vec::new() };
        let Some(array) = item.as_array() else {
            self.wrong_type(entry, key, item, example);
            return Vec::new();
        };
        if array.len() > MAX_ITEMS {
            let message = format!("\"{key}\" has {} items, more than {MAX_ITEMS}", array.len());
            self.problem_at(item.span(), &entry.path, message);
            return Vec::new();
        }
        let mut texts = Vec::with_capacity(array.len());
        for value in array {
            match value.as_str() {
                Some(text) => {
                    texts
                        .push(At { value: text.to_owned(), position: self.position(value.span()) });
                }
                None => {
                    let message = format!(
                        "\"{key}\" can't hold {}: write {key} = {example}",
                        value_kind(value)
                    );
                    self.problem_at(value.span(), &entry.path, message);
                }
            }
        }
        texts
    }

    /// The list of texts in `key`, which must be there and hold something.
    pub(crate) fn some_texts(
        &mut self,
        entry: &Entry<'_>,
        key: &str,
        example: &str,
    ) -> Vec<At<String>> {
        let Some(item) = self.required(entry, key, example) else { return Vec::new() };
        if item.as_array().is_some_and(toml_edit::Array::is_empty) {
            let message = format!("\"{key}\" is empty: write {key} = {example}");
            self.problem_at(item.span(), &entry.path, message);
        }
        self.texts(entry, key, example)
    }

    /// Each of `texts` as a name.
    pub(crate) fn names(&mut self, path: &str, texts: &[At<String>]) -> Vec<At<Name>> {
        texts.iter().filter_map(|text| self.read_name(path, text)).collect()
    }
}

/// `text` cut to a length that fits a message.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn kind(item: &Item) -> &'static str {
    match item {
        Item::None => "nothing",
        Item::Value(value) => value_kind(value),
        Item::Table(_) => "a table",
        Item::ArrayOfTables(_) => "a list of tables",
    }
}

fn value_kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::InlineTable(_) => "a table",
    }
}
