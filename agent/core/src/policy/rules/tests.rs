use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anteroom_proto::id::{GatewayId, OrganisationId, SegmentId, SiteId};
use anteroom_proto::intent::{External, Infrastructure, Segment};
use proptest::prelude::*;

use super::*;

const PORTS: [u16; 4] = [104, 105, 2_575, 40_000];

fn id(number: u8) -> MemberId {
    MemberId::from_bytes([number; 16])
}

fn external(number: u8) -> ExternalId {
    ExternalId::of(&format!("external {number}"))
}

fn segment(number: u8) -> SegmentId {
    SegmentId::of(&format!("segment {number}"))
}

/// One of four members, three segments or two externals; or somebody whom the view doesn't have.
fn any_end() -> impl Strategy<Value = Endpoint> {
    prop_oneof![
        4 => (0..5_u8).prop_map(|number| Endpoint::Member(id(number))),
        4 => (0..4_u8).prop_map(|number| Endpoint::Segment(segment(number))),
        2 => (0..3_u8).prop_map(|number| Endpoint::External(external(number))),
    ]
}

fn any_service() -> impl Strategy<Value = PortMatch> {
    prop::sample::select(vec![
        "tcp/104",
        "tcp/105",
        "udp/104",
        "tcp/100-110",
        "tcp/1-65535",
        "udp/2575-2575",
        "udp/1-3000",
        "icmp/echo",
    ])
    .prop_map(|text| text.parse().unwrap())
}

fn any_rule() -> impl Strategy<Value = (Endpoint, Endpoint, Vec<PortMatch>, bool, bool, u8)> {
    let services = prop::collection::vec(any_service(), 0..3);
    (any_end(), any_end(), services, any::<bool>(), any::<bool>(), 0..6_u8)
}

fn intent(
    rules: Vec<(Endpoint, Endpoint, Vec<PortMatch>, bool, bool, u8)>,
    segments: &[(u8, u8)],
) -> Intent {
    let bits = |bits: u8, count: u8| (0..count).filter(move |bit| bits & (1 << bit) != 0);
    let segments = (0..).zip(segments).map(|(number, (members, externals))| Segment {
        id: segment(number),
        members: bits(*members, 5).map(id).collect(),
        externals: bits(*externals, 3).map(external).collect(),
    });
    let prefixes = |number| match number {
        0 => vec!["10.0.0.0/8".parse().unwrap()],
        _ => vec!["10.1.0.0/16".parse().unwrap(), "192.0.2.1/32".parse().unwrap()],
    };
    let rules =
        (0..).zip(rules).map(|(number, (from, to, services, clear, essential, when))| Rule {
            id: RuleId::of(&format!("rule {number}")),
            from,
            to,
            services,
            clear,
            essential,
            conditions: match when {
                0 => vec![Condition::Known(KnownCondition::NotAfter(UnixMillis(5_000)))],
                1 => vec![Condition::Known(KnownCondition::NotAfter(UnixMillis(50_000)))],
                _ => Vec::new(),
            },
        });
    Intent {
        identity: None,
        organisation: OrganisationId::from_bytes([1; 16]),
        gateway: GatewayId::from_bytes([1; 16]),
        overlay: Ipv6Addr::LOCALHOST,
        site: SiteId::of("north"),
        segments: segments.collect(),
        devices: Vec::new(),
        members: Vec::new(),
        clients: Vec::new(),
        peers: Vec::new(),
        externals: (0..2).map(|n| External { id: external(n), prefixes: prefixes(n) }).collect(),
        rules: rules.collect(),
        infrastructure: Infrastructure::default(),
        bypasses: Vec::new(),
    }
}

