//! What was checked, what was expected and what was seen.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use nix::libc;
use serde::Serialize;
use serde_json::Value;

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Its lasting name.
    pub id: String,
    /// The act of the story that it is in.
    pub act: u8,
    /// What was expected.
    pub expected: String,
    /// What was seen, or what went wrong.
    pub seen: String,
    /// Whether that is as expected.
    pub ok: bool,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// All checks, with figures that were measured on the way. Shows progress as it goes.
#[derive(Debug)]
pub struct Report {
    /// In the order in which they were done.
    pub checks: Vec<Check>,
    /// What was measured, by name with the unit at its end.
    pub figures: BTreeMap<String, Value>,
    act: u8,
    act_title: String,
    act_start: Instant,
    start: Instant,
    verbose: bool,
    bar: ProgressBar,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Written<'a> {
    ok: bool,
    seconds: f64,
    checks: &'a [Check],
    figures: &'a BTreeMap<String, Value>,
}

impl Report {
    /// An empty one.
    #[must_use]
    pub fn new(verbose: bool) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} [{elapsed}] {pos} checks done; {wide_msg:.dim}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            checks: Vec::new(),
            figures: BTreeMap::new(),
            act: 0,
            act_title: String::new(),
            act_start: Instant::now(),
            start: Instant::now(),
            verbose,
            bar,
        }
    }

    /// A line for people, above the progress bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// Begins an act.
    pub fn begin(&mut self, act: u8, title: &str) {
        self.act = act;
        self.act_title = title.into();
        self.act_start = Instant::now();
        self.bar.set_message(title.to_owned());
    }

    /// Ends the act with a line that says how it went, and what is worth knowing of it.
    pub fn end(&self, notes: &str) {
        let of_act = || self.checks.iter().filter(|check| check.act == self.act);
        let (good, all) = (of_act().filter(|check| check.ok).count(), of_act().count());
        let mark = if good == all { "✓" } else { "✗" };
        self.line(&format!(
            "{mark} {}. {}: {good} of {all} as expected in {:.1} s",
            self.act,
            self.act_title,
            self.act_start.elapsed().as_secs_f64()
        ));
        if !notes.is_empty() {
            self.line(&format!("     {notes}"));
        }
    }

    /// Does a check: `Ok` is as expected, with what was seen; an error isn't. Gives back what was seen if it was as
    /// expected.
    pub fn check(
        &mut self,
        id: &str,
        expected: &str,
        work: impl FnOnce() -> Result<String>,
    ) -> Option<String> {
        self.bar.set_message(format!("{}: {expected}", self.act_title));
        let start = Instant::now();
        let result = work();
        self.record(id, expected, result, start.elapsed())
    }

    /// Records a check that was done elsewhere.
    pub fn record(
        &mut self,
        id: &str,
        expected: &str,
        result: Result<String>,
        took: Duration,
    ) -> Option<String> {
        let (ok, seen) = match result {
            Ok(seen) => (true, seen),
            Err(error) => (false, format!("{error:#}")),
        };
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if self.verbose || !ok {
            let mark = if ok { "✓" } else { "✗" };
            self.line(&format!("  {mark} {id} ({milliseconds} ms): {expected}\n      {seen}"));
        }
        self.checks.push(Check {
            id: id.into(),
            act: self.act,
            expected: expected.into(),
            seen: seen.clone(),
            ok,
            milliseconds,
        });
        self.bar.inc(1);
        ok.then_some(seen)
    }

    /// What a check saw, if it was done.
    #[must_use]
    pub fn seen(&self, id: &str) -> Option<&str> {
        self.checks.iter().find(|check| check.id == id).map(|check| check.seen.as_str())
    }

    /// Notes a measured figure.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.into(), value.into());
    }

    /// What is shown for people with `--verbose` only.
    pub fn detail(&self, text: &str) {
        if self.verbose {
            self.line(&format!("      {}", text.trim_end().replace('\n', "\n      ")));
        }
    }

    /// Whether every check was as expected.
    #[must_use]
    pub fn ok(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }

    /// The table at the end.
    #[must_use]
    pub fn table(&self) -> String {
        self.bar.finish_and_clear();
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(terminal_width());
        table.set_header(["", "check", "expected", "seen", "took"]);
        for check in &self.checks {
            let seconds =
                format!("{:.2} s", Duration::from_millis(check.milliseconds).as_secs_f64());
            let mark = if check.ok { "✓" } else { "✗" };
            table.add_row([
                mark,
                check.id.as_str(),
                check.expected.as_str(),
                first_lines(&check.seen),
                seconds.as_str(),
            ]);
        }
        table.to_string()
    }

    /// The whole as JSON.
    ///
    /// # Errors
    /// If it can't be encoded.
    pub fn json(&self) -> Result<String> {
        let written = Written {
            ok: self.ok(),
            seconds: self.start.elapsed().as_secs_f64(),
            checks: &self.checks,
            figures: &self.figures,
        };
        Ok(serde_json::to_string_pretty(&written)?)
    }
}

/// Columns of the terminal, or enough for a log file.
fn terminal_width() -> u16 {
    // SAFETY: the structure is plain; the call fills it in or fails.
    let columns = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        if libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) == 0 {
            size.ws_col
        } else {
            0
        }
    };
    if columns < 60 { 140 } else { columns }
}

/// A table shows no more than the beginning of a long message.
fn first_lines(text: &str) -> &str {
    match text.char_indices().nth(300) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_check_that_is_not_as_expected_spoils_the_whole() {
        let mut report = Report::new(false);
        assert!(!report.ok(), "nothing was checked");
        report.begin(1, "today");
        assert_eq!(report.check("a", "one", || Ok("one".into())), Some("one".into()));
        assert!(report.ok());
        assert_eq!(report.check("b", "two", || anyhow::bail!("three")), None);
        assert!(!report.ok());
        let table = report.table();
        assert!(table.contains("three") && table.contains("✗"), "{table}");
        let json: Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["checks"][1]["seen"], "three");
        assert_eq!(json["ok"], false);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = "ä".repeat(1000);
        assert_eq!(first_lines(&text).chars().count(), 300);
    }
}
