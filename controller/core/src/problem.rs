//! Problems: what is wrong in a policy or model, where, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most problems that are reported in one go.
pub const MAX_PROBLEMS: usize = 50;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file, as the operator named it; `model` for what isn't in a file.
    pub file: String,
    /// Line from 1; 0 where there is none.
    pub line: usize,
    /// Column from 1, in characters; 0 where there is none.
    pub column: usize,
    /// Path of the key or the thing, such as `rule.ct-to-pacs`; empty for the file as a whole.
    pub key: String,
    /// What was wrong, and what to do, with a suggestion where a name was nearly right. No full stop.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All that is wrong, in the order of the file. Never empty where it is an error; at most [`MAX_PROBLEMS`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Problems {
    /// The problems.
    pub list: Vec<Problem>,
    /// How many more there are than are listed.
    pub left_out: usize,
}

impl Problems {
    /// Adds a problem, or counts it where there are too many.
    pub fn push(&mut self, problem: Problem) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem);
        } else {
            self.left_out += 1;
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// `value` where nothing is wrong, the problems in the order of the file otherwise.
    ///
    /// # Errors
    /// The problems, if there are any.
    pub fn or<T>(mut self, value: T) -> Result<T, Self> {
        if self.is_empty() {
            return Ok(value);
        }
        self.list.sort_by_key(|problem| (problem.line, problem.column));
        Err(self)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ([only], 0) = (self.list.as_slice(), self.left_out) {
            let end = if only.message.ends_with(['?', '.', '!']) { "" } else { "." };
            return write!(f, "{only}{end} Nothing was changed.");
        }
        for problem in &self.list {
            writeln!(f, "{problem}")?;
        }
        write!(f, "{} problems", self.list.len() + self.left_out)?;
        if self.left_out > 0 {
            write!(f, ", of which the first {} are shown", self.list.len())?;
        }
        f.write_str(". Nothing was changed.")
    }
}

impl std::error::Error for Problems {}

/// ``; did you mean "dicom"?`` where one of `known` is near `found`, nothing otherwise.
#[must_use]
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(found, known).map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default()
}

/// The one of `known` that `found` was probably meant to be.
#[must_use]
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Text longer than any name can't be a misspelt name, and comparing it would take long.
    if found.len() > 128 {
        return None;
    }
    let allowed = (found.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(found, name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}
