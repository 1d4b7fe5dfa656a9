//! Likenesses: what devices that somebody named have in common, learnt from what was seen of them, and the nearest of them to another device.
//!
//! A **trait** is a hint with what is one device's own taken out of it (its address, numbers, identifiers), the first three bytes of
//! its address, or a port that it offers or uses. Of each name that is learnt a [`Like`] keeps in how many of a hundred observations each trait was.
//!
//! # How near
//!
//! A trait weighs the more the fewer names have it: `ln((n + 1) / (names that have it + 0.5))` of `n` names, half of that where no
//! name has it. `precision` is what share of the weight of a device's own traits the name has, `recall` what share of the weight of the name's
//! traits the device has, and the likeness their harmonic mean.
//!
//! # How near is near enough
//!
//! Siblings of a maker share software, so what is near in one family is far in another. Each name therefore demands what its own
//! observations show: the likeness of each to all others of the name, passing over one in ten, and five percent less ([`Like::near`]).
//! What is farther from everything known is like nothing known. The weight of what is believed rises with the likeness. Names that are nearly as
//! near as the nearest ([`LEAD`]) have a say too: a field is claimed only where all of them have the same value.
//!
//! A device that states another product than all that was seen of a name, in a place where at least half of them stated theirs, isn't of that name
//! however much else is alike: a maker's next model shares its software. Where nothing that both have states a product, it may be the next model
//! all the same: its class and its make are claimed as surely as it is alike, its model never so surely that it is proposed ([`UNSTATED`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anteroom_proto::inventory::HintKind;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::service::Protocol;
use toml_edit::{Key, Value};

use super::fuse::Point;
use super::rulebook::port_text;
use super::{Evidence, Field, Observation, SURE};
use crate::policy::key;

/// Most traits of one name.
pub const MAX_TRAITS: usize = 256;
/// The least likeness that any name believes, in percent.
pub const NEAR: u8 = 50;
/// The most that any name demands, in percent.
const NEAREST: u8 = 90;
/// What a name demands that was seen too seldom to tell how much its observations differ, in percent.
pub(super) const FEW: u8 = 60;
/// From how many observations on they tell how much they differ.
const TELLING: usize = 4;
/// One of so many observations may be odd.
const ODD: usize = 10;
/// By how much a device may be farther off than what was seen, in percent.
const SLACK: u8 = 5;
/// By how much one name must be nearer than another for the other to have no say.
pub const LEAD: f64 = 0.12;
/// How sure a model is at most of which nothing states that it is this one, in percent.
pub const UNSTATED: u8 = SURE - 5;
/// Ports from here on are chosen anew each time.
const DYNAMIC: u16 = 32768;
/// Traits that fewer observations than this share, in percent, aren't written down.
const FEWEST: u8 = 10;

/// How traits begin that state which product a device is.
const STATED: [&str; 8] = [
    "dhcp.hostname=",
    "mdns.model=",
    "lldp.model=",
    "bacnet.model=",
    "wsd.model=",
    "ssdp.model=",
    "modbus.identity=",
    "snmp.object-id=",
];

/// What devices of one name have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Like {
    /// What they are.
    pub fields: BTreeMap<Field, String>,
    /// How many observations it was learnt from.
    pub seen: u32,
    /// From which likeness on a device is of this name, in percent: as near as most of its observations are to its others.
    pub near: u8,
    /// Traits, and in how many of a hundred observations each was.
    pub traits: BTreeMap<String, u8>,
}

impl Like {
    /// Whether a device with these traits states another product.
    fn is_denied_by(&self, traits: &BTreeSet<String>) -> bool {
        let places = STATED.into_iter().map(Some).chain([None]);
        places.into_iter().any(|place| {
            let stated = |found: &&String| stands_at(found, place);
            let own: BTreeSet<&String> = traits.iter().filter(stated).collect();
            let mut most = 0;
            for (known, share) in self.traits.iter().filter(|(known, _)| stated(known)) {
                if own.contains(known) {
                    return false;
                }
                most = most.max(*share);
            }
            self.seen > 1 && most >= 50 && !own.is_empty()
        })
    }
}

/// Something to learn from: an observation of a device that somebody named.
#[derive(Debug, Clone)]
pub struct Example {
    /// What devices like it are to be called.
    pub name: Name,
    /// What it is.
    pub fields: BTreeMap<Field, String>,
    /// What was seen.
    pub observation: Observation,
}

/// What was seen of one name, before it is made a [`Like`].
#[derive(Debug, Default)]
struct Seen {
    fields: BTreeMap<Field, String>,
    observations: Vec<BTreeSet<String>>,
}

