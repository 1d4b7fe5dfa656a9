//! Where a connection stands, as far as a gateway must know: which time-out holds, and who may be evicted.

use std::time::Duration;

use crate::limits;
use crate::wire::tcp::TcpFlags;

/// Where a flow stands. Each state has its own time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Dropped: kept so that repeated packets cost one look-up.
    Dropped,
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
    pub(crate) const COUNT: usize = 8;
    /// In the order in which they are evicted. Established TCP never is.
    pub(crate) const EVICTABLE: [Self; 7] = [
        Self::Dropped,
        Self::OneWay,
        Self::HalfOpen,
        Self::Other,
        Self::Reset,
        Self::Finished,
        Self::Answered,
    ];
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::Dropped,
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

/// What was seen of a TCP connection, besides its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tracker {
    accepted: bool,
    finished: [bool; 2],
}

impl Tracker {
    /// The state after the first packet of a flow.
    pub(crate) const fn first(protocol: u8, flags: TcpFlags) -> (Self, State) {
        let state = match protocol {
            // A connection that was picked up in the middle is open.
            6 if flags.has(TcpFlags::RST) => State::Reset,
            6 if !flags.has(TcpFlags::SYN) => State::Established,
            6 => State::HalfOpen,
            17 => State::OneWay,
            _ => State::Other,
        };
        (Self { accepted: false, finished: [false; 2] }, state)
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
            return State::Reset;
        }
        if forward && flags.opens() && matches!(state, State::Reset | State::Finished) {
            *self = Self { accepted: false, finished: [false; 2] };
            return State::HalfOpen;
        }
        if flags.has(TcpFlags::FIN) {
            self.finished[forward as usize] = true;
        }
        match state {
            State::HalfOpen => {
                if !forward && flags.answers() {
                    self.accepted = true;
                    State::HalfOpen
                } else if forward && self.accepted && flags.has(TcpFlags::ACK) {
                    State::Established
                } else if !forward && flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::SYN) {
                    // An answer to a connection that began before this gateway looked.
                    State::Established
                } else {
                    State::HalfOpen
                }
            }
            _ if self.finished[0] && self.finished[1] => State::Finished,
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
        let (mut tracker, mut state) = Tracker::first(6, TcpFlags(packets[0].0));
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
        assert_eq!(run(&[(ACK, true)]), State::Established);
    }

    #[test]
    fn a_repeated_first_packet_establishes_nothing() {
        assert_eq!(run(&[(SYN, true), (SYN, true), (ACK, true)]), State::HalfOpen);
    }
}
