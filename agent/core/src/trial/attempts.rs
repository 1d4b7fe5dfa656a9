//! What becomes of one connection of a device on trial: which attempts failed, and which flows of it are answered.
//!
//! An attempt fails when a packet of it is dropped for want of a rule or of a path, or when its responder doesn't answer:
//! a new flow, or one that was there before and goes silent. To refuse a connection is no answer.

use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::verdict::DropReason;

use crate::flow::FlowKey;
use crate::wire::FiveTuple;

/// How far apart failures are that count as two.
const APART: Duration = Duration::from_secs(1);
/// For how long packets of the same ports are one attempt: TCP sends a SYN again after 1, 3, 7 and 15 s.
const AGAIN: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(8);
/// How many packets of a TCP connection must be unanswered: one more than an exchange may end with.
const UNANSWERED_TCP: u64 = 3;
/// Most flows of one connection that are looked at for as long as they last.
const MOST_LASTING: usize = 4;

/// What is known of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Whether its responder has answered; a reset is no answer.
    pub(crate) answered: bool,
    /// Whether it was reset, or both ends are done.
    pub(crate) done: bool,
    /// Whether its beginning wasn't seen, so that nobody knows what is to be answered.
    pub(crate) picked_up: bool,
    /// Packets from the initiator, and from the responder.
    pub(crate) packets: [u64; 2],
    /// The gateway at the other end of the tunnel that it takes.
    pub(crate) peer: Option<GatewayId>,
    /// Whether it is TCP.
    pub(crate) tcp: bool,
}

/// Failures in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    count: u8,
    last: Option<Instant>,
}

impl Failures {
    /// Counts one, unless the last was just now.
    fn note(&mut self, now: Instant) -> bool {
        let counts = self.last.is_none_or(|last| now.saturating_duration_since(last) >= APART);
        if counts {
            self.count = self.count.saturating_add(1);
            self.last = Some(now);
        }
        counts
    }
}

/// A flow that is looked at for as long as it lasts.
#[derive(Debug)]
struct Lasting {
    key: FlowKey,
    /// Packets from the initiator, and from the responder, when the latter last sent, or when an attempt failed.
    packets: [u64; 2],
    /// How many packets of the initiator must go unanswered: twice as many as usually do.
    needed: u64,
    /// Since when so many are.
    asked: Option<Instant>,
    /// Until when what is sent is the same attempt as the one that failed.
    rest: Option<Instant>,
}

/// What came of looking at a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Answered,
    Silent,
    Nothing,
    Gone,
}

impl Lasting {
    fn new(key: FlowKey, progress: &Progress) -> Self {
        let [out, back] = progress.packets;
        let least = if progress.tcp { UNANSWERED_TCP } else { 1 };
        let usual = if back > 0 && out > back * 2 { out.div_ceil(back) * 2 } else { 0 };
        let needed = least.max(usual);
        Self { key, packets: progress.packets, needed, asked: None, rest: None }
    }

    fn look(&mut self, progress: Option<Progress>, now: Instant) -> Found {
        let Some(progress) = progress.filter(|progress| !progress.done) else { return Found::Gone };
        let [out, back] = progress.packets;
        if back > self.packets[1] {
            *self = Self::new(self.key, &progress);
            return Found::Answered;
        }
        let rests = self.rest.is_some_and(|until| now < until);
        if rests || out.saturating_sub(self.packets[0]) < self.needed {
            return Found::Nothing;
        }
        let asked = *self.asked.get_or_insert(now);
        if now.saturating_duration_since(asked) < ANSWER {
            return Found::Nothing;
        }
        (self.packets, self.asked) = (progress.packets, None);
        self.rest = now.checked_add(AGAIN.saturating_sub(ANSWER));
        Found::Silent
    }
}

/// What became of one connection.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    dropped: Failures,
    unanswered: Failures,
    /// The newest reason for a drop.
    reason: Option<DropReason>,
    /// What was dropped last: a packet that is sent again is the same attempt for [`AGAIN`].
    tuple: Option<FiveTuple>,
    /// What was dropped for want of a path, and is to be looked at: it may not be the policy's doing.
    stranded: Option<(FiveTuple, DropReason, Instant)>,
    /// A new flow of it whose answer is awaited, and since when.
    awaited: Option<(FlowKey, Instant)>,
    lasting: Vec<Lasting>,
}

/// What attempts are judged by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judge<F, S, L> {
    /// What is known of a flow; none where it is gone.
    pub(super) flow: F,
    /// Whether a drop for want of a path counts.
    pub(super) path_counts: S,
    /// Whether silence of a flow that takes the tunnel to this gateway counts.
    pub(super) silence_counts: L,
}

impl Attempts {
    /// Those that failed in a row, with the reason for drops.
    pub(super) fn failed(&self) -> (u8, Option<DropReason>) {
        if self.dropped.count >= self.unanswered.count {
            (self.dropped.count, self.reason)
        } else {
            (self.unanswered.count, None)
        }
    }

    /// A packet of it was dropped for want of a rule.
    pub(super) fn dropped(&mut self, tuple: FiveTuple, reason: DropReason, now: Instant) {
        let since = self.dropped.last.map(|last| now.saturating_duration_since(last));
        if self.tuple == Some(tuple) && since.is_some_and(|since| since < AGAIN) {
            return;
        }
        self.tuple = Some(tuple);
        if self.dropped.note(now) {
            self.reason = Some(reason);
        }
    }

