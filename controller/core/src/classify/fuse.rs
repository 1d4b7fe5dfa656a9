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

/// What makes two values the same one: case and what stands between letters don't.
pub(super) fn same(value: &str) -> String {
    let kept = value.chars().filter(|c| c.is_alphanumeric());
    let same: String = kept.flat_map(char::to_lowercase).collect();
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
