//! What was measured, as rows for programs and as tables for people.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

/// One figure of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Whose.
    pub subject: String,
    /// Of which test, and what of it: `tcp-1 cpu`.
    pub test: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// In which round, from 1.
    pub round: u32,
}

/// What a run has measured so far, and what it couldn't. Figures are in its file as soon as they are known.
#[derive(Debug, Default)]
pub struct Record {
    /// The figures.
    pub rows: Vec<Row>,
    /// Measurements that failed.
    pub failed: usize,
    file: Option<(PathBuf, File)>,
}

impl Record {
    /// An empty one, whose figures go to this file too: one JSON object a line.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn open(file: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| {
            let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
            anyhow::Ok((path.to_owned(), file))
        };
        Ok(Self { file: file.map(open).transpose()?, ..Self::default() })
    }

    /// Adds a figure.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn push(&mut self, row: Row) -> Result<()> {
        if let Some((path, file)) = &mut self.file {
            let line = serde_json::to_string(&row)? + "\n";
            file.write_all(line.as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
        }
        self.rows.push(row);
        Ok(())
    }
}

/// The subject that the others are compared with.
pub(crate) const OURS: &str = "anteroom";

/// Median, smallest and largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many there are.
    pub count: usize,
}

impl Spread {
    /// Of these values; none if there are none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max, count: values.len() })
    }

    /// As text, with how many values it is of where that isn't `all`.
    fn cell(&self, all: usize) -> String {
        match self.count {
            count if count == all => self.to_string(),
            count => format!("{self} n={count}"),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { median, min, max, .. } = *self;
        if min == max {
            return f.write_str(&short(median));
        }
        write!(f, "{} [{}..{}]", short(median), short(min), short(max))
    }
}

/// A number with three figures that count, and no more.
#[must_use]
pub fn short(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        0.0 => 0,
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

/// Each of `names` once, in the order in which they first appear.
pub(crate) fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

pub(crate) fn values(rows: &[Row], subject: &str, test: &str) -> Vec<f64> {
    let wanted = rows.iter().filter(|row| row.subject == subject && row.test == test);
    wanted.map(|row| row.value).collect()
}

/// A table of every figure: median and, in brackets, smallest and largest; and how many rounds it is of where these aren't
/// all of `rounds`.
#[must_use]
pub fn table(rows: &[Row], rounds: usize) -> String {
    grid(rows, |subject, test| Some(Spread::of(values(rows, subject, test))?.cell(rounds)))
}

/// A table of what each other subject has for each 1 of Anteroom's, compared round by round. Empty where there is nothing
/// to compare.
#[must_use]
pub fn ratios(rows: &[Row], rounds: usize) -> String {
    let others: Vec<Row> = rows.iter().filter(|row| row.subject != OURS).cloned().collect();
    if others.is_empty() || others.len() == rows.len() {
        return String::new();
    }
    grid(&others, |subject, test| {
        let pairs = others.iter().filter(|row| row.subject == subject && row.test == test);
        let ratios = pairs.filter_map(|theirs| {
            let ours = rows
                .iter()
                .find(|row| row.subject == OURS && row.test == test && row.round == theirs.round)?;
            Some(theirs.value / ours.value)
        });
        Some(Spread::of(ratios.collect())?.cell(rounds))
    })
}

fn grid(rows: &[Row], cell: impl Fn(&str, &str) -> Option<String>) -> String {
    let subjects = distinct(rows.iter().map(|row| row.subject.as_str()));
    let tests = distinct(rows.iter().map(|row| row.test.as_str()));
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let mut header = vec!["".to_owned(), "".to_owned()];
    header.extend(subjects.iter().map(|subject| (*subject).to_owned()));
    table.set_header(header);
    for test in tests {
        let unit = rows.iter().find(|row| row.test == test).map_or("", |row| row.unit.as_str());
        let mut line = vec![test.to_owned(), unit.to_owned()];
        line.extend(subjects.iter().map(|subject| cell(subject, test).unwrap_or_default()));
        table.add_row(line);
    }
    for index in 2..subjects.len() + 2 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        writeln!(text, "{}", line.trim_end()).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, test: &str, value: f64, round: u32) -> Row {
        Row { subject: subject.into(), test: test.into(), value, unit: "s/GB".into(), round }
    }

    #[test]
    fn numbers_have_three_figures_that_count() {
        for (value, text) in [
            (0.0, "0"),
            (0.0123, "0.012"),
            (-1.234, "-1.23"),
            (45.67, "45.7"),
            (123.4, "123"),
            (1_234_567.8, "1,234,568"),
            (-12_345.0, "-12,345"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        assert_eq!(Spread::of(Vec::new()), None);
        assert_eq!(Spread::of(vec![3.0]).unwrap().to_string(), "3.00");
        let even = Spread::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(even.to_string(), "2.50 [1.00..4.00]");
        assert_eq!(Spread::of(vec![f64::NAN, 1.0]).unwrap().median, 1.0);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let rows = [
            row(OURS, "tcp-1 cpu", 2.0, 1),
            row("boringtun-1", "tcp-1 cpu", 8.0, 1),
            row(OURS, "tcp-1 cpu", 4.0, 2),
            row("boringtun-1", "tcp-1 cpu", 20.0, 2),
        ];
        let ratios = ratios(&rows, 2);
        assert!(ratios.contains("4.50 [4.00..5.00]"), "{ratios}");
        let table = table(&rows, 2);
        assert!(!table.contains("n="), "all rounds are there: {table}");
        assert!(table.contains("3.00 [2.00..4.00]") && table.contains("s/GB"), "{table}");
        assert_eq!(super::ratios(&rows[..1], 1), "", "there is nothing to compare with");
    }

    #[test]
    fn a_figure_of_some_rounds_only_says_of_how_many() {
        let of = |subject, round| row(subject, "tcp-1 cpu", f64::from(round), round);
        let rows = [of(OURS, 1), of(OURS, 3), of("boringtun-1", 3)];
        let table = table(&rows, 3);
        assert!(table.contains("2.00 [1.00..3.00] n=2"), "{table}");
        assert!(table.contains("3.00 n=1"), "{table}");
        let ratios = ratios(&rows, 3);
        assert!(ratios.contains("1.00 n=1"), "{ratios}");
    }

    #[test]
    fn a_figure_is_in_the_file_as_soon_as_it_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rows.json");
        let mut record = Record::open(Some(&file)).unwrap();
        for round in 1..=2 {
            record.push(row(OURS, "ping p99", 0.5, round)).unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(text.lines().count(), round as usize, "{text}");
        }
        let nowhere = directory.path().join("no/such/rows.json");
        let error = format!("{:#}", Record::open(Some(&nowhere)).unwrap_err());
        assert!(error.contains("no/such/rows.json"), "{error}");
    }

    #[test]
    fn rows_are_written_as_promised() {
        let text = serde_json::to_string(&row("anteroom", "ping p99", 0.5, 3)).unwrap();
        let expected =
            r#"{"subject":"anteroom","test":"ping p99","value":0.5,"unit":"s/GB","round":3}"#;
        assert_eq!(text, expected);
    }
}
