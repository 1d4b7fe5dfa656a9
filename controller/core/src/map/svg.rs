//! A map as a picture: a table of who opens (rows) to whom (columns), with a mark where they talk.
//!
//! A table stays legible where lines from box to box become a thicket, which they do at some thirty nodes. Marks differ by shape, so that the
//! picture can be printed in black and read by whoever sees no colours; colours follow the reader's light or dark setting, and paper is light.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anteroom_proto::text::steers;

use super::{Line, Map, Node, shown};

/// Side of a cell, in pixels.
const CELL: usize = 18;
/// Width of a letter, about, in hundredths of a pixel.
const LETTER: usize = 640;
/// Most letters of a name that are drawn.
const LETTERS: usize = 40;
/// Height of title and legend.
const TOP: usize = 84;
/// Room around it all.
const MARGIN: usize = 16;
/// From so many rows on the columns are named below, too, and from so many columns on the rows at the right.
const MANY: usize = 30;
/// Most nodes of one side that are drawn, those with most flows.
const MOST: usize = 1_000;
/// Most lines that one mark's title tells.
const TOLD: usize = 12;

const STYLE: &str = "\
.am-bg{fill:#fff}.am-ink{fill:#1b2733}.am-dim{fill:#5b6b7a}.am-band{fill:#f1f4f7}.am-life{fill:#a51d12;font-weight:700}.am-out{font-style:italic}\
.am-grid{stroke:#d4dbe2}.am-tunnel{fill:#1e8449}.am-clear{fill:#fff;stroke:#b9770e;stroke-width:2}.am-risk{fill:#c0392b;stroke:#c0392b;stroke-width:2}\
.am-drop{fill:none;stroke:#5b6b7a;stroke-width:2}.am-way{fill:none;stroke:#5b6b7a}.am-patient{fill:#1b2733}.am-on{fill:#fff}\
@media screen and (prefers-color-scheme:dark){.am-bg{fill:#12181f}.am-ink{fill:#e6edf3}.am-dim{fill:#9fb0c0}.am-band{fill:#1a222c}.am-life{fill:#ff8a80}\
.am-grid{stroke:#33404d}.am-tunnel{fill:#3fb672}.am-clear{fill:#12181f;stroke:#e0a33a}.am-risk{fill:#d64a3a;stroke:#d64a3a}.am-drop,.am-way{stroke:#9fb0c0}\
.am-patient{fill:#e6edf3}.am-on{fill:#0b0f14}}";

/// What goes from one node to another, with all services.
#[derive(Default)]
struct Cell<'a> {
    lines: Vec<&'a Line>,
}

impl Cell<'_> {
    fn any(&self, which: impl Fn(&Line) -> bool) -> bool {
        self.lines.iter().any(|line| which(line))
    }

    /// Its mark, around the middle of a cell.
    fn mark(&self, x: usize, y: usize) -> String {
        let clear = self.any(|line| line.clear > 0);
        let guarded = self.any(|line| line.guarded > 0);
        let dropped = self.any(|line| line.dropped > 0);
        let exposed = self.any(Line::exposes_patients);
        let mut mark = String::new();
        match (clear, guarded) {
            (true, _) => {
                let class = if exposed { "am-risk" } else { "am-clear" };
                let (left, top) = (x - 6, y - 6);
                let _ = write!(
                    mark,
                    "<rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"12\" height=\"12\"/>"
                );
                if guarded {
                    let _ =
                        write!(mark, "<circle class=\"am-tunnel\" cx=\"{x}\" cy=\"{y}\" r=\"5\"/>");
                }
            }
            (false, true) => {
                let _ = write!(mark, "<circle class=\"am-tunnel\" cx=\"{x}\" cy=\"{y}\" r=\"7\"/>");
            }
            (false, false) if dropped => {
                let (left, right, top, bottom) = (x - 4, x + 4, y - 4, y + 4);
                let _ = write!(
                    mark,
                    "<path class=\"am-drop\" d=\"M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}\"/>"
                );
            }
            (false, false) => {
                let _ = write!(mark, "<circle class=\"am-way\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>");
            }
        }
        if self.any(|line| line.patient_data) {
            let (left, right, top, bottom) = (x + 2, x + 8, y - 8, y - 2);
            let _ =
                write!(mark, "<path class=\"am-patient\" d=\"M{left} {top}H{right}V{bottom}Z\"/>");
        }
        if self.lines.len() > 1 && (clear || guarded) {
            let class = if exposed || !clear || guarded { "am-on" } else { "am-ink" };
            let _ = write!(
                mark,
                "<text class=\"{class}\" x=\"{x}\" y=\"{}\" font-size=\"9\" text-anchor=\"middle\">{}</text>",
                y + 3,
                self.lines.len()
            );
        }
        mark
    }

    fn title(&self, map: &Map) -> String {
        let mut told: Vec<String> =
            self.lines.iter().take(TOLD).map(|line| map.title(line)).collect();
        if self.lines.len() > TOLD {
            told.push(format!("and {} more", self.lines.len() - TOLD));
        }
        told.join("\n")
    }
}

