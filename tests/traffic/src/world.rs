//! The hospital, and what happens in it on a day.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::ops::Range;

use anteroom_controller_core::decide::{End, Party};
use anteroom_controller_core::history::{Counts, Seen, Way};
use anteroom_controller_core::model::{Attachment, Device, Gateway, Model};
use anteroom_proto::id::{GatewayId, MemberId, OrganisationId};
use anteroom_proto::intent::OnFailure;
use anteroom_proto::key::PublicKey;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;

use crate::classes::{CLASSES, Fan, Far, Many, NEEDS, Need, Scope, When};
use crate::random::Random;

/// Day 0: Monday, 2026-09-28.
const START: u64 = 20_724;
const DAY: u64 = 86_400_000;
const HOUR: u64 = 3_600_000;
/// Devices of one ward.
const WARD: usize = 45;
/// Days of history: who comes later wasn't there to be learnt from.
pub(crate) const HISTORY: u64 = 56;

/// Why a flow isn't one that the hospital needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Its device is set up wrongly.
    Misconfigured,
    /// Its device is infected.
    Infected,
}

/// A device as it really is, whatever its label says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Truth {
    pub(crate) id: MemberId,
    pub(crate) class: usize,
    pub(crate) ward: usize,
    maker: usize,
    /// How much it is used.
    vigour: f64,
    /// On what share of days it is on.
    pub(crate) presence: f64,
    /// The day on which it comes.
    pub(crate) born: u64,
    wrong: Option<Wrong>,
}

/// A hospital.
#[derive(Debug)]
pub struct World {
    seed: u64,
    /// Its model, with an empty policy.
    pub model: Model,
    pub(crate) devices: Vec<Truth>,
    pub(crate) place_of: HashMap<Party, usize>,
    by_class: Vec<Vec<usize>>,
    by_ward: HashMap<(usize, usize), Vec<usize>>,
    by_maker: HashMap<(usize, usize), Vec<usize>>,
    needs: HashMap<(usize, Protocol, u16), Vec<&'static Need>>,
    /// How often people print elsewhere than nearby: 1 as it is, more for more edges.
    pub roaming: f64,
}

fn class_number(name: &str) -> usize {
    CLASSES.iter().position(|class| class.name == name).unwrap_or_default()
}

fn name(text: &str) -> Name {
    text.parse().unwrap_or_else(|_| unreachable!("names here are made of what fits"))
}

impl World {
    /// A hospital of about so many devices.
    #[must_use]
    pub fn new(seed: u64, devices: usize) -> Self {
        let mut world = Self {
            seed,
            model: Model::new(OrganisationId::from_bytes([1; 16])),
            devices: Vec::new(),
            place_of: HashMap::new(),
            by_class: vec![Vec::new(); CLASSES.len()],
            by_ward: HashMap::new(),
            by_maker: HashMap::new(),
            needs: HashMap::new(),
            roaming: 1.0,
        };
        let wards = (devices / WARD).max(1);
        for ward in 0..=wards {
            let mut bytes = [0xaa; 16];
            bytes[..8].copy_from_slice(&(ward as u64).to_be_bytes());
            let mut key = [7; 32];
            key[..8].copy_from_slice(&(ward as u64).to_be_bytes());
            let identity = PublicKey::try_from(key);
            let Ok(identity) = identity else { continue };
            let called = if ward == 0 { "server-room".to_owned() } else { format!("ward-{ward}") };
            let labels = BTreeMap::new();
            let gateway = Gateway {
                name: name(&called),
                site: name("north"),
                identity,
                former: Vec::new(),
                labels,
            };
            world.model.gateways.insert(GatewayId::from_bytes(bytes), gateway);
        }
        for (number, class) in CLASSES.iter().enumerate() {
            let (count, in_wards) = match class.many {
                Many::Share(share) => ((share * devices as f64).round().max(1.0) as usize, true),
                Many::EachWard(count) => (count * wards, true),
                Many::Few(count) => (count + devices / 1000, false),
            };
            for place in 0..count {
                let ward = if in_wards { 1 + place % wards } else { 0 };
                world.add(number, place, ward);
            }
        }
        for need in NEEDS {
            let class = class_number(need.from);
            world.needs.entry((class, need.protocol, need.port)).or_default().push(need);
        }
        world
    }

