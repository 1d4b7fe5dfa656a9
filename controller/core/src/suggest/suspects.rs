//! Devices that look as if they were scanning, and what only they do.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Facts, Pair};

/// How many strangers one must call to be suspected.
const MANY: usize = 10;
/// How many of a class make a conversation theirs, so that no scanner's can be taken for it.
const MATES: usize = 3;
/// On how many days a call that isn't repeated was made.
const FEW_DAYS: u32 = 2;

/// Takes out of the pairs what scanners alone do, and gives it back for questions.
///
/// A device scans with a service if it calls at least ten whom fewer than three of its class call, and either gets no answer from as many others, or
/// has class mates and calls most of the ten on two days at most. Those who call itself again and again aren't among the ten: a server that fills
/// its pumps' drug libraries once a month is no scanner.
pub(super) fn take(facts: &mut Facts) -> Vec<Pair> {
    let mut silent: BTreeMap<u32, usize> = BTreeMap::new();
    for call in &facts.unanswered {
        // Calls to many ports were folded into one edge, which stands for at least a handful.
        *silent.entry(call.from).or_default() += if call.port == 0 { MANY } else { 1 };
    }
    let mut callers: BTreeMap<(u32, u32, u32), BTreeSet<u32>> = BTreeMap::new();
    for pair in &facts.pairs {
        let (class, far) = (facts.class[pair.from as usize], facts.class[pair.to as usize]);
        let callers = callers.entry((class, pair.service, far)).or_default();
        if callers.len() < MATES {
            callers.insert(pair.from);
        }
    }
    let alone = |pair: &Pair| {
        let (class, far) = (facts.class[pair.from as usize], facts.class[pair.to as usize]);
        callers.get(&(class, pair.service, far)).is_none_or(|callers| callers.len() < MATES)
    };
    let regular = facts.pairs.iter().filter(|pair| pair.days.count_ones() > FEW_DAYS);
    let callers_of: BTreeSet<(u32, u32)> = regular.map(|pair| (pair.to, pair.from)).collect();
    let mut calls: BTreeMap<(u32, u32), (usize, usize)> = BTreeMap::new();
    let strangers = |pair: &&Pair| alone(pair) && !callers_of.contains(&(pair.from, pair.to));
    for pair in facts.pairs.iter().filter(strangers) {
        let (all, brief) = calls.entry((pair.from, pair.service)).or_default();
        *all += 1;
        *brief += usize::from(pair.days.count_ones() <= FEW_DAYS);
    }
    let mut members: BTreeMap<u32, usize> = BTreeMap::new();
    facts.class.iter().for_each(|class| *members.entry(*class).or_default() += 1);
    let scans = |pair: &Pair| {
        let Some((all, brief)) = calls.get(&(pair.from, pair.service)) else { return false };
        let unanswered = silent.get(&pair.from).copied().unwrap_or(0);
        let mates = members.get(&facts.class[pair.from as usize]).copied().unwrap_or(0);
        let briefly = brief * 2 > *all;
        // One who gets many silences has its few answers suspected too.
        (unanswered >= MANY && briefly && all + unanswered >= 2 * MANY)
            || (*all >= MANY && mates >= MATES && briefly)
    };
    let (bad, good): (Vec<Pair>, Vec<Pair>) =
        facts.pairs.iter().partition(|pair| alone(pair) && scans(pair));
    facts.pairs = good;
    bad
}
