//! How much of a device's expected rhythm was seen: what was watched too little isn't to be enforced.
//!
//! A rule can only be learnt from what happened while somebody watched. So this asks, for each device, whether the
//! watch was long enough, held a weekend and a month's end, and whether the device did what its class does: a conversation that
//! four fifths of its class have and it hasn't, or a connection back that its protocol implies (storage commitment after DICOM) and that others get,
//! is likely still to come. Beside that it says what no watch is long enough for: kinds of conversation that go on bringing pairs which no
//! rule opens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anteroom_proto::id::MemberId;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::time::UnixMillis;

use crate::decide::Party;
use crate::history::{History, Way};
use crate::model::Model;
use crate::parties::label;
use crate::resolve::Resolved;

mod unforeseen;

pub use unforeseen::Unforeseen;

const DAY: u64 = 86_400_000;
/// Fewest of a class that say what is usual in it.
const FEWEST: usize = 3;

/// What must have been watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Days from first to last.
    pub days: u32,
    /// Days on which the device was seen at all.
    pub active_days: u32,
    /// Whether both days of a weekend must be among them.
    pub weekend: bool,
    /// Whether a month's end must be: its last two days and the next one's first.
    pub month_end: bool,
    /// What share of the usual conversations of its class it must have had.
    pub usual: f64,
}

impl Default for Demand {
    fn default() -> Self {
        Self { days: 14, active_days: 3, weekend: true, month_end: true, usual: 0.8 }
    }
}

/// Something that wasn't seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// It was watched for too few days.
    Days {
        /// Days from first to last.
        watched: u32,
        /// So many are asked for.
        wanted: u32,
    },
    /// It was seen on too few days.
    Active {
        /// Days on which it was seen.
        seen: u32,
        /// So many are asked for.
        wanted: u32,
    },
    /// No whole weekend was watched.
    Weekend,
    /// No month's end was watched.
    MonthEnd,
    /// What most of its class do.
    Usual {
        /// The service.
        service: PortMatch,
        /// Whether it would open.
        opens: bool,
        /// With whom.
        with: String,
    },
    /// A connection that comes back to others who call the same responder.
    Back {
        /// Who would open it.
        from: String,
        /// The service.
        service: PortMatch,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Days { watched, wanted } => {
                write!(f, "watched for {} of the {wanted} that are asked for", days(*watched))
            }
            Self::Active { seen, wanted } => {
                write!(f, "seen on {} of the {wanted} that are asked for", days(*seen))
            }
            Self::Weekend => f.write_str("no weekend was watched"),
            Self::MonthEnd => f.write_str("no end of a month was watched"),
            Self::Usual { service, opens: true, with } => {
                write!(f, "most of its class open {service} to {with}")
            }
            Self::Usual { service, opens: false, with } => {
                write!(f, "most of its class are opened to by {with} with {service}")
            }
            Self::Back { from, service } => {
                write!(f, "{from} opens {service} back to others who call it")
            }
        }
    }
}

fn days(count: u32) -> String {
    if count == 1 { "1 day".to_owned() } else { format!("{count} days") }
}

/// What was seen of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Coverage {
    /// Days from when watching it began to the history's last.
    pub watched_days: u32,
    /// Days on which it was seen.
    pub active_days: u32,
    /// Usual conversations of its class.
    pub usual: usize,
    /// Those of them that it had.
    pub had: usize,
    /// What wasn't seen, the watch first.
    pub missing: Vec<Missing>,
    /// Whether enough was seen to enforce it.
    pub enough: bool,
    /// What is likely still to come, by what devices of its class did on one day only, and would be dropped under the policy: the likeliest
    /// kinds. It is no reason against enforcing.
    pub unforeseen: Vec<Unforeseen>,
}

impl Coverage {
    /// [`Coverage::share`] in whole percent; 100 only where nothing is missing.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let most = if self.missing.is_empty() { 100.0 } else { 99.0 };
        (self.share() * 100.0).floor().clamp(0.0, most) as u8
    }

    /// The share of what is expected that was seen, from 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        let watch = self
            .missing
            .iter()
            .filter(|missing| !matches!(missing, Missing::Usual { .. } | Missing::Back { .. }));
        let back = self.missing.iter().filter(|missing| matches!(missing, Missing::Back { .. }));
        let expected = 4 + self.usual + back.clone().count();
        (4 - watch.count().min(4) + self.had) as f64 / expected as f64
    }
}

/// A kind of conversation: whether the device opens, the service, and the far end's class.
type Kind = (bool, PortMatch, String);

