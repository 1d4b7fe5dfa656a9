//! From single pieces of evidence to claims with a confidence: the arithmetic that the module above describes.

use std::collections::BTreeMap;

use super::{Claim, Claims, Evidence, Field};

/// However much speaks for a value, some doubt remains until an operator confirms it.
const MOST: f64 = 0.99;

/// Something that speaks for a value of a field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    pub(super) field: Field,
    pub(super) value: String,
    pub(super) evidence: Evidence,
}

/// What makes two values the same one: case, umlauts and accents, and what stands between letters don't.
pub(super) fn same(value: &str) -> String {
    let mut same = String::with_capacity(value.len());
    for c in value.chars().flat_map(char::to_lowercase) {
        match c {
            // By two letters, as those write them who can't, and by one with a mark behind it.
            '\u{308}' if same.ends_with(['a', 'o', 'u']) => same.push('e'),
            'ä' | 'æ' => same.push_str("ae"),
            'ö' | 'ø' | 'œ' => same.push_str("oe"),
            'ü' => same.push_str("ue"),
            'ß' => same.push_str("ss"),
            'à' | 'á' | 'â' | 'ã' | 'å' => same.push('a'),
            'ç' => same.push('c'),
            'è' | 'é' | 'ê' | 'ë' => same.push('e'),
            'ì' | 'í' | 'î' | 'ï' => same.push('i'),
            'ñ' => same.push('n'),
            'ò' | 'ó' | 'ô' | 'õ' => same.push('o'),
            'ù' | 'ú' | 'û' => same.push('u'),
            c if c.is_alphanumeric() => same.push(c),
            _ => {}
        }
    }
    if same.is_empty() { value.to_owned() } else { same }
}

pub(super) fn fuse(mut points: Vec<Point>) -> Claims {
    points.sort_unstable();
    points.dedup();
    let mut values: BTreeMap<(Field, String), Vec<Point>> = BTreeMap::new();
    for point in points {
        values.entry((point.field, same(&point.value))).or_default().push(point);
    }
    let supports: Vec<(Field, f64)> =
        values.iter().map(|((field, _), points)| (*field, support(points))).collect();
    let mut list: Vec<Claim> = Vec::with_capacity(values.len());
    for (((field, _), mut points), (_, own)) in values.into_iter().zip(&supports) {
        let against: f64 =
            supports.iter().filter(|(other, _)| *other == field).map(|(_, s)| odds(*s)).sum();
        let confidence = if field == Field::Role { *own } else { odds(*own) / (1.0 + against) };
        points.sort_by(|a, b| b.evidence.weight.cmp(&a.evidence.weight).then_with(|| a.cmp(b)));
        let Some(value) = points.first().map(|point| point.value.clone()) else { continue };
        list.push(Claim {
            field,
            value,
            // Between 0 and 99.
            confidence: (confidence * 100.0 + 1e-6).floor() as u8,
            confirmed: false,
            evidence: points.into_iter().map(|point| point.evidence).collect(),
        });
    }
    list.sort_by(|a, b| (a.field, b.confidence, &a.value).cmp(&(b.field, a.confidence, &b.value)));
    Claims { list }
}

/// How much speaks for a value: of each source the strongest, and these as independent chances.
fn support(points: &[Point]) -> f64 {
    let mut sources: BTreeMap<&str, u8> = BTreeMap::new();
    for Point { evidence, .. } in points {
        let strongest = sources.entry(&evidence.source).or_default();
        *strongest = evidence.weight.max(*strongest);
    }
    let doubt: f64 = sources.values().map(|weight| 1.0 - f64::from(*weight) / 100.0).product();
    (1.0 - doubt).clamp(0.0, MOST)
}

fn odds(support: f64) -> f64 {
    support / (1.0 - support)
}
