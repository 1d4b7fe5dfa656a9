//! Figures against size, as a picture: a column for what grows, a row for what it costs.

use std::fmt::Write as _;

use super::escape;
use crate::report::{Row, Spread, short};
use crate::scale::Sweep;

/// Something that was measured against size.
#[derive(Debug, Clone, Copy)]
struct Figure {
    /// As rows call it.
    name: &'static str,
    /// What it is, with its unit.
    title: &'static str,
    /// Whether its axis counts in powers of ten.
    log: bool,
    aim: Option<Aim>,
}

/// What a figure is to be, at most.
#[derive(Debug, Clone, Copy)]
enum Aim {
    /// This value: at this size or at any.
    AtMost(f64, Option<u32>),
    /// What it is at the smallest size, and a tenth.
    Flat,
}

const HIT: Figure = Figure {
    name: "hit",
    title: "packet of a known flow: CPU us, both gateways",
    log: false,
    aim: Some(Aim::Flat),
};
const NEW: Figure = Figure {
    name: "new flow",
    title: "new flow and its answer: CPU us, both gateways",
    log: false,
    aim: None,
};
const MEMORY: Figure =
    Figure { name: "memory", title: "memory of the gateway: MiB", log: true, aim: None };
/// The aim is of a gateway with 1,000 flows, as all here have, and ten peers.
const MEMORY_OF_PEERS: Figure =
    Figure { aim: Some(Aim::AtMost(24e6 / 1_048_576.0, Some(10))), ..MEMORY };
const IDLE: Figure = Figure {
    name: "idle cpu",
    title: "nothing under way: % of a core, both gateways",
    log: true,
    aim: None,
};
const RESTART: Figure = Figure {
    name: "restart",
    title: "restart until all have shaken hands: s",
    log: true,
    aim: Some(Aim::AtMost(10.0, None)),
};
const FLOW_MEMORY: Figure = Figure {
    name: "memory a flow",
    title: "memory that each flow takes: bytes",
    log: false,
    aim: Some(Aim::AtMost(200.0, None)),
};
/// Rows of pictures, with a place for each sweep. Those of a row with the same figure share an axis.
const PICTURES: [[Option<Figure>; 3]; 5] = [
    [Some(HIT); 3],
    [Some(NEW); 3],
    [Some(MEMORY_OF_PEERS), Some(MEMORY), Some(MEMORY)],
    [Some(IDLE); 3],
    [Some(RESTART), None, Some(FLOW_MEMORY)],
];
const SWEEPS: [Sweep; 3] = [Sweep::Peers, Sweep::Rules, Sweep::Flows];

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 66.0;
const GAP: (f64, f64) = (75.0, 84.0);

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
    let measured = |sweep, figure: Option<Figure>| {
        figure.is_some_and(|figure| !series(rows, sweep, figure.name).is_empty())
    };
    let pictures: Vec<[Option<Figure>; 3]> = PICTURES
        .into_iter()
        .map(|row| std::array::from_fn(|at| row[at].filter(|_| measured(SWEEPS[at], row[at]))))
        .filter(|row: &[_; 3]| row.iter().any(Option::is_some))
        .collect();
    let columns = SWEEPS.len() as f64;
    let width = LEFT + columns * WIDTH + (columns - 1.0) * GAP.0 + 30.0;
    let height = TOP + pictures.len() as f64 * (HEIGHT + GAP.1);
    let mut text = String::new();
    write!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"16\">What many peers, rules and flows cost</text>\n\
         <text x=\"{LEFT}\" y=\"38\" fill=\"#666\">{}; dots are medians, bars the smallest and largest; \
         dashed: aims (flat: 10 % above the smallest size)</text>\n",
        escape(machine)
    )
    .ok();
    for (row, figures) in pictures.iter().enumerate() {
        let top = TOP + row as f64 * (HEIGHT + GAP.1) + 20.0;
        for (column, (sweep, figure)) in SWEEPS.into_iter().zip(figures).enumerate() {
            let Some(figure) = figure else { continue };
            let alike = SWEEPS.into_iter().zip(figures);
            let alike = alike.filter(|(_, other)| other.is_some_and(|o| o.name == figure.name));
            let all: Vec<f64> = alike
                .flat_map(|(sweep, other)| {
                    let points = series(rows, sweep, figure.name);
                    let aim = other.as_ref().and_then(|other| aim(other, &points));
                    let ends = points.into_iter().flat_map(|(_, spread)| [spread.min, spread.max]);
                    ends.chain(aim.map(|(value, _)| value)).collect::<Vec<_>>()
                })
                .collect();
            let left = LEFT + column as f64 * (WIDTH + GAP.0);
            writeln!(
                text,
                "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>",
                top - 8.0,
                escape(figure.title)
            )
            .ok();
            let x = Axis::around(sweep.sizes().iter().map(|size| f64::from(*size)), true);
            let y = Axis::around(all.into_iter(), figure.log);
            let points = series(rows, sweep, figure.name);
            let panel = Panel { left, top, x, y };
            panel.grid(&mut text, sweep.axis());
            if let Some((value, size)) = aim(figure, &points) {
                panel.aim(&mut text, value, size);
            }
            panel.points(&mut text, &points);
        }
    }
    text.push_str("</svg>\n");
    text
}