/// Whether somebody is meant by a rule's end, looked up in the view as it stands.
fn is_meant(intent: &Intent, end: &Endpoint, who: Who, address: Ipv4Addr) -> bool {
    let member = |wanted: &MemberId| match who {
        Who::Member(index) => index.0 < 4 && id(u8::try_from(index.0).unwrap()) == *wanted,
        Who::Address | Who::Impostor => false,
    };
    let outside = |wanted: &ExternalId| {
        let one = intent.externals.iter().find(|external| external.id == *wanted);
        who == Who::Address
            && one.is_some_and(|one| one.prefixes.iter().any(|net| net.contains(&address)))
    };
    match end {
        Endpoint::Member(wanted) => member(wanted),
        Endpoint::External(wanted) => outside(wanted),
        Endpoint::Segment(wanted) => {
            intent.segments.iter().find(|segment| segment.id == *wanted).is_some_and(|segment| {
                segment.members.iter().any(member) || segment.externals.iter().any(outside)
            })
        }
    }
}

fn any_who() -> impl Strategy<Value = (Who, Ipv4Addr)> {
    prop_oneof![
        6 => (0..4_u32).prop_map(|n| (Who::Member(MemberIndex(n)), Ipv4Addr::UNSPECIFIED)),
        3 => prop::sample::select(vec![[10, 0, 0, 1], [10, 1, 0, 1], [192, 0, 2, 1], [192, 0, 2, 2]])
            .prop_map(|address| (Who::Address, address.into())),
        1 => Just((Who::Impostor, Ipv4Addr::new(10, 0, 0, 1))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is asked, the index finds what looking at every rule in turn finds.
    #[test]
    fn the_index_finds_what_going_through_all_rules_finds(
        rules in prop::collection::vec(any_rule(), 0..30),
        segments in prop::collection::vec((any::<u8>(), any::<u8>()), 3),
        (from, to) in (any_who(), any_who()),
        (clear, essential, confirmed) in any::<(bool, bool, bool)>(),
    ) {
        let intent = intent(rules, &segments);
        let place = |wanted: MemberId| (0..4).find(|n| id(*n) == wanted).map(|n| MemberIndex(n.into()));
        let index = Rules::new(&intent, place);
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut clock = Clock::new(now);
        clock.set(UnixMillis(10_000), confirmed, now);
        let now = Now { clock: &clock, now: now + Duration::from_secs(1) };
        let needs = Needs { clear, essential };
        let both = |rule: &&Rule| {
            is_meant(&intent, &rule.from, from.0, from.1) && is_meant(&intent, &rule.to, to.0, to.1)
        };
        for (protocol, port) in [Protocol::Tcp, Protocol::Udp, Protocol::IcmpEcho]
            .into_iter()
            .flat_map(|protocol| PORTS.map(|port| (protocol, port)))
        {
            let fits = |rule: &&Rule| rule.services.iter().any(|s| s.matches(protocol, port));
            let mut expected = Err(Refused::because(DropReason::NoRule));
            for rule in intent.rules.iter().filter(both).filter(fits) {
                match (expected, Entry::new(rule).check(needs, now)) {
                    (Ok(_), _) => {}
                    (Err(_), Ok(())) => expected = Ok(rule.id),
                    (Err(known), Err(reason)) if rank(reason) > rank(known.reason) => {
                        expected = Err(Refused { reason, rule: Some(rule.id) });
                    }
                    (Err(_), Err(_)) => {}
                }
            }
            let found = index.find(from, to, (protocol, port), needs, now);
            prop_assert_eq!(found, expected, "{:?}/{} of {:#?}", protocol, port, intent.rules);
        }
        for wanted in [true, false] {
            let expected = intent.rules.iter().filter(both).any(|rule| rule.clear || !wanted);
            let found = index.any(from.0, from.1, to.0, to.1, |clear| clear || !wanted);
            prop_assert_eq!(found, expected, "clear {} of {:#?}", wanted, intent.rules);
        }
        let named = |rule: &Rule| {
            [&rule.from, &rule.to].iter().any(|end| is_meant(&intent, end, Who::Address, from.1))
        };
        prop_assert_eq!(index.names(from.1), intent.rules.iter().any(named));
    }
}