    fn add(&mut self, class: usize, place: usize, ward: usize) {
        let mut random = Random::of(&[self.seed, 1, class as u64, place as u64]);
        let of = &CLASSES[class];
        let server = matches!(of.many, Many::Few(_));
        let number = self.devices.len();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random.next().to_be_bytes());
        bytes[8..].copy_from_slice(&(number as u64).to_be_bytes());
        let id = MemberId::from_bytes(bytes);
        let chance = random.share();
        let born = match chance {
            _ if server => 0,
            ..0.01 => HISTORY + random.below(5) as u64,
            ..0.04 => 1 + random.below(50) as u64,
            _ => 0,
        };
        let wrong = match random.share() {
            _ if server || born > 0 => None,
            ..0.002 => Some(Wrong::Infected),
            ..0.012 => Some(Wrong::Misconfigured),
            _ => None,
        };
        let truth = Truth {
            id,
            class,
            ward,
            maker: if of.makers > 1 {
                usize::from(place % 10 >= 7 || (server && place % 2 == 1))
            } else {
                0
            },
            vigour: if server { 1.0 } else { 0.4 + 1.2 * random.share() },
            presence: match random.share() {
                _ if server => 1.0,
                ..0.02 => 0.1,
                _ => 0.97,
            },
            born,
            wrong,
        };
        let label = match random.share() {
            ..0.04 if !server && born < HISTORY => None,
            ..0.045 if !server => Some(CLASSES[random.below(CLASSES.len())].name),
            _ => Some(of.name),
        };
        let in_ward = self.model.devices.len();
        let mut gateway = [0xaa; 16];
        gateway[..8].copy_from_slice(&(ward as u64).to_be_bytes());
        let [.., a, b, c] = (in_ward as u32).to_be_bytes();
        let host = self
            .by_ward
            .iter()
            .filter(|((_, at), _)| *at == ward)
            .map(|(_, l)| l.len())
            .sum::<usize>();
        let address =
            Ipv4Addr::new(10, 1 + (ward / 256) as u8, (ward % 256) as u8, (2 + host % 250) as u8);
        let device = Device {
            name: name(&format!("{}-{}", of.name, place + 1)),
            attachment: Attachment {
                gateway: GatewayId::from_bytes(gateway),
                port: name(&format!("p{number}")),
                vlan: None,
                mac: MacAddr([2, 0x1b, 0, a, b, c]),
            },
            addresses: vec![address.into()],
            prefix_len: Some(24),
            router: None,
            labels: label.map(|label| (name("class"), label.to_owned())).into_iter().collect(),
            mode: Mode::Observe,
            mode_since: 1,
            confirmed_at: UnixMillis((START + born) * DAY),
            quarantined: false,
            on_failure: OnFailure::Default,
            rollout: anteroom_proto::rollout::Rollout::default(),
        };
        self.model.devices.insert(id, device);
        self.place_of.insert(Party::Member(id), number);
        self.by_class[class].push(number);
        self.by_ward.entry((class, ward)).or_default().push(number);
        self.by_maker.entry((class, truth.maker)).or_default().push(number);
        self.devices.push(truth);
    }

    pub(crate) fn class_name(&self, place: usize) -> &'static str {
        CLASSES[self.devices[place].class].name
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The devices that one has to do with by a need.
    pub(crate) fn partners(&self, own: &Truth, need: &Need) -> &[usize] {
        let Far::Class(far) = need.to else { return &[] };
        let far = class_number(far);
        let list = match need.scope {
            Scope::All => self.by_class.get(far),
            Scope::Ward => self.by_ward.get(&(far, own.ward)),
            Scope::Maker => self.by_maker.get(&(far, own.maker)),
        };
        list.map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the true policy has this.
    #[must_use]
    pub fn is_wanted(&self, from: Party, to: Party, protocol: Protocol, port: u16) -> bool {
        let fits = |own: Party, far: Party, reversed: bool| {
            let Some(place) = self.place_of.get(&own) else { return false };
            let own = &self.devices[*place];
            let Some(needs) = self.needs.get(&(own.class, protocol, port)) else { return false };
            needs.iter().filter(|need| need.reversed == reversed).any(|need| match (need.to, far) {
                (Far::Class(_), Party::Member(_)) => self.place_of.get(&far).is_some_and(|far| {
                    far != place && self.partners(own, need).binary_search(far).is_ok()
                }),
                (Far::Address(address), Party::Address(far)) => Ipv4Addr::from(address) == far,
                (Far::Cloud(base, count), Party::Address(far)) => {
                    let low = u32::from(Ipv4Addr::from(base));
                    (low..low + u32::from(count)).contains(&u32::from(far))
                }
                _ => false,
            })
        };
        from != to && (fits(from, to, false) || fits(to, from, true))
    }

    /// Every pair of the true policy, with its protocol and port.
    pub fn wanted(&self, mut each: impl FnMut(Party, Party, Protocol, u16)) {
        for own in &self.devices {
            for need in NEEDS.iter().filter(|need| class_number(need.from) == own.class) {
                let mut pair = |far: Party| {
                    let me = Party::Member(own.id);
                    let (from, to) = if need.reversed { (far, me) } else { (me, far) };
                    if from != to {
                        each(from, to, need.protocol, need.port);
                    }
                };
                match need.to {
                    Far::Class(_) => {
                        for far in self.partners(own, need) {
                            pair(Party::Member(self.devices[*far].id));
                        }
                    }
                    Far::Address(address) => pair(Party::Address(address.into())),
                    Far::Cloud(base, count) => {
                        for host in 0..count {
                            pair(Party::Address(Ipv4Addr::from(
                                u32::from(Ipv4Addr::from(base)) + u32::from(host),
                            )));
                        }
                    }
                }
            }
        }
    }

    fn is_on(&self, place: usize, day: u64) -> bool {
        let device = &self.devices[place];
        let asleep = CLASSES[device.class].weekdays && day % 7 >= 5;
        let mut random = Random::of(&[self.seed, 2, place as u64, day]);
        day >= device.born && !asleep && random.share() < device.presence
    }

    /// What happens on these days: each flow or handful of flows, and whether it is none that the hospital needs.
    pub fn days(&self, days: Range<u64>, mut each: impl FnMut(&Seen, Option<Wrong>)) {
        let own_needs: Vec<Vec<(usize, &Need)>> = (0..CLASSES.len())
            .map(|class| {
                NEEDS
                    .iter()
                    .enumerate()
                    .filter(|(_, need)| class_number(need.from) == class)
                    .collect()
            })
            .collect();
        for day in days {
            let on: Vec<bool> =
                (0..self.devices.len()).map(|place| self.is_on(place, day)).collect();
            for (place, own) in self.devices.iter().enumerate().filter(|(place, _)| on[*place]) {
                for (number, need) in &own_needs[own.class] {
                    self.meet(place, own, *number, need, day, &on, &mut each);
                }
                match own.wrong {
                    Some(Wrong::Misconfigured) => self.misconfigured(place, own, day, &mut each),
                    Some(Wrong::Infected) => self.infected(place, own, day, &mut each),
                    None => {}
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn meet(
        &self,
        place: usize,
        own: &Truth,
        number: usize,
        need: &Need,
        day: u64,
        on: &[bool],
        each: &mut impl FnMut(&Seen, Option<Wrong>),
    ) {
        if need.when == When::MonthEnd && !is_month_end(START + day) {
            return;
        }
        let mut random = Random::of(&[self.seed, 3, place as u64, day, number as u64]);
        let mut fixed = Random::of(&[self.seed, 4, place as u64, number as u64]);
        let mut call = |far: Party, mean: f64, random: &mut Random| {
            let count = random.count(mean * own.vigour);
            if count > 0 {
                let me = Party::Member(own.id);
                let (from, to) = if need.reversed { (far, me) } else { (me, far) };
                flows(day, need, from, to, count, random, each);
            }
        };
        let partners = self.partners(own, need);
        match (need.to, need.fan) {
            (Far::Address(address), _) => {
                call(Party::Address(address.into()), need.daily, &mut random);
            }
            (Far::Cloud(base, count), _) => {
                let host = random.below(usize::from(count)) as u32;
                let address = Ipv4Addr::from(u32::from(Ipv4Addr::from(base)) + host);
                call(Party::Address(address), need.daily, &mut random);
            }
            (_, Fan::Each) => {
                for far in partners.iter().filter(|far| **far != place && on[**far]) {
                    call(Party::Member(self.devices[*far].id), need.daily, &mut random);
                }
            }
            _ if partners.is_empty() => {}
            (_, Fan::One) => {
                let usual = partners[fixed.below(partners.len())];
                let fails = !on[usual] || random.share() < 0.001;
                let far = if fails { partners[random.below(partners.len())] } else { usual };
                if far != place && on[far] {
                    call(Party::Member(self.devices[far].id), need.daily, &mut random);
                }
            }
            (_, Fan::Roam) => {
                let near: Vec<usize> = partners
                    .iter()
                    .copied()
                    .filter(|far| self.devices[*far].ward == own.ward)
                    .take(2)
                    .collect();
                for far in near.iter().filter(|far| on[**far]) {
                    call(Party::Member(self.devices[*far].id), need.daily, &mut random);
                }
                for _ in 0..random.count(0.15 * self.roaming) {
                    let far = partners[random.below(partners.len())];
                    if far != place && on[far] {
                        call(Party::Member(self.devices[far].id), need.daily, &mut random);
                    }
                }
            }
        }
    }

    /// It talks to a server that isn't its own, or to an address where nothing is.
    fn misconfigured(
        &self,
        place: usize,
        own: &Truth,
        day: u64,
        each: &mut impl FnMut(&Seen, Option<Wrong>),
    ) {
        let mut fixed = Random::of(&[self.seed, 5, place as u64]);
        let mut random = Random::of(&[self.seed, 6, place as u64, day]);
        let far = &self.devices[fixed.below(self.devices.len())];
        let kind = fixed.below(3);
        let port = [445, 80, 9100, 104][fixed.below(4)];
        // One in three does it every day, one now and then, and one calls into the void.
        if far.id == own.id || (kind == 1 && random.share() > 0.05) {
            return;
        }
        let (to, back) = if kind == 2 {
            (Party::Address(Ipv4Addr::new(10, 0, 9, 9)), 0)
        } else {
            (Party::Member(far.id), 2)
        };
        let at = morning(day);
        if !self.is_wanted(Party::Member(own.id), to, Protocol::Tcp, port) {
            each(
                &seen(Party::Member(own.id), to, (Protocol::Tcp, port), 1, back, (at, at)),
                Some(Wrong::Misconfigured),
            );
        }
    }

    /// It scans for two weeks, and a few answer.
    fn infected(
        &self,
        place: usize,
        own: &Truth,
        day: u64,
        each: &mut impl FnMut(&Seen, Option<Wrong>),
    ) {
        let begin = Random::of(&[self.seed, 7, place as u64]).below(50) as u64;
        if !(begin..begin + 14).contains(&day) {
            return;
        }
        let mut random = Random::of(&[self.seed, 8, place as u64, day]);
        for _ in 0..40 {
            let far = &self.devices[random.below(self.devices.len())];
            let port = [445, 3389, 22][random.below(3)];
            let back = if random.share() < 0.15 { 1 } else { 0 };
            let at = UnixMillis((START + day) * DAY + HOUR * random.below(24) as u64);
            let (me, to) = (Party::Member(own.id), Party::Member(far.id));
            if far.id != own.id && !self.is_wanted(me, to, Protocol::Tcp, port) {
                each(
                    &seen(me, to, (Protocol::Tcp, port), 1, back, (at, at)),
                    Some(Wrong::Infected),
                );
            }
        }
    }
}

/// Ten o'clock on one of the days that a hospital is told of.
pub(crate) const fn morning(day: u64) -> UnixMillis {
    UnixMillis((START + day) * DAY + HOUR * 10)
}

fn seen(
    from: Party,
    to: Party,
    (protocol, port): (Protocol, u16),
    flows: u64,
    back: u64,
    span: (UnixMillis, UnixMillis),
) -> Seen {
    let counts = Counts {
        flows,
        packets: flows * 10,
        packets_back: flows * back,
        bytes: flows * 6_000,
        bytes_back: flows * back * 300,
    };
    let at = if matches!(from, Party::Member(_)) { End::From } else { End::To };
    Seen { from, to, protocol, port, way: Way::Clear, at, counts, first: span.0, last: span.1 }
}

fn flows(
    day: u64,
    need: &Need,
    from: Party,
    to: Party,
    count: u64,
    random: &mut Random,
    each: &mut impl FnMut(&Seen, Option<Wrong>),
) {
    let (first, last) = match need.when {
        When::Always | When::MonthEnd => (0, 24),
        When::Day => (8, 18),
        When::Night => (1, 4),
    };
    let at = |hour: u64| UnixMillis((START + day) * DAY + hour * HOUR);
    let service = (need.protocol, need.port);
    if count >= 24 {
        each(&seen(from, to, service, count, 1, (at(first), at(last - 1))), None);
        return;
    }
    let records = count.min(3);
    for record in 0..records {
        let hour = first + random.below((last - first) as usize) as u64;
        let some = count / records + u64::from(record < count % records);
        each(&seen(from, to, service, some, 1, (at(hour), at(hour))), None);
    }
}

/// Whether a day is one of the last two of its month, or the first.
fn is_month_end(day: u64) -> bool {
    let day_of_month = |day: u64| {
        // Years are counted from March here, so that February is last.
        let shifted = day + 719_468;
        let of_era = shifted % 146_097;
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        of_year - (153 * month + 2) / 5 + 1
    };
    day_of_month(day) == 1 || day_of_month(day + 1) == 1 || day_of_month(day + 2) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_ends_where_the_calendar_has_it() {
        // 2026-09-28, a Monday, is two days before the 30th.
        let ends: Vec<u64> = (0..40).filter(|day| is_month_end(START + day)).collect();
        assert_eq!(ends, [1, 2, 3, 32, 33, 34]);
    }

    #[test]
    fn the_same_seed_plays_the_same_day_and_what_is_right_is_wanted() {
        let world = World::new(7, 300);
        let play = || {
            let (mut all, mut wrong) = (Vec::new(), 0);
            world.days(20..22, |seen, is_wrong| {
                let wanted = world.is_wanted(seen.from, seen.to, seen.protocol, seen.port);
                assert_eq!(wanted, is_wrong.is_none(), "{seen:?} {is_wrong:?}");
                wrong += usize::from(is_wrong.is_some());
                all.push(*seen);
            });
            (all, wrong)
        };
        let (first, wrong) = play();
        assert_eq!((first.clone(), wrong), play());
        assert!(first.len() > 1_000, "{}", first.len());
        let mut pairs = 0;
        world.wanted(|from, to, protocol, port| {
            assert!(world.is_wanted(from, to, protocol, port));
            pairs += 1;
        });
        assert!(pairs > 1_000, "{pairs}");
    }
}
