//! The protect surface: how much care hangs on a device, what its data tell of patients, whose it is and where it stands.
//!
//! Operators say it of devices and clients by labels, and of segments in the policy, by the same words: `criticality`,
//! `sensitivity`, `owner`, `location`. What a device's own label doesn't say it has from its segments. None of it reaches a view.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anteroom_proto::id::MemberId;
use anteroom_proto::intent::Endpoint;
use anteroom_proto::name::Name;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::decide::Party;
use crate::edit::MAX_LABEL_LEN;
use crate::model::Model;
use crate::policy::Policy;
use crate::problem::did_you_mean;
use crate::resolve::{Resolved, Side};

#[cfg(test)]
mod tests;

/// The label, and key of a segment, for [`Criticality`].
pub const CRITICALITY: &str = "criticality";
/// The label, and key of a segment, for [`Sensitivity`].
pub const SENSITIVITY: &str = "sensitivity";
/// The label, and key of a segment, that says who answers for it.
pub const OWNER: &str = "owner";
/// The label, and key of a segment, that says where it stands.
pub const LOCATION: &str = "location";
/// The four, in the order in which they are shown.
pub const KEYS: [&str; 4] = [CRITICALITY, SENSITIVITY, OWNER, LOCATION];

/// How much care hangs on a device. The greater the more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criticality {
    /// Care goes on without it: building control, printers, offices.
    Support,
    /// Care is given with it: scanners, archives, laboratories.
    Clinical,
    /// A life may hang on it: ventilators, infusion pumps, monitors and what takes their alarms.
    LifeSupport,
}

/// What a device's data tell of patients. The greater the more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitivity {
    /// Nothing that has to be kept from anybody.
    None,
    /// Nothing of patients, but not for everybody.
    Internal,
    /// It holds or sends what names patients.
    PatientData,
}

/// Text that isn't one of the words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no {what}: choose {choices}{hint}")]
pub struct ParseWordError {
    what: &'static str,
    text: String,
    choices: &'static str,
    hint: String,
}

macro_rules! words {
    ($type:ident, $what:literal, $choices:literal, $($word:literal => $value:ident),+) => {
        impl $type {
            /// All of them, the greatest first.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// The word for it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $word),+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = ParseWordError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$value),)+
                    _ => Err(ParseWordError {
                        what: $what,
                        text: text.chars().take(40).collect(),
                        choices: $choices,
                        hint: did_you_mean(text, [$($word),+]),
                    }),
                }
            }
        }
    };
}

words!(Criticality, "criticality", "life-support, clinical or support",
    "life-support" => LifeSupport, "clinical" => Clinical, "support" => Support);
words!(Sensitivity, "sensitivity", "patient-data, internal or none",
    "patient-data" => PatientData, "internal" => Internal, "none" => None);

/// Why a label, or a segment's key, of one of the [`KEYS`] can't have this value; nothing where it can, and for other labels.
#[must_use]
pub fn problem(key: &str, value: &str) -> Option<String> {
    match key {
        CRITICALITY => value.parse::<Criticality>().err().map(|error| error.to_string()),
        SENSITIVITY => value.parse::<Sensitivity>().err().map(|error| error.to_string()),
        OWNER | LOCATION if value.trim().is_empty() => {
            Some("the value is empty: leave it out instead".into())
        }
        OWNER | LOCATION if value.len() > MAX_LABEL_LEN => {
            Some(format!("the value is longer than {MAX_LABEL_LEN} bytes"))
        }
        OWNER | LOCATION if value.chars().any(char::is_control) => {
            Some("the value has a control character in it".into())
        }
        _ => None,
    }
}

/// What is said of one thing by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stated {
    /// How much care hangs on it.
    pub criticality: Option<Criticality>,
    /// What its data tell of patients.
    pub sensitivity: Option<Sensitivity>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Where it stands.
    pub location: Option<String>,
}

