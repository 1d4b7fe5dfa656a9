//! Who was asked by UDP: whoever answers from the port that was asked listens there.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use anteroom_proto::inventory::HintKind;
use anteroom_proto::mac::MacAddr;

use crate::frame::Datagram;
use crate::sight::Sights;
use crate::tcp::PASSING;

/// Most questions that are remembered of one asker, and most askers. The oldest questions of an asker are forgotten first; the
/// asker that was silent longest is.
const MOST_OF_ONE: usize = 128;
const MOST_ASKERS: usize = 32;

/// Asker and asked.
type Question = ((IpAddr, u16), (IpAddr, u16));

/// What one machine asked.
#[derive(Debug, Default)]
struct Asker {
    known: HashSet<Question>,
    order: VecDeque<Question>,
    /// Which question of all was its last.
    last: u64,
}

/// Questions that were seen.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    askers: HashMap<MacAddr, Asker>,
    questions: u64,
    pushed_out: u64,
}

impl Asked {
    /// Takes a datagram, which may be a question or the answer to one.
    pub(crate) fn take(&mut self, datagram: &Datagram<'_>, sights: &mut Sights) {
        let from = (datagram.ips.0, datagram.ports.0);
        let to = (datagram.ips.1, datagram.ports.1);
        let asker = self.askers.get(&datagram.to.mac);
        if from.1 < PASSING && asker.is_some_and(|asker| asker.known.contains(&(to, from))) {
            // Behind a router there may be anybody.
            let who = (!datagram.forwarded).then_some(datagram.from);
            sights.tell(who, HintKind::Listens, format!("udp/{}", from.1));
            return;
        }
        // Where both use the same port, whoever speaks first says nothing about who listens.
        if to.1 >= PASSING || from.1 == to.1 || datagram.to.mac.is_group() {
            return;
        }
        self.remember(datagram.from.mac, (from, to));
    }

    /// Questions that were forgotten to make room for others.
    pub(crate) const fn pushed_out(&self) -> u64 {
        self.pushed_out
    }

    fn remember(&mut self, who: MacAddr, question: Question) {
        if !self.askers.contains_key(&who) && self.askers.len() >= MOST_ASKERS {
            let silent = self.askers.iter().min_by_key(|(_, asker)| asker.last);
            let silent = silent.map(|(mac, _)| *mac);
            if let Some(asker) = silent.and_then(|mac| self.askers.remove(&mac)) {
                self.pushed_out += u64::try_from(asker.order.len()).unwrap_or(u64::MAX);
            }
        }
        self.questions += 1;
        let asker = self.askers.entry(who).or_default();
        asker.last = self.questions;
        if asker.known.insert(question) {
            asker.order.push_back(question);
        }
        if asker.order.len() > MOST_OF_ONE
            && let Some(oldest) = asker.order.pop_front()
        {
            asker.known.remove(&oldest);
            self.pushed_out += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sight::Station;

    fn datagram(from: u8, to: u8, ports: (u16, u16)) -> Datagram<'static> {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let ip = |n| IpAddr::from([10, 0, 0, n]);
        Datagram {
            from: station(from),
            to: station(to),
            ips: (ip(from), ip(to)),
            ports,
            forwarded: false,
            payload: &[],
        }
    }

    #[test]
    fn who_answers_listens_however_much_others_ask() {
        let (mut asked, mut sights) = (Asked::default(), Sights::default());
        sights.begin();
        asked.take(&datagram(1, 2, (5000, 161)), &mut sights);
        for port in 1024..5000 {
            asked.take(&datagram(3, 2, (port, 162)), &mut sights);
        }
        asked.take(&datagram(2, 4, (161, 5000)), &mut sights);
        assert_eq!(sights.drain().count(), 0, "it wasn't asked by that one");
        asked.take(&datagram(2, 1, (161, 5000)), &mut sights);
        assert_eq!(sights.drain().map(|sight| sight.value).collect::<Vec<_>>(), ["udp/161"]);
        assert!(asked.pushed_out() > 3000);
        for n in 10..255 {
            asked.take(&datagram(n, 2, (5000, 161)), &mut sights);
        }
        assert_eq!(asked.askers.len(), MOST_ASKERS);
    }
}