/// The coverage of every confirmed device at `now`, hosts aside.
#[must_use]
pub fn coverage(
    resolved: &Resolved,
    history: &History,
    demand: &Demand,
    now: UnixMillis,
) -> BTreeMap<MemberId, Coverage> {
    let (begin, until) = history.span().unwrap_or((now, now));
    // What nobody watched after the last report isn't covered.
    let until = until.min(now);
    let today = u32::try_from(until.0 / DAY).unwrap_or(u32::MAX);
    let class = |party: Party| match party {
        Party::Member(id) => {
            let labels = resolved.model.devices.get(&id).map(|device| &device.labels);
            labels
                .and_then(|labels| labels.get("class").cloned())
                .unwrap_or_else(|| label(resolved, party))
        }
        Party::Address(address) => address.to_string(),
    };
    let mut days: BTreeMap<MemberId, u64> = BTreeMap::new();
    let mut watched_since: BTreeMap<MemberId, UnixMillis> = BTreeMap::new();
    let mut kinds: BTreeMap<MemberId, BTreeSet<Kind>> = BTreeMap::new();
    // Who calls whom with DICOM, and who opens what to whom.
    let mut callers: BTreeMap<Party, BTreeSet<MemberId>> = BTreeMap::new();
    let mut opened: BTreeMap<Party, BTreeMap<PortMatch, BTreeSet<MemberId>>> = BTreeMap::new();
    for edge in history.edges().filter(|edge| edge.way != Way::Dropped) {
        let service = PortMatch { protocol: edge.protocol, first: edge.port, last: edge.port };
        let ends = [(edge.from, edge.to, true), (edge.to, edge.from, false)];
        for ((own, far, opens), told) in ends.into_iter().zip(edge.told) {
            let Party::Member(own) = own else { continue };
            *days.entry(own).or_default() |= edge.rhythm.days_before(today);
            if told {
                let since = watched_since.entry(own).or_insert(edge.first);
                *since = edge.first.min(*since);
            }
            if edge.answered() || edge.protocol == Protocol::Udp {
                kinds.entry(own).or_default().insert((opens, service, class(far)));
            }
        }
        if edge.answered() && edge.protocol == Protocol::Tcp {
            match (edge.from, edge.to) {
                (Party::Member(from), to) if is_dicom(edge.port) => {
                    callers.entry(to).or_default().insert(from);
                }
                (from, Party::Member(to)) => {
                    opened.entry(from).or_default().entry(service).or_default().insert(to);
                }
                _ => {}
            }
        }
    }
    let usual = usual(resolved, &days, &kinds);
    let mut unforeseen = unforeseen::unforeseen(resolved, history, today, &class);
    let none = BTreeSet::new();
    let mut found = BTreeMap::new();
    for (id, device) in resolved.model.devices.iter().filter(|(_, device)| !Model::is_host(device))
    {
        // Its gateway may have watched it long before somebody confirmed it. What others told of it is no watch.
        let since =
            watched_since.get(id).map_or(device.confirmed_at, |at| device.confirmed_at.min(*at));
        let from = begin.0.max(since.0);
        let first = u32::try_from(from / DAY).unwrap_or(u32::MAX);
        let active_days = days.get(id).map_or(0, |days| days.count_ones());
        let watched_days = if active_days == 0 { 0 } else { (today + 1).saturating_sub(first) };
        let mut missing = Vec::new();
        if watched_days < demand.days {
            missing.push(Missing::Days { watched: watched_days, wanted: demand.days });
        }
        if active_days < demand.active_days {
            missing.push(Missing::Active { seen: active_days, wanted: demand.active_days });
        }
        let watched = || (0..watched_days.min(400)).map(|back| today.saturating_sub(back));
        // Day 0 was a Thursday.
        let has = |wanted: u32| watched().any(|day| (day + 3) % 7 == wanted);
        if demand.weekend && !(has(5) && has(6)) {
            missing.push(Missing::Weekend);
        }
        if demand.month_end && !watched().any(|day| is_first_of_month(day) && day > first + 1) {
            missing.push(Missing::MonthEnd);
        }
        let own = kinds.get(id).unwrap_or(&EMPTY);
        let expected =
            device.labels.get("class").and_then(|class| usual.get(class)).unwrap_or(&EMPTY);
        let had = expected.intersection(own).count();
        for (opens, service, with) in expected.difference(own) {
            let (opens, service, with) = (*opens, *service, with.clone());
            missing.push(Missing::Usual { service, opens, with });
        }
        let mut back_missing = false;
        for (responder, _) in callers.iter().filter(|(_, callers)| callers.contains(id)) {
            let callers = callers.get(responder).unwrap_or(&none);
            for (service, to) in opened.get(responder).into_iter().flatten() {
                // Others of its class get it, and it doesn't.
                let mates = to.iter().filter(|to| {
                    callers.contains(to) && class(Party::Member(**to)) == class(Party::Member(*id))
                });
                if mates.count() > 0 && !to.contains(id) {
                    back_missing = true;
                    missing.push(Missing::Back {
                        from: label(resolved, *responder),
                        service: *service,
                    });
                }
            }
        }
        let watch = missing
            .iter()
            .any(|missing| !matches!(missing, Missing::Usual { .. } | Missing::Back { .. }));
        let enough = !watch && !back_missing && had as f64 >= demand.usual * expected.len() as f64;
        let unforeseen = unforeseen.remove(id).unwrap_or_default();
        let usual = expected.len();
        found.insert(
            *id,
            Coverage { watched_days, active_days, usual, had, missing, enough, unforeseen },
        );
    }
    found
}

