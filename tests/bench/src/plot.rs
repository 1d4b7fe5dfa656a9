//! Figures against size, as a picture: a column for what grows, a row for what it costs.

use std::fmt::Write as _;

use crate::report::{Row, Spread, short};
use crate::scale::Sweep;

/// A row of pictures: the figure, its title, and whether its axis counts in powers of ten.
const FIGURES: [(&str, &str, bool); 5] = [
    ("hit", "processor time a packet of a known flow, us, both gateways", false),
    ("new flow", "processor time a new flow and its answer, us, both gateways", false),
    ("memory", "memory of the gateway, MiB", true),
    ("idle cpu", "idle: share of a core, %, both gateways", true),
    ("restart", "from a restart until all have shaken hands, s", true),
];

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 60.0;
const GAP: (f64, f64) = (70.0, 70.0);

/// A range of values on a straight or logarithmic axis.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// Around all of these, from zero where it is straight, and from one power of ten to another where not.
    fn around(values: impl Iterator<Item = f64> + Clone, log: bool) -> Self {
        let high = values.clone().fold(f64::MIN_POSITIVE, f64::max);
        if !log {
            return Self { low: 0.0, high: high * 1.15, log };
        }
        let low = values.filter(|value| *value > 0.0).fold(high, f64::min);
        let power = |value: f64| 10_f64.powf(value);
        let (low, high) = (power(low.log10().floor()), power(high.log10().ceil()));
        Self { low, high: if high > low { high } else { low * 10.0 }, log }
    }

    /// Where a value is, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.log { value.max(self.low).log10() } else { value };
        (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
    }

    /// Values that are marked.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let (low, high) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
            return (low..=high).map(|power| 10_f64.powi(power)).collect();
        }
        let step = 10_f64.powf((self.high / 4.0).log10().floor());
        let wide = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * step);
        let step = wide.into_iter().find(|step| self.high / step <= 5.0).unwrap_or(self.high);
        (0..=5).map(|count| f64::from(count) * step).filter(|tick| *tick <= self.high).collect()
    }
}

/// What a sweep came to: size and spread over the rounds.
fn series(rows: &[Row], sweep: Sweep, figure: &str) -> Vec<(f64, Spread)> {
    let of = |size: &u32| {
        let test = format!("{} {size}: {figure}", sweep.name());
        let values = rows.iter().filter(|row| row.test == test).map(|row| row.value);
        Some((f64::from(*size), Spread::of(values.collect())?))
    };
    sweep.sizes().iter().filter_map(of).collect()
}

/// Draws the rows of a run of [`crate::scale`], with a line about the machine under the title.
#[must_use]
pub fn svg(rows: &[Row], machine: &str) -> String {
    let sweeps = [Sweep::Peers, Sweep::Rules, Sweep::Flows];
    let measured =
        |figure: &str| sweeps.iter().any(|sweep| !series(rows, *sweep, figure).is_empty());
    let figures: Vec<_> = FIGURES.into_iter().filter(|(name, ..)| measured(name)).collect();
    let columns = sweeps.len() as f64;
    let width = LEFT + columns * WIDTH + (columns - 1.0) * GAP.0 + 30.0;
    let height = TOP + figures.len() as f64 * (HEIGHT + GAP.1);
    let mut text = String::new();
    write!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"16\">What many peers, rules and flows cost</text>\n\
         <text x=\"{LEFT}\" y=\"38\" fill=\"#666\">{}; dots are medians, bars the smallest and largest</text>\n",
        escape(machine)
    )
    .ok();
    for (row, (figure, title, log)) in figures.iter().enumerate() {
        let top = TOP + row as f64 * (HEIGHT + GAP.1) + 20.0;
        writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            top - 8.0,
            escape(title)
        )
        .ok();
        let all: Vec<f64> = sweeps
            .iter()
            .flat_map(|sweep| series(rows, *sweep, figure))
            .flat_map(|(_, spread)| [spread.min, spread.max])
            .collect();
        let y = Axis::around(all.into_iter(), *log);
        for (column, sweep) in sweeps.into_iter().enumerate() {
            let left = LEFT + column as f64 * (WIDTH + GAP.0);
            let x = Axis::around(sweep.sizes().iter().map(|size| f64::from(*size)), true);
            panel(&mut text, (left, top), (x, y), &series(rows, sweep, figure), sweep.name());
        }
    }
    text.push_str("</svg>\n");
    text
}

