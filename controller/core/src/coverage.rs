//! How much of a device's expected rhythm was seen: what was watched too little isn't to be enforced.
//!
//! A rule can only be learnt from what happened while somebody watched. So this asks, for each device, whether the
//! watch was long enough, held a weekend and a month's end (days on which its gateway reported nothing don't count), and whether the device did what its class does: a conversation that
//! four fifths of its class have and it hasn't, a connection back that its protocol implies (storage commitment after DICOM images, results after HL7 orders) and that
//! others get, or the maintenance that rules open to several of its class, is likely still to come. Beside that it says what no watch is long enough for: kinds of conversation that go on bringing pairs which no
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
use maintenance::Maintenance;
use watched::Watched;

mod maintenance;
#[cfg(test)]
mod tests;
mod unforeseen;
mod watched;

pub use unforeseen::Unforeseen;

const DAY: u64 = 86_400_000;
/// Fewest of a class that say what is usual in it.
const FEWEST: usize = 3;

/// What must have been watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    /// Days on which the device's own gateway reported.
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

impl Default for Wanted {
    fn default() -> Self {
        Self { days: 14, active_days: 3, weekend: true, month_end: true, usual: 0.8 }
    }
}

/// Something that wasn't seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// It was watched for too few days.
    Days {
        /// Days on which its gateway reported.
        watched: u32,
        /// So many are asked for.
        wanted: u32,
        /// Days on which its gateway told nothing, since it first told of it.
        silent: u32,
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
    /// Maintenance that others of its class get.
    Maintenance {
        /// Who looks after them.
        from: String,
        /// With what.
        service: PortMatch,
    },
}

impl Missing {
    /// Whether it is a lack of watching, and not of something that others of its class do.
    const fn is_of_the_watch(&self) -> bool {
        matches!(self, Self::Days { .. } | Self::Active { .. } | Self::Weekend | Self::MonthEnd)
    }

    /// Whether one of it is enough against enforcing.
    const fn counts_alone(&self) -> bool {
        !matches!(self, Self::Usual { .. })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Days { watched, wanted, silent } => {
                write!(f, "watched for {} of the {wanted} that are asked for", days(*watched))?;
                if *silent > 0 {
                    write!(f, " (its gateway told nothing on {} since)", days(*silent))?;
                }
                Ok(())
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
            Self::Maintenance { from, service } => {
                write!(
                    f,
                    "{from} maintains others of its class with {service}, for which it has no rule"
                )
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
    /// Days of the last 64 on which its own gateway watched it.
    pub watched_days: u32,
    /// Days since the first of them on which its gateway told nothing.
    pub silent_days: u32,
    /// Days on which it was seen.
    pub active_days: u32,
    /// Days of the last 64 on which somebody looked after it from elsewhere: a shell or a remote screen was opened to it.
    pub maintained_days: u32,
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
        let watch = self.missing.iter().filter(|missing| missing.is_of_the_watch()).count();
        let alone = self.missing.iter().filter(|missing| missing.counts_alone()).count();
        let expected = 4 + self.usual + alone - watch;
        (4 - watch.min(4) + self.had) as f64 / expected as f64
    }
}

/// A kind of conversation: whether the device opens, the service, and the far end's class.
type Kind = (bool, PortMatch, String);

/// The coverage of every confirmed device at `now`, hosts aside.
#[must_use]
pub fn coverage(
    resolved: &Resolved,
    history: &History,
    wanted: &Wanted,
    now: UnixMillis,
) -> BTreeMap<MemberId, Coverage> {
    let day = |at: UnixMillis| u32::try_from(at.0 / DAY).unwrap_or(u32::MAX);
    let newest = history.span().map(|(_, last)| day(last)).max(history.watch().newest_day());
    let today = newest.unwrap_or_default().min(day(now));
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
    let mut kinds: BTreeMap<MemberId, BTreeSet<Kind>> = BTreeMap::new();
    let mut maintenance = Maintenance::new(resolved);
    // Who calls whom with what names patients, which is DICOM and HL7 and the like, and who opens what to whom.
    let mut callers: BTreeMap<Party, BTreeSet<MemberId>> = BTreeMap::new();
    let mut opened: BTreeMap<Party, BTreeMap<PortMatch, BTreeSet<MemberId>>> = BTreeMap::new();
    for edge in history.edges().filter(|edge| edge.way != Way::Dropped) {
        let service = PortMatch { protocol: edge.protocol, first: edge.port, last: edge.port };
        maintenance.add(resolved, &edge, today);
        let ends = [(edge.from, edge.to, true), (edge.to, edge.from, false)];
        for (own, far, opens) in ends {
            let Party::Member(own) = own else { continue };
            *days.entry(own).or_default() |= edge.rhythm.days_before(today);
            if edge.answered() || edge.protocol == Protocol::Udp {
                kinds.entry(own).or_default().insert((opens, service, class(far)));
            }
        }
        if edge.answered() && edge.protocol == Protocol::Tcp {
            // A member's answer back may come on a port of the same protocol, so that one edge is both.
            let named = resolved.policy.patient_data(edge.protocol, edge.port);
            if let (Party::Member(from), true) = (edge.from, named) {
                callers.entry(edge.to).or_default().insert(from);
            }
            if let Party::Member(to) = edge.to {
                opened.entry(edge.from).or_default().entry(service).or_default().insert(to);
            }
        }
    }
    let usual = usual(resolved, &days, &kinds);
    let mut unforeseen = unforeseen::unforeseen(resolved, history, today, &class);
    let none = BTreeSet::new();
    let mut found = BTreeMap::new();
    for (id, device) in resolved.model.devices.iter().filter(|(_, device)| !Model::is_host(device))
    {
        let active_days = days.get(id).map_or(0, |days| days.count_ones());
        let bits = if active_days == 0 { 0 } else { history.watch().days_of(*id, device, today) };
        let watched = Watched { today, bits };
        let mut missing = Vec::new();
        if watched.days() < wanted.days {
            missing.push(Missing::Days {
                watched: watched.days(),
                wanted: wanted.days,
                silent: watched.silent_days(),
            });
        }
        if active_days < wanted.active_days {
            missing.push(Missing::Active { seen: active_days, wanted: wanted.active_days });
        }
        if wanted.weekend && !watched.a_weekend() {
            missing.push(Missing::Weekend);
        }
        if wanted.month_end && !watched.a_month_end() {
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
        missing.extend(maintenance.missing(resolved, *id));
        for (responder, _) in callers.iter().filter(|(_, callers)| callers.contains(id)) {
            let callers = callers.get(responder).unwrap_or(&none);
            for (service, to) in opened.get(responder).into_iter().flatten() {
                // Others of its class get it, and it doesn't.
                let mates = to.iter().filter(|to| {
                    callers.contains(to) && class(Party::Member(**to)) == class(Party::Member(*id))
                });
                if mates.count() > 0 && !to.contains(id) {
                    missing.push(Missing::Back {
                        from: label(resolved, *responder),
                        service: *service,
                    });
                }
            }
        }
        let enough = !missing.iter().any(Missing::counts_alone)
            && had as f64 >= wanted.usual * expected.len() as f64;
        let unforeseen = unforeseen.remove(id).unwrap_or_default();
        let usual = expected.len();
        let (watched_days, silent_days) = (watched.days(), watched.silent_days());
        found.insert(
            *id,
            Coverage {
                watched_days,
                silent_days,
                active_days,
                maintained_days: maintenance.days_of(*id),
                usual,
                had,
                missing,
                enough,
                unforeseen,
            },
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