static EMPTY: BTreeSet<Kind> = BTreeSet::new();

/// What four fifths of those of a class that were seen do, by class.
fn usual(
    resolved: &Resolved,
    days: &BTreeMap<MemberId, u64>,
    kinds: &BTreeMap<MemberId, BTreeSet<Kind>>,
) -> BTreeMap<String, BTreeSet<Kind>> {
    let mut classes: BTreeMap<String, (usize, BTreeMap<&Kind, usize>)> = BTreeMap::new();
    for (id, device) in &resolved.model.devices {
        let Some(class) = device.labels.get("class").filter(|_| days.contains_key(id)) else {
            continue;
        };
        let (members, counts) = classes.entry(class.clone()).or_default();
        *members += 1;
        for kind in kinds.get(id).into_iter().flatten() {
            *counts.entry(kind).or_default() += 1;
        }
    }
    classes
        .into_iter()
        .filter(|(_, (members, _))| *members >= FEWEST)
        .map(|(class, (members, counts))| {
            let most = counts.into_iter().filter(|(_, count)| count * 5 >= members * 4);
            (class, most.map(|(kind, _)| kind.clone()).collect())
        })
        .collect()
}

fn is_dicom(port: u16) -> bool {
    let ports = crate::service_catalog::find("dicom").map(|service| service.ports);
    ports.unwrap_or_default().iter().any(|known| known.matches(Protocol::Tcp, port))
}

