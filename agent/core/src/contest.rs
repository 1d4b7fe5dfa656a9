//! Contests: a newcomer says that it has the address of a next hop that is known by another Ethernet address.
//!
//! A router that was swapped says so, and so does an impostor. What tells them apart is the one who was known: it is
//! asked, by frames that go to it alone, and keeps its place if it answers. Somebody who is gone is replaced within
//! seconds. Should it come back soon, it has its place again once it has answered, whatever its successor says, so that
//! an impostor who kept it from answering for a moment gains that moment. A claim in its name alone changes nothing:
//! after a router was swapped anybody could make one.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::mac::MacAddr;

use crate::station::StationId;

/// How often the one who is known is asked.
const TRIES: u8 = 3;
/// How long it has for each answer.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a newcomer who lost isn't listened to.
const REFUSED: Duration = Duration::from_secs(30);
/// How long one who was replaced has its place back by answering.
const FORMER: Duration = Duration::from_secs(600);
/// Most contests at once.
const MAX: usize = 64;
/// Most contests at once about the next hops of one device, so that others have theirs.
const MAX_OF_ONE: usize = 4;
/// Most outcomes that are remembered.
const MAX_REMEMBERED: usize = 128;

/// A next hop of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) station: StationId,
    pub(crate) address: Ipv4Addr,
}

#[derive(Debug, Clone, Copy)]
struct Contest {
    place: Place,
    known: MacAddr,
    newcomer: MacAddr,
    asked: u8,
    next: Instant,
}

/// One who was replaced.
#[derive(Debug, Clone, Copy)]
struct Former {
    place: Place,
    mac: MacAddr,
    since: Instant,
    /// Questions without an answer, since it claimed to be back.
    asked: u8,
    /// When it is asked, or given up for now. None: it hasn't claimed to be back.
    next: Option<Instant>,
    /// It has its place back.
    back: bool,
}

/// What is to be done about a contest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask `known` alone whether it has the address.
    Ask { place: Place, known: MacAddr },
    /// `known` is gone: `newcomer` has the address.
    Replace { place: Place, newcomer: MacAddr },
}

/// What a claim to a known address comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It has its place back.
    Returned,
    /// Somebody is asked first.
    Contested,
    /// It isn't listened to.
    Refused,
}

/// All contests.
#[derive(Debug, Default)]
pub(crate) struct Contests {
    open: Vec<Contest>,
    refused: Vec<(Place, MacAddr, Instant)>,
    former: Vec<Former>,
}

impl Contests {
    /// Somebody at `newcomer` claims an address that is known to be at `known`. `answers`: by a reply to the asker
    /// alone.
    pub(crate) fn claim(
        &mut self,
        place: Place,
        known: MacAddr,
        (newcomer, answers): (MacAddr, bool),
        now: Instant,
    ) -> Claim {
        self.forget_old(now);
        let is = |former: &&mut Former| (former.place, former.mac) == (place, newcomer);
        if let Some(former) = self.former.iter_mut().find(is).filter(|former| !former.back) {
            if !(answers && former.asked > 0) {
                former.next = former.next.or(Some(now));
                return Claim::Contested;
            }
            (former.asked, former.next, former.back) = (0, None, true);
            self.open.retain(|contest| contest.place != place);
            // It is asked once more. Where it doesn't answer then, the one who stood in for it has the place again.
            if self.has_room(place) {
                self.open.push(Contest {
                    place,
                    known: newcomer,
                    newcomer: known,
                    asked: 0,
                    next: now,
                });
            }
            return Claim::Returned;
        }
        let refused = self.refused.iter().any(|(p, mac, _)| (*p, *mac) == (place, newcomer));
        let running = self.open.iter().any(|contest| contest.place == place);
        if refused || running || !self.has_room(place) {
            return if running && !refused { Claim::Contested } else { Claim::Refused };
        }
        self.open.push(Contest { place, known, newcomer, asked: 0, next: now });
        Claim::Contested
    }

    fn has_room(&self, place: Place) -> bool {
        let of_station = |contest: &&Contest| contest.place.station == place.station;
        self.open.len() < MAX && self.open.iter().filter(of_station).count() < MAX_OF_ONE
    }

    /// The one who is known answered that it has the address still. Returns who had said otherwise.
    pub(crate) fn stands(&mut self, place: Place, mac: MacAddr, now: Instant) -> Option<MacAddr> {
        let asked =
            |contest: &Contest| contest.place == place && contest.known == mac && contest.asked > 0;
        let at = self.open.iter().position(asked)?;
        let newcomer = self.open.remove(at).newcomer;
        // One that came back and proves itself is as good as before.
        self.former.retain(|former| !(former.back && (former.place, former.mac) == (place, mac)));
        self.refuse(place, newcomer, now);
        Some(newcomer)
    }

