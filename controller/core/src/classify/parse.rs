//! Files of rules: TOML with every problem in its place, as policies have it.

use std::collections::BTreeMap;
use std::str::FromStr;

use anteroom_proto::inventory::HintKind;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use regex::RegexBuilder;
use toml_edit::{Item, TableLike};

use super::Field;
use super::fuse::same;
use super::learnt::{self, Like};
use super::oui::hex;
use super::rulebook::{Condition, MAX_RULES_LEN, Maker, Rule, Text};
use crate::policy::Position;
use crate::problem::{Problems, did_you_mean};
use crate::reader::{Entry, Reader, cut};
use crate::service_catalog;

/// The format that is read.
const FORMAT: i64 = 1;
/// Most entries of one section.
const MAX_ENTRIES: usize = 10_000;
/// Most conditions in one list.
const MAX_CONDITIONS: usize = 100;
/// Longest pattern in bytes, and most memory that a compiled one takes.
const MAX_PATTERN: (usize, usize) = (300, 256 * 1024);
/// How sure a rule is that doesn't say it.
const WEIGHT: u8 = 80;
const SECTIONS: [&str; 4] = ["format", "rule", "maker", "like"];
const TESTS: [&str; 5] = ["is", "starts", "ends", "contains", "matches"];

/// What a file says. A rule that is switched off is none.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) rules: BTreeMap<Name, Option<Rule>>,
    pub(super) makers: BTreeMap<Name, Maker>,
    pub(super) likes: BTreeMap<Name, Like>,
}

/// What can be read of `text`, and everything that is wrong with it.
pub(super) fn parse_all(file: &str, text: &str) -> (Read, Problems) {
    let mut reader = Reader::new(file, text);
    let mut read = Read::default();
    let Some(document) = reader.document(MAX_RULES_LEN) else {
        return (read, reader.problems);
    };
    let position = Position { line: 1, column: 1 };
    let root = Entry { path: String::new(), position, table: document.as_table() };
    reader.only(&root, &SECTIONS);
    if root.table.get("format").and_then(Item::as_integer) != Some(FORMAT) {
        let message = format!("begin the file with format = {FORMAT}: this program reads no other");
        reader.problem(position, "format", message);
    }
    let section = |name: &str| document.as_table().get(name);
    if let Some(item) = section("rule") {
        for (name, entry) in reader.entries("rule", item, MAX_ENTRIES) {
            if let Some(rule) = rule(&mut reader, &entry) {
                read.rules.insert(name, rule);
            }
        }
    }
    if let Some(item) = section("maker") {
        for (name, entry) in reader.entries("maker", item, MAX_ENTRIES) {
            let maker = maker(&mut reader, &entry);
            read.makers.insert(name, maker);
        }
    }
    if let Some(item) = section("like") {
        for (name, entry) in reader.entries("like", item, MAX_ENTRIES) {
            if let Some(like) = like(&mut reader, &entry) {
                read.likes.insert(name, like);
            }
        }
    }
    (read, reader.problems)
}

fn rule(reader: &mut Reader<'_>, entry: &Entry<'_>) -> Option<Option<Rule>> {
    let mut known = vec!["all", "any", "none", "weight", "off"];
    known.extend(Field::ALL.map(Field::word));
    reader.only(entry, &known);
    if reader.truth(entry, "off") {
        return Some(None);
    }
    let all = conditions(reader, entry, "all");
    let any = conditions(reader, entry, "any");
    let none = conditions(reader, entry, "none");
    // Conditions that aren't understood have been named.
    let has = |key: &str| {
        entry.table.get(key).is_some_and(|item| item.as_array().is_none_or(|list| !list.is_empty()))
    };
    if !has("all") && !has("any") {
        let message = "a rule needs conditions: write all = [{ hint = \"dhcp.hostname\", starts = \"ct-\" }], or any";
        reader.problem(entry.position, &entry.path, message);
        return None;
    }
    if all.is_empty() && any.is_empty() {
        return None;
    }
    let claims = fields(reader, entry);
    if claims.is_empty() {
        let message = "nothing follows from it: write class = \"ct\", or another field";
        reader.problem(entry.position, &entry.path, message);
        return None;
    }
    let weight = percent(reader, entry, "weight", 1..=99).unwrap_or(WEIGHT);
    Some(Some(Rule { all, any, none, claims, weight }))
}

fn fields(reader: &mut Reader<'_>, entry: &Entry<'_>) -> Vec<(Field, String)> {
    let mut fields = Vec::new();
    for field in Field::ALL {
        if let Some(text) = reader.text(entry, field.word(), "\"…\"") {
            if text.value.is_empty() || text.value.len() > 80 {
                let message = format!("\"{field}\" must be 1 to 80 bytes long");
                reader.problem(text.position, &entry.path, message);
            }
            fields.push((field, text.value));
        }
    }
    fields
}

