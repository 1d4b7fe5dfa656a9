//! Orders that wait for a lane thread which has no room for them.

use std::collections::VecDeque;

use anteroom_agent_core::lane::Order;

/// So many wait as they came. Beyond that, what is out of date goes, and lanes aren't opened.
const FEW: usize = 1024;

/// A queue that never gets much longer than three times the peers that there are. None is dropped that a peer's fate
/// hangs on: to forget it, to know it, to find it elsewhere.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    orders: VecDeque<Order>,
    turned_away: u64,
}

impl Backlog {
    /// Adds an order behind the others.
    pub(super) fn push(&mut self, order: Order) {
        if self.orders.len() >= FEW {
            if matches!(order, Order::Open(_) | Order::Expect { .. }) {
                // It is given again, as long as somebody wants the lane.
                self.turned_away += 1;
                return;
            }
            let peer = order.peer();
            self.orders.retain(|other| other.peer() != peer || !replaces(&order, other));
        }
        self.orders.push_back(order);
    }

    /// The one that came first.
    pub(super) fn first(&self) -> Option<Order> {
        self.orders.front().cloned()
    }

    /// Takes out the one that came first.
    pub(super) fn pop(&mut self) {
        self.orders.pop_front();
    }

    /// How many were turned away since the last call.
    pub(super) fn take_turned_away(&mut self) -> u64 {
        std::mem::take(&mut self.turned_away)
    }
}

/// Whether nothing depends any more on what was ordered for a peer before.
const fn replaces(order: &Order, before: &Order) -> bool {
    match order {
        Order::Forget { .. } => true,
        Order::Know { .. } => !matches!(before, Order::Forget { .. }),
        Order::Move { .. } => matches!(before, Order::Move { .. }),
        Order::Open(_) | Order::Expect { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use anteroom_agent_core::lane::LaneId;

    use super::super::tests::slots;
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_what_a_peers_fate_hangs_on_is_kept() {
        let (mut backlog, peers) = (Backlog::default(), slots(4));
        let to = |port: u16| std::net::SocketAddr::from(([192, 0, 2, 1], port));
        for _ in 0..FEW {
            backlog.push(Order::Open(LaneId { peer: peers[3], lane: 1 }));
        }
        for port in 1..5_000 {
            for peer in &peers[..3] {
                backlog.push(Order::Open(LaneId { peer: *peer, lane: 2 }));
                backlog.push(Order::Forget { peer: *peer });
                backlog.push(Order::Move { peer: *peer, to: to(port) });
            }
            assert!(backlog.orders.len() <= FEW + 6, "{}", backlog.orders.len());
        }
        assert_eq!(backlog.take_turned_away(), 3 * 4_999);
        for peer in peers.into_iter().take(3) {
            let mut left: Vec<Order> = backlog.orders.iter().cloned().collect();
            left.retain(|order| order.peer() == peer);
            assert_eq!(left, [Order::Forget { peer }, Order::Move { peer, to: to(4_999) }]);
        }
    }
}
