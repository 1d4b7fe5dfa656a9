//! Rules, makers and likenesses, and what they make of an observation.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::inventory::HintKind;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use regex::Regex;

use super::fuse::{Point, fuse, same};
use super::learnt::{Like, Likes};
use super::oui::{NotAList, Ouis, short};
use super::{Claims, Evidence, Field, Observation, parse, shipped};
use crate::problem::Problems;

/// Longest file of rules that is read, in bytes.
pub const MAX_RULES_LEN: usize = 4 * 1024 * 1024;
/// Most claims that one rule makes of one device, where what was seen gives their values.
const MAX_OF_RULE: usize = 8;
/// How sure it is that an address is its maker's.
const ADDRESS: u8 = 95;
/// How sure it is that who made the network interface made the device.
const INTERFACE: u8 = 60;
/// How sure it is that who asks for a maker's names is of that maker.
const ASKED: u8 = 50;
/// How sure it is that who says a maker's name is of that maker.
const SAID: u8 = 75;

/// What devices are recognised by.
#[derive(Debug, Clone, Default)]
pub struct Rulebook {
    pub(super) rules: BTreeMap<Name, Rule>,
    pub(super) makers: BTreeMap<Name, Maker>,
    /// Learnt likenesses by name.
    likes: Likes,
    lists: Ouis,
    /// Prefixes that rule files name.
    own: Ouis,
    /// The keys of makers by all that they are called.
    called: BTreeMap<String, Name>,
}

/// Conditions and what follows from them.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) all: Vec<Condition>,
    pub(super) any: Vec<Condition>,
    pub(super) none: Vec<Condition>,
    /// Fields and their values, `$0` and `$1` standing for what was seen.
    pub(super) claims: Vec<(Field, String)>,
    pub(super) weight: u8,
}

/// A firm.
#[derive(Debug, Clone, Default)]
pub(super) struct Maker {
    /// As claims have it.
    pub(super) name: String,
    /// What else it is called.
    pub(super) also: Vec<String>,
    /// Its prefixes of addresses: bits, and how many.
    pub(super) addresses: Vec<(u64, u8)>,
    /// Names of DNS that only its devices ask for.
    pub(super) domains: Vec<String>,
    /// Words by which its devices name it.
    pub(super) words: Vec<String>,
    /// Whether it makes network interfaces for others, so that an address says nothing about the device.
    pub(super) parts: bool,
}

/// Something that holds of a device or doesn't.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    Hint(HintKind, Text),
    /// Whose the address is.
    Maker(String),
    /// How the address begins.
    Address(u64, u8),
    /// It answered at one of these ports.
    Offers(String, Vec<PortMatch>),
    /// It was answered at one of these ports of others.
    Uses(String, Vec<PortMatch>),
}

/// What a hint's value must be. Case doesn't matter.
#[derive(Debug, Clone)]
pub(super) enum Text {
    Any,
    Is(String),
    Starts(String),
    Ends(String),
    Contains(String),
    Matches(Regex),
}

impl Text {
    /// What of the value rules can name: the whole, then its groups.
    fn read(&self, value: &str) -> Option<Vec<String>> {
        let low = value.to_lowercase();
        let fits = match self {
            Self::Any => true,
            Self::Is(text) => low == *text,
            Self::Starts(text) => low.starts_with(text.as_str()),
            Self::Ends(text) => low.ends_with(text.as_str()),
            Self::Contains(text) => low.contains(text.as_str()),
            Self::Matches(pattern) => {
                let found = pattern.captures(value)?;
                let group = |part: Option<regex::Match<'_>>| {
                    part.map(|part| part.as_str().to_owned()).unwrap_or_default()
                };
                return Some(found.iter().map(group).collect());
            }
        };
        fits.then(|| vec![value.to_owned()])
    }
}

/// What made a condition hold.
struct Held {
    source: &'static str,
    seen: String,
    groups: Vec<String>,
}

/// An observation, with what is looked up of it once.
struct Subject<'a> {
    seen: &'a Observation,
    maker: Option<String>,
}

impl Condition {
    fn held(&self, subject: &Subject<'_>) -> Vec<Held> {
        let observation = subject.seen;
        let one = |source, seen: String| vec![Held { source, seen, groups: Vec::new() }];
        let port_of = |ports: &[PortMatch], all: &BTreeSet<(Protocol, u16)>| {
            let fits = |(protocol, port): &&(Protocol, u16)| {
                ports.iter().any(|p| p.matches(*protocol, *port))
            };
            all.iter().find(fits).map(|(protocol, port)| port_text(*protocol, *port))
        };
        match self {
            Self::Hint(kind, text) => {
                let of_kind = observation.hints.iter().filter(|(other, _)| other == kind);
                let held = of_kind.filter_map(|(_, value)| {
                    let groups = text.read(value)?;
                    Some(Held { source: source(*kind), seen: shown(*kind, value), groups })
                });
                held.take(MAX_OF_RULE).collect()
            }
            Self::Maker(wanted) => match &subject.maker {
                Some(maker) if same(maker) == *wanted => {
                    one("address", format!("the address is one of {maker}'s"))
                }
                _ => Vec::new(),
            },
            Self::Address(bits, len) => match observation.mac {
                Some(mac) if starts_with(mac, *bits, *len) => {
                    one("address", format!("the address is {mac}"))
                }
                _ => Vec::new(),
            },
            Self::Offers(called, ports) => port_of(ports, &observation.offers)
                .map(|port| one("flows", format!("it answers at {port} ({called})")))
                .unwrap_or_default(),
            Self::Uses(called, ports) => port_of(ports, &observation.uses)
                .map(|port| one("flows", format!("it is answered at {port} ({called})")))
                .unwrap_or_default(),
        }
    }
}

