use anteroom_proto::mac::MacAddr;

use super::*;

const CLIENT: Station = Station { mac: MacAddr([2, 0, 0, 0, 0, 1]), vlan: None };
const SERVER: Station = Station { mac: MacAddr([2, 0, 0, 0, 0, 2]), vlan: None };

fn segment(port: u16, sequence: u32, payload: &[u8]) -> Segment<'_> {
    Segment {
        from: CLIENT,
        to: SERVER,
        ips: (IpAddr::from([10, 0, 0, 9]), IpAddr::from([10, 0, 0, 1])),
        ports: (port, 104),
        ttl: 64,
        forwarded: false,
        syn: false,
        ack: true,
        rst: false,
        fin: false,
        cut: false,
        window: 0,
        sequence,
        options: &[],
        payload,
    }
}

fn opened(port: u16, sequence: u32) -> Segment<'static> {
    Segment { syn: true, ack: false, ..segment(port, sequence, &[]) }
}

fn read(streams: &mut Streams, segment: &Segment<'_>) -> Option<Vec<u8>> {
    let mut read = None;
    streams.take(segment, Look::Further, |talk| {
        assert_eq!((talk.client, talk.server, talk.port), (Some(CLIENT), Some(SERVER), 104));
        read = Some(talk.asked.to_vec());
        false
    });
    read
}

#[test]
fn segments_are_put_in_order_and_overlaps_taken_once() {
    let mut streams = Streams::default();
    let start = u32::MAX - 3;
    read(&mut streams, &opened(4000, start.wrapping_sub(1)));
    assert_eq!(read(&mut streams, &segment(4000, start.wrapping_add(4), b"efgh")), None);
    assert_eq!(read(&mut streams, &segment(4000, start, b"ab")), Some(b"ab".to_vec()));
    assert_eq!(read(&mut streams, &segment(4000, start, b"ab")), None, "a repetition");
    let all = read(&mut streams, &segment(4000, start.wrapping_add(1), b"bcde"));
    assert_eq!(all, Some(b"abcdefgh".to_vec()));
    assert_eq!(read(&mut streams, &segment(4000, start.wrapping_add(1 << 20), b"far")), None);
}

#[test]
fn a_port_that_is_used_again_begins_anew() {
    let mut streams = Streams::default();
    read(&mut streams, &opened(4000, 10));
    read(&mut streams, &segment(4000, 11, b"old"));
    read(&mut streams, &opened(4000, 900));
    assert_eq!(read(&mut streams, &segment(4000, 901, b"new")), Some(b"new".to_vec()));
}

fn assert_accounts(streams: &Streams) {
    let kept: usize = streams.flows.values().map(Flow::kept).sum();
    assert_eq!(kept, streams.kept);
    assert_eq!(kept, streams.shares.values().map(|share| share.kept).sum::<usize>());
    assert_eq!(streams.flows.len(), streams.shares.values().map(|share| share.flows).sum());
    assert_eq!(streams.flows.len(), streams.order.len());
    assert!(kept <= MOST_KEPT, "{kept}");
    assert!(streams.flows.len() <= MOST_FLOWS, "{}", streams.flows.len());
}

#[test]
fn one_machine_that_opens_flows_without_end_pushes_out_its_own() {
    let mut streams = Streams::default();
    let quiet = MacAddr([2, 0, 0, 0, 0, 7]);
    let from = Station { mac: quiet, vlan: None };
    let ips = (IpAddr::from([10, 0, 0, 7]), IpAddr::from([10, 0, 0, 1]));
    let quiet = |segment: Segment<'static>| Segment { from, ips, ..segment };
    streams.take(&quiet(opened(1000, 0)), Look::Anew, |_| false);
    streams.take(&quiet(segment(1000, 1, b"first")), Look::Further, |_| false);
    let large = vec![7; 60_000];
    for port in 1024..11_024 {
        read(&mut streams, &opened(port, 0));
        let seen = read(&mut streams, &segment(port, 1, &large)).expect("the first bytes");
        assert_eq!(seen.len(), MOST_BYTES);
        assert_eq!(read(&mut streams, &segment(port, 60_001, &large)), None);
    }
    assert_accounts(&streams);
    assert!(streams.pushed_out() > 9000, "{}", streams.pushed_out());
    let mut said = Vec::new();
    streams.take(&quiet(segment(1000, 6, b" more")), Look::Further, |talk| {
        said = talk.asked.to_vec();
        false
    });
    assert_eq!(said, b"first more", "the quiet one's flow is still known");
}

#[test]
fn nobody_puts_words_into_anothers_mouth() {
    let mut streams = Streams::default();
    read(&mut streams, &opened(4000, 10));
    let lie = Segment { from: SERVER, ..segment(4000, 11, b"lie") };
    assert_eq!(read(&mut streams, &lie), None);
    assert_eq!(read(&mut streams, &segment(4000, 11, b"true")), Some(b"true".to_vec()));
}

