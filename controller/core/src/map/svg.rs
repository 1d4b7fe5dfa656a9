//! A map as a picture: who opens on the left, who answers on the right.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anteroom_proto::text::steers;

use super::{Line, Map, shown};

/// Height of a row and of a box, and their distances, in pixels.
const ROW: usize = 30;
const BOX: usize = 22;
const TOP: usize = 60;
/// Width of a letter, about.
const LETTER: usize = 7;
/// Most letters of a name that are drawn.
const LETTERS: usize = 40;
/// Room for the lines between the two columns.
const BETWEEN: usize = 420;

pub(super) fn draw(map: &Map) -> String {
    let column = |end: fn(&Line) -> usize| -> BTreeMap<usize, usize> {
        let mut places: Vec<usize> = map.lines.iter().map(end).collect();
        places.sort_unstable();
        places.dedup();
        places.into_iter().enumerate().map(|(row, place)| (place, row)).collect()
    };
    let (left, right) = (column(|line| line.from), column(|line| line.to));
    let widest = map.nodes.iter().map(|node| shown(node).chars().count().min(LETTERS)).max();
    let width = widest.unwrap_or(0) * LETTER + 20;
    let whole = 2 * width + BETWEEN + 40;
    let height = TOP + left.len().max(right.len()).max(1) * ROW + 20;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{whole}\" height=\"{height}\" viewBox=\"0 0 {whole} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"20\" y=\"20\">Who opens (left) to whom (right). Green: through tunnels. Orange: in the clear. Red: patient data in the \
         clear. Grey: dropped. Red boxes: life support.</text>\n"
    );
    let y = |row: usize| TOP + row * ROW + BOX / 2;
    // Several services between the same two are one curve each, a little apart.
    let mut drawn: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for line in &map.lines {
        let (Some(from), Some(to)) = (left.get(&line.from), right.get(&line.to)) else { continue };
        let nth = drawn.entry((line.from, line.to)).or_default();
        let (colour, style) = line.look();
        let dashes = if style == "dashed" { " stroke-dasharray=\"5 4\"" } else { "" };
        let (x1, x2) = (20 + width, 20 + width + BETWEEN);
        let (y1, y2) = (y(*from), y(*to));
        let bend = BETWEEN / 3 + *nth * 24;
        let _ = writeln!(
            svg,
            "<path d=\"M{x1} {y1} C{} {y1} {} {y2} {x2} {y2}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{}\"{dashes}>\
             <title>{}</title></path>",
            x1 + bend,
            x2.saturating_sub(bend),
            if style == "bold" { "2.5" } else { "1.5" },
            escaped(&map.title(line))
        );
        *nth += 1;
    }
    for (column, x) in [(&left, 20), (&right, 20 + width + BETWEEN)] {
        for (place, row) in column {
            let Some(node) = map.nodes.get(*place) else { continue };
            let text: String = shown(node).chars().take(LETTERS).collect();
            let dashes = if node.outside { " stroke-dasharray=\"4 3\"" } else { "" };
            let (fill, border) = match node.life_support {
                0 => ("#f4f6f7", "stroke=\"#566573\""),
                _ => ("#fadbd8", "stroke=\"#922b21\" stroke-width=\"2.5\""),
            };
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{}\" width=\"{width}\" height=\"{BOX}\" rx=\"3\" fill=\"{fill}\" {border}{dashes}/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                TOP + row * ROW,
                x + 8,
                TOP + row * ROW + 15,
                escaped(&text)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
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
            c if steers(c) => {}
            c => escaped.push(c),
        }
    }
    escaped
}