impl Rule {
    fn apply(&self, name: &Name, subject: &Subject<'_>, points: &mut Vec<Point>) {
        if self.none.iter().any(|condition| !condition.held(subject).is_empty()) {
            return;
        }
        let mut all = Vec::with_capacity(self.all.len());
        for condition in &self.all {
            let held = condition.held(subject);
            if held.is_empty() {
                return;
            }
            all.push(held);
        }
        let any: Vec<Held> =
            self.any.iter().flat_map(|condition| condition.held(subject)).collect();
        if any.is_empty() && !self.any.is_empty() {
            return;
        }
        // What values are taken from, and what merely holds besides.
        let mut all = all.into_iter();
        let first = if any.is_empty() { all.next().unwrap_or_default() } else { any };
        let besides: Vec<String> =
            all.filter_map(|held| held.into_iter().next()).map(|held| held.seen).collect();
        for held in first.iter().take(MAX_OF_RULE) {
            let seen: Vec<&str> = std::iter::once(held.seen.as_str())
                .chain(besides.iter().map(String::as_str))
                .collect();
            for (field, template) in &self.claims {
                let Some(value) = fill(template, &held.groups) else { continue };
                points.push(Point {
                    field: *field,
                    value,
                    evidence: Evidence {
                        weight: self.weight,
                        source: held.source.to_owned(),
                        seen: seen.join(", "),
                        rule: format!("rule {name}"),
                    },
                });
            }
        }
    }
}

impl Rulebook {
    /// The rules that Anteroom ships.
    #[must_use]
    pub fn shipped() -> Self {
        let mut book = Self::default();
        for (file, text) in shipped::FILES {
            // A test reads each of them without a problem.
            let (read, _) = parse::parse_all(file, text);
            book.take(read);
        }
        book
    }

    /// Adds a file of rules. What has the name of something that is there already takes its place.
    ///
    /// # Errors
    /// Every problem of the file; then nothing of it is taken.
    pub fn extend(&mut self, file: &str, text: &str) -> Result<(), Problems> {
        let (read, problems) = parse::parse_all(file, text);
        let read = problems.or(read)?;
        self.take(read);
        Ok(())
    }

    /// Adds a list of the IEEE's, as [`Ouis::read`] does.
    ///
    /// # Errors
    /// When it is none.
    pub fn add_list(&mut self, text: &str) -> Result<usize, NotAList> {
        self.lists.read(text)
    }

    /// How many rules, makers and likenesses there are, and prefixes of addresses.
    #[must_use]
    pub fn counts(&self) -> [usize; 4] {
        let prefixes = self.lists.len() + self.own.len();
        [self.rules.len(), self.makers.len(), self.likes.len(), prefixes]
    }

    fn take(&mut self, read: parse::Read) {
        for (name, rule) in read.rules {
            match rule {
                Some(rule) => drop(self.rules.insert(name, rule)),
                None => drop(self.rules.remove(&name)),
            }
        }
        self.makers.extend(read.makers);
        self.likes.extend(read.likes);
        (self.own, self.called) = (Ouis::default(), BTreeMap::new());
        for (key, maker) in &self.makers {
            for (bits, len) in &maker.addresses {
                self.own.insert(*bits, *len, &maker.name);
            }
            for called in std::iter::once(&maker.name).chain(&maker.also) {
                self.called.insert(same(called), key.clone());
            }
        }
    }

    /// Adds likenesses, as [`super::learnt::learn`] gives them.
    pub fn add_likes(&mut self, likes: BTreeMap<Name, Like>) {
        self.likes.extend(likes);
    }

    /// The maker by one of its names.
    fn maker_called(&self, name: &str) -> Option<&Maker> {
        self.makers.get(self.called.get(&same(name))?)
    }

    /// A firm as claims have it: by the name of its entry, or without what kind of firm it is.
    fn called(&self, name: &str) -> String {
        let short = short(name);
        let known = self.maker_called(name).or_else(|| self.maker_called(&short));
        known.map_or(short, |maker| maker.name.clone())
    }

    /// Whose an address is, as claims have it. Nobody's where it was assigned locally.
    #[must_use]
    pub fn vendor(&self, mac: MacAddr) -> Option<String> {
        let (own, list) = (self.own.longest(mac), self.lists.longest(mac));
        match (own, list) {
            (Some((_, own)), None) => Some(own.to_owned()),
            (Some((len, own)), Some((other, _))) if len >= other => Some(own.to_owned()),
            (_, Some((_, list))) => Some(self.called(list)),
            (None, None) => None,
        }
    }

