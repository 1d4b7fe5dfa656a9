//! From pairs to blocks: cells that may open to cells.

use std::collections::{BTreeMap, BTreeSet};

use super::Options;
use super::facts::{Facts, Pair, RUNGS};
use crate::resolve::Resolved;

/// A cell by its rung and number.
pub(super) type At = (u8, u32);
/// On how many days something must have been seen to be a rule, by however many.
pub(super) const REPEATED: u32 = 2;
/// What share of the parts of a large cell must speak, however rarely they do.
pub(super) const FEWEST_OF_MANY: f64 = 0.05;
/// What share of a block's larger side must speak where it is opened because of what is to come.
const FEWEST_TO_COME: f64 = 0.005;
/// What share of all meetings must be within places for that to be how the two classes meet.
const TOGETHER: f64 = 0.9;

/// What may open to what, and what speaks for it.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) from: At,
    pub(super) to: At,
    pub(super) service: u32,
    /// Pairs seen, sorted.
    pub(super) seen: Vec<(u32, u32)>,
    /// The sum of what was seen of them.
    pub(super) sum: Pair,
    /// Pair-days on which they were seen.
    pub(super) events: u64,
    /// In how many other places the same was seen, where this follows from them alone.
    pub(super) like: usize,
    /// How many of the class open to the other class with the service.
    pub(super) callers: usize,
}

/// Blocks for every conversation between two classes over a service, in their order, and the pairs that were seen on
/// one day and belong to none.
pub(super) fn learn(
    resolved: &Resolved,
    facts: &Facts,
    options: &Options,
) -> (Vec<Grant>, Vec<Pair>) {
    let class = |party: u32| facts.class[party as usize];
    let key = |pair: &Pair| (class(pair.from), class(pair.to), pair.service);
    let mut pairs = facts.pairs.clone();
    pairs.sort_unstable_by_key(|pair| (key(pair), pair.from, pair.to));
    let (mut grants, mut once) = (Vec::new(), Vec::new());
    for talk in pairs.chunk_by(|a, b| key(a) == key(b)) {
        let (from, to, _) = key(&talk[0]);
        Talk { resolved, facts, options, pairs: talk, tops: [facts.top(from), facts.top(to)] }
            .settle(&mut grants, &mut once);
    }
    (grants, once)
}

/// The conversation of two classes over one service.
struct Talk<'a> {
    resolved: &'a Resolved,
    facts: &'a Facts,
    options: &'a Options,
    pairs: &'a [Pair],
    /// The highest rung at each end.
    tops: [usize; 2],
}

/// The cells that a pair is in now: at the end that opened, and at the other.
type Label = [At; 2];

