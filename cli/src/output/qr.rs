//! QR codes out of half blocks, two modules a character.

use qrcode::{Color, EcLevel, QrCode};
use zeroize::Zeroizing;

/// Light modules around the code, which readers need to find it.
const MARGIN: usize = 4;

/// Black on bright white, whatever the terminal's own colours are, and back.
const PAPER: &str = "\x1b[30;107m";
const PLAIN: &str = "\x1b[0m";

/// Draws `text`, without a newline at the end, and says how many columns that takes. `None` where it is too long for any QR code: beyond 2,953 bytes.
///
/// With colours it is black on white wherever it is shown. Without them the dark modules are those that are inked,
/// as on paper.
#[must_use]
pub fn draw(text: &str, coloured: bool) -> Option<(Zeroizing<String>, usize)> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let width = code.width();
    let whole = width + 2 * MARGIN;
    let dark = |x: usize, y: usize| {
        let inside = |at: usize| (MARGIN..MARGIN + width).contains(&at);
        inside(x) && inside(y) && code[(x - MARGIN, y - MARGIN)] == Color::Dark
    };
    // As long as it gets, so that it doesn't move while it grows.
    let mut drawn = Zeroizing::new(String::with_capacity((whole * 3 + 16) * whole.div_ceil(2)));
    for y in (0..whole).step_by(2) {
        if y > 0 {
            drawn.push('\n');
        }
        if coloured {
            drawn.push_str(PAPER);
        }
        drawn.extend((0..whole).map(|x| match (dark(x, y), dark(x, y + 1)) {
            (true, true) => '\u{2588}',
            (true, false) => '\u{2580}',
            (false, true) => '\u{2584}',
            (false, false) => ' ',
        }));
        if coloured {
            drawn.push_str(PLAIN);
        }
    }
    Some((drawn, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a camera reads off it.
    fn read(drawn: &str) -> String {
        let rows: Vec<Vec<char>> = drawn
            .lines()
            .map(|line| line.trim_start_matches(PAPER).trim_end_matches(PLAIN).chars().collect())
            .collect();
        let width = rows[0].len();
        assert!(rows.iter().all(|row| row.len() == width), "{drawn}");
        let dark = |x: usize, y: usize| match rows[y / 2][x] {
            '\u{2588}' => true,
            '\u{2580}' => y.is_multiple_of(2),
            '\u{2584}' => !y.is_multiple_of(2),
            ' ' => false,
            other => panic!("{other:?} in\n{drawn}"),
        };
        // Readers look for shapes: several dots a module.
        const DOTS: usize = 4;
        let mut picture = rqrr::PreparedImage::prepare_from_greyscale(
            width * DOTS,
            rows.len() * 2 * DOTS,
            |x, y| if dark(x / DOTS, y / DOTS) { 0 } else { 255 },
        );
        let grids = picture.detect_grids();
        assert_eq!(grids.len(), 1, "{drawn}");
        grids[0].decode().unwrap().1
    }

    #[test]
    fn what_is_drawn_is_what_is_read() {
        let long = "0123456789abcdef".repeat(80);
        for text in ["x", "[Interface]\nAddress = 10.20.9.7/32\n", &long] {
            for coloured in [false, true] {
                let (drawn, columns) = draw(text, coloured).unwrap();
                assert_eq!(
                    columns,
                    drawn
                        .lines()
                        .last()
                        .unwrap()
                        .matches(['\u{2588}', '\u{2580}', '\u{2584}', ' '])
                        .count()
                );
                assert_eq!(read(&drawn), text);
                assert_eq!(drawn.contains('\x1b'), coloured);
                assert_eq!(drawn.contains("107m") && drawn.ends_with(PLAIN), coloured);
            }
        }
    }

    #[test]
    fn there_is_light_all_around() {
        let (drawn, _) = draw("x", false).unwrap();
        let blank = |line: &str| line.chars().all(|c| c == ' ');
        let lines: Vec<&str> = drawn.lines().collect();
        assert!(blank(lines[0]) && blank(lines[1]) && !blank(lines[2]), "{}", *drawn);
        assert!(blank(lines[lines.len() - 2]), "{}", *drawn);
        assert!(lines.iter().all(|line| line.starts_with("    ") && line.ends_with("    ")));
    }

    #[test]
    fn what_is_too_long_is_said_to_be() {
        assert!(draw(&"x".repeat(2953), false).is_some());
        assert!(draw(&"x".repeat(2954), false).is_none());
    }
}
