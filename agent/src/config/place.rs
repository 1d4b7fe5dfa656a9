//! Where something stands in the configuration: its line and its key.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, MAX_LIST};

/// Finds lines and keys for byte positions in the text.
pub(super) struct Place<'a> {
    pub(super) file: &'a Path,
    pub(super) text: &'a str,
}

impl Place<'_> {
    pub(super) fn line(&self, span: Range<usize>) -> usize {
        let upto = span.start.min(self.text.len());
        self.text.as_bytes()[..upto].iter().filter(|b| **b == b'\n').count() + 1
    }

    pub(super) fn error(&self, span: Option<Range<usize>>, problem: &str) -> ConfigError {
        let span = span.unwrap_or_default();
        ConfigError::Invalid {
            file: self.file.to_owned(),
            line: self.line(span.clone()),
            key: self.key(&span),
            problem: problem.to_owned(),
        }
    }

    pub(super) fn bounded<T>(&self, list: &[Spanned<T>]) -> Result<(), ConfigError> {
        match list.get(MAX_LIST) {
            Some(extra) => {
                Err(self.error(Some(extra.span()), &format!("more than {MAX_LIST} entries")))
            }
            None => Ok(()),
        }
    }

    /// The dotted key whose name or value holds the position.
    fn key(&self, span: &Range<usize>) -> String {
        let mut path = String::new();
        if span.end > span.start
            && let Ok(root) = DeTable::parse(self.text)
        {
            find(root.get_ref(), span.start, &mut path);
        }
        path
    }
}

/// Appends to `path` what leads to byte `at`. Whether it is in there.
fn find(table: &DeTable<'_>, at: usize, path: &mut String) -> bool {
    for (key, value) in table {
        let before = path.len();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key.get_ref());
        if within(value, at, path) || key.span().contains(&at) {
            return true;
        }
        path.truncate(before);
    }
    false
}

fn within(value: &Spanned<DeValue<'_>>, at: usize, path: &mut String) -> bool {
    let inside = match value.get_ref() {
        DeValue::Table(table) => find(table, at, path),
        DeValue::Array(items) => items.iter().enumerate().any(|(i, item)| {
            let before = path.len();
            path.push_str(&format!("[{i}]"));
            let found = within(item, at, path);
            if !found {
                path.truncate(before);
            }
            found
        }),
        _ => false,
    };
    inside || value.span().contains(&at)
}
