//! Where a connection stands, as far as a gateway must know: which time-out holds, and who may be evicted.

use std::time::Duration;

use crate::limits;
use crate::wire::tcp::TcpFlags;

/// Where a flow stands. Each state has its own time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Dropped: kept so that repeated packets cost one look-up.
    Dropped,
    /// TCP that was picked up in the middle, and of which one direction was seen only. Anyone who forges an
    /// address can make one.
    PickedUp,
    /// UDP that nobody answered yet.
    OneWay,
    /// TCP that isn't open at both ends yet.
    HalfOpen,
    /// ICMP echo, and protocols that no rule can open.
    Other,
    /// TCP after a reset.
    Reset,
    /// TCP after both ends have said that they are done.
    Finished,
    /// UDP that was answered.
    Answered,
    /// TCP open at both ends.
    Established,
}

impl State {
    pub(crate) const COUNT: usize = 9;
    /// In the order in which they are evicted. Established TCP never is. What was picked up goes early, as its
    /// next packet picks it up again.
    pub(crate) const EVICTABLE: [Self; 8] = [
        Self::Dropped,
        Self::PickedUp,
        Self::OneWay,
        Self::HalfOpen,
        Self::Other,
        Self::Reset,
        Self::Finished,
        Self::Answered,
    ];
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::Dropped,
        Self::PickedUp,
        Self::OneWay,
        Self::HalfOpen,
        Self::Other,
        Self::Reset,
        Self::Finished,
        Self::Answered,
        Self::Established,
    ];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// How long a flow in this state is kept after its last packet.
    pub(crate) const fn time_out(self) -> Duration {
        match self {
            Self::Dropped => limits::DROPPED,
            Self::PickedUp => limits::TCP_PICKED_UP,
            Self::OneWay => limits::UDP_ONE_WAY,
            Self::HalfOpen => limits::TCP_HALF_OPEN,
            Self::Other => limits::OTHER,
            Self::Reset => limits::TCP_RESET,
            Self::Finished => limits::TCP_FINISHED,
            Self::Answered => limits::UDP,
            Self::Established => limits::TCP_ESTABLISHED,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::PickedUp => "picked-up",
            Self::OneWay => "one-way",
            Self::HalfOpen => "half-open",
            Self::Other => "other",
            Self::Reset => "reset",
            Self::Finished => "finished",
            Self::Answered => "answered",
            Self::Established => "established",
        }
    }
}

/// What was seen of a TCP connection, besides its state: in one byte, as there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tracker(u8);

impl Tracker {
    /// The first packet that was seen came from the initiator.
    const FIRST_FORWARD: u8 = 1;
    /// The responder has taken the connection.
    const ACCEPTED: u8 = 2;
    /// The initiator, and the responder, have said that they are done.
    const FINISHED: [u8; 2] = [4, 8];
    const BOTH_FINISHED: u8 = Self::FINISHED[0] | Self::FINISHED[1];
    /// The connection was reset before the responder took it.
    const REFUSED: u8 = 16;

    /// Whether the responder has taken the connection, as far as its beginning was seen.
    pub(crate) const fn accepted(self) -> bool {
        self.has(Self::ACCEPTED)
    }

    /// Whether the connection was reset before the responder took it, as far as its beginning was seen.
    pub(crate) const fn refused(self) -> bool {
        self.has(Self::REFUSED)
    }

    const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// The state after the first packet of a flow. `forward`: from the initiator.
    pub(crate) const fn first(protocol: u8, flags: TcpFlags, forward: bool) -> (Self, State) {
        let state = match protocol {
            6 if flags.has(TcpFlags::RST) => State::Reset,
            6 if !flags.has(TcpFlags::SYN) => State::PickedUp,
            6 => State::HalfOpen,
            17 => State::OneWay,
            _ => State::Other,
        };
        (Self::begun(forward), state)
    }

    const fn begun(first_forward: bool) -> Self {
        Self(if first_forward { Self::FIRST_FORWARD } else { 0 })
    }

    /// The state after one more packet. `forward`: from the initiator.
    pub(crate) const fn next(
        &mut self,
        state: State,
        protocol: u8,
        flags: TcpFlags,
        forward: bool,
    ) -> State {
        match protocol {
            6 => self.next_tcp(state, flags, forward),
            17 if !forward => State::Answered,
            _ => state,
        }
    }

