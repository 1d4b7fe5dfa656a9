//! Devices without a class are taken for the class whose conversations theirs resemble.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Facts, Kind};

/// How much alike they must be: the harmonic mean of what share of the device's own conversations the class has, and of
/// the class's it has.
const ALIKE: f64 = 0.6;
/// By how much the class must stand out.
const LEAD: f64 = 0.1;
/// Fewest members of a class that can be resembled.
const FEWEST: usize = 3;

/// One kind of conversation: whether one opened it, the service, and the far end's class.
type Trait = (bool, u32, u32);

/// Gives classes to those that have none, where their conversations leave little doubt.
pub(super) fn adopt(facts: &mut Facts) {
    let mut traits: BTreeMap<u32, BTreeSet<Trait>> = BTreeMap::new();
    for pair in &facts.pairs {
        let (from, to) = (facts.class[pair.from as usize], facts.class[pair.to as usize]);
        traits.entry(pair.from).or_default().insert((true, pair.service, to));
        traits.entry(pair.to).or_default().insert((false, pair.service, from));
    }
    let mut classes: BTreeMap<u32, (usize, BTreeMap<Trait, usize>)> = BTreeMap::new();
    for (party, own) in &traits {
        let class = facts.class[*party as usize];
        if matches!(facts.kinds[class as usize], Kind::Label(_)) {
            let (members, counts) = classes.entry(class).or_default();
            *members += 1;
            own.iter().for_each(|kind| *counts.entry(*kind).or_default() += 1);
        }
    }
    classes.retain(|_, (members, _)| *members >= FEWEST);
    let mut adopted = Vec::new();
    for (party, own) in &traits {
        let class = facts.class[*party as usize];
        if !matches!(facts.kinds[class as usize], Kind::Alone(_)) {
            continue;
        }
        let mut likeness: Vec<(f64, u32)> = classes
            .iter()
            .map(|(class, (members, counts))| (alike(own, *members, counts), *class))
            .collect();
        likeness.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let second = likeness.get(1).map_or(0.0, |(score, _)| *score);
        if let Some((score, class)) = likeness.first()
            && *score >= ALIKE
            && score - second >= LEAD
        {
            adopted.push((*party, *class));
        }
    }
    for (party, class) in adopted {
        facts.class[party as usize] = class;
        facts.adopted.insert(party);
    }
}

fn alike(own: &BTreeSet<Trait>, members: usize, counts: &BTreeMap<Trait, usize>) -> f64 {
    let share = |count: usize| count as f64 / members as f64;
    let common: f64 = own.iter().filter_map(|kind| counts.get(kind)).map(|c| share(*c)).sum();
    let whole: f64 = counts.values().map(|count| share(*count)).sum();
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / own.len() as f64, common / whole);
    2.0 * precision * recall / (precision + recall)
}
