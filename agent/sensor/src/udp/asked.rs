//! Who was asked by UDP: whoever answers from the port that was asked listens there.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;

use anteroom_proto::inventory::HintKind;

use crate::frame::Datagram;
use crate::sight::Sights;
use crate::tcp::PASSING;

/// Most questions that are remembered. The oldest are forgotten first.
const MOST: usize = 4096;

/// Asker and asked.
type Question = ((IpAddr, u16), (IpAddr, u16));

/// Questions that were seen.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    known: HashSet<Question>,
    order: VecDeque<Question>,
}

impl Asked {
    /// Takes a datagram, which may be a question or the answer to one.
    pub(crate) fn take(&mut self, datagram: &Datagram<'_>, sights: &mut Sights) {
        let from = (datagram.ips.0, datagram.ports.0);
        let to = (datagram.ips.1, datagram.ports.1);
        if from.1 < PASSING && self.known.contains(&(to, from)) {
            sights.tell(datagram.from, HintKind::Listens, format!("udp/{}", from.1));
            return;
        }
        // Where both use the same port, whoever speaks first says nothing about who listens.
        if to.1 >= PASSING || from.1 == to.1 || datagram.to.mac.is_group() {
            return;
        }
        if self.known.insert((from, to)) {
            self.order.push_back((from, to));
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}
