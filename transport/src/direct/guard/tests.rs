use anteroom_proto::key::IdentityKey;
use proptest::prelude::*;

use super::*;

fn identity(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

fn callers(seeds: &[u8]) -> Vec<Caller> {
    let home = |seed| IpAddr::from([198, 51, 100, seed]);
    let caller = |seed: &u8| Caller { key: identity(*seed).public(), addresses: vec![home(*seed)] };
    seeds.iter().map(caller).collect()
}

/// A guard of gateway 1, with these peers.
struct Bed {
    guard: Guard,
    now: Instant,
}

impl Bed {
    fn new() -> Self {
        let bed = Self { guard: Guard::new(ids(1)), now: Instant::now() };
        bed.set_peers(&[2, 3]);
        bed
    }

    fn set_peers(&self, seeds: &[u8]) {
        let own = identity(1);
        self.guard.set_peers(&callers(seeds), |key| Knock::from(&own, key), self.now);
    }

    fn passes(&self, from: SocketAddr, datagram: &[u8]) -> bool {
        self.guard.passes(&mut self.guard.state(), place(from), datagram, self.now)
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }
}

fn ids(run: u8) -> Ids {
    Ids::new([9; 32], [1, run])
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn long(kind: u8, version: [u8; 4], id: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len.max(6 + id.len())];
    bytes[0] = LONG | QUIC_BIT | kind;
    bytes[1..5].copy_from_slice(&version);
    bytes[5] = u8::try_from(id.len()).unwrap();
    bytes[6..6 + id.len()].copy_from_slice(id);
    bytes
}

fn first(id: &[u8]) -> Vec<u8> {
    long(0, VERSION, id, FIRST_LEN)
}

fn short(id: &[u8]) -> Vec<u8> {
    [&[QUIC_BIT], id, &[0; 40]].concat()
}

fn knock(seed: u8, nonce: u64) -> [u8; KNOCK_LEN] {
    Knock::at(&identity(seed), &identity(1).public()).unwrap().with(nonce.to_be_bytes())
}

#[test]
fn a_knock_of_a_peer_passes_once_and_again_from_the_same_place_only() {
    let mut bed = Bed::new();
    let begin = first(&knock(2, 1));
    assert!(bed.passes(at(1), &begin));
    assert!(bed.passes(at(1), &begin), "sent again");
    assert!(!bed.passes(at(2), &begin), "played back");
    assert!(bed.passes(at(2), &first(&knock(3, 1))), "another's");
    let stranger = first(&knock(4, 1));
    assert!(!bed.passes(at(1), &stranger));
    bed.wait(PACE);
    assert!(!bed.passes(at(1), &long(0, VERSION, &knock(2, 3), FIRST_LEN - 1)));
    assert!(!bed.passes(at(1), &long(0, [0, 0, 0, 2], &knock(2, 3), FIRST_LEN)));
    assert!(!bed.passes(at(1), &long(0x10, VERSION, &knock(2, 3), FIRST_LEN)));
    assert!(bed.passes(at(2), &first(&knock(2, 2))));
    bed.wait(HANDSHAKE);
    assert!(!bed.passes(at(1), &begin), "played back later, with the sender's address forged");
}

#[test]
fn one_peer_begins_no_more_than_one_connection_in_two_seconds() {
    let mut bed = Bed::new();
    let heard = (0..100).filter(|nonce| bed.passes(at(1), &first(&knock(2, *nonce)))).count();
    assert_eq!(heard, 1);
    assert!(bed.passes(at(1), &first(&knock(3, 1))), "another peer's");
    bed.wait(PACE);
    // What wasn't heard comes again.
    assert!(bed.passes(at(1), &first(&knock(2, 7))));
    assert!(!bed.passes(at(1), &first(&knock(2, 8))));
}

#[test]
fn who_is_no_peer_any_more_knocks_in_vain_and_what_was_heard_is_kept() {
    let mut bed = Bed::new();
    let (two, three) = (first(&knock(2, 1)), first(&knock(3, 1)));
    assert!(bed.passes(at(1), &two) && bed.passes(at(1), &three));
    bed.wait(PACE);
    bed.set_peers(&[2]);
    assert!(!bed.passes(at(3), &first(&knock(3, 9))));
    assert!(!bed.passes(at(1), &three), "as it was heard before");
    assert!(!bed.passes(at(3), &two), "another's are played back as before");
    assert!(bed.passes(at(3), &first(&knock(2, 9))));
    assert_eq!(bed.guard.whose(&knock(3, 1)), None);
    assert_eq!(bed.guard.whose(&knock(2, 1)), Some(identity(2).public()));
    // It comes back, and what was recorded before doesn't.
    bed.wait(PACE);
    bed.set_peers(&[2, 3]);
    assert!(!bed.passes(at(2), &three));
    assert!(bed.passes(at(2), &first(&knock(3, 2))));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut bed = Bed::new();
    let most = REMEMBERED as u64;
    for nonce in 0..most + 10 {
        assert!(bed.passes(at(1), &first(&knock(2, nonce))));
        bed.wait(PACE);
    }
    for nonce in 10..most + 10 {
        assert!(!bed.passes(at(2), &first(&knock(2, nonce))));
    }
    let state = bed.guard.state();
    assert!(state.peers.values().flatten().all(|peer| peer.seen.len() <= REMEMBERED));
    drop(state);
    for port in 0..=u16::MAX {
        bed.guard.calls(at(port), bed.now);
    }
    assert!(bed.guard.state().begun.len() <= MOST_BEGUN);
    bed.wait(HANDSHAKE + PACE);
    bed.guard.calls(at(1), bed.now);
    assert!(bed.guard.state().has_begun(place(at(1)), bed.now), "there is room again");
}

#[test]
fn later_packets_pass_by_an_id_that_this_end_made() {
    let bed = Bed::new();
    let own = ids(1).generate_cid();
    let foreign = Ids::new([8; 32], [1, 1]).generate_cid();
    assert!(!bed.passes(at(1), &short(&foreign)));
    assert!(!bed.passes(at(1), &long(0x20, VERSION, &foreign, 100)));
    assert!(bed.passes(at(1), &short(&own)));
    assert!(bed.passes(at(2), &long(0x20, VERSION, &own, 100)), "from elsewhere");
    // From where there is a connection, what QUIC itself may make of the others is its matter.
    bed.guard.set_live([at(1)].into_iter());
    assert!(bed.passes(at(1), &short(&foreign)));
    assert!(!bed.passes(at(3), &short(&foreign)));
    bed.guard.set_live([].into_iter());
    assert!(!bed.passes(at(1), &short(&foreign)));
    // Of a connection of this run that has ended nobody is told anything.
    assert!(ids(1).validate(&own).is_err() && ids(1).validate(&foreign).is_err());
}

#[test]
fn an_id_of_this_end_begins_nothing_but_where_somebody_knocked_or_was_called() {
    let mut bed = Bed::new();
    let own = ids(1).generate_cid();
    let begin = first(&own);
    assert!(!bed.passes(at(1), &begin), "whoever has seen it");
    assert!(bed.passes(at(1), &first(&knock(2, 1))));
    assert!(bed.passes(at(1), &begin), "the handshake goes on");
    assert!(!bed.passes(at(2), &begin));
    bed.guard.calls(SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x201], 3)), bed.now);
    assert!(bed.passes(at(3), &begin), "the answer");
    bed.wait(HANDSHAKE + PACE);
    assert!(!bed.passes(at(1), &begin) && !bed.passes(at(3), &begin));
}

