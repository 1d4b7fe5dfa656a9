//! What a device is taken for, as it is shown to people and written for programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Claims, Evidence, Field, KNOWN};

/// Fields by their words.
pub type Rows = BTreeMap<String, FieldRow>;

/// A field as programs read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldRow {
    /// Its value, or `unknown`.
    pub value: String,
    /// 0 to 100; 100 where an operator confirmed it.
    pub confidence: u8,
    /// Whether an operator confirmed it.
    pub confirmed: bool,
    /// What speaks for it.
    pub why: Vec<String>,
    /// What else something speaks for, or spoke for before an operator said otherwise.
    pub others: Vec<OtherRow>,
}

/// Another value of a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherRow {
    /// The value.
    pub value: String,
    /// 0 to 99.
    pub confidence: u8,
    /// What speaks for it.
    pub why: Vec<String>,
}

/// Every field of a device, unknown ones included, in the order in which they are shown.
#[must_use]
pub fn rows(claims: &Claims) -> Rows {
    let why = |evidence: &[Evidence]| evidence.iter().map(ToString::to_string).collect();
    let row = |field: Field| {
        let known = claims.known(field);
        let others = claims.of(field).filter(|claim| known != Some(*claim)).map(|claim| OtherRow {
            value: claim.value.clone(),
            confidence: claim.confidence,
            why: why(&claim.evidence),
        });
        let row = FieldRow {
            value: claims.value(field).to_owned(),
            confidence: known.map_or(0, |claim| claim.confidence),
            confirmed: known.is_some_and(|claim| claim.confirmed),
            why: known.map(|claim| why(&claim.evidence)).unwrap_or_default(),
            others: others.collect(),
        };
        (field.word().to_owned(), row)
    };
    Field::ALL.into_iter().map(row).collect()
}

/// Those fields of which something is known or likely, as they are kept.
#[must_use]
pub fn known(claims: &Claims) -> Rows {
    let mut rows = rows(claims);
    rows.retain(|_, row| row.confidence > 0 || !row.others.is_empty());
    rows
}

/// A field's value with how sure it is, or nothing: `windows (88 %)`. Of roles all that are likely.
#[must_use]
pub fn sure(rows: &Rows, field: Field) -> String {
    let Some(row) = rows.get(field.word()) else { return String::new() };
    let others = row.others.iter().filter(|_| field == Field::Role);
    let others = others.map(|other| (&other.value, other.confidence, false));
    let all = std::iter::once((&row.value, row.confidence, row.confirmed)).chain(others);
    let told = all.filter(|(_, confidence, _)| *confidence >= KNOWN).map(|one| match one {
        (value, _, true) => format!("{value} (confirmed)"),
        (value, confidence, false) => format!("{value} ({confidence} %)"),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// What speaks for the values of all fields, each in its words: `class: dhcp.hostname = "DCS-935L"; rule dlink-camera`.
#[must_use]
pub fn evidence(rows: &Rows) -> String {
    let lines = Field::ALL.into_iter().filter_map(|field| Some((field, rows.get(field.word())?)));
    let lines =
        lines.flat_map(|(field, row)| row.why.iter().map(move |why| format!("{field}: {why}")));
    lines.collect::<Vec<_>>().join(" | ")
}

/// What a device is taken for, in few words: `camera, D-Link DCS-935L (96 %)`.
#[must_use]
pub fn short(rows: &Rows) -> String {
    let known = |field: Field| rows.get(field.word()).filter(|row| row.confidence >= KNOWN);
    let class = known(Field::Class);
    let make = known(Field::Make).or_else(|| known(Field::Vendor));
    let product: Vec<&str> =
        [make, known(Field::Model)].into_iter().flatten().map(|row| row.value.as_str()).collect();
    let named = match (class, product.is_empty()) {
        (None, true) => return "unknown".into(),
        (None, false) => format!("unknown, {}", product.join(" ")),
        (Some(class), true) => class.value.clone(),
        (Some(class), false) => format!("{}, {}", class.value, product.join(" ")),
    };
    match class {
        Some(class) if class.confirmed => format!("{named} (confirmed)"),
        Some(class) => format!("{named} ({} %)", class.confidence),
        None => named,
    }
}