impl Seen {
    /// What its observations have in common, but for one of them.
    fn like(&self, but: Option<usize>) -> Like {
        let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
        let kept = self.observations.iter().enumerate().filter(|(at, _)| Some(*at) != but);
        for found in kept.flat_map(|(_, traits)| traits) {
            *counts.entry(found).or_default() += 1;
        }
        let seen = self.observations.len() - usize::from(but.is_some());
        let share = |count: usize| u8::try_from(count * 100 / seen.max(1)).unwrap_or(100);
        let mut traits: Vec<(u8, &String)> =
            counts.into_iter().map(|(found, count)| (share(count), found)).collect();
        traits.retain(|(share, _)| *share >= FEWEST);
        traits.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        traits.truncate(MAX_TRAITS);
        Like {
            fields: self.fields.clone(),
            seen: u32::try_from(seen).unwrap_or(u32::MAX),
            near: NEAR,
            traits: traits.into_iter().map(|(share, found)| (found.clone(), share)).collect(),
        }
    }

    /// How near most observations are to the others, in percent.
    fn near(&self, known: &Likes) -> u8 {
        if self.observations.len() < TELLING {
            return FEW;
        }
        let each = self.observations.iter().enumerate();
        let mut near: Vec<f64> =
            each.map(|(at, traits)| known.likeness(traits, &self.like(Some(at)))).collect();
        near.sort_by(f64::total_cmp);
        let most = near.get(near.len() / ODD).copied().unwrap_or_default();
        ((most * 100.0) as u8).saturating_sub(SLACK).clamp(NEAR, NEAREST)
    }
}

/// Learns likenesses. Of examples with one name the fields of the first count.
#[must_use]
pub fn learn(examples: &[Example]) -> BTreeMap<Name, Like> {
    let mut seen: BTreeMap<Name, Seen> = BTreeMap::new();
    for example in examples {
        let traits = traits(&example.observation);
        if traits.is_empty() {
            continue;
        }
        let of_name = seen.entry(example.name.clone()).or_default();
        if of_name.observations.is_empty() {
            of_name.fields = example.fields.clone();
        }
        of_name.observations.push(traits);
    }
    let mut known = Likes::default();
    known.extend(seen.iter().map(|(name, seen)| (name.clone(), seen.like(None))).collect());
    let near: BTreeMap<Name, u8> =
        seen.into_iter().map(|(name, seen)| (name, seen.near(&known))).collect();
    let mut likes = known.by_name;
    for (name, near) in near {
        if let Some(like) = likes.get_mut(&name) {
            like.near = near;
        }
    }
    likes
}

/// Likenesses as a file of rules has them.
#[must_use]
pub fn write(likes: &BTreeMap<Name, Like>) -> String {
    let mut text = String::from(
        "# Learnt: what devices that somebody named have in common. Each trait with how many of a hundred observations had it.\nformat = 1\n",
    );
    for (name, like) in likes {
        let _ = write!(text, "\n[like.{}]\n", key(name));
        for (field, value) in &like.fields {
            let _ = writeln!(text, "{field} = {}", Value::from(value.as_str()));
        }
        let _ = write!(
            text,
            "seen = {}\nnear = {}\n[like.{}.traits]\n",
            like.seen,
            like.near,
            key(name)
        );
        let mut traits: Vec<_> = like.traits.iter().collect();
        traits.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
        for (found, share) in traits {
            let _ = writeln!(text, "{} = {share}", Key::new(found));
        }
    }
    text
}

/// The likenesses of a rulebook, with what each trait weighs among them.
#[derive(Debug, Clone, Default)]
pub(super) struct Likes {
    by_name: BTreeMap<Name, Like>,
    /// How many names have a trait, a name that some of whose observations have it counting in part.
    holders: BTreeMap<String, f64>,
}

impl Likes {
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn extend(&mut self, likes: BTreeMap<Name, Like>) {
        self.by_name.extend(likes);
        self.holders.clear();
        for like in self.by_name.values() {
            for (found, share) in &like.traits {
                *self.holders.entry(found.clone()).or_default() += f64::from(*share) / 100.0;
            }
        }
    }

    fn weight(&self, found: &str) -> f64 {
        let names = self.by_name.len() as f64 + 1.0;
        match self.holders.get(found) {
            Some(holders) => (names / (holders + 0.5)).ln().max(0.05),
            None => (names / 0.5).ln() / 2.0,
        }
    }