/// The nodes at one end of lines, in their order, and how many there isn't room for.
fn side(map: &Map, end: fn(&Line) -> usize) -> (BTreeMap<usize, usize>, usize) {
    let mut flows: BTreeMap<usize, u64> = BTreeMap::new();
    for line in &map.lines {
        let sum = flows.entry(end(line)).or_default();
        *sum = sum.saturating_add(line.flows());
    }
    let mut places: Vec<(usize, u64)> = flows.into_iter().collect();
    let left_out = places.len().saturating_sub(MOST);
    if left_out > 0 {
        places.sort_by_key(|(place, flows)| (std::cmp::Reverse(*flows), *place));
        places.truncate(MOST);
    }
    let mut places: Vec<usize> = places.into_iter().map(|(place, _)| place).collect();
    places.sort_unstable();
    (places.into_iter().enumerate().map(|(row, place)| (place, row)).collect(), left_out)
}

fn name(node: &Node) -> String {
    let text: String = shown(node).chars().take(LETTERS).collect();
    escaped(&text)
}

/// How a name is drawn: life support in bold red, addresses slanted.
fn look(node: &Node) -> &'static str {
    match (node.life_support, node.outside) {
        (0, false) => "am-ink",
        (0, true) => "am-ink am-out",
        _ => "am-life",
    }
}