impl Stated {
    /// What labels say. A value that is none of the words says nothing.
    #[must_use]
    pub fn of_labels(labels: &BTreeMap<Name, String>) -> Self {
        let label = |key: &str| labels.get(key).map(String::as_str);
        Self {
            criticality: label(CRITICALITY).and_then(|word| word.parse().ok()),
            sensitivity: label(SENSITIVITY).and_then(|word| word.parse().ok()),
            owner: label(OWNER).map(str::to_owned),
            location: label(LOCATION).map(str::to_owned),
        }
    }

    fn of_member(model: &Model, id: MemberId) -> Self {
        let labels = model.devices.get(&id).map(|device| &device.labels);
        let labels = labels.or_else(|| model.clients.get(&id).map(|client| &client.labels));
        labels.map(Self::of_labels).unwrap_or_default()
    }

    /// What is said, as `key=value`.
    pub(crate) fn words(&self) -> impl Iterator<Item = String> {
        let said = [
            (CRITICALITY, self.criticality.map(|word| word.to_string())),
            (SENSITIVITY, self.sensitivity.map(|word| word.to_string())),
            (OWNER, self.owner.clone()),
            (LOCATION, self.location.clone()),
        ];
        said.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)))
    }

    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Something said of a device, with who says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said<T> {
    /// What is said.
    pub value: T,
    /// The segment that says it; none where the device's own label does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<Name>,
}

impl<T: fmt::Display> fmt::Display for Said<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.segment {
            Some(segment) => write!(f, "{} (segment {segment})", self.value),
            None => self.value.fmt(f),
        }
    }
}

/// What holds for a device, by its own labels or by its segments.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Surface {
    /// How much care hangs on it: its own word, or the greatest of its segments'.
    pub criticality: Option<Said<Criticality>>,
    /// What its data tell of patients: its own word, or the greatest of its segments'.
    pub sensitivity: Option<Said<Sensitivity>>,
    /// Who answers for it: its own word, or its segments' where they agree.
    pub owner: Option<Said<String>>,
    /// Where it stands: its own word, or its segments' where they agree.
    pub location: Option<Said<String>>,
}

impl Surface {
    fn of(own: Stated, segments: &[(&Name, &Stated)]) -> Self {
        Self {
            criticality: greatest(own.criticality, segments, |said| said.criticality),
            sensitivity: greatest(own.sensitivity, segments, |said| said.sensitivity),
            owner: agreed(own.owner, segments, |said| said.owner.as_ref()),
            location: agreed(own.location, segments, |said| said.location.as_ref()),
        }
    }

    /// How much care hangs on it.
    #[must_use]
    pub fn criticality(&self) -> Option<Criticality> {
        self.criticality.as_ref().map(|said| said.value)
    }

    /// What its data tell of patients.
    #[must_use]
    pub fn sensitivity(&self) -> Option<Sensitivity> {
        self.sensitivity.as_ref().map(|said| said.value)
    }

    /// Whether a life may hang on it.
    #[must_use]
    pub fn is_life_support(&self) -> bool {
        self.criticality() == Some(Criticality::LifeSupport)
    }
}

fn greatest<T: Copy + Ord>(
    own: Option<T>,
    segments: &[(&Name, &Stated)],
    said: impl Fn(&Stated) -> Option<T>,
) -> Option<Said<T>> {
    if let Some(value) = own {
        return Some(Said { value, segment: None });
    }
    // Of equals the first by name is cited.
    let found = segments.iter().filter_map(|(name, stated)| Some((said(stated)?, *name)));
    let (value, name) = found.reduce(|a, b| if b.0 > a.0 { b } else { a })?;
    Some(Said { value, segment: Some(name.clone()) })
}

fn agreed<'a>(
    own: Option<String>,
    segments: &[(&'a Name, &'a Stated)],
    said: impl Fn(&'a Stated) -> Option<&'a String>,
) -> Option<Said<String>> {
    if let Some(value) = own {
        return Some(Said { value, segment: None });
    }
    let mut found = segments.iter().filter_map(|(name, stated)| Some((said(stated)?, *name)));
    let (value, name) = found.next()?;
    found
        .all(|(other, _)| other == value)
        .then(|| Said { value: value.clone(), segment: Some(name.clone()) })
}

