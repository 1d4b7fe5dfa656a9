//! The learning table: which Ethernet addresses are on the uplink's side.

use std::time::Instant;

use anteroom_proto::mac::MacAddr;

use crate::limits::BRIDGE_AGE;
use crate::table::Map;
use crate::wire::ethernet;

/// Whether a frame belongs to 802.1X or LLDP: port and switch speak to each other, in every mode. Only to the
/// group addresses that no bridge forwards (IEEE 802.1X-2020 11.1.1, IEEE 802.1AB 7.1), so that nobody beyond the
/// switch can write to a device, or be written to, under their name.
/// Never in a VLAN.
pub(crate) fn is_link_control(destination: MacAddr, ethertype: u16, tagged: bool) -> bool {
    let nearest = matches!(destination.0, [0x01, 0x80, 0xc2, 0, 0, 0x00 | 0x03 | 0x0e]);
    nearest && !tagged && matches!(ethertype, ethernet::EAPOL | ethernet::LLDP)
}

/// Addresses heard on the uplink.
#[derive(Debug)]
pub(crate) struct Bridge {
    heard: Map<MacAddr, Instant>,
    limit: usize,
}

impl Bridge {
    /// An empty table for at most so many addresses.
    pub(crate) fn new(limit: usize, heard: Map<MacAddr, Instant>) -> Self {
        Self { heard, limit }
    }

    /// Notes an address on the uplink. Returns false where there is no room.
    pub(crate) fn hear(&mut self, mac: MacAddr, now: Instant) -> bool {
        if let Some(at) = self.heard.get_mut(&mac) {
            *at = now;
            return true;
        }
        if self.heard.len() >= self.limit {
            return false;
        }
        self.heard.insert(mac, now);
        true
    }

    /// Forgets an address: it was heard on a port.
    pub(crate) fn forget(&mut self, mac: MacAddr) {
        self.heard.remove(&mac);
    }

    /// Whether an address is on the uplink's side.
    pub(crate) fn knows(&self, mac: MacAddr) -> bool {
        self.heard.contains_key(&mac)
    }

    /// Forgets what wasn't heard of for long.
    pub(crate) fn age(&mut self, now: Instant) {
        self.heard.retain(|_, at| now.saturating_duration_since(*at) < BRIDGE_AGE);
    }

    pub(crate) fn len(&self) -> usize {
        self.heard.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Seeds;

    #[test]
    fn only_802_1x_and_lldp_are_link_control() {
        let group = |last| MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
        let unicast = MacAddr([0, 1, 2, 3, 4, 5]);
        assert!(is_link_control(group(3), ethernet::EAPOL, false));
        assert!(!is_link_control(unicast, ethernet::EAPOL, false));
        assert!(!is_link_control(MacAddr::BROADCAST, ethernet::EAPOL, false));
        assert!(is_link_control(group(0x0e), ethernet::LLDP, false));
        assert!(!is_link_control(unicast, ethernet::LLDP, false));
        assert!(!is_link_control(group(3), ethernet::IPV4, false));
        assert!(!is_link_control(group(3), ethernet::EAPOL, true));
    }

    #[test]
    fn the_table_is_bounded_and_ages() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut bridge = Bridge::new(2, Seeds::new(&[0; 32]).map());
        let mac = |byte| MacAddr([0, 0, 0, 0, 0, byte]);
        assert!(bridge.hear(mac(1), now) && bridge.hear(mac(2), now) && !bridge.hear(mac(3), now));
        let later = now + BRIDGE_AGE;
        bridge.hear(mac(2), later);
        bridge.age(later);
        assert!(!bridge.knows(mac(1)) && bridge.knows(mac(2)));
        assert!(bridge.hear(mac(3), later));
    }
}