    fn refuse(&mut self, place: Place, mac: MacAddr, now: Instant) {
        if self.refused.len() >= MAX_REMEMBERED {
            self.refused.remove(0);
        }
        self.refused.push((place, mac, now));
    }

    fn forget_old(&mut self, now: Instant) {
        let younger = |at: &Instant, than| now.saturating_duration_since(*at) < than;
        self.refused.retain(|(_, _, at)| younger(at, REFUSED));
        self.former.retain(|former| younger(&former.since, FORMER));
    }

    /// What is due now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        self.open.retain_mut(|contest| {
            if contest.next > now {
                return true;
            }
            let Contest { place, known, newcomer, .. } = *contest;
            if contest.asked >= TRIES {
                steps.push(Step::Replace { place, newcomer });
                return false;
            }
            contest.asked += 1;
            contest.next = now + ANSWER;
            steps.push(Step::Ask { place, known });
            true
        });
        for former in &mut self.former {
            if former.next.is_none_or(|next| next > now) {
                continue;
            }
            if former.asked >= TRIES {
                (former.asked, former.next) = (0, None);
                continue;
            }
            former.asked += 1;
            former.next = Some(now + ANSWER);
            steps.push(Step::Ask { place: former.place, known: former.mac });
        }
        steps
    }

    /// Remembers who was replaced: the first of several, whoever came after it, and none twice that came back and was
    /// gone when it was asked again.
    pub(crate) fn replaced(&mut self, place: Place, known: MacAddr, now: Instant) {
        self.forget_old(now);
        if let Some(at) = self.former.iter().position(|former| former.place == place) {
            if self.former.get(at).is_some_and(|former| former.back && former.mac == known) {
                self.former.remove(at);
            }
            return;
        }
        if self.former.len() >= MAX_REMEMBERED {
            self.former.remove(0);
        }
        let former = Former { place, mac: known, since: now, asked: 0, next: None, back: false };
        self.former.push(former);
    }

    /// When something is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let former = self.former.iter().filter_map(|former| former.next);
        self.open.iter().map(|contest| contest.next).chain(former).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { station: StationId(1), address: Ipv4Addr::new(10, 0, 0, 1) };

    fn mac(byte: u8) -> MacAddr {
        MacAddr([0, 0, 0, 0, 0, byte])
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Somebody says to all that he has the place of `known`.
    fn claim(contests: &mut Contests, known: MacAddr, newcomer: MacAddr, now: Instant) -> Claim {
        contests.claim(PLACE, known, (newcomer, false), now)
    }

    /// Lets the one who is known be silent. Returns the steps with their seconds.
    fn silence(contests: &mut Contests, from: Instant) -> Vec<(u64, Step)> {
        (0..10)
            .flat_map(|second| {
                let steps = contests.due(from + Duration::from_secs(second));
                steps.into_iter().map(move |step| (second, step))
            })
            .collect()
    }

    #[test]
    fn the_known_one_is_asked_thrice_and_then_replaced() {
        let (mut contests, now) = (Contests::default(), start());
        assert_eq!(claim(&mut contests, mac(1), mac(2), now), Claim::Contested);
        let ask = Step::Ask { place: PLACE, known: mac(1) };
        let replace = Step::Replace { place: PLACE, newcomer: mac(2) };
        let steps = silence(&mut contests, now);
        assert_eq!(steps, [(0, ask), (1, ask), (2, ask), (3, replace)]);
        assert_eq!(contests.poll_timeout(), None);
    }

    #[test]
    fn an_answer_ends_it_and_the_newcomer_isnt_heard_for_a_while() {
        let (mut contests, now) = (Contests::default(), start());
        claim(&mut contests, mac(1), mac(2), now);
        assert_eq!(contests.stands(PLACE, mac(1), now), None, "said before it was asked");
        let _ = contests.due(now);
        assert_eq!(contests.stands(PLACE, mac(3), now), None, "said by somebody else");
        assert_eq!(contests.stands(PLACE, mac(1), now), Some(mac(2)));
        assert_eq!(claim(&mut contests, mac(1), mac(2), now), Claim::Refused);
        // Another newcomer is no worse for it.
        assert_eq!(claim(&mut contests, mac(1), mac(3), now), Claim::Contested);
        let _ = contests.due(now);
        let _ = contests.stands(PLACE, mac(1), now);
        assert_eq!(claim(&mut contests, mac(1), mac(2), now + REFUSED), Claim::Contested);
    }

    #[test]
    fn one_who_was_replaced_comes_back_but_no_one_after_it() {
        let (mut contests, now) = (Contests::default(), start());
        contests.replaced(PLACE, mac(1), now);
        contests.replaced(PLACE, mac(2), now);
        assert_eq!(claim(&mut contests, mac(3), mac(2), now), Claim::Contested);
        let _ = contests.due(now);
        let _ = contests.stands(PLACE, mac(3), now);
        assert_eq!(claim(&mut contests, mac(3), mac(1), now), Claim::Contested);
        assert_eq!(contests.poll_timeout(), Some(now));
        let asks = |byte| Step::Ask { place: PLACE, known: mac(byte) };
        assert_eq!(contests.due(now), [asks(1)], "it is asked, and nobody else");
        assert_eq!(contests.claim(PLACE, mac(3), (mac(1), true), now), Claim::Returned);
        // It proves itself again, and who stood in for it isn't heard for a while.
        assert_eq!(contests.due(now), [asks(1)]);
        assert_eq!(contests.stands(PLACE, mac(1), now), Some(mac(3)));
        assert_eq!(contests.poll_timeout(), None);
        assert_eq!(claim(&mut contests, mac(1), mac(3), now), Claim::Refused);
        contests.replaced(PLACE, mac(1), now);
        let later = now + FORMER;
        assert_eq!(contests.claim(PLACE, mac(4), (mac(1), true), later), Claim::Contested);
        assert_eq!(contests.due(later), [asks(4)], "one among others by then");
    }

    #[test]
    fn claims_in_the_name_of_one_that_is_gone_move_nothing_and_keep_nobody_out() {
        let (mut contests, now) = (Contests::default(), start());
        contests.replaced(PLACE, mac(1), now);
        let mut questions = 0;
        for step in 0..5_000_u32 {
            let now = now + Duration::from_millis(100) * step;
            if step % 40 == 0 {
                assert_eq!(claim(&mut contests, mac(2), mac(1), now), Claim::Contested);
                let unasked = contests.claim(PLACE, mac(2), (mac(1), true), now);
                assert_eq!(unasked, Claim::Contested, "a reply that nobody asked for");
            }
            for step in contests.due(now) {
                assert_eq!(step, Step::Ask { place: PLACE, known: mac(1) });
                questions += 1;
            }
        }
        assert!((100..=375).contains(&questions), "{questions} questions in 500 s");
        assert!(contests.refused.is_empty(), "{:?}", contests.refused);
    }

    #[test]
    fn one_that_answers_once_and_is_gone_again_holds_the_place_for_three_seconds_and_once() {
        let (mut contests, now) = (Contests::default(), start());
        contests.replaced(PLACE, mac(1), now);
        claim(&mut contests, mac(2), mac(1), now);
        let _ = contests.due(now);
        assert_eq!(contests.claim(PLACE, mac(2), (mac(1), true), now), Claim::Returned);
        let ask = Step::Ask { place: PLACE, known: mac(1) };
        let replace = Step::Replace { place: PLACE, newcomer: mac(2) };
        let steps = silence(&mut contests, now);
        assert_eq!(steps, [(0, ask), (1, ask), (2, ask), (3, replace)]);
        let later = now + ANSWER * 4;
        contests.replaced(PLACE, mac(1), later);
        // It is one among others from now on.
        assert_eq!(contests.claim(PLACE, mac(2), (mac(1), true), later), Claim::Contested);
        assert_eq!(contests.due(later), [Step::Ask { place: PLACE, known: mac(2) }]);
    }

    #[test]
    fn contests_are_bounded_and_one_device_leaves_room_for_others() {
        let (mut contests, now) = (Contests::default(), start());
        for byte in 0..200 {
            let place = Place { address: Ipv4Addr::new(10, 0, 0, byte), ..PLACE };
            contests.claim(place, mac(1), (mac(2), false), now);
        }
        assert_eq!(contests.due(now).len(), MAX_OF_ONE);
        let other = Place { station: StationId(2), ..PLACE };
        assert_eq!(contests.claim(other, mac(1), (mac(2), false), now), Claim::Contested);
        for byte in 0..200 {
            for last in 0..4 {
                let address = Ipv4Addr::new(10, 0, 1, last);
                let place = Place { station: StationId(byte), address };
                contests.claim(place, mac(1), (mac(2), false), now);
                contests.stands(place, mac(1), now);
                contests.refuse(place, mac(9), now);
                contests.replaced(place, mac(1), now);
            }
        }
        let sizes = (contests.open.len(), contests.refused.len(), contests.former.len());
        assert_eq!(sizes, (MAX, MAX_REMEMBERED, MAX_REMEMBERED));
    }
}