#[test]
fn what_is_seen_on_both_sides_of_a_router_is_of_who_said_it() {
    let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 1, n]), vlan: None };
    let (inside, outside) = (station(1), station(2));
    let back = |segment: Segment<'static>| Segment {
        from: SERVER,
        to: inside,
        ips: (segment.ips.1, segment.ips.0),
        ports: (segment.ports.1, segment.ports.0),
        ..segment
    };
    let request = Segment { to: outside, ..segment(4000, 11, b"asks") };
    let answer = back(segment(4000, 91, b"answers"));
    let passed_on = |segment: &Segment<'static>| {
        let (from, to) = if segment.from == CLIENT { (inside, SERVER) } else { (outside, CLIENT) };
        Segment { from, to, forwarded: true, ..*segment }
    };
    let all = [
        Segment { to: outside, ..opened(4000, 10) },
        Segment { syn: true, ..back(segment(4000, 90, &[])) },
        request,
        answer,
    ];
    let both = |copy_first: bool| {
        let mut streams = Streams::default();
        let mut found = Vec::new();
        for segment in &all {
            let mut seen = [*segment, passed_on(segment)];
            if copy_first {
                seen.reverse();
            }
            for segment in &seen {
                streams.take(segment, Look::Further, |talk| {
                    found.push((talk.client, talk.server, talk.asked.len(), talk.answered.len()));
                    false
                });
            }
        }
        found
    };
    let wanted = [(Some(CLIENT), Some(SERVER), 4, 0), (Some(CLIENT), Some(SERVER), 4, 7)];
    assert_eq!(both(false), wanted);
    assert_eq!(both(true), wanted);
}

#[test]
fn a_second_look_at_a_long_connection_reads_from_where_it_is() {
    let mut streams = Streams::default();
    read(&mut streams, &opened(4000, 10));
    read(&mut streams, &segment(4000, 11, b"first"));
    let later = segment(4000, 5_000_000, b"later");
    assert_eq!(read(&mut streams, &later), None, "far away");
    let mut said = Vec::new();
    streams.take(&later, Look::Anew, |talk| {
        assert!(!talk.answered_from_start);
        said = talk.asked.to_vec();
        false
    });
    assert_eq!(said, b"later");
    assert_accounts(&streams);
}

proptest::proptest! {
    #[test]
    fn accounts_agree_with_what_is_kept(
        steps in proptest::collection::vec((0..3_u16, 0..60_000_u32, 0..20_000_usize, 0..32_u8), 0..200),
    ) {
        let mut streams = Streams::default();
        let bytes = vec![1; 20_000];
        for (port, sequence, length, flags) in steps {
            let flag = |bit: u8| flags & bit != 0;
            let one = segment(4000 + port, sequence, &bytes[..length]);
            let one = Segment { syn: flag(1) && flag(2), ack: flag(4), fin: flag(8) && flag(1), ..one };
            let back = Segment {
                from: one.to,
                to: one.from,
                ips: (one.ips.1, one.ips.0),
                ports: (one.ports.1, one.ports.0),
                ..one
            };
            let look = if flag(1) { Look::Anew } else { Look::Further };
            streams.take(if flag(16) { &one } else { &back }, look, |talk| talk.asked.len() > 9000);
            assert_accounts(&streams);
        }
    }
}

#[test]
fn of_a_flow_that_was_under_way_the_lower_port_is_the_server() {
    let mut streams = Streams::default();
    let answer = Segment {
        from: SERVER,
        to: CLIENT,
        ips: (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 9])),
        ports: (104, 4000),
        ..segment(4000, 5, b"hello")
    };
    let mut who = None;
    streams.take(&answer, Look::Further, |talk| {
        who = Some((talk.client, talk.answered.to_vec()));
        true
    });
    assert_eq!(who, Some((Some(CLIENT), b"hello".to_vec())));
    assert_eq!(read(&mut streams, &segment(4000, 50, b"more")), None, "it is done with");
}

#[test]
fn who_asks_is_the_client_where_nobody_saw_the_opening() {
    let ports = |first: &[u8]| {
        let mut streams = Streams::default();
        let mut found = Vec::new();
        let answer = Segment {
            from: SERVER,
            to: CLIENT,
            ips: (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 9])),
            ports: (11_112, 1040),
            ..segment(1040, 5, b"answer")
        };
        let asked = Segment { ports: (1040, 11_112), ..segment(1040, 1, first) };
        for segment in [asked, answer] {
            streams.take(&segment, Look::Further, |talk| {
                found.push((talk.client, talk.port));
                false
            });
        }
        found
    };
    let dicom = [1, 0, 0, 0, 0, 200, 0, 1, 0, 0, b'A'];
    assert_eq!(ports(&dicom), [(Some(CLIENT), 11_112); 2]);
    assert_eq!(ports(b"GET / HTTP/1.1"), [(Some(CLIENT), 11_112); 2]);
    assert_eq!(ports(b"who knows"), [(Some(SERVER), 1040); 2], "by the lower port");
}