    /// How near a device with these traits is to a name, 0 to 1.
    fn likeness(&self, traits: &BTreeSet<String>, like: &Like) -> f64 {
        let own: f64 = traits.iter().map(|found| self.weight(found)).sum();
        let (mut hit, mut whole, mut both) = (0.0, 0.0, 0.0);
        for (found, share) in &like.traits {
            let (share, weight) = (f64::from(*share) / 100.0, self.weight(found));
            whole += weight * share;
            if traits.contains(found) {
                hit += weight * share;
                both += weight;
            }
        }
        if hit <= 0.0 {
            return 0.0;
        }
        let (precision, recall) = (both / own, hit / whole);
        2.0 * precision * recall / (precision + recall)
    }

    /// How near an observation is to each name, the nearest first.
    pub(super) fn near(&self, observation: &Observation) -> Vec<(f64, &Name, &Like)> {
        let traits = traits(observation);
        let mut near: Vec<(f64, &Name, &Like)> = Vec::new();
        for (name, like) in &self.by_name {
            let likeness = self.likeness(&traits, like);
            if likeness > 0.0 && !like.is_denied_by(&traits) {
                near.push((likeness, name, like));
            }
        }
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        near
    }

    /// What likenesses claim of an observation.
    pub(super) fn points(&self, observation: &Observation, points: &mut Vec<Point>) {
        if self.by_name.is_empty() || observation.is_empty() {
            return;
        }
        let near = self.near(observation);
        let enough =
            |(score, _, like): &&(f64, &Name, &Like)| score * 100.0 >= f64::from(like.near);
        let Some((best, name, like)) = near.first().filter(enough) else {
            return;
        };
        let close: Vec<&Like> = near
            .iter()
            .take_while(|(score, ..)| best - score < LEAD)
            .map(|(_, _, like)| *like)
            .collect();
        let common = traits(observation);
        let mut common: Vec<&String> =
            common.iter().filter(|found| like.traits.contains_key(*found)).collect();
        common.sort_by(|a, b| self.weight(b).total_cmp(&self.weight(a)).then_with(|| a.cmp(b)));
        let is_stated = common.iter().any(|found| is_of_product(found));
        let shown: Vec<&str> = common.iter().take(3).map(|found| found.as_str()).collect();
        let beyond = (best - f64::from(NEAR) / 100.0) / (1.0 - f64::from(NEAR) / 100.0);
        for (field, value) in &like.fields {
            if close.iter().any(|other| other.fields.get(field) != Some(value)) {
                continue;
            }
            let most = if *field == Field::Model && !is_stated { UNSTATED } else { 95 };
            points.push(Point {
                field: *field,
                value: value.clone(),
                evidence: Evidence {
                    // From 55 where it is only just believed to 95 where all is alike.
                    weight: (55.0 + 40.0 * beyond).clamp(1.0, f64::from(most)) as u8,
                    source: "likeness".into(),
                    seen: format!("{:.0} % alike, as in {}", best * 100.0, shown.join(", ")),
                    rule: format!("like {name}"),
                },
            });
        }
    }
}

/// Whether a trait is one that states a product.
fn is_of_product(found: &str) -> bool {
    STATED.into_iter().map(Some).chain([None]).any(|place| stands_at(found, place))
}

/// Whether a trait stands where this states a product; without one, whether it is a maker's type of device.
fn stands_at(found: &str, place: Option<&str>) -> bool {
    place.map_or_else(|| is_device_type(found), |place| found.starts_with(place))
}

/// Whether a trait is a type of device that a maker has named for UPnP, not one that the forum has.
fn is_device_type(found: &str) -> bool {
    found.strip_prefix("ssdp.type=urn:").is_some_and(|kind| {
        kind.contains(":device:")
            && !["schemas-upnp-org:", "schemas-wifialliance-org:"]
                .iter()
                .any(|all| kind.starts_with(all))
    })
}

/// What can be compared of an observation.
pub(super) fn traits(observation: &Observation) -> BTreeSet<String> {
    let mut traits = BTreeSet::new();
    if let Some(mac) = observation.mac.filter(|mac| !mac.is_local() && !mac.is_group()) {
        let [a, b, c, ..] = mac.0;
        traits.insert(format!("address={a:02x}:{b:02x}:{c:02x}"));
    }
    for (kind, value) in &observation.hints {
        if *kind != HintKind::Listens {
            traits.insert(format!("{kind}={}", common(value, observation.mac)));
        }
    }
    let mut ports = |word: &str, ports: &BTreeSet<(Protocol, u16)>| {
        for (protocol, port) in ports {
            let text = port_text(*protocol, *port);
            traits.insert(match *port {
                DYNAMIC.. => format!("{word}={}/high", text.split('/').next().unwrap_or_default()),
                _ => format!("{word}={text}"),
            });
        }
    };
    ports("offers", &observation.offers);
    ports("uses", &observation.uses);
    traits
}

