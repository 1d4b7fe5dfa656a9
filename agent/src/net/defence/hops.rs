//! Which Ethernet address each of the gateway's own next hops has, and what to do when somebody says otherwise.
//!
//! The first that the kernel finds is kept. It is asked now and then, and at once when somebody else claims its
//! address, by frames that go to it alone: who answers keeps its place. Who doesn't, three times, is replaced by who
//! claimed the address, or, where nobody did, looked for anew. Should it come back soon it is asked as well, and has
//! its place again once it answers, so that an impostor who kept it from answering gains that time only. A claim in
//! its name changes nothing by itself: after a router was swapped anybody could make one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::mac::MacAddr;

/// How often one that nobody contests is asked.
const EVERY: Duration = Duration::from_secs(30);
/// How long it has for each answer, and the shortest time between two questions.
const ANSWER: Duration = Duration::from_secs(1);
/// How often it is asked before it counts as gone.
const TRIES: u8 = 3;
/// How long a newcomer who lost isn't listened to.
const REFUSED: Duration = Duration::from_secs(30);
/// How long one who was replaced has its place back by answering, whatever its successor says.
const FORMER: Duration = Duration::from_secs(600);
/// Most next hops that are defended.
const MAX: usize = 256;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask whoever is at `mac`, and nobody else, whether it has the address.
    Ask { address: Ipv4Addr, mac: MacAddr },
    /// The kernel is to send there, whatever anybody says.
    Pin { address: Ipv4Addr, mac: MacAddr },
    /// The kernel is to find out by itself.
    Release { address: Ipv4Addr },
}

/// What an ARP packet on the underlay says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    /// The sender's IP address.
    pub(crate) address: Ipv4Addr,
    /// The sender's Ethernet address.
    pub(crate) mac: MacAddr,
    /// Whether it is a reply that was sent to this machine alone.
    pub(crate) reply: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Hop {
    known: Option<Known>,
    refused: Option<(MacAddr, Instant)>,
    former: Option<Former>,
}

/// One that had the place, proved it, and didn't answer any more.
#[derive(Debug, Clone, Copy)]
struct Former {
    mac: MacAddr,
    since: Instant,
    /// Questions without an answer, since it claimed to be back.
    asked: u8,
    /// When it is asked, or given up for now. None: it hasn't claimed to be back.
    next: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    mac: MacAddr,
    rival: Option<MacAddr>,
    /// Questions without an answer.
    asked: u8,
    next: Instant,
    /// Before then it isn't asked again, however many claim its address.
    pause: Instant,
    /// Whether it has answered since it was pinned.
    proved: bool,
}

impl Former {
    /// Whether somebody is this one, and it is remembered still.
    fn is(&self, mac: MacAddr, now: Instant) -> bool {
        self.mac == mac && now.saturating_duration_since(self.since) < FORMER
    }
}

impl Known {
    fn new(mac: MacAddr, now: Instant) -> Self {
        Self { mac, rival: None, asked: 0, next: now, pause: now, proved: false }
    }
}

/// All next hops that are defended.
#[derive(Debug, Default)]
pub(crate) struct Hops {
    hops: BTreeMap<Ipv4Addr, Hop>,
}

impl Hops {
    /// Defends these addresses from now on, as many of them as there is room for, and no others.
    pub(crate) fn want(&mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Vec<Step> {
        let before = std::mem::take(&mut self.hops);
        for address in addresses.into_iter().take(MAX) {
            self.hops.insert(address, before.get(&address).copied().unwrap_or_default());
        }
        before
            .into_iter()
            .filter(|(address, hop)| hop.known.is_some() && !self.hops.contains_key(address))
            .map(|(address, _)| Step::Release { address })
            .collect()
    }

    /// Defends nothing any more.
    pub(crate) fn end(&mut self) -> Vec<Step> {
        self.want([])
    }

    /// Whether this address is defended and its Ethernet address isn't known.
    pub(crate) fn is_missing(&self, address: Ipv4Addr) -> bool {
        self.hops.get(&address).is_some_and(|hop| hop.known.is_none())
    }

    /// Whether the Ethernet address of any is unknown.
    pub(crate) fn any_missing(&self) -> bool {
        self.hops.values().any(|hop| hop.known.is_none())
    }

    /// Those that are pinned, with where.
    pub(crate) fn pinned(&self) -> impl Iterator<Item = (Ipv4Addr, MacAddr)> + use<'_> {
        self.hops.iter().filter_map(|(address, hop)| Some((*address, hop.known?.mac)))
    }