    /// What a device is taken for.
    #[must_use]
    pub fn classify(&self, observation: &Observation) -> Claims {
        let maker = observation.mac.and_then(|mac| self.vendor(mac));
        let subject = Subject { seen: observation, maker };
        let mut points = Vec::new();
        self.by_address(&subject, &mut points);
        self.by_makers(observation, &mut points);
        for (name, rule) in &self.rules {
            rule.apply(name, &subject, &mut points);
        }
        for point in &mut points {
            if matches!(point.field, Field::Make | Field::Vendor) {
                point.value = self.called(&point.value);
            }
        }
        self.likes.points(observation, &mut points);
        fuse(points)
    }

    fn by_address(&self, subject: &Subject<'_>, points: &mut Vec<Point>) {
        let (Some(maker), Some(mac)) = (&subject.maker, subject.seen.mac) else { return };
        let [a, b, c, ..] = mac.0;
        let evidence = |weight| Evidence {
            weight,
            source: "address".into(),
            seen: format!("its address begins with {a:02x}:{b:02x}:{c:02x}"),
            rule: format!("assigned to {maker}"),
        };
        let value = maker.clone();
        points.push(Point { field: Field::Vendor, value, evidence: evidence(ADDRESS) });
        if !self.maker_called(maker).is_some_and(|maker| maker.parts) {
            let value = maker.clone();
            points.push(Point { field: Field::Make, value, evidence: evidence(INTERFACE) });
        }
    }

    /// Makers by what a device says, and by the names that it asks for.
    fn by_makers(&self, observation: &Observation, points: &mut Vec<Point>) {
        for (kind, value) in &observation.hints {
            let low = value.to_lowercase();
            for maker in self.makers.values() {
                let under = |domain: &String| {
                    low.strip_suffix(domain.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                };
                let (weight, rule) = if asks(*kind) && maker.domains.iter().any(under) {
                    (ASKED, "a name of")
                } else if says(*kind) && maker.words.iter().any(|word| has_word(&low, word)) {
                    (SAID, "it names")
                } else {
                    continue;
                };
                points.push(Point {
                    field: Field::Make,
                    value: maker.name.clone(),
                    evidence: Evidence {
                        weight,
                        source: source(*kind).to_owned(),
                        seen: shown(*kind, value),
                        rule: format!("{rule} {}", maker.name),
                    },
                });
            }
        }
    }
}

/// Whether a hint is a name that the device asked for.
pub(super) const fn asks(kind: HintKind) -> bool {
    matches!(kind, HintKind::HttpHost | HintKind::TlsName | HintKind::DnsQuery)
}

/// Whether a hint is what a device says of itself.
const fn says(kind: HintKind) -> bool {
    use HintKind as K;
    matches!(
        kind,
        K::DhcpHostname
            | K::DhcpVendorClass
            | K::DhcpFqdn
            | K::DhcpMudUrl
            | K::Dhcp6VendorClass
            | K::CdpName
            | K::CdpPlatform
            | K::LldpName
            | K::LldpDescription
            | K::LldpModel
            | K::LldpMudUrl
            | K::WsdManufacturer
            | K::WsdModel
            | K::WsdName
            | K::BacnetName
            | K::BacnetModel
            | K::BacnetMaker
            | K::ModbusIdentity
            | K::OpcuaApplication
            | K::NetbiosName
            | K::SnmpDescription
            | K::SnmpName
            | K::LlmnrName
            | K::MdnsName
            | K::MdnsService
            | K::MdnsModel
            | K::SsdpServer
            | K::SsdpType
            | K::SsdpModel
            | K::HttpAgent
            | K::HttpServer
            | K::TlsCertificate
            | K::Banner
    )
}

/// Where a hint stands, for the sake of independence: names asked for are one source, since who resolves a name then goes there.
pub(super) fn source(kind: HintKind) -> &'static str {
    match kind {
        kind if asks(kind) => "names asked for",
        HintKind::Listens => "flows",
        kind => kind.word().split('.').next().unwrap_or_default(),
    }
}

/// Whether `word` stands in `text` with no letter on either side.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let letter = |c: char| c.is_alphabetic();
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(letter) && !after.is_some_and(letter)
    })
}

fn shown(kind: HintKind, value: &str) -> String {
    format!("{kind} = {value:?}")
}

fn starts_with(mac: MacAddr, bits: u64, len: u8) -> bool {
    let all = mac.0.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    all >> (48 - u32::from(len)) == bits
}

/// A port as people write it.
pub(super) fn port_text(protocol: Protocol, port: u16) -> String {
    PortMatch { protocol, first: port, last: port }.to_string()
}

/// A template with what was seen in it. None where a group is missing or nothing remains.
fn fill(template: &str, groups: &[String]) -> Option<String> {
    let mut text = String::new();
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek().and_then(|next| next.to_digit(10)) {
            Some(group) if c == '$' => {
                chars.next();
                text.push_str(groups.get(group as usize).filter(|text| !text.is_empty())?);
            }
            _ => text.push(c),
        }
    }
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
