//! What a device is, by what it lets be seen of itself: hints, its Ethernet address and the services that it offers and uses.
//!
//! # From hints to claims
//!
//! A [`Rulebook`] holds rules, makers with their addresses, and learnt likenesses; [`Rulebook::classify`] is pure: the same
//! observation and the same rulebook give the same claims, in whatever order hints came.
//!
//! Each rule that holds gives evidence for a value of a [`Field`], with a **weight**: of a hundred devices of which just that is
//! known, how many are what the rule says. Weights are fused for each field:
//!
//! 1. Evidence out of one source (`dhcp`, `mdns`, `ssdp`, names asked for, the address, flows …) isn't independent: of one source the
//!    strongest counts.
//! 2. Evidence of several sources for one value adds up as independent chances do: `s = 1 - (1 - a)(1 - b)…`, and never to more than 99 %.
//! 3. What speaks for other values lowers it. With odds `o = s / (1 - s)` for each value, the **confidence** of one is
//!    `o / (1 + sum of all odds)`: two values at 80 % leave 44 % for each.
//! 4. Below [`KNOWN`] percent a field is `unknown`, and what was nearest is shown as a candidate. From [`SURE`] on a claim may be proposed as a label.
//!
//! Roles don't exclude each other: each is a claim of its own, and step 3 is left out.
//!
//! A label that an operator confirmed, under a field's name, is the field's value whatever hints say ([`Claims::confirm`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anteroom_proto::inventory::{Hint, HintKind};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use serde::{Deserialize, Serialize};

use crate::decide::Party;
use crate::history::{History, Way};

mod fuse;
pub mod learnt;
pub mod oui;
mod parse;
mod rulebook;
mod shipped;
pub mod shown;
#[cfg(test)]
mod tests;

pub use rulebook::{MAX_RULES_LEN, Rulebook};

/// Below how many percent a field is unknown.
pub const KNOWN: u8 = 50;
/// From how many percent on a claim is proposed as a label, and goes into a suggested policy.
pub const SURE: u8 = 80;

/// The files of rules that Anteroom ships: name and text.
pub fn shipped() -> impl Iterator<Item = (&'static str, &'static str)> {
    shipped::FILES.into_iter()
}

/// What is claimed of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Field {
    /// Whose network interface it has, by its Ethernet address.
    Vendor,
    /// What kind of equipment it is: `ct`, `infusion-pump`, `printer`.
    Class,
    /// Who made the equipment.
    Make,
    /// Its model, as its maker writes it.
    Model,
    /// What it does for others: `dicom-scp`, `hl7-sender`, `file-server`. There may be several.
    Role,
    /// The family of its operating system.
    Os,
    /// What it calls itself.
    Hostname,
}

impl Field {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 7] =
        [Self::Vendor, Self::Class, Self::Make, Self::Model, Self::Role, Self::Os, Self::Hostname];

    /// Its word, which is also the label by which operators override it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Vendor => "vendor",
            Self::Class => "class",
            Self::Make => "make",
            Self::Model => "model",
            Self::Role => "role",
            Self::Os => "os",
            Self::Hostname => "hostname",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What is known of a device before anything is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// Its Ethernet address; none for a host.
    pub mac: Option<MacAddr>,
    /// What it let be seen.
    pub hints: BTreeSet<(HintKind, String)>,
    /// Ports at which it answered.
    pub offers: BTreeSet<(Protocol, u16)>,
    /// Ports of others at which it was answered.
    pub uses: BTreeSet<(Protocol, u16)>,
}

impl Observation {
    /// What hints tell of the device with this address.
    #[must_use]
    pub fn new<'a>(mac: Option<MacAddr>, hints: impl IntoIterator<Item = &'a Hint>) -> Self {
        let mut observation = Self { mac, ..Self::default() };
        for hint in hints {
            observation.add(hint.kind, &hint.value);
        }
        observation
    }

    /// Adds a hint.
    pub fn add(&mut self, kind: HintKind, value: &str) {
        if kind == HintKind::Listens
            && let Ok(PortMatch { protocol, first, .. }) = value.parse()
        {
            self.offers.insert((protocol, first));
        }
        self.hints.insert((kind, value.to_owned()));
    }

    /// Whether nothing but the address is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hints.is_empty() && self.offers.is_empty() && self.uses.is_empty()
    }
}