/// The aim as a value, and the size for which alone it holds.
fn aim(figure: &Figure, points: &[(f64, Spread)]) -> Option<(f64, Option<u32>)> {
    match figure.aim? {
        Aim::AtMost(value, size) => Some((value, size)),
        Aim::Flat => Some((points.first()?.1.median * 1.1, None)),
    }
}

/// One picture.
#[derive(Debug, Clone, Copy)]
struct Panel {
    left: f64,
    top: f64,
    x: Axis,
    y: Axis,
}

impl Panel {
    fn across(&self, value: f64) -> f64 {
        self.left + self.x.place(value) * WIDTH
    }

    fn up(&self, value: f64) -> f64 {
        self.top + HEIGHT - self.y.place(value) * HEIGHT
    }

    /// The ground, with both axes.
    fn grid(&self, text: &mut String, what: &str) {
        let Self { left, top, x, y } = self;
        let bottom = top + HEIGHT;
        for tick in x.ticks() {
            let at = self.across(tick);
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
            let at = self.up(tick);
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
            bottom + 34.0
        )
        .ok();
    }

    /// A line that isn't to be crossed: short where it holds for one size only.
    fn aim(&self, text: &mut String, value: f64, size: Option<u32>) {
        let middle = size.map(|size| self.across(size.into()));
        let (from, length) = middle.map_or((self.left, WIDTH), |middle| (middle - 30.0, 60.0));
        writeln!(
            text,
            "<path d=\"M{from:.1} {:.1}h{length}\" stroke=\"#d1242f\" stroke-dasharray=\"6 4\"/>",
            self.up(value)
        )
        .ok();
    }

    fn points(&self, text: &mut String, points: &[(f64, Spread)]) {
        let line: Vec<String> = points
            .iter()
            .map(|(size, spread)| {
                format!("{:.1},{:.1}", self.across(*size), self.up(spread.median))
            })
            .collect();
        writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"2\"/>",
            line.join(" ")
        )
        .ok();
        for (size, spread) in points {
            let (at, highest) = (self.across(*size), self.up(spread.max));
            // Above the point, unless that would be above the picture.
            let label = if highest - 8.0 < self.top + 8.0 {
                self.up(spread.min) + 16.0
            } else {
                highest - 8.0
            };
            writeln!(
                text,
                "<path d=\"M{at:.1} {:.1}V{highest:.1}\" stroke=\"#1f6feb\"/>\
                 <circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#1f6feb\"/>\
                 <text x=\"{at:.1}\" y=\"{label:.1}\" text-anchor=\"middle\" font-size=\"10\">{}</text>",
                self.up(spread.min),
                self.up(spread.median),
                short(spread.median)
            )
            .ok();
        }
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
        assert_eq!(drawn.matches("<rect").count(), 1 + 3, "three that were measured, on a ground");
        assert_eq!(drawn.matches("dasharray").count(), 3, "an aim in each: {drawn}");
        assert!(drawn.contains("A &amp; B") && drawn.contains("5.50"), "{drawn}");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }
}
