//! How this gateway's tunnel socket looks from outside: relays are asked, from that socket, beside QUIC
//! ([`anteroom_proto::relay::mirror`]).
//!
//! Peers are told inside the tunnel, through a relay if need be, and knock there. Each knock of a gateway opens its own NAT
//! for the other's, so that two of which each knows how the other looks find each other although neither can be reached
//! unasked. Nothing hangs on an answer but where knocks go, and of those there are few.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anteroom_proto::relay::mirror;
use serde::{Deserialize, Serialize};

use super::knock;
use crate::target::RelayId;

/// Most relays that are asked.
const MAX_MIRRORS: usize = 16;
/// Most addresses that a peer is told, and that are believed of one.
pub const MAX_PLACES: usize = 3;
/// Between two questions while packets take a relay: NATs keep a mapping for 30 s at least, most of them.
const KEEP: Duration = Duration::from_secs(15);
/// And while none do: direct paths keep their mappings alive by themselves.
const REST: Duration = Duration::from_secs(120);
/// Least time between two questions to one relay, and the first pause when it doesn't answer, which doubles.
const AGAIN: Duration = Duration::from_secs(1);
/// Questions in a row after which silence says that what was seen isn't so any more.
const UNANSWERED: u32 = 4;

/// What a gateway tells its peers of how it looks from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outside {
    /// Addresses of its tunnel socket as relays see it: those that most of them see first.
    pub places: Vec<SocketAddr>,
    /// Whether relays at different addresses see this gateway at one address with different ports, so that nobody else
    /// knows which to knock at. None where no two saw it at the same address, or those of one family leave it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub varies: Option<bool>,
}

impl Outside {
    /// What of it is worth a knock.
    pub(super) fn believed(mut self) -> Self {
        self.places.retain(is_usable);
        self.places.truncate(MAX_PLACES);
        self
    }
}

/// Whether a gateway can be there: knocks go to nobody's loopback, group or neighbourhood.
fn is_usable(place: &SocketAddr) -> bool {
    let fits = match place.ip() {
        IpAddr::V4(ip) => !ip.is_link_local() && (1..240).contains(&ip.octets()[0]),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && ip.to_ipv4_mapped().is_none(),
    };
    let ip = place.ip();
    fits && place.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback()
}

#[derive(Debug)]
struct Mirror {
    at: SocketAddr,
    /// The question that waits for its answer.
    asked: Option<u64>,
    last: Option<Instant>,
    next: Instant,
    unanswered: u32,
    seen: Option<SocketAddr>,
}

/// All relays that may be asked, and what they said.
#[derive(Debug)]
pub(super) struct Mirrors {
    secret: [u8; 32],
    questions: u64,
    mirrors: BTreeMap<RelayId, Mirror>,
}

impl Mirrors {
    /// Nonces grow from `secret`: nobody but who gets a question can answer it.
    pub(super) const fn new(secret: [u8; 32]) -> Self {
        Self { secret, questions: 0, mirrors: BTreeMap::new() }
    }