fn is_first_of_month(day: u32) -> bool {
    let at = UnixMillis(u64::from(day) * DAY);
    i64::try_from(at.0)
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .is_some_and(|at| jiff::tz::Offset::UTC.to_datetime(at).day() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::End;
    use crate::fixture::{HOUR, NOW, device, hospital, member_id};
    use crate::history::{Counts, Seen};

    fn daily(history: &mut History, from: u32, to: u32, port: u16, days: std::ops::Range<u64>) {
        for day in days {
            let at = UnixMillis(NOW.0 - 40 * DAY + day * DAY + 9 * HOUR);
            let counts = Counts { flows: 1, packets: 5, packets_back: 5, ..Counts::default() };
            let (from, to) = (Party::Member(member_id(from)), Party::Member(member_id(to)));
            let (protocol, way) = (Protocol::Tcp, Way::Clear);
            let at_end = End::From;
            history.add(&Seen {
                from,
                to,
                protocol,
                port,
                way,
                at: at_end,
                counts,
                first: at,
                last: at,
            });
        }
    }

    #[test]
    fn what_mates_do_and_what_comes_back_is_expected() {
        let mut model = hospital();
        for number in 10..13 {
            let called = format!("ct-{number}");
            let port = format!("port{number}");
            let address = [10, 20, 1, number as u8];
            model.devices.extend([device(number, &called, 1, &port, address, "ct")]);
        }
        for device in model.devices.values_mut() {
            device.confirmed_at = UnixMillis(NOW.0 - 40 * DAY);
        }
        let resolved = Resolved::new(&model).unwrap();
        let mut history = History::new(1000);
        // Three scanners send images and worklist queries and get storage commitment; one only sends.
        for number in [1, 10, 11, 12] {
            daily(&mut history, number, 5, 104, 0..30);
            if number != 12 {
                daily(&mut history, number, 6, 2575, 0..30);
                daily(&mut history, 5, number, 4006, 0..30);
            }
        }
        daily(&mut history, 2, 5, 104, 27..30);
        let found = coverage(&resolved, &history, &Demand::default(), NOW);
        let of = |number| &found[&member_id(number)];
        assert!(of(1).enough && of(1).missing.len() < 3, "{:?}", of(1));
        assert!(!of(12).enough, "{:?}", of(12));
        assert!(of(12).missing.iter().any(
            |missing| matches!(missing, Missing::Back { service, .. } if service.first == 4006)
        ));
        assert!(of(12).share() < of(1).share());
        assert!(!of(3).enough, "never seen");
        let words: Vec<String> = of(3).missing.iter().map(ToString::to_string).collect();
        assert!(words[0].contains("0 days of the 14"), "{words:?}");
    }

    #[test]
    fn what_a_class_goes_on_to_do_and_no_rule_opens_is_said_of_all_of_it() {
        let mut model = hospital();
        for (first, class) in [(10, "desk"), (30, "printer")] {
            for number in first..first + 8 {
                let called = format!("{class}-{number}");
                let address = [10, 20, 1, number as u8];
                let port = format!("port{number}");
                model.devices.extend([device(number, &called, 1, &port, address, class)]);
            }
        }
        let mut history = History::new(1000);
        for number in 0..7 {
            // Each has its printer, and went to another one once; the last desk did nothing of the kind.
            daily(&mut history, 10 + number, 30 + number, 9100, 0..30);
            daily(&mut history, 10 + number, 30 + (number + 1) % 8, 9100, 20..21);
        }
        // One of them scanned.
        for number in 30..38 {
            daily(&mut history, 10, number, 445, 25..26);
        }
        let of = |policy: &str, number| {
            let resolved = Resolved::from_text(&model, "policy", policy).unwrap();
            let found = coverage(&resolved, &history, &Demand::default(), NOW);
            let unforeseen = &found[&member_id(number)].unforeseen;
            unforeseen.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let printing =
            "tcp/9100 opened to printer (7 pairs of its class seen on one day, in no rule)";
        let own = "tcp/9100 opened to printer (1 pair seen on one day, in no rule)";
        assert_eq!(of("format = 1", 17), [printing]);
        assert_eq!(of("format = 1", 11), [own]);
        assert_eq!(
            of("format = 1", 10).len(),
            2,
            "whoever scanned is told of it, and nobody else of its class"
        );
        assert_eq!(
            of("format = 1", 37)[0],
            "tcp/445 opened to it by desk (1 pair seen on one day, in no rule)"
        );
        let open = "format = 1\n[segment.desks]\nmatch = { label = { class = \"desk\" } }\n[segment.printers]\nmatch = { label = { class = \"printer\" } }\n\
                    [rule.print]\nfrom = \"desks\"\nto = \"printers\"\nservices = [\"jetdirect\"]\n";
        assert_eq!(of(open, 17), [""; 0]);
        assert_eq!(of(open, 11), [""; 0]);
    }

    #[test]
    fn the_watch_begins_with_what_its_own_gateway_saw() {
        // Both were confirmed two days ago; only the scanner's gateway has been there for longer.
        let resolved = Resolved::new(&hospital()).unwrap();
        let mut history = History::new(100);
        daily(&mut history, 1, 5, 104, 0..40);
        let found = coverage(&resolved, &history, &Demand::default(), NOW);
        assert_eq!((found[&member_id(1)].watched_days, found[&member_id(1)].enough), (40, true));
        assert!(found[&member_id(5)].watched_days < 3, "{:?}", found[&member_id(5)]);
        assert!(!found[&member_id(5)].enough);
    }

    #[test]
    fn a_watch_without_weekend_or_month_end_is_too_short() {
        let mut model = hospital();
        for device in model.devices.values_mut() {
            device.confirmed_at = UnixMillis(NOW.0 - 40 * DAY);
        }
        let resolved = Resolved::new(&model).unwrap();
        let mut history = History::new(1000);
        // NOW - 40 days is Tuesday, 2026-10-13; three days on is Friday.
        daily(&mut history, 1, 5, 104, 0..3);
        let demand = Demand { days: 3, ..Demand::default() };
        let found = coverage(&resolved, &history, &demand, NOW);
        assert_eq!(found[&member_id(1)].missing, [Missing::Weekend, Missing::MonthEnd]);
        daily(&mut history, 1, 5, 104, 3..24);
        let found = coverage(&resolved, &history, &demand, NOW);
        assert!(found[&member_id(1)].enough, "{:?}", found[&member_id(1)]);
    }
}