    /// The kernel has found an address.
    pub(crate) fn found(&mut self, address: Ipv4Addr, mac: MacAddr, now: Instant) -> Option<Step> {
        let hop = self.hops.get_mut(&address).filter(|hop| hop.known.is_none())?;
        if mac.is_group() || mac.0 == [0; 6] {
            return None;
        }
        hop.known = Some(Known::new(mac, now));
        Some(Step::Pin { address, mac })
    }

    /// Somebody said that he has an address.
    pub(crate) fn heard(&mut self, said: Said, now: Instant) -> Option<Step> {
        let Said { address, mac, reply } = said;
        let hop = self.hops.get_mut(&address)?;
        let known = hop.known.as_mut()?;
        if mac.is_group() || mac.0 == [0; 6] {
            return None;
        }
        if mac == known.mac {
            if reply && known.asked > 0 {
                if let Some(rival) = known.rival.take() {
                    hop.refused = Some((rival, now));
                }
                (known.asked, known.next, known.proved) = (0, now + EVERY, true);
            }
            return None;
        }
        let recent = |noted: Option<(MacAddr, Instant)>, than| {
            noted.is_some_and(|(who, at)| who == mac && now.saturating_duration_since(at) < than)
        };
        if let Some(former) = hop.former.as_mut().filter(|former| former.is(mac, now)) {
            if reply && former.asked > 0 {
                // It is asked once more, at once: where it answers, the one that stood in for it isn't heard for a
                // while, and where it doesn't, that one has the place again.
                *known = Known { rival: Some(known.mac), ..Known::new(mac, now) };
                hop.former = None;
                return Some(Step::Pin { address, mac });
            }
            former.next = former.next.or(Some(now));
            return None;
        }
        if known.rival.is_none() && !recent(hop.refused, REFUSED) {
            known.rival = Some(mac);
            if known.asked == 0 {
                known.next = known.next.min(known.pause.max(now));
            }
        }
        None
    }