    /// A relay can be asked at `at` from now on, or no longer.
    pub(super) fn set(&mut self, relay: RelayId, at: Option<SocketAddr>, now: Instant) {
        let at = at.map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()));
        let Some(at) = at else {
            self.mirrors.remove(&relay);
            return;
        };
        let known = self.mirrors.get(&relay);
        if known.is_some_and(|known| known.at == at)
            || (known.is_none() && self.mirrors.len() >= MAX_MIRRORS)
        {
            return;
        }
        let fresh = Mirror { at, asked: None, last: None, next: now, unanswered: 0, seen: None };
        self.mirrors.insert(relay, fresh);
    }

    /// The gateway is elsewhere: what was seen says nothing any more.
    pub(super) fn forget(&mut self, now: Instant) {
        for mirror in self.mirrors.values_mut() {
            // What is answered still tells of where the gateway was.
            (mirror.seen, mirror.asked, mirror.unanswered) = (None, None, 0);
        }
        self.hasten(now);
    }

    /// What was seen may not be so any more: all are asked soon.
    pub(super) fn hasten(&mut self, now: Instant) {
        for mirror in self.mirrors.values_mut() {
            let soon = mirror.last.map_or(now, |last| now.max(last + AGAIN));
            mirror.next = mirror.next.min(soon);
        }
    }

    /// Packets take a relay from now on: mappings are kept alive.
    pub(super) fn rely(&mut self, now: Instant) {
        for mirror in self.mirrors.values_mut() {
            let soon = mirror.last.map_or(now, |last| now.max(last + KEEP));
            mirror.next = mirror.next.min(soon);
        }
    }

    /// Whether a relay is asked there.
    pub(super) fn is_at(&self, at: SocketAddr) -> bool {
        let at = SocketAddr::new(at.ip().to_canonical(), at.port());
        self.mirrors.values().any(|mirror| mirror.at == at)
    }

    /// When somebody is to be asked.
    pub(super) fn due(&self) -> Option<Instant> {
        self.mirrors.values().map(|mirror| mirror.next).min()
    }

    /// The questions that are due, and where they go. `relied` says whether packets take a relay.
    pub(super) fn ask(
        &mut self,
        relied: bool,
        now: Instant,
    ) -> Vec<(SocketAddr, [u8; mirror::LEN])> {
        let mut questions = Vec::new();
        for one in self.mirrors.values_mut().filter(|one| one.next <= now) {
            self.questions += 1;
            let nonce = knock::unguessable(&self.secret, self.questions);
            if one.asked.replace(nonce).is_some() {
                one.unanswered = one.unanswered.saturating_add(1);
                if one.unanswered >= UNANSWERED {
                    one.seen = None;
                }
            }
            let usual = if relied { KEEP } else { REST };
            let pause = AGAIN * 2_u32.saturating_pow(one.unanswered.min(7));
            // Until the answer says otherwise.
            one.next = now + pause.min(usual);
            one.last = Some(now);
            questions.push((one.at, mirror::question(nonce)));
        }
        questions
    }

    /// Takes an answer from `from`. None: nobody was asked so. Otherwise whether it is news.
    pub(super) fn hear(
        &mut self,
        from: SocketAddr,
        nonce: u64,
        place: SocketAddr,
        relied: bool,
        now: Instant,
    ) -> Option<bool> {
        let mut all = self.mirrors.values_mut();
        let one = all.find(|one| one.at == from && one.asked == Some(nonce))?;
        one.asked = None;
        one.unanswered = 0;
        one.next = one.last.unwrap_or(now) + if relied { KEEP } else { REST };
        if !is_usable(&place) {
            return Some(false);
        }
        Some(one.seen.replace(place) != Some(place))
    }

    /// What peers are told.
    pub(super) fn outside(&self) -> Outside {
        let mut votes: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        let mut seen = Seen::new();
        for (by, place) in self.mirrors.values().filter_map(|one| Some((one.at.ip(), one.seen?))) {
            *votes.entry(place).or_default() += 1;
            let ports = seen.entry(place.ip()).or_default();
            ports.entry(place.port()).or_default().insert(by);
        }
        let varies = varies(&seen);
        Outside { places: best(&votes), varies }
    }
}

/// What is told of the places that relays see: those that most of them do first, but one of each family of addresses before
/// all others, and one of each address before its further ports. Where a NAT gives every relay another port, those say nothing
/// to anybody, and mustn't keep out the other family, in which there may be no NAT at all.
fn best(votes: &BTreeMap<SocketAddr, usize>) -> Vec<SocketAddr> {
    let mut places: Vec<SocketAddr> = votes.keys().copied().collect();
    places.sort_by_key(|place| Reverse(votes.get(place).copied()));
    let (mut families, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let mut ranked: Vec<(u8, SocketAddr)> = Vec::new();
    for place in places {
        let of_family = families.insert(place.is_ipv4());
        let of_address = addresses.insert(place.ip());
        ranked.push((u8::from(!of_family) + u8::from(!of_address), place));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, place)| place).take(MAX_PLACES).collect()
}

/// By outside address and port, the addresses of relays that see them.
type Seen = BTreeMap<IpAddr, BTreeMap<u16, BTreeSet<IpAddr>>>;