#[test]
fn a_peer_is_told_that_a_connection_of_an_earlier_run_is_gone_and_nobody_else_is() {
    let bed = Bed::new();
    let before = ids(7).generate_cid();
    assert!(ids(1).validate(&before).is_ok());
    let long_ago = Ids::new([9; 32], [2, 1]).generate_cid();
    assert!(ids(1).validate(&long_ago).is_ok(), "all of the number counts");
    let mut forged = *before.first_chunk::<ID_LEN>().unwrap();
    forged[ID_LEN - 1] ^= 1;
    let home = SocketAddr::from(([198, 51, 100, 2], 40_000));
    assert!(bed.passes(home, &short(&before)) && !bed.passes(home, &short(&forged)));
    assert!(!bed.passes(at(1), &short(&before)));
    assert!(!bed.passes(home, &first(&before)));
    assert!(!bed.passes(home, &long(0x20, VERSION, &before, 100)));
    bed.set_peers(&[3]);
    assert!(!bed.passes(home, &short(&before)));
}

#[test]
fn strays_are_taken_out_of_what_was_merged() {
    let bed = Bed::new();
    let own = ids(1).generate_cid();
    let good = |mark: u8| {
        let mut bytes = short(&own);
        bytes.resize(60, mark);
        bytes
    };
    let stray = vec![1; 60];
    let mut buffer = [good(1), stray.clone(), good(2), stray, good(3)[..50].to_vec()].concat();
    let mut meta = RecvMeta { addr: at(1), len: buffer.len(), stride: 60, ..RecvMeta::default() };
    bed.guard.sift(&mut buffer, &mut meta);
    assert_eq!(buffer[..meta.len], [good(1), good(2), good(3)[..50].to_vec()].concat());
    assert_eq!(bed.guard.turned_away(), 2);
}

proptest! {
    #[test]
    fn nothing_made_up_passes(
        bytes in proptest::collection::vec(any::<u8>(), 0..1400),
        stride in 0_usize..1500,
        hinted: bool,
    ) {
        let bed = Bed::new();
        let mut bytes = bytes;
        if hinted && bytes.len() > 40 {
            let begin = long(0, VERSION, &knock(2, 7)[..19], 0);
            bytes[..begin.len()].copy_from_slice(&begin);
            bytes[5] = 20;
            bytes[25] = !knock(2, 7)[19];
        }
        let mut meta = RecvMeta { addr: at(1), len: bytes.len(), stride, ..RecvMeta::default() };
        bed.guard.sift(&mut bytes, &mut meta);
        prop_assert_eq!(meta.len, 0);
    }
}