    /// What is due now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        for (address, hop) in &mut self.hops {
            let address = *address;
            if hop.known.is_some()
                && let Some(former) = hop.former.as_mut()
                && former.next.is_some_and(|next| next <= now)
            {
                if former.asked < TRIES {
                    former.asked += 1;
                    former.next = Some(now + ANSWER);
                    steps.push(Step::Ask { address, mac: former.mac });
                } else {
                    (former.asked, former.next) = (0, None);
                }
            }
            let Some(known) = hop.known.as_mut().filter(|known| known.next <= now) else {
                continue;
            };
            if known.asked < TRIES {
                known.asked += 1;
                (known.next, known.pause) = (now + ANSWER, now + ANSWER);
                steps.push(Step::Ask { address, mac: known.mac });
                continue;
            }
            // The first of several who were replaced, whoever came after it. Not one that never answered: it may never
            // have been there.
            let former = hop.former.filter(|former| former.is(former.mac, now));
            let gone = Former { mac: known.mac, since: now, asked: 0, next: None };
            hop.former = former.or(known.proved.then_some(gone));
            match known.rival {
                Some(mac) => {
                    hop.known = Some(Known::new(mac, now));
                    steps.push(Step::Pin { address, mac });
                }
                None => {
                    hop.known = None;
                    steps.push(Step::Release { address });
                }
            }
        }
        steps
    }

    /// When something is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = |hop: &Hop| {
            let known = hop.known?;
            Some(
                hop.former
                    .and_then(|former| former.next)
                    .map_or(known.next, |at| at.min(known.next)),
            )
        };
        self.hops.values().filter_map(due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);

    fn mac(byte: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, byte])
    }

    fn claim(byte: u8) -> Said {
        Said { address: ROUTER, mac: mac(byte), reply: false }
    }

    fn reply(byte: u8) -> Said {
        Said { reply: true, ..claim(byte) }
    }

    /// A router at 1, pinned, that has just proved to be there.
    fn proved() -> (Hops, Instant) {
        let (mut hops, now) = (Hops::default(), Instant::now());
        assert_eq!(hops.want([ROUTER]), []);
        assert_eq!(hops.heard(claim(9), now), None, "nobody is known who could be contested");
        assert_eq!(
            hops.found(ROUTER, mac(1), now),
            Some(Step::Pin { address: ROUTER, mac: mac(1) })
        );
        assert_eq!(hops.due(now), [Step::Ask { address: ROUTER, mac: mac(1) }]);
        assert_eq!(hops.heard(reply(1), now), None);
        assert_eq!(hops.poll_timeout(), Some(now + EVERY));
        (hops, now)
    }

    /// All steps of the next seconds, with the second.
    fn follow(hops: &mut Hops, from: Instant, seconds: u64) -> Vec<(u64, Step)> {
        (0..seconds)
            .flat_map(|second| {
                let steps = hops.due(from + Duration::from_secs(second));
                steps.into_iter().map(move |step| (second, step))
            })
            .collect()
    }

    const fn ask(byte: u8) -> Step {
        Step::Ask { address: ROUTER, mac: MacAddr([2, 0, 0, 0, 0, byte]) }
    }

    const fn pin(byte: u8) -> Step {
        Step::Pin { address: ROUTER, mac: MacAddr([2, 0, 0, 0, 0, byte]) }
    }

    #[test]
    fn who_answers_keeps_its_place_however_many_claim_it() {
        let (mut hops, mut now) = proved();
        let mut asked = 0;
        for byte in 2..250 {
            now += Duration::from_millis(20);
            assert_eq!(hops.heard(claim(byte), now), None);
            assert_eq!(hops.heard(reply(byte), now), None, "even by unasked replies");
            for step in hops.due(now) {
                assert_eq!(step, ask(1));
                asked += 1;
                assert_eq!(hops.heard(reply(1), now), None);
            }
        }
        assert!((1..=6).contains(&asked), "{asked} questions in five seconds");
        assert_eq!(hops.pinned().collect::<Vec<_>>(), [(ROUTER, mac(1))]);
    }

    #[test]
    fn a_claim_or_a_broadcast_of_the_known_one_is_no_proof() {
        let (mut hops, now) = proved();
        hops.heard(claim(2), now + ANSWER);
        assert_eq!(hops.due(now + ANSWER), [ask(1)]);
        assert_eq!(hops.heard(claim(1), now + ANSWER), None);
        let steps = follow(&mut hops, now + ANSWER * 2, 3);
        assert_eq!(steps[..3], [(0, ask(1)), (1, ask(1)), (2, pin(2))]);
    }

    #[test]
    fn a_router_that_was_swapped_is_followed_within_seconds_and_has_its_place_back() {
        let (mut hops, now) = proved();
        let now = now + ANSWER;
        hops.heard(claim(2), now);
        let steps = follow(&mut hops, now, 4);
        assert_eq!(steps[..4], [(0, ask(1)), (1, ask(1)), (2, ask(1)), (3, pin(2))]);
        // The new one proves itself.
        let later = now + ANSWER * 4;
        assert_eq!(hops.due(later), [ask(2)]);
        hops.heard(reply(2), later);
        // The old one returns: it is asked, and who stood in for it isn't heard for a while.
        assert_eq!(hops.heard(claim(1), later + ANSWER), None);
        assert_eq!(hops.poll_timeout(), Some(later + ANSWER));
        assert_eq!(hops.due(later + ANSWER), [ask(1)]);
        assert_eq!(hops.heard(claim(1), later + ANSWER), None, "no answer");
        assert_eq!(hops.heard(reply(1), later + ANSWER), Some(pin(1)));
        assert_eq!(hops.due(later + ANSWER), [ask(1)]);
        hops.heard(reply(1), later + ANSWER);
        hops.heard(claim(2), later + ANSWER * 2);
        assert_eq!(hops.due(later + ANSWER * 2), []);
    }

    #[test]
    fn one_that_is_gone_is_looked_for_anew_and_an_impostor_that_is_found_gains_a_while() {
        let (mut hops, now) = proved();
        let steps = follow(&mut hops, now + EVERY, 4);
        let release = Step::Release { address: ROUTER };
        assert_eq!(steps, [(0, ask(1)), (1, ask(1)), (2, ask(1)), (3, release)]);
        assert!(hops.any_missing() && hops.is_missing(ROUTER) && hops.poll_timeout().is_none());
        let later = now + EVERY * 2;
        assert_eq!(hops.found(ROUTER, mac(6), later), Some(pin(6)));
        hops.due(later);
        hops.heard(reply(6), later);
        assert_eq!(hops.heard(claim(1), later + ANSWER), None);
        assert_eq!(hops.due(later + ANSWER), [ask(1)]);
        assert_eq!(hops.heard(reply(1), later + ANSWER), Some(pin(1)));
    }

    /// A router that was swapped for the one at 2, which has proved to be there.
    fn swapped() -> (Hops, Instant) {
        let (mut hops, now) = proved();
        hops.heard(claim(2), now + ANSWER);
        assert_eq!(follow(&mut hops, now + ANSWER, 4).last(), Some(&(3, pin(2))));
        let now = now + ANSWER * 5;
        assert_eq!(hops.due(now), [ask(2)]);
        hops.heard(reply(2), now);
        (hops, now)
    }

    #[test]
    fn claims_in_the_name_of_one_that_is_gone_move_nothing() {
        let (mut hops, now) = swapped();
        let mut questions = 0;
        for step in 0..6_000_u64 {
            let now = now + Duration::from_millis(100) * u32::try_from(step).unwrap();
            if step % 40 == 0 {
                assert_eq!(hops.heard(claim(1), now), None);
                assert_eq!(hops.heard(reply(1), now), None, "a reply that nobody asked for");
            }
            for step in hops.due(now) {
                match step {
                    Step::Ask { mac: asked, .. } if asked == mac(2) => {
                        assert_eq!(hops.heard(reply(2), now), None);
                    }
                    step => {
                        assert_eq!(step, ask(1));
                        questions += 1;
                    }
                }
            }
            assert_eq!(hops.pinned().collect::<Vec<_>>(), [(ROUTER, mac(2))]);
        }
        assert!((100..=450).contains(&questions), "{questions} questions in ten minutes");
    }

    #[test]
    fn one_that_answers_once_and_is_gone_again_holds_the_place_for_three_seconds_and_once() {
        let (mut hops, now) = swapped();
        hops.heard(claim(1), now);
        assert_eq!(hops.due(now), [ask(1)]);
        assert_eq!(hops.heard(reply(1), now), Some(pin(1)));
        let steps = follow(&mut hops, now, 4);
        assert_eq!(steps, [(0, ask(1)), (1, ask(1)), (2, ask(1)), (3, pin(2))]);
        let now = now + ANSWER * 4;
        assert_eq!(hops.due(now), [ask(2)]);
        hops.heard(reply(2), now);
        // It is one among others from now on.
        hops.heard(claim(1), now + ANSWER);
        assert_eq!(hops.due(now + ANSWER), [ask(2)]);
        hops.heard(reply(2), now + ANSWER);
        assert_eq!(hops.heard(reply(1), now + ANSWER), None);
        assert_eq!(hops.pinned().collect::<Vec<_>>(), [(ROUTER, mac(2))]);
    }

    #[test]
    fn what_isnt_wanted_any_more_is_released_and_the_number_is_bounded() {
        let (mut hops, now) = proved();
        let other = Ipv4Addr::new(10, 20, 1, 2);
        assert_eq!(hops.want([ROUTER, other]), []);
        assert_eq!(hops.want([other]), [Step::Release { address: ROUTER }]);
        assert_eq!(hops.end(), [], "the other was never found");
        assert_eq!(hops.heard(claim(2), now), None);
        let many = (0..2_000_u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n));
        hops.want(many);
        assert_eq!(hops.hops.len(), MAX);
        assert_eq!(hops.found(Ipv4Addr::new(10, 0, 0, 1), mac(0xff), now).map(|_| ()), Some(()));
        let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
        assert_eq!(hops.found(Ipv4Addr::new(10, 0, 0, 2), group, now), None);
        assert_eq!(hops.found(Ipv4Addr::new(10, 0, 0, 2), MacAddr([0; 6]), now), None);
    }
}