/// The number of `key`, where it is there and within its range.
fn percent(
    reader: &mut Reader<'_>,
    entry: &Entry<'_>,
    key: &str,
    range: std::ops::RangeInclusive<u8>,
) -> Option<u8> {
    let item = entry.table.get(key)?;
    let number = item.as_integer().and_then(|number| u8::try_from(number).ok());
    let number = number.filter(|number| range.contains(number));
    if number.is_none() {
        let message = format!(
            "\"{key}\" must be a number from {} to {}: of a hundred such devices, how many are it?",
            range.start(),
            range.end()
        );
        reader.problem_at(item.span(), &entry.path, message);
    }
    number
}

fn conditions(reader: &mut Reader<'_>, entry: &Entry<'_>, key: &str) -> Vec<Condition> {
    let example = "[{ hint = \"dhcp.hostname\", starts = \"ct-\" }]";
    let Some(item) = entry.table.get(key) else { return Vec::new() };
    let Some(array) = item.as_array() else {
        reader.wrong_type(entry, key, item, example);
        return Vec::new();
    };
    if array.len() > MAX_CONDITIONS {
        let message =
            format!("\"{key}\" has {} conditions, more than {MAX_CONDITIONS}", array.len());
        reader.problem_at(item.span(), &entry.path, message);
        return Vec::new();
    }
    let mut conditions = Vec::with_capacity(array.len());
    for value in array {
        let position = reader.position(value.span());
        let Some(table) = value.as_inline_table() else {
            let message = format!("\"{key}\" holds conditions: write {key} = {example}");
            reader.problem(position, &entry.path, message);
            continue;
        };
        let path = entry.path.clone();
        let entry = Entry { path, position, table };
        conditions.extend(condition(reader, &entry));
    }
    conditions
}

fn condition(reader: &mut Reader<'_>, entry: &Entry<'_>) -> Option<Condition> {
    let mut known = vec!["hint", "maker", "address", "offers", "uses"];
    known.extend(TESTS);
    reader.only(entry, &known);
    let subjects: Vec<&str> =
        known[..5].iter().copied().filter(|key| entry.table.contains_key(key)).collect();
    let [subject] = subjects[..] else {
        let message = "a condition is about one of hint, maker, address, offers and uses, as { hint = \"dhcp.hostname\", starts = \"ct-\" }";
        reader.problem(entry.position, &entry.path, message);
        return None;
    };
    let text = reader.text(entry, subject, "\"…\"")?;
    let tests: Vec<&str> = TESTS.into_iter().filter(|key| entry.table.contains_key(key)).collect();
    if subject != "hint" && !tests.is_empty() {
        let message = format!("\"{}\" is said of hints only", tests.join("\", \""));
        reader.problem(entry.position, &entry.path, message);
        return None;
    }
    match subject {
        "hint" => {
            let Ok(kind) = HintKind::from_str(&text.value) else {
                let words = HintKind::ALL.iter().map(|kind| kind.word());
                let hint = did_you_mean(&text.value, words);
                let message = format!("no kind of hint \"{}\"{hint}", cut(&text.value));
                reader.problem(text.position, &entry.path, message);
                return None;
            };
            Some(Condition::Hint(kind, test(reader, entry, &tests)?))
        }
        "maker" => Some(Condition::Maker(same(&text.value))),
        "address" => match hex(&text.value) {
            Some((bits, len)) => Some(Condition::Address(bits, len)),
            None => {
                let message = format!(
                    "\"{}\" begins no Ethernet address: write three to six bytes, as 00:1b:21",
                    cut(&text.value)
                );
                reader.problem(text.position, &entry.path, message);
                None
            }
        },
        _ => {
            let ports = match service_catalog::find(&text.value) {
                Some(service) => service.ports.to_vec(),
                None => match text.value.parse::<PortMatch>() {
                    Ok(port) => vec![port],
                    Err(_) => {
                        let names = service_catalog::all().iter().map(|service| service.name);
                        let hint = did_you_mean(&text.value, names);
                        let message = format!(
                            "no built-in service and no port \"{}\"{hint}",
                            cut(&text.value)
                        );
                        reader.problem(text.position, &entry.path, message);
                        return None;
                    }
                },
            };
            Some(if subject == "offers" {
                Condition::Offers(text.value, ports)
            } else {
                Condition::Uses(text.value, ports)
            })
        }
    }
}