/// One picture.
fn panel(
    text: &mut String,
    (left, top): (f64, f64),
    (x, y): (Axis, Axis),
    points: &[(f64, Spread)],
    what: &str,
) {
    let bottom = top + HEIGHT;
    let across = |value: f64| left + x.place(value) * WIDTH;
    let up = |value: f64| bottom - y.place(value) * HEIGHT;
    for tick in x.ticks() {
        let at = across(tick);
        writeln!(
            text,
            "<path d=\"M{at:.1} {top:.1}V{bottom:.1}\" stroke=\"#eee\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            tick_text(tick)
        )
        .ok();
    }
    for tick in y.ticks() {
        let at = up(tick);
        writeln!(
            text,
            "<path d=\"M{left:.1} {at:.1}h{WIDTH}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            at + 4.0,
            tick_text(tick)
        )
        .ok();
    }
    writeln!(
        text,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#999\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#333\">{what}</text>",
        left + WIDTH / 2.0,
        bottom + 32.0
    )
    .ok();
    let line: Vec<String> = points
        .iter()
        .map(|(size, spread)| format!("{:.1},{:.1}", across(*size), up(spread.median)))
        .collect();
    writeln!(
        text,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"2\"/>",
        line.join(" ")
    )
    .ok();
    for (size, spread) in points {
        let (at, height) = (across(*size), up(spread.median));
        writeln!(
            text,
            "<path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"#1f6feb\"/>\
             <circle cx=\"{at:.1}\" cy=\"{height:.1}\" r=\"3\" fill=\"#1f6feb\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{}</text>",
            up(spread.min),
            up(spread.max),
            up(spread.max) - 6.0,
            short(spread.median)
        )
        .ok();
    }
}

/// A round number, as short as it goes.
fn tick_text(value: f64) -> String {
    if value >= 1.0 || value == 0.0 {
        let text = short(value.round());
        return text.strip_suffix(".00").or(text.strip_suffix(".0")).unwrap_or(&text).to_owned();
    }
    format!("{value:.6}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_values_and_mark_round_ones() {
        let axis = Axis::around([3.0, 4_200.0].into_iter(), true);
        assert_eq!(axis.ticks(), [1.0, 10.0, 100.0, 1_000.0, 10_000.0]);
        assert_eq!((axis.place(1.0), axis.place(100.0), axis.place(10_000.0)), (0.0, 0.5, 1.0));
        let axis = Axis::around([7.0, 12.0].into_iter(), false);
        assert_eq!(axis.ticks(), [0.0, 5.0, 10.0]);
        assert!(axis.place(12.0) < 1.0 && axis.place(0.0) == 0.0);
        let one = Axis::around([10.0].into_iter(), true);
        assert!(one.place(10.0).is_finite());
        assert_eq!(
            [0.0, 0.01, 1.0, 20.0, 1e6].map(tick_text),
            ["0", "0.01", "1", "20", "1,000,000"]
        );
    }

    #[test]
    fn every_figure_is_drawn_where_it_was_measured() {
        let row = |test: &str, value| Row {
            subject: "anteroom".into(),
            test: test.into(),
            value,
            unit: String::new(),
            round: 1,
        };
        let rows = [
            row("peers 1: hit", 5.0),
            row("peers 3000: hit", 5.5),
            row("flows 1000000: hit", 6.0),
            row("peers 3000: restart", 4.0),
        ];
        let drawn = svg(&rows, "A & B");
        assert_eq!(drawn.matches("<circle").count(), 4, "{drawn}");
        assert_eq!(drawn.matches("<rect").count(), 1 + 2 * 3, "two rows of three, on a ground");
        assert!(drawn.contains("A &amp; B") && drawn.contains("5.50"), "{drawn}");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }
}