/// Services of everybody in the history: what they answered at, and what of others' they used.
///
/// Only what was answered counts, and nothing that was dropped.
#[derive(Debug, Clone, Default)]
pub struct Conversations {
    offers: BTreeMap<Party, BTreeSet<(Protocol, u16)>>,
    uses: BTreeMap<Party, BTreeSet<(Protocol, u16)>>,
}

impl Conversations {
    /// Most ports that are kept of one party on either side.
    const MOST: usize = 256;

    /// Those of a history.
    #[must_use]
    pub fn of(history: &History) -> Self {
        let mut found = Self::default();
        // A scan leaves many ports: the lowest stay, whatever order the history has.
        let mut keep = |side: bool, party, port| {
            let all = if side { &mut found.offers } else { &mut found.uses };
            let ports: &mut BTreeSet<_> = all.entry(party).or_default();
            ports.insert(port);
            if ports.len() > Self::MOST {
                ports.pop_last();
            }
        };
        for edge in history.edges() {
            if edge.answered() && edge.way != Way::Dropped {
                keep(false, edge.from, (edge.protocol, edge.port));
                keep(true, edge.to, (edge.protocol, edge.port));
            }
        }
        found
    }

    /// Adds a party's to what is known of it.
    pub fn add_to(&self, party: Party, observation: &mut Observation) {
        observation.offers.extend(self.offers.get(&party).into_iter().flatten());
        observation.uses.extend(self.uses.get(&party).into_iter().flatten());
    }
}

/// Why something is claimed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Evidence {
    /// How many of a hundred devices of which just this is known are what is claimed.
    pub weight: u8,
    /// Where it was seen: `dhcp`, `mdns`, `address`, `flows`.
    pub source: String,
    /// What was seen: `dhcp.hostname = "DCS-935L"`.
    pub seen: String,
    /// The rule that makes a claim of it.
    pub rule: String,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.seen, self.rule)
    }
}

/// A value of a field, and what speaks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Which field.
    pub field: Field,
    /// Its value.
    pub value: String,
    /// 0 to 100, by the arithmetic of [this module](self). 100 only where an operator confirmed it.
    pub confidence: u8,
    /// Whether an operator confirmed it by a label.
    pub confirmed: bool,
    /// What speaks for it, the strongest first.
    pub evidence: Vec<Evidence>,
}

/// What a device is taken for. A field that isn't there, or only with claims below [`KNOWN`], is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claims {
    /// In the order of fields, the surest of a field first.
    pub list: Vec<Claim>,
}

impl Claims {
    /// What is known of a field: its surest claim. Of roles there may be others.
    #[must_use]
    pub fn known(&self, field: Field) -> Option<&Claim> {
        self.of(field).find(|claim| claim.confidence >= KNOWN)
    }

    /// The value of a field, or `unknown`.
    #[must_use]
    pub fn value(&self, field: Field) -> &str {
        self.known(field).map_or("unknown", |claim| &claim.value)
    }

    /// All claims on a field, the surest first.
    pub fn of(&self, field: Field) -> impl Iterator<Item = &Claim> {
        self.list.iter().filter(move |claim| claim.field == field)
    }

    /// Roles that are known.
    pub fn roles(&self) -> impl Iterator<Item = &Claim> {
        self.of(Field::Role).filter(|claim| claim.confidence >= KNOWN)
    }

    /// Lays the labels that an operator confirmed over what is claimed: they win. What was claimed stays behind them as it was.
    pub fn confirm(&mut self, labels: &BTreeMap<Name, String>) {
        for field in Field::ALL {
            let Some(value) = labels.get(field.word()) else { continue };
            let same = |claim: &Claim| {
                claim.field == field && claim.value.to_lowercase() == value.to_lowercase()
            };
            let evidence = match self.list.iter().position(same) {
                Some(place) => self.list.remove(place).evidence,
                None => Vec::new(),
            };
            let place = self.list.partition_point(|claim| claim.field < field);
            let (value, confidence, confirmed) = (value.clone(), 100, true);
            let claim = Claim { field, value, confidence, confirmed, evidence };
            self.list.insert(place, claim);
        }
    }
}