fn test(reader: &mut Reader<'_>, entry: &Entry<'_>, tests: &[&str]) -> Option<Text> {
    let [key] = tests[..] else {
        if tests.is_empty() {
            return Some(Text::Any);
        }
        let message =
            format!("one of \"{}\" is enough: write two conditions", tests.join("\", \""));
        reader.problem(entry.position, &entry.path, message);
        return None;
    };
    let text = reader.text(entry, key, "\"…\"")?;
    if text.value.is_empty() {
        reader.problem(text.position, &entry.path, format!("\"{key}\" is empty: leave it out"));
        return None;
    }
    let low = text.value.to_lowercase();
    Some(match key {
        "is" => Text::Is(low),
        "starts" => Text::Starts(low),
        "ends" => Text::Ends(low),
        "contains" => Text::Contains(low),
        _ => {
            let short = text.value.len() <= MAX_PATTERN.0;
            let mut builder = RegexBuilder::new(&text.value);
            builder.case_insensitive(true).size_limit(MAX_PATTERN.1);
            match builder.build() {
                Ok(pattern) if short => Text::Matches(pattern),
                Ok(_) => {
                    let message = format!("the pattern is longer than {} bytes", MAX_PATTERN.0);
                    reader.problem(text.position, &entry.path, message);
                    return None;
                }
                Err(error) => {
                    // The parser draws the place on lines of its own; its last line says what is wrong.
                    let error = error.to_string();
                    let last =
                        error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    let message = format!("\"{}\" is no pattern: {last}", cut(&text.value));
                    reader.problem(text.position, &entry.path, message);
                    return None;
                }
            }
        }
    })
}

fn maker(reader: &mut Reader<'_>, entry: &Entry<'_>) -> Maker {
    reader.only(entry, &["name", "also", "addresses", "domains", "words", "parts"]);
    let mut maker = Maker { parts: reader.truth(entry, "parts"), ..Maker::default() };
    match reader.required(entry, "name", "\"Siemens\"") {
        Some(_) => {
            let name = reader.text(entry, "name", "\"Siemens\"");
            maker.name = name.map(|text| text.value).unwrap_or_default();
        }
        None => return maker,
    }
    let mut texts = |key: &str, example: &str| reader.texts(entry, key, example);
    let low = |text: String| text.to_lowercase();
    maker.also = texts("also", "[\"Siemens AG\"]").into_iter().map(|text| text.value).collect();
    maker.domains =
        texts("domains", "[\"siemens.com\"]").into_iter().map(|text| low(text.value)).collect();
    maker.words = texts("words", "[\"siemens\"]").into_iter().map(|text| low(text.value)).collect();
    maker.domains.retain(|text| !text.is_empty());
    maker.words.retain(|text| !text.is_empty());
    for text in reader.texts(entry, "addresses", "[\"00:1b:1b\"]") {
        match hex(&text.value) {
            Some(prefix) => maker.addresses.push(prefix),
            None => {
                let message = format!(
                    "\"{}\" begins no Ethernet address: write three to six bytes, as 00:1b:21",
                    cut(&text.value)
                );
                reader.problem(text.position, &entry.path, message);
            }
        }
    }
    maker
}

fn like(reader: &mut Reader<'_>, entry: &Entry<'_>) -> Option<Like> {
    let mut known = vec!["seen", "near", "traits"];
    known.extend(Field::ALL.map(Field::word));
    reader.only(entry, &known);
    let fields: BTreeMap<Field, String> = fields(reader, entry).into_iter().collect();
    let seen = entry.table.get("seen").and_then(Item::as_integer).unwrap_or(1);
    let near = percent(reader, entry, "near", 1..=100).unwrap_or(learnt::FEW);
    let item = reader.required(entry, "traits", "{ \"dhcp.hostname=ct\" = 100 }")?;
    let Some(table) = item.as_table_like() else {
        reader.wrong_type(entry, "traits", item, "{ \"dhcp.hostname=ct\" = 100 }");
        return None;
    };
    let inner = Entry { path: format!("{}.traits", entry.path), position: entry.position, table };
    let traits = traits(reader, &inner);
    if fields.is_empty() || traits.is_empty() {
        let message = "a likeness needs a field, as class = \"ct\", and traits";
        reader.problem(entry.position, &entry.path, message);
        return None;
    }
    Some(Like { fields, seen: u32::try_from(seen).unwrap_or(1).max(1), near, traits })
}

fn traits(reader: &mut Reader<'_>, entry: &Entry<'_>) -> BTreeMap<String, u8> {
    let mut traits = BTreeMap::new();
    let table: &dyn TableLike = entry.table;
    if table.len() > learnt::MAX_TRAITS {
        let message = format!("{} traits are more than the {}", table.len(), learnt::MAX_TRAITS);
        reader.problem(entry.position, &entry.path, message);
        return traits;
    }
    for (key, _) in table.iter() {
        if let Some(share) = percent(reader, entry, key, 1..=100) {
            traits.insert(key.to_owned(), share);
        }
    }
    traits
}
