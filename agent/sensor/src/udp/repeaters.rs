//! Who repeats what others say: reflectors between networks, discovery proxies, sleep proxies, access points.

use std::collections::VecDeque;

use crate::sight::Station;

/// Most stations that are remembered. The one that repeated something longest ago is forgotten first.
const MOST: usize = 64;

/// Stations that were heard to name another's address as one to be reached at. What they say without any address isn't believed to
/// be their own.
#[derive(Debug, Default)]
pub(crate) struct Repeaters(VecDeque<Station>);

impl Repeaters {
    pub(super) fn has(&self, who: Station) -> bool {
        self.0.contains(&who)
    }

    pub(super) fn add(&mut self, who: Station) {
        self.0.retain(|known| *known != who);
        if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back(who);
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::mac::MacAddr;

    use super::*;

    #[test]
    fn who_repeated_something_last_is_remembered() {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let mut repeaters = Repeaters::default();
        repeaters.add(station(0));
        for n in 1..64 {
            repeaters.add(station(n));
        }
        repeaters.add(station(0));
        repeaters.add(station(64));
        assert!(repeaters.has(station(0)) && repeaters.has(station(64)));
        assert!(!repeaters.has(station(1)));
        assert_eq!(repeaters.0.len(), MOST);
    }
}
