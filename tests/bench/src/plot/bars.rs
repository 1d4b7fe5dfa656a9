//! Subjects beside each other, as a picture: a panel for each figure, a bar for each subject.

use std::fmt::Write as _;

use super::escape;
use crate::report::{OURS, Row, Spread, distinct, short, values};

/// A figure, as rows call it, and what it is.
type Figure = (&'static str, &'static str);

/// What a reader looks for first, panel by panel.
const FIGURES: [Figure; 8] = [
    ("tcp-1 rate", "one TCP stream: Gb/s (more is better)"),
    ("tcp-1 cpu", "one TCP stream: CPU s/GB, both gateways (less is better)"),
    ("udp-128 rate", "128-byte packets a second at < 1 % loss (more is better)"),
    ("udp-128 cpu", "128-byte packet: CPU us, both gateways (less is better)"),
    ("ping p50", "round trip, idle: p50 in ms (less is better)"),
    ("ping p99", "round trip, idle: p99 in ms (less is better)"),
    ("fairness p99 added", "message beside bulk: p99 added in ms (less is better)"),
    ("tcp-1 memory", "memory under load: MiB (less is better)"),
];

const COLUMNS: usize = 2;
const LEFT: f64 = 20.0;
/// Room for names.
const NAMES: f64 = 100.0;
/// Room for bars, with the figures behind them.
const BARS: f64 = 330.0;
/// What of it the longest bar takes.
const LONGEST: f64 = 260.0;
const LINE: f64 = 20.0;
const TOP: f64 = 62.0;
const GAP: f64 = 44.0;

/// Draws the rows of a comparison, with a line about the machine under the title. Figures that weren't measured have no panel.
#[must_use]
pub fn svg(rows: &[Row], machine: &str) -> String {
    let panels: Vec<(Figure, Vec<(&str, Spread)>)> = FIGURES
        .into_iter()
        .map(|figure| (figure, spreads(rows, figure.0)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let tallest = panels.iter().map(|(_, bars)| bars.len()).max().unwrap_or(0) as f64;
    let panel = (NAMES + BARS, tallest * LINE + GAP);
    let width = LEFT * 2.0 + panel.0 * COLUMNS as f64;
    let height = TOP + panels.len().div_ceil(COLUMNS) as f64 * panel.1;
    let mut text = String::new();
    writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"16\">Two gateways, measured side by side</text>\n\
         <text x=\"{LEFT}\" y=\"40\" fill=\"#666\">{}; bars are medians, lines the smallest and largest round</text>",
        escape(machine)
    )
    .ok();
    for (at, ((_, title), bars)) in panels.iter().enumerate() {
        let left = LEFT + (at % COLUMNS) as f64 * panel.0;
        let top = TOP + (at / COLUMNS) as f64 * panel.1;
        writeln!(
            text,
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            top + 12.0,
            escape(title)
        )
        .ok();
        draw(&mut text, left, top + 20.0, bars);
    }
    text.push_str("</svg>\n");
    text
}

/// What each subject has of a figure.
fn spreads<'a>(rows: &'a [Row], figure: &str) -> Vec<(&'a str, Spread)> {
    let subjects = distinct(rows.iter().map(|row| row.subject.as_str()));
    let of = |subject: &'a str| Some((subject, Spread::of(values(rows, subject, figure))?));
    subjects.into_iter().filter_map(of).collect()
}

/// One panel's bars. What is below zero (noise of a difference) has none, and is told in figures.
fn draw(text: &mut String, left: f64, top: f64, bars: &[(&str, Spread)]) {
    let most = bars.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let start = left + NAMES;
    let across = |value: f64| start + value.max(0.0) / most * LONGEST;
    for (line, (subject, spread)) in bars.iter().enumerate() {
        let middle = top + (line as f64 + 0.5) * LINE;
        let (colour, weight) =
            if *subject == OURS { ("#1f6feb", "bold") } else { ("#9aa7b5", "normal") };
        writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-weight=\"{weight}\">{}</text>\
             <rect x=\"{start:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#333\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            start - 6.0,
            middle + 4.0,
            escape(subject),
            middle - LINE * 0.35,
            across(spread.median) - start,
            LINE * 0.7,
            across(spread.min),
            across(spread.max),
            across(spread.max) + 6.0,
            middle + 4.0,
            short(spread.median)
        )
        .ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, test: &str, value: f64) -> Row {
        Row { subject: subject.into(), test: test.into(), value, unit: String::new(), round: 1 }
    }

    #[test]
    fn each_subject_has_a_bar_in_each_panel_that_was_measured() {
        let rows = [
            row("anteroom", "tcp-1 rate", 4.0),
            row("x<y", "tcp-1 rate", 1.0),
            row("x<y", "fairness p99 added", -0.5),
            row("anteroom", "a figure that isn't drawn", 1.0),
        ];
        let drawn = svg(&rows, "A & B");
        assert_eq!(drawn.matches("<rect").count(), 1 + 3, "three bars, on a ground: {drawn}");
        assert_eq!(drawn.matches("font-weight=\"bold\">anteroom").count(), 1, "{drawn}");
        assert!(drawn.contains("A &amp; B") && drawn.contains("x&lt;y"), "{drawn}");
        let longest = format!("width=\"{LONGEST:.1}\"");
        assert_eq!(drawn.matches(&longest).count(), 1, "of the larger rate: {drawn}");
        assert!(drawn.contains("width=\"0.0\"") && drawn.contains("-0.500"), "{drawn}");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        assert!(svg(&[], "").ends_with("</svg>\n"));
    }
}