/// A value without what is one device's own: runs of digits and hexadecimal digits that its address has or that are long, IP addresses.
fn common(value: &str, mac: Option<MacAddr>) -> String {
    let low = value.to_lowercase();
    let own: String = mac.map(|mac| mac.to_string().replace(':', "")).unwrap_or_default();
    let mut text = String::with_capacity(low.len());
    let mut rest = low.as_str();
    while let Some(c) = rest.chars().next() {
        let run = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        let dotted = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let is_address = rest[..dotted].trim_end_matches('.').parse::<std::net::Ipv4Addr>().is_ok();
        let (taken, mark) = if is_address {
            (rest[..dotted].trim_end_matches('.').len(), "#")
        } else if run > 0 {
            let word = &rest[..run];
            // What is the device's own may stand behind other letters: gainspan + ca9152.
            let tail = (4..=run.min(12)).rev().find(|len| own.contains(&word[run - len..]));
            let digits = word.bytes().filter(u8::is_ascii_digit).count();
            match tail {
                Some(len) => {
                    text.push_str(&word[..run - len]);
                    (run, "#")
                }
                None if run >= 8 || (digits == run && run >= 5) => (run, "#"),
                None => {
                    text.push_str(word);
                    (run, "")
                }
            }
        } else {
            text.push(c);
            (c.len_utf8(), "")
        };
        text.push_str(mark);
        rest = &rest[taken..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_one_devices_own_is_taken_out() {
        let mac = Some("20:f8:5e:ca:91:52".parse().unwrap());
        for (value, kept) in [
            ("GainSpanca9152", "gainspan#"),
            ("DCS-935L", "dcs-935l"),
            ("uuid:12345678-1234-1234-1234-20f85eca9152", "uuid:#-1234-1234-1234-#"),
            ("10.10.10.37:50510", "#:#"),
            ("1,3,6,15,66,67,13,44", "1,3,6,15,66,67,13,44"),
            ("Linux/3.10 UPnP/1.0", "linux/3.10 upnp/1.0"),
            ("ec2-1.2.3.4.example", "ec2-#.example"),
            ("Ä12345ß", "ä#ß"),
            ("", ""),
        ] {
            assert_eq!(common(value, mac), kept, "{value}");
        }
    }

    fn example(name: &str, hints: &[(HintKind, &str)]) -> Example {
        let mut observation = Observation::default();
        hints.iter().for_each(|(kind, value)| observation.add(*kind, value));
        let fields = BTreeMap::from([
            (Field::Model, name.to_owned()),
            (Field::Class, name.split('-').next().unwrap_or_default().to_owned()),
        ]);
        Example { name: name.parse().unwrap(), fields, observation }
    }

    fn examples() -> Vec<Example> {
        use HintKind as K;
        let mut examples = Vec::new();
        for (name, agent, host) in [
            ("pump-a", "PumpOS/1", "alpha.example"),
            ("pump-b", "PumpOS/2", "beta.example"),
            ("camera-a", "Cam/1", "cam.example"),
        ] {
            for _ in 0..3 {
                examples.push(example(
                    name,
                    &[(K::HttpAgent, agent), (K::DnsQuery, host), (K::DhcpParameters, "1,3,6")],
                ));
            }
        }
        examples
    }

    #[test]
    fn the_nearest_is_found_and_a_stranger_is_like_nothing() {
        use HintKind as K;
        let likes = learn(&examples());
        assert_eq!(likes.len(), 3);
        let mut known = Likes::default();
        known.extend(likes);
        for known_example in examples() {
            let (score, name, _) = known.near(&known_example.observation)[0];
            assert_eq!(*name, known_example.name);
            assert!(score > 0.99, "{score}");
        }
        let stranger = example("x", &[(K::HttpAgent, "Else/9"), (K::DhcpParameters, "1,3,6")]);
        let mut points = Vec::new();
        known.points(&stranger.observation, &mut points);
        assert_eq!(points, []);
        // Between two pumps only what both are is claimed.
        let between = example(
            "x",
            &[
                (K::HttpAgent, "PumpOS/1"),
                (K::HttpAgent, "PumpOS/2"),
                (K::DnsQuery, "alpha.example"),
                (K::DnsQuery, "beta.example"),
                (K::DhcpParameters, "1,3,6"),
            ],
        );
        known.points(&between.observation, &mut points);
        let claimed: Vec<_> = points.iter().map(|point| (point.field, &point.value[..])).collect();
        assert_eq!(claimed, [(Field::Class, "pump")]);
    }

    /// Names whose observations are all alike demand more of a stranger than those whose observations differ.
    #[test]
    fn each_name_demands_what_its_own_observations_show() {
        use HintKind as K;
        const ALL: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
        let asks = |name: &str, hosts: &[&str]| {
            let hosts: Vec<(HintKind, &str)> =
                hosts.iter().map(|host| (K::DnsQuery, *host)).collect();
            example(name, &hosts)
        };
        let mut examples: Vec<Example> = (0..6).map(|_| asks("steady", &ALL)).collect();
        examples.extend((0..6).map(|left_out| {
            let hosts = ["u", "v", "w", "x", "y", "z"];
            let kept: Vec<&str> = (0..6)
                .filter(|at| *at != left_out && *at != (left_out + 1) % 6)
                .map(|at| hosts[at])
                .collect();
            asks("moody", &kept)
        }));
        examples.extend((0..2).map(|_| asks("rare", &["r", "s"])));
        let likes = learn(&examples);
        let near = |name: &str| likes[&name.parse::<Name>().unwrap()].near;
        assert_eq!((near("steady"), near("rare")), (NEAREST, FEW));
        assert!((NEAR..NEAREST).contains(&near("moody")), "{}", near("moody"));
        let mut known = Likes::default();
        known.extend(likes);
        let claims = |hosts: &[&str]| {
            let mut points = Vec::new();
            known.points(&asks("x", hosts).observation, &mut points);
            points.len()
        };
        assert_eq!(claims(&ALL), 2);
        assert_eq!(claims(&ALL[..4]), 0, "a sibling has most of it");
        assert_eq!(claims(&["u", "v", "w", "x"]), 2, "as far off as others of its own");
    }

    /// A maker's next model has the software of the one before, and says that it is another.
    #[test]
    fn who_states_another_product_is_another() {
        use HintKind as K;
        let pump = |name: &str, model: &str| {
            let hints = [(K::HttpAgent, "PumpOS/1"), (K::DnsQuery, "alpha.example")];
            let mut hints: Vec<(HintKind, &str)> = hints.to_vec();
            hints.extend([(K::DhcpParameters, "1,3,6"), (K::MdnsModel, model)]);
            example(name, &hints)
        };
        let mut known = Likes::default();
        known.extend(learn(&[pump("pump-a", "A 1"), pump("pump-a", "A 1")]));
        assert_eq!(known.near(&pump("x", "A 1").observation).len(), 1);
        assert!(known.near(&pump("x", "B 2").observation).is_empty());
        let mut silent = pump("x", "A 1");
        silent.observation.hints.retain(|(kind, _)| *kind != K::MdnsModel);
        assert_eq!(known.near(&silent.observation).len(), 1, "saying nothing denies nothing");
        // What each device calls itself differently denies nothing.
        let mut known = Likes::default();
        known.extend(learn(&[pump("pump-a", "1"), pump("pump-a", "2"), pump("pump-a", "3")]));
        assert_eq!(known.near(&pump("x", "4").observation).len(), 1);
    }

    /// Of two models that state nothing, whoever knows one alone takes the other for it: no label is made of that.
    #[test]
    fn a_model_that_nothing_states_is_not_proposed() {
        use HintKind as K;
        let pump = |model: Option<&str>| {
            let mut hints = vec![(K::HttpAgent, "PumpOS/1"), (K::DnsQuery, "alpha.example")];
            hints.extend(model.map(|model| (K::MdnsModel, model)));
            example("pump-a", &hints)
        };
        let surest = |example: &Example| {
            let mut known = Likes::default();
            known.extend(learn(&[example.clone(), example.clone()]));
            let mut points = Vec::new();
            known.points(&example.observation, &mut points);
            let of = |field| {
                points.iter().find(|point| point.field == field).map(|point| point.evidence.weight)
            };
            (of(Field::Class), of(Field::Model))
        };
        assert_eq!(surest(&pump(Some("A 1"))), (Some(95), Some(95)));
        assert_eq!(surest(&pump(None)), (Some(95), Some(UNSTATED)));
    }

    #[test]
    fn what_is_learnt_is_read_back_as_it_was_written() {
        let mut examples = examples();
        examples.push(example("odd", &[(HintKind::Banner, "a \"quoted\" 'thing' \\ = #")]));
        let likes = learn(&examples);
        let text = write(&likes);
        let (read, problems) = super::super::parse::parse_all("learnt.toml", &text);
        assert!(problems.is_empty(), "{problems}\n{text}");
        assert_eq!(read.likes, likes);
    }
}