impl Talk<'_> {
    fn settle(&self, grants: &mut Vec<Grant>, once: &mut Vec<Pair>) {
        let together = self.together();
        // A pair that meets outside of its place is nobody else's example.
        let rungs = if together.is_some() { [0, 0] } else { self.fitting() };
        let mut labels: Vec<Label> = self
            .pairs
            .iter()
            .map(|pair| [self.at(pair, 0, rungs[0]), self.at(pair, 1, rungs[1])])
            .collect();
        if rungs != [0, 0] {
            self.break_up(&mut labels);
        }
        if together.is_some() {
            for (label, pair) in labels.iter_mut().zip(self.pairs) {
                let at = [self.at(pair, 0, 1), self.at(pair, 1, 1)];
                if self.is_together([at[0].1, at[1].1]) && !self.reopens(at) {
                    *label = at;
                }
            }
        }
        for end in [0, 1] {
            for rung in 0..self.tops[end] {
                self.rise(&mut labels, end, rung);
            }
        }
        let mut order: Vec<usize> = (0..self.pairs.len()).collect();
        order.sort_unstable_by_key(|place| (labels[*place], *place));
        let callers = self.pairs.iter().map(|pair| pair.from).collect::<BTreeSet<u32>>().len();
        for block in order.chunk_by(|a, b| labels[*a] == labels[*b]) {
            let pairs = || block.iter().map(|place| &self.pairs[*place]);
            let label = labels[block[0]];
            let mut sum = self.pairs[block[0]];
            let mut events = 0;
            let mut seen = Vec::with_capacity(block.len());
            sum.flows = 0;
            for pair in pairs() {
                seen.push((pair.from, pair.to));
                events += u64::from(pair.days.count_ones());
                sum.add(pair);
            }
            if label.iter().all(|at| at.0 == 0) && events < u64::from(REPEATED) {
                once.push(sum);
            } else {
                let service = sum.service;
                grants.push(Grant {
                    from: label[0],
                    to: label[1],
                    service,
                    seen,
                    sum,
                    events,
                    like: 0,
                    callers,
                });
            }
        }
        if let Some((places, unseen)) = &together {
            for cells in unseen.iter().filter(|cells| !self.reopens(cells.map(|cell| (1, cell)))) {
                let sum = Pair { flows: 0, days: 0, hours: 0, weekend: false, ..self.pairs[0] };
                let at = |end: usize| (1, cells[end]);
                let service = sum.service;
                grants.push(Grant {
                    from: at(0),
                    to: at(1),
                    service,
                    seen: vec![],
                    sum,
                    events: 0,
                    like: *places,
                    callers,
                });
            }
        }
    }

    /// Whether the two classes meet within places: what they do in those where both are is then every such place's. Says in how many places they
    /// were seen to, and in which they weren't.
    fn together(&self) -> Option<(usize, Vec<[u32; 2]>)> {
        if self.tops != [RUNGS - 1; 2] {
            return None;
        }
        let (mut all, mut within, mut once_outside) = (0_u64, 0_u64, 0_u64);
        let mut met: BTreeSet<[u32; 2]> = BTreeSet::new();
        for pair in self.pairs {
            let cells = [self.at(pair, 0, 1).1, self.at(pair, 1, 1).1];
            let days = u64::from(pair.days.count_ones());
            all += days;
            if self.is_together(cells) {
                within += days;
                met.insert(cells);
            } else {
                once_outside += u64::from(days <= 1);
            }
        }
        // Where ever new pairs meet elsewhere too, places aren't what they go by.
        if days_of(self.pairs) < REPEATED
            || met.len() < self.options.agree.max(2)
            || (within as f64) < TOGETHER * all as f64
            || once_outside as f64 > self.options.unseen * all as f64
        {
            return None;
        }
        let of = |end: usize| {
            let pair = &self.pairs[0];
            let class =
                self.facts.ladder[if end == 0 { pair.from } else { pair.to } as usize][RUNGS - 1];
            let mut homes: BTreeMap<u32, u32> = BTreeMap::new();
            for party in &self.facts.cells[RUNGS - 1][class as usize].parties {
                let cell = self.facts.ladder[*party as usize][1];
                homes.extend(self.facts.homes[cell as usize].map(|home| (home, cell)));
            }
            homes
        };
        let (from, to) = (of(0), of(1));
        let both = from.iter().filter_map(|(home, cell)| Some([*cell, *to.get(home)?]));
        let mut unseen: Vec<[u32; 2]> = both.filter(|cells| !met.contains(cells)).collect();
        // A class of one device in a place has nobody there to talk to but the other class.
        unseen.retain(|[from, to]| from != to || self.facts.cells[1][*from as usize].size > 1);
        let places = met.len();
        (places as f64 >= TOGETHER * (places + unseen.len()) as f64).then_some((places, unseen))
    }

    fn is_together(&self, cells: [u32; 2]) -> bool {
        let home = |cell: u32| self.facts.homes[cell as usize];
        home(cells[0]).is_some() && home(cells[0]) == home(cells[1])
    }

    fn at(&self, pair: &Pair, end: usize, rung: usize) -> At {
        let party = if end == 0 { pair.from } else { pair.to };
        (rung as u8, self.facts.ladder[party as usize][rung])
    }

    /// The rungs that open least while little is likely to come that they don't hold.
    fn fitting(&self) -> [usize; 2] {
        let all: u64 = self.pairs.iter().map(|pair| u64::from(pair.days.count_ones())).sum();
        let bound = self.options.unseen * all as f64;
        let tops = [0, 1].map(|end| if self.is_common(end) { self.tops[end] } else { 0 });
        let mut best: Option<(bool, u64, u64, [usize; 2])> = None;
        let mut keys: Vec<(u32, u32, u32, u32, u32)> = Vec::with_capacity(self.pairs.len());
        for rungs in (0..RUNGS * RUNGS).map(|at| [at / RUNGS, at % RUNGS]) {
            if rungs[0] > tops[0] || rungs[1] > tops[1] {
                continue;
            }
            keys.clear();
            keys.extend(self.pairs.iter().map(|pair| {
                let (from, to) = (self.at(pair, 0, rungs[0]), self.at(pair, 1, rungs[1]));
                (from.1, to.1, pair.from, pair.to, pair.days.count_ones())
            }));
            keys.sort_unstable();
            let (mut single, mut opens) = (0_u64, 0_u64);
            for cell in keys.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
                let at = [(rungs[0] as u8, cell[0].0), (rungs[1] as u8, cell[0].1)];
                // What too few speak for stays pairs, and of these more are likely still to come.
                if rungs != [0, 0]
                    && !self.enough_speak(
                        at,
                        [
                            cell.iter().map(|key| key.2).collect(),
                            cell.iter().map(|key| key.3).collect(),
                        ],
                    )
                {
                    single += cell.iter().filter(|key| key.4 <= 1).count() as u64;
                    opens = opens.saturating_add(cell.len() as u64);
                    continue;
                }
                single += u64::from(cell.len() == 1 && cell[0].4 <= 1);
                let size = |end: usize, cell: u32| self.facts.cells[rungs[end]][cell as usize].size;
                opens = opens.saturating_add(size(0, cell[0].0).saturating_mul(size(1, cell[0].1)));
            }
            let fits = single as f64 <= bound;
            // Those that fit by what they open, the others by what they miss.
            let rank = if fits { (false, 0, opens, rungs) } else { (true, single, opens, rungs) };
            if best.is_none_or(|best| rank < best) {
                best = Some(rank);
            }
            if fits && rungs == [0, 0] {
                break;
            }
        }
        best.map_or([0, 0], |(_, _, _, rungs)| rungs)
    }

    /// Whether enough of the class at one end take part for what they do to be its way, and not a few strays'.
    fn is_common(&self, end: usize) -> bool {
        let parties: BTreeSet<u32> =
            self.pairs.iter().map(|pair| self.at(pair, end, 0).1).collect();
        let Some(party) = parties.first() else { return false };
        let class = self.facts.ladder[*party as usize][RUNGS - 1];
        let size = self.facts.cells[RUNGS - 1][class as usize].parties.len();
        parties.len() as f64
            >= (FEWEST_OF_MANY * size as f64).max(self.options.agree.min(size) as f64)
    }

    /// Makes pairs again of blocks that too few speak for, of those that were seen on one day alone, which one incident may have made, and of those that hold what a
    /// rule's end closed.
    fn break_up(&self, labels: &mut [Label]) {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_unstable_by_key(|place| (labels[*place], *place));
        for start in chunks(&order, |place| labels[place]) {
            let speaking = [0, 1].map(|end| {
                start.iter().map(|place| self.at(&self.pairs[*place], end, 0).1).collect()
            });
            let label = labels[start[0]];
            let days = days_of(start.iter().map(|place| &self.pairs[*place]));
            if days < REPEATED || !self.enough_speak(label, speaking) || self.reopens(label) {
                for place in start {
                    let pair = &self.pairs[place];
                    labels[place] = [self.at(pair, 0, 0), self.at(pair, 1, 0)];
                }
            }
        }
    }

    /// Whether of each end of a block enough parties were seen for it to be opened because of what is to come. What was seen may name a party
    /// more than once.
    fn enough_speak(&self, at: Label, speaking: [Vec<u32>; 2]) -> bool {
        at.into_iter().zip(speaking).all(|((rung, cell), mut parties)| {
            if rung == 0 {
                return true;
            }
            let size = self.facts.cells[usize::from(rung)][cell as usize].size;
            let wanted =
                (FEWEST_TO_COME * size as f64).max(size.min(self.options.agree as u64) as f64);
            parties.sort_unstable();
            parties.dedup();
            parties.len() as f64 >= wanted
        })
    }

    /// Lifts the cells on `rung` at one end by a rung, where enough of the cells that it would unite agree.
    fn rise(&self, labels: &mut [Label], end: usize, rung: usize) {
        let mut order: Vec<usize> =
            (0..labels.len()).filter(|place| usize::from(labels[*place][end].0) == rung).collect();
        if order.is_empty() {
            return;
        }
        let above = |label: Label| self.facts.above(rung, label[end].1);
        let key = |label: Label| (above(label), label[1 - end]);
        order.sort_unstable_by_key(|place| (key(labels[*place]), labels[*place][end], *place));
        for block in chunks(&order, |place| key(labels[place])) {
            let cell = above(labels[block[0]]);
            let mut speaking: Vec<u32> = block.iter().map(|place| labels[*place][end].1).collect();
            speaking.dedup();
            let pairs = || block.iter().map(|place| &self.pairs[*place]);
            let events = pairs().map(|pair| u64::from(pair.days.count_ones())).sum();
            let mut lifted = labels[block[0]];
            lifted[end] = ((rung + 1) as u8, cell);
            if days_of(pairs()) >= REPEATED
                && self.agreed(rung, cell, &speaking, events)
                && !self.reopens(lifted)
            {
                for place in block {
                    labels[place][end] = ((rung + 1) as u8, cell);
                }
            }
        }
    }

    /// Whether a block would open again what a rule's end closed: somebody wrote that end, and what others do doesn't undo it.
    fn reopens(&self, label: Label) -> bool {
        let parties = label.map(|(rung, cell)| {
            let cell = &self.facts.cells[usize::from(rung)][cell as usize];
            cell.parties.as_slice()
        });
        let service = &self.facts.services[self.pairs[0].service as usize];
        self.facts.opened.reopens(self.resolved, parties, service)
    }

    /// Whether as many of a cell's parts speak as would if all did alike.
    fn agreed(&self, rung: usize, cell: u32, speaking: &[u32], events: u64) -> bool {
        let parts = &self.facts.cells[rung + 1][cell as usize].below;
        let size = self.facts.cells[rung + 1][cell as usize].size;
        // Of a network outside nobody knows the other addresses: it is opened because of what is to come, or not at all.
        if size != self.size_below(rung, parts) {
            return false;
        }
        if parts.len() == speaking.len() {
            return true;
        }
        let count = |number: usize| number as f64;
        if speaking.len() < self.options.agree
            || count(speaking.len()) < FEWEST_OF_MANY * count(parts.len())
        {
            return false;
        }
        let watched = |part: &u32| self.facts.cells[rung][*part as usize].watched;
        let all: f64 = parts.iter().map(watched).sum();
        let rate = events as f64 / all.max(1.0);
        let expected: f64 = parts.iter().map(|part| 1.0 - (-rate * watched(part)).exp()).sum();
        count(speaking.len()) >= (1.0 - self.options.dissent) * expected
    }

    fn size_below(&self, rung: usize, parts: &[u32]) -> u64 {
        parts.iter().map(|part| self.facts.cells[rung][*part as usize].size).sum()
    }
}

/// On how many days any of these was seen.
fn days_of<'a>(pairs: impl IntoIterator<Item = &'a Pair>) -> u32 {
    pairs.into_iter().fold(0, |days, pair| days | pair.days).count_ones()
}

/// Neighbours in `order` with the same key, each as a list.
fn chunks<K: PartialEq>(order: &[usize], key: impl Fn(usize) -> K) -> Vec<Vec<usize>> {
    order.chunk_by(|a, b| key(*a) == key(*b)).map(<[usize]>::to_vec).collect()
}