    const fn next_tcp(&mut self, state: State, flags: TcpFlags, forward: bool) -> State {
        if flags.has(TcpFlags::RST) {
            if matches!(state, State::HalfOpen) && !self.has(Self::ACCEPTED) {
                self.0 |= Self::REFUSED;
            }
            return State::Reset;
        }
        let may_restart = matches!(state, State::Reset | State::Finished | State::PickedUp);
        if forward && flags.opens() && may_restart {
            *self = Self::begun(forward);
            return State::HalfOpen;
        }
        if flags.has(TcpFlags::FIN) {
            self.0 |= Self::FINISHED[!forward as usize];
        }
        match state {
            State::HalfOpen => {
                if !forward && flags.answers() {
                    self.0 |= Self::ACCEPTED;
                    State::HalfOpen
                } else if forward && self.has(Self::ACCEPTED) && flags.has(TcpFlags::ACK) {
                    State::Established
                } else if !forward && flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::SYN) {
                    // An answer to a connection that began before this gateway looked.
                    State::Established
                } else {
                    State::HalfOpen
                }
            }
            _ if self.has(Self::BOTH_FINISHED) => State::Finished,
            // A SYN-ACK answers a SYN, so it doesn't show that both ends know the connection.
            State::PickedUp
                if forward != self.has(Self::FIRST_FORWARD)
                    && flags.has(TcpFlags::ACK)
                    && !flags.has(TcpFlags::SYN) =>
            {
                State::Established
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACK: u8 = TcpFlags::ACK;
    const FIN: u8 = TcpFlags::FIN;
    const RST: u8 = TcpFlags::RST;
    const SYN: u8 = TcpFlags::SYN;

    fn run(packets: &[(u8, bool)]) -> State {
        let (mut tracker, mut state) = Tracker::first(6, TcpFlags(packets[0].0), packets[0].1);
        for (flags, forward) in &packets[1..] {
            state = tracker.next(state, 6, TcpFlags(*flags), *forward);
        }
        state
    }

    #[test]
    fn a_connection_goes_from_half_open_to_finished() {
        let open = [(SYN, true), (SYN | ACK, false)];
        assert_eq!(run(&open), State::HalfOpen);
        let open = [(SYN, true), (SYN | ACK, false), (ACK, true)];
        assert_eq!(run(&open), State::Established);
        let one_fin = [&open[..], &[(FIN | ACK, true)]].concat();
        assert_eq!(run(&one_fin), State::Established);
        let both = [&one_fin[..], &[(FIN | ACK, false)]].concat();
        assert_eq!(run(&both), State::Finished);
        assert_eq!(run(&[&both[..], &[(SYN, true)]].concat()), State::HalfOpen);
        assert_eq!(run(&[&open[..], &[(RST, false)]].concat()), State::Reset);
    }

    #[test]
    fn a_connection_picked_up_is_established_by_its_other_end() {
        for side in [true, false] {
            assert_eq!(run(&[(ACK, side)]), State::PickedUp);
            assert_eq!(run(&[(ACK, side), (ACK, side), (FIN | ACK, side)]), State::PickedUp);
            assert_eq!(run(&[(ACK, side), (ACK, !side)]), State::Established);
            assert_eq!(run(&[(ACK, side), (RST | ACK, !side)]), State::Reset);
            assert_eq!(run(&[(ACK, side), (SYN | ACK, !side)]), State::PickedUp);
            let closed = [(ACK, side), (FIN | ACK, side), (FIN | ACK, !side)];
            assert_eq!(run(&closed), State::Finished);
            assert_eq!(run(&[(ACK, side), (SYN, true)]), State::HalfOpen);
        }
        // A forged ACK before a forged SYN gains nothing over the SYN alone.
        assert_eq!(run(&[(ACK, true), (SYN, true), (SYN | ACK, false)]), State::HalfOpen);
    }

    #[test]
    fn a_connection_is_refused_that_is_reset_before_it_was_taken() {
        let refused = |packets: &[(u8, bool)]| {
            let (mut tracker, mut state) = Tracker::first(6, TcpFlags(packets[0].0), packets[0].1);
            for (flags, forward) in &packets[1..] {
                state = tracker.next(state, 6, TcpFlags(*flags), *forward);
            }
            tracker.refused()
        };
        assert!(refused(&[(SYN, true), (RST | ACK, false)]));
        assert!(refused(&[(SYN, true), (RST | ACK, false), (RST | ACK, false)]), "said twice");
        assert!(!refused(&[(SYN, true), (RST | ACK, false), (SYN, true)]), "tried once more");
        assert!(!refused(&[(SYN, true), (SYN | ACK, false), (RST, true)]), "it was taken");
        assert!(!refused(&[(ACK, true), (RST, false)]), "its beginning wasn't seen");
        assert!(!refused(&[(SYN, true), (ACK, false), (RST, false)]), "it began before");
    }

    #[test]
    fn a_repeated_first_packet_establishes_nothing() {
        assert_eq!(run(&[(SYN, true), (SYN, true), (ACK, true)]), State::HalfOpen);
    }
}