    /// A packet of it was dropped for want of a path.
    pub(super) fn stranded(&mut self, tuple: FiveTuple, reason: DropReason, now: Instant) {
        self.stranded.get_or_insert((tuple, reason, now));
    }

    /// A flow of it begins that passes.
    pub(super) fn opened(&mut self, key: FlowKey, now: Instant) {
        self.awaited.get_or_insert((key, now));
    }

    /// A flow of it is there.
    pub(super) fn is_there(&mut self, key: FlowKey, progress: &Progress) {
        if progress.done || self.lasting.iter().any(|known| known.key == key) {
            return;
        }
        if self.lasting.len() >= MOST_LASTING {
            // The one that has been there for longest has said the most already.
            self.lasting.remove(0);
        }
        self.lasting.push(Lasting::new(key, progress));
    }

    /// Forgets what failed and what is awaited.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Looks for answers.
    pub(super) fn look(
        &mut self,
        judge: &Judge<
            impl Fn(&FlowKey) -> Option<Progress>,
            impl Fn() -> bool,
            impl Fn(Option<GatewayId>) -> bool,
        >,
        now: Instant,
    ) {
        if let Some((tuple, reason, at)) = self.stranded.take()
            && (judge.path_counts)()
        {
            self.dropped(tuple, reason, at);
        }
        let mut lasting = std::mem::take(&mut self.lasting);
        lasting.retain_mut(|known| {
            let progress = (judge.flow)(&known.key);
            let found = known.look(progress, now);
            match found {
                Found::Answered => self.unanswered = Failures::default(),
                Found::Silent if (judge.silence_counts)(progress.and_then(|flow| flow.peer)) => {
                    self.unanswered.note(now);
                }
                Found::Silent | Found::Nothing | Found::Gone => {}
            }
            found != Found::Gone
        });
        self.lasting = lasting;
        self.look_at_awaited(judge, now);
    }

    fn look_at_awaited(
        &mut self,
        judge: &Judge<
            impl Fn(&FlowKey) -> Option<Progress>,
            impl Fn() -> bool,
            impl Fn(Option<GatewayId>) -> bool,
        >,
        now: Instant,
    ) {
        let Some((key, since)) = self.awaited else { return };
        let Some(progress) = (judge.flow)(&key) else {
            self.awaited = None;
            return;
        };
        let late = now.saturating_duration_since(since) >= ANSWER;
        if progress.answered || progress.picked_up {
            self.awaited = None;
            self.is_there(key, &progress);
        }
        if progress.answered {
            self.unanswered = Failures::default();
            // What was dropped before it passes now.
            if self.dropped.last.is_none_or(|last| last < since) {
                (self.dropped, self.tuple, self.reason) = (Failures::default(), None, None);
            }
        } else if !progress.picked_up && (late || progress.done) {
            self.awaited = None;
            if (judge.silence_counts)(progress.peer) {
                self.unanswered.note(now);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn tcp(packets: [u64; 2]) -> Progress {
        Progress { answered: true, done: false, picked_up: false, packets, peer: None, tcp: true }
    }

    fn key() -> FlowKey {
        let zone = crate::flow::Zone::outside(crate::station::StationId(0));
        let tuple = FiveTuple {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            source_port: 123,
            destination_port: 123,
            protocol: 17,
        };
        FlowKey::new(zone, &tuple).0
    }

    /// Looks once a second, with the packets that the flow has had by then. Gives the seconds at which it was silent.
    fn silences(first: Progress, packets: impl Fn(u64) -> [u64; 2], until: u64) -> Vec<u64> {
        let begin = Instant::now();
        let mut lasting = Lasting::new(key(), &first);
        let mut found = Vec::new();
        for second in 0..until {
            let progress = Progress { packets: packets(second), ..first };
            if lasting.look(Some(progress), begin + seconds(second)) == Found::Silent {
                found.push(second);
            }
        }
        found
    }

    #[test]
    fn an_exchange_that_ends_with_the_initiators_last_word_is_no_failure() {
        assert!(silences(tcp([10, 10]), |_| [12, 10], 600).is_empty());
        // Nor is the next one that is just under way, however long that took.
        assert!(silences(tcp([10, 10]), |at| [12 + at / 60 * 2, 10 + at / 60], 600).is_empty());
    }

    #[test]
    fn a_connection_whose_other_end_falls_silent_fails_again_and_again() {
        let again = |at: u64| [10 + 3 + at, 10];
        assert_eq!(silences(tcp([10, 10]), again, 60), [8, 28, 48]);
        assert!(silences(tcp([10, 10]), |at| [10 + at, 10 + at / 2], 600).is_empty());
    }

    #[test]
    fn one_datagram_is_enough_where_each_is_answered_and_many_are_needed_where_few_are() {
        let ntp = Progress { tcp: false, ..tcp([5, 5]) };
        assert_eq!(silences(ntp, |at| [6 + at / 64, 5], 200), [8, 72, 136]);
        // A stream that is acknowledged once a minute.
        let stream = Progress { tcp: false, ..tcp([1_800, 1]) };
        assert!(silences(stream, |at| [1_800 + 30 * at, 1 + at / 60], 600).is_empty());
        assert_eq!(silences(stream, |at| [1_800 + 30 * at, 1], 140), [128]);
    }
}