/// Whether ports differ for each destination: see [`Outside::varies`]. Of each family of addresses one knows: a gateway may
/// be behind a NAT for one and not for the other, and one place that holds for everybody is enough.
fn varies(seen: &Seen) -> Option<bool> {
    let of = |v4: bool| seen.iter().filter(move |(ip, _)| ip.is_ipv4() == v4);
    let families = [true, false].into_iter().filter(|v4| of(*v4).next().is_some());
    let verdicts: Vec<Option<bool>> = families
        .map(|v4| {
            let said = of(v4).filter_map(|(_, ports)| differ(ports));
            // One address with a port for all is enough.
            said.reduce(|all, differs| all && differs)
        })
        .collect();
    if verdicts.contains(&Some(false)) {
        return Some(false);
    }
    (!verdicts.is_empty() && verdicts.iter().all(Option::is_some)).then_some(true)
}

/// Whether relays at different addresses see different ports of one address, as far as most of them agree.
fn differ(ports: &BTreeMap<u16, BTreeSet<IpAddr>>) -> Option<bool> {
    let all: BTreeSet<&IpAddr> = ports.values().flatten().collect();
    let most = ports.values().map(BTreeSet::len).max()?;
    (all.len() > 1).then_some(most * 2 <= all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RelayId = RelayId(0);
    const B: RelayId = RelayId(1);

    fn at(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, last], port))
    }

    fn start() -> (Mirrors, Instant) {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let now = Instant::now();
        let mut mirrors = Mirrors::new([7; 32]);
        mirrors.set(A, Some(at(1, 4433)), now);
        (mirrors, now)
    }

    fn nonce(question: &[u8]) -> u64 {
        mirror::parse_question(question).expect("a question")
    }

    #[test]
    fn only_who_was_asked_is_believed_and_once() {
        let (mut mirrors, now) = start();
        let asked = mirrors.ask(true, now);
        let [(to, question)] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(*to, at(1, 4433));
        let (nonce, place) = (nonce(question), at(9, 1234));
        assert_eq!(mirrors.hear(at(2, 4433), nonce, place, true, now), None, "from elsewhere");
        assert_eq!(mirrors.hear(at(1, 4434), nonce, place, true, now), None, "another port");
        assert_eq!(mirrors.hear(at(1, 4433), nonce ^ 1, place, true, now), None, "guessed");
        assert_eq!(mirrors.outside(), Outside::default());
        assert_eq!(mirrors.hear(at(1, 4433), nonce, place, true, now), Some(true));
        assert_eq!(mirrors.hear(at(1, 4433), nonce, at(8, 1), true, now), None, "a second answer");
        assert_eq!(mirrors.outside(), Outside { places: vec![place], varies: None });
    }

    #[test]
    fn an_answer_that_names_nobodys_address_is_worth_nothing() {
        for place in [
            "127.0.0.1:9",
            "224.0.0.1:9",
            "240.0.0.1:9",
            "255.255.255.255:9",
            "169.254.0.1:9",
            "0.0.0.0:9",
        ]
        .into_iter()
        .chain(["[::1]:9", "[ff02::1]:9", "[fe80::1]:9", "[::ffff:127.0.0.1]:9", "[::]:9"])
        {
            let place = place.parse().unwrap();
            let (mut mirrors, now) = start();
            let nonce = nonce(&mirrors.ask(true, now)[0].1);
            assert_eq!(mirrors.hear(at(1, 4433), nonce, place, true, now), Some(false));
            assert_eq!(mirrors.outside(), Outside::default());
            let told = Outside { places: vec![place, at(3, 9)], varies: None };
            assert_eq!(told.believed().places, [at(3, 9)]);
        }
        let many = Outside { places: (1..200).map(|n| at(n, 9)).collect(), varies: None };
        assert_eq!(many.believed().places.len(), MAX_PLACES);
    }

    #[test]
    fn questions_keep_the_mapping_alive_while_a_relay_is_used_and_are_few() {
        for (relied, most, least) in [(true, 5, 4), (false, 1, 1)] {
            let (mut mirrors, start) = start();
            let mut asked = 0;
            for millis in 0..60_000 {
                let now = start + Duration::from_millis(millis);
                if mirrors.due().is_none_or(|due| due > now) {
                    continue;
                }
                for (to, question) in mirrors.ask(relied, now) {
                    asked += 1;
                    mirrors.hear(to, nonce(&question), at(9, 9), relied, now);
                }
            }
            assert!((least..=most).contains(&asked), "{asked} in a minute");
        }
        // And one that doesn't answer is asked less and less, but again.
        let (mut mirrors, start) = start();
        let mut asked = Vec::new();
        for seconds in 0..300 {
            let now = start + Duration::from_secs(seconds);
            asked.extend(mirrors.ask(true, now).iter().map(|_| seconds));
        }
        assert!(asked.starts_with(&[0, 1, 3, 7]), "{asked:?}");
        assert!((20..=28).contains(&asked.len()), "{asked:?}");
    }

    #[test]
    fn what_may_have_changed_is_asked_for_at_once_but_never_faster_than_once_a_second() {
        let (mut mirrors, start) = start();
        let nonce = nonce(&mirrors.ask(false, start)[0].1);
        mirrors.hear(at(1, 4433), nonce, at(9, 9), false, start);
        let mut asked = 0;
        for millis in 1..10_000 {
            let now = start + Duration::from_millis(millis);
            mirrors.hasten(now);
            asked += mirrors.ask(false, now).len();
        }
        assert!((8..=10).contains(&asked), "{asked}");
        assert_eq!(mirrors.outside(), Outside::default(), "nobody has answered for so long");
        mirrors.forget(start + Duration::from_secs(60));
        assert!(mirrors.due() <= Some(start + Duration::from_secs(60)));
    }

    #[test]
    fn two_relays_tell_whether_the_nat_gives_everybody_the_same_port() {
        let (mut mirrors, now) = start();
        // Two ports of one machine say nothing: a NAT may go by addresses alone.
        for (relay, by, seen, outside) in [
            (A, at(1, 4433), at(9, 1), (vec![at(9, 1)], None)),
            (RelayId(7), at(1, 4434), at(9, 1), (vec![at(9, 1)], None)),
            (B, at(2, 4433), at(9, 1), (vec![at(9, 1)], Some(false))),
            (B, at(2, 4433), at(9, 2), (vec![at(9, 1), at(9, 2)], Some(true))),
        ] {
            mirrors.set(relay, Some(by), now);
            let later = now + Duration::from_secs(600);
            let nonces = mirrors.ask(true, later);
            for (to, question) in nonces {
                let place = if to == by { Some(seen) } else { mirrors_seen(&mirrors, to) };
                let place = place.unwrap_or_else(|| at(9, 1));
                mirrors.hear(to, nonce(&question), place, true, later);
            }
            mirrors.hasten(later);
            for mirror in mirrors.mirrors.values_mut() {
                mirror.next = later;
            }
            let (places, varies) = outside;
            assert_eq!(mirrors.outside(), Outside { places, varies }, "{relay:?}");
        }
        // A liar is outvoted, where the others agree.
        mirrors.set(RelayId(8), Some(at(3, 4433)), now);
        assert_eq!(mirrors.outside().places.first(), Some(&at(9, 1)));
        mirrors.set(B, None, now);
        assert_eq!(mirrors.outside().places, [at(9, 1)]);
        for more in 0..100 {
            mirrors.set(RelayId(100 + more), Some(at(4, 1 + more)), now);
        }
        assert_eq!(mirrors.mirrors.len(), MAX_MIRRORS);
    }

    /// What is told where relays at these addresses see these places.
    fn told(seen: &[(&str, &str)]) -> Outside {
        let (mut mirrors, now) = start();
        mirrors.set(A, None, now);
        for (relay, (by, _)) in (0..).zip(seen) {
            mirrors.set(RelayId(relay), Some(by.parse().unwrap()), now);
        }
        for (to, question) in mirrors.ask(true, now) {
            let (_, place) = seen.iter().find(|(by, _)| by.parse() == Ok(to)).unwrap();
            mirrors.hear(to, nonce(&question), place.parse().unwrap(), true, now);
        }
        mirrors.outside()
    }

    #[test]
    fn ports_vary_only_where_most_relays_see_the_same_address_with_others() {
        let lan = [("10.20.1.9:4433", "10.20.1.2:51820"), ("198.51.100.1:4433", "203.0.113.1:7")];
        let v6 = [("[2001:db8::1]:4433", "[2001:db8:1::2]:51820")];
        let symmetric =
            [("198.51.100.1:4433", "203.0.113.1:7"), ("198.51.100.2:4433", "203.0.113.1:8")];
        let honest = |count: u8| -> Vec<(String, String)> {
            (1..=count).map(|n| (format!("198.51.100.{n}:4433"), "203.0.113.1:7".into())).collect()
        };
        for (name, seen, varies) in [
            ("one by IPv4 and one by IPv6", [&lan[1..], &v6].concat(), None),
            ("one in the LAN and one beyond", lan.to_vec(), None),
            ("two uplinks", vec![symmetric[0], ("198.51.100.2:4433", "192.0.2.9:7")], None),
            ("a symmetric NAT", symmetric.to_vec(), Some(true)),
            ("a controller in the LAN beside it", [&lan[..1], &symmetric].concat(), Some(true)),
            ("IPv6 beside it, of which one relay knows", [&symmetric[..], &v6].concat(), None),
            (
                "IPv6 beside it without a NAT",
                [&symmetric[..], &v6, &[("[2001:db8::2]:4433", "[2001:db8:1::2]:51820")]].concat(),
                Some(false),
            ),
        ] {
            assert_eq!(told(&seen).varies, varies, "{name}");
        }
        for (count, lie) in [(2, "203.0.113.1:9"), (9, "203.0.113.1:9"), (9, "192.0.2.1:7")] {
            let honest = honest(count);
            let mut seen: Vec<_> = honest.iter().map(|(by, at)| (&**by, &**at)).collect();
            seen.push(("198.51.100.99:4433", lie));
            let told = told(&seen);
            assert_eq!(told.varies, Some(false), "{count} against one that says {lie}");
            assert_eq!(told.places.first(), Some(&"203.0.113.1:7".parse().unwrap()));
        }
    }

    #[test]
    fn a_nat_that_gives_every_relay_another_port_keeps_no_other_address_out() {
        let symmetric: Vec<(String, String)> =
            (1..=9).map(|n| (format!("198.51.100.{n}:4433"), format!("203.0.113.1:{n}"))).collect();
        let mut seen: Vec<_> = symmetric.iter().map(|(by, at)| (&**by, &**at)).collect();
        seen.push(("198.51.100.77:4433", "192.0.2.7:51820"));
        seen.push(("[2001:db8::1]:4433", "[2001:db8:1::2]:51820"));
        let places = told(&seen).places;
        assert_eq!(places.len(), MAX_PLACES);
        for place in ["[2001:db8:1::2]:51820", "192.0.2.7:51820"] {
            assert!(places.contains(&place.parse().unwrap()), "{place} isn't told: {places:?}");
        }
        // What most see is told first.
        let most =
            [("198.51.100.78:4433", "203.0.113.1:7"), ("198.51.100.79:4433", "203.0.113.1:7")];
        seen.extend(most);
        assert_eq!(told(&seen).places.first(), Some(&"203.0.113.1:7".parse().unwrap()));
    }

    #[test]
    fn an_answer_to_a_question_from_before_a_move_says_nothing() {
        let (mut mirrors, now) = start();
        let old = nonce(&mirrors.ask(true, now)[0].1);
        let moved = now + Duration::from_millis(10);
        mirrors.forget(moved);
        let due = mirrors.due();
        assert_eq!(mirrors.hear(at(1, 4433), old, at(9, 9), true, moved), None);
        assert_eq!((mirrors.outside(), mirrors.due()), (Outside::default(), due));
    }

    fn mirrors_seen(mirrors: &Mirrors, by: SocketAddr) -> Option<SocketAddr> {
        mirrors.mirrors.values().find(|one| one.at == by)?.seen
    }
}