/// The protect surface of every member, and of externals by what their segments say.
#[derive(Debug, Clone, Default)]
pub struct Surfaces {
    members: BTreeMap<MemberId, Surface>,
    externals: BTreeMap<Name, Surface>,
    /// Externals by their prefixes: the narrowest that holds an address says what there is to say of it.
    prefixes: BTreeMap<Ipv4Net, Name>,
    /// How long those prefixes are, the longest first.
    lengths: Vec<u8>,
    nothing: Surface,
}

impl Surfaces {
    /// What `resolved` says.
    #[must_use]
    pub fn of(resolved: &Resolved) -> Self {
        let (model, policy) = (&resolved.model, &resolved.policy);
        let ids = model.devices.keys().chain(model.clients.keys());
        let members = ids.map(|id| (*id, of_member(resolved, *id))).collect();
        let mut found = Self { members, ..Self::default() };
        for (name, external) in &policy.externals {
            let holding = policy.segments.iter().filter(|(_, segment)| {
                !segment.surface.is_empty()
                    && segment.externals.iter().any(|one| one.value == *name)
            });
            let said: Vec<_> = holding.map(|(name, segment)| (name, &segment.surface)).collect();
            for net in external.prefixes.iter().map(Ipv4Net::trunc) {
                // Of two with the same prefix the one of which something is said counts.
                if !said.is_empty() || !found.prefixes.contains_key(&net) {
                    found.prefixes.insert(net, name.clone());
                }
            }
            found.externals.insert(name.clone(), Surface::of(Stated::default(), &said));
        }
        found.lengths = found.prefixes.keys().map(Ipv4Net::prefix_len).collect();
        found.lengths.sort_unstable_by_key(|length| std::cmp::Reverse(*length));
        found.lengths.dedup();
        found
    }

    /// What own labels say, for a model whose policy has problems.
    #[must_use]
    pub fn of_labels(model: &Model) -> Self {
        let ids = model.devices.keys().chain(model.clients.keys());
        let own = |id: &MemberId| (*id, Surface::of(Stated::of_member(model, *id), &[]));
        Self { members: ids.map(own).collect(), ..Self::default() }
    }

    /// What holds for a member.
    #[must_use]
    pub fn member(&self, id: MemberId) -> &Surface {
        self.members.get(&id).unwrap_or(&self.nothing)
    }

    /// What holds for an external, whatever others lie within it or around it.
    #[must_use]
    pub fn external(&self, name: &Name) -> &Surface {
        self.externals.get(name).unwrap_or(&self.nothing)
    }

    /// What holds for an address that is no member's: that of the narrowest external around it.
    #[must_use]
    pub fn address(&self, address: Ipv4Addr) -> &Surface {
        let around = |length: &u8| Ipv4Net::new(address, *length).ok().map(|net| net.trunc());
        let mut nets = self.lengths.iter().filter_map(around);
        let found = nets.find_map(|net| self.prefixes.get(&net));
        found.map_or(&self.nothing, |name| self.external(name))
    }

    /// What holds for one end of a flow.
    #[must_use]
    pub fn party(&self, party: Party) -> &Surface {
        match party {
            Party::Member(id) => self.member(id),
            Party::Address(address) => self.address(address),
        }
    }
}

/// What holds for one member: for all of them ask [`Surfaces`].
#[must_use]
pub fn of_member(resolved: &Resolved, id: MemberId) -> Surface {
    let sides = resolved.sides_of(id).iter().map(|side| resolved.side(*side));
    let said: Vec<_> = sides.filter_map(|side| of_side(&resolved.policy, side)).collect();
    Surface::of(Stated::of_member(&resolved.model, id), &said)
}

fn of_side<'a>(policy: &'a Policy, side: &'a Side) -> Option<(&'a Name, &'a Stated)> {
    if !matches!(side.endpoint, Endpoint::Segment(_)) {
        return None;
    }
    let stated = &policy.segments.get(&side.name)?.surface;
    (!stated.is_empty()).then_some((&side.name, stated))
}