pub(super) fn draw(map: &Map) -> String {
    let ((rows, no_rows), (columns, no_columns)) =
        (side(map, |line| line.from), side(map, |line| line.to));
    let widest = |side: &BTreeMap<usize, usize>| {
        let nodes = side.keys().filter_map(|place| map.nodes.get(*place));
        let letters = nodes.map(|node| shown(node).chars().count().min(LETTERS)).max();
        letters.unwrap_or(0) * LETTER / 100 + 8
    };
    let (label, above) = (widest(&rows), widest(&columns));
    // Names of columns stand at 60 degrees: so high, and so far to the right of the last column.
    let (high, beyond) = (above * 87 / 100 + 8, above / 2 + 8);
    let (left, top) = (MARGIN + label, TOP + high);
    let (wide, tall) = (columns.len() * CELL, rows.len() * CELL);
    let (again_right, again_below) = (columns.len() > MANY, rows.len() > MANY);
    let right = left + wide + if again_right { beyond.max(label) } else { beyond };
    let whole = right.max(720) + MARGIN;
    let height = top + tall + MARGIN + if again_below { high } else { 0 };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{whole}\" height=\"{height}\" viewBox=\"0 0 {whole} {height}\" \
         font-family=\"system-ui,sans-serif\" font-size=\"12\">\n<style>{STYLE}</style>\n\
         <rect class=\"am-bg\" width=\"100%\" height=\"100%\"/>\n"
    );
    legend(&mut svg, no_rows + no_columns);
    for row in (0..rows.len()).step_by(2) {
        let _ = writeln!(
            svg,
            "<rect class=\"am-band\" x=\"{left}\" y=\"{}\" width=\"{wide}\" height=\"{CELL}\"/>",
            top + row * CELL
        );
    }
    for column in 0..=columns.len() {
        let x = left + column * CELL;
        let _ = writeln!(svg, "<path class=\"am-grid\" d=\"M{x} {top}V{}\"/>", top + tall);
    }
    for (place, row) in &rows {
        let Some(node) = map.nodes.get(*place) else { continue };
        let (class, name, y) = (look(node), name(node), top + row * CELL + 13);
        let _ = writeln!(
            svg,
            "<text class=\"{class}\" x=\"{}\" y=\"{y}\" text-anchor=\"end\">{name}</text>",
            left - 6
        );
        if again_right {
            let x = left + wide + 6;
            let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{name}</text>");
        }
    }
    for (place, column) in &columns {
        let Some(node) = map.nodes.get(*place) else { continue };
        let (class, name, x) = (look(node), name(node), left + column * CELL + 12);
        let mut put = |y: usize, turned: &str| {
            let _ = writeln!(
                svg,
                "<text class=\"{class}\" transform=\"translate({x} {y}) rotate({turned})\">{name}</text>"
            );
        };
        put(top - 5, "-60");
        if again_below {
            put(top + tall + 12, "60");
        }
    }
    let mut cells: BTreeMap<(usize, usize), Cell<'_>> = BTreeMap::new();
    for line in &map.lines {
        if let (Some(row), Some(column)) = (rows.get(&line.from), columns.get(&line.to)) {
            cells.entry((*row, *column)).or_default().lines.push(line);
        }
    }
    for ((row, column), cell) in &cells {
        let (x, y) = (left + column * CELL + CELL / 2, top + row * CELL + CELL / 2);
        let title = escaped(&cell.title(map));
        let _ = writeln!(svg, "<g class=\"am-cell\">{}<title>{title}</title></g>", cell.mark(x, y));
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, left_out: usize) {
    let more = match left_out {
        0 => String::new(),
        nodes => format!(" {nodes} nodes with fewer flows aren't drawn."),
    };
    let _ = writeln!(
        svg,
        "<text class=\"am-ink\" x=\"{MARGIN}\" y=\"24\" font-size=\"14\" font-weight=\"600\">Who opens (rows) to whom (columns)</text>\n\
         <text class=\"am-dim\" x=\"{MARGIN}\" y=\"42\">A number: so many services. Bold red: life support. Slanted: an address, not an identity.{more}</text>"
    );
    let line = |patient_data, guarded, clear, dropped| Line {
        from: 0,
        to: 0,
        service: String::new(),
        patient_data,
        guarded,
        clear,
        dropped,
        bytes: 0,
        last: anteroom_proto::time::UnixMillis(0),
    };
    let mut x = MARGIN + 8;
    for (words, line) in [
        ("tunnel", line(false, 1, 0, 0)),
        ("in the clear", line(false, 0, 1, 0)),
        ("both", line(false, 1, 1, 0)),
        ("dropped", line(false, 0, 0, 1)),
        ("patient data, tunnel", line(true, 1, 0, 0)),
        ("patient data IN THE CLEAR", line(true, 0, 1, 0)),
    ] {
        let mark = Cell { lines: vec![&line] }.mark(x, 62);
        let after = x + 14;
        let _ = writeln!(
            svg,
            "<g class=\"am-legend\">{mark}<text class=\"am-ink\" x=\"{after}\" y=\"66\">{words}</text></g>"
        );
        x = after + words.len() * LETTER / 100 + 22;
    }
}

/// Text as XML has it; control characters, which it can't have, and what turns text around are left out.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            // Between the lines of a title.
            '\n' => escaped.push('\n'),
            c if steers(c) => {}
            c => escaped.push(c),
        }
    }
    escaped
}
