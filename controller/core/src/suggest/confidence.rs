//! How sure something is.

use super::Confidence;
use super::facts::Pair;

/// How sure a rule is after what was seen of it, by how many at each end of those who get it.
pub(super) fn confidence(sum: &Pair, froms: u64, tos: u64, sizes: [u64; 2]) -> Confidence {
    let most = |seen: u64, size: u64| seen * 5 >= size * 4;
    match sum.days.count_ones() {
        14.. if most(froms, sizes[0]) && most(tos, sizes[1]) => Confidence::High,
        7.. if froms * 5 >= sizes[0] || froms >= 3 => Confidence::Medium,
        _ => Confidence::Low,
    }
}
