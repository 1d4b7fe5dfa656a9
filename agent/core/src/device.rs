//! Devices behind this gateway, as operators confirmed them.

use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::intent::Router;
use anteroom_proto::mode::Mode;
use ipnet::Ipv4Net;

/// A confirmed device, as the view in force has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) member: MemberId,
    /// What the operators set for it.
    pub(crate) mode: Mode,
    /// How it is treated: the strictest mode on its port, or enforce while it is quarantined.
    pub(crate) stance: Mode,
    pub(crate) quarantined: bool,
    /// The VLAN that it is in, or none.
    pub(crate) vlan: Option<u16>,
    /// As operators gave them: fixed ones with the networks behind them, or prefixes to have an address within.
    pub(crate) addresses: Vec<Ipv4Net>,
    /// What it holds of its dynamic addresses.
    pub(crate) held: Vec<Ipv4Addr>,
    pub(crate) prefix_len: Option<u8>,
    pub(crate) router: Option<Router>,
}

impl Device {
    /// Whether `address` is listed for the device by itself, not as part of a prefix.
    pub(crate) fn lists(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|net| net.prefix_len() == 32 && net.addr() == address)
    }

    /// Whether `address` is the device's own.
    pub(crate) fn owns(&self, address: Ipv4Addr) -> bool {
        self.held.contains(&address) || owns(&self.addresses, address)
    }

    /// Whether it may come to have `address` as a dynamic one.
    pub(crate) fn may_hold(&self, address: Ipv4Addr) -> bool {
        prefix_of(&self.addresses, address).is_some()
    }

    /// Addresses that are its own now.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let pinned = self.addresses.iter().filter(|net| net.prefix_len() == 32).map(Ipv4Net::addr);
        pinned.chain(self.held.iter().copied())
    }

    /// Whether the device takes `address` for its own network. None: nobody knows.
    pub(crate) fn on_link(&self, address: Ipv4Addr) -> Option<bool> {
        let len = self.prefix_len?;
        Some(
            self.addresses
                .iter()
                .any(|own| Ipv4Net::new(own.addr(), len).is_ok_and(|net| net.contains(&address))),
        )
    }
}

/// Whether these are addresses that may change: prefixes alone. Beside a fixed address a prefix is a network behind
/// the device, and all of it is the device's.
pub(crate) fn is_dynamic(addresses: &[Ipv4Net]) -> bool {
    addresses.iter().all(|net| net.prefix_len() < 32)
}

/// Whether `address` belongs to whoever has these addresses, whatever a lease says.
pub(crate) fn owns(addresses: &[Ipv4Net], address: Ipv4Addr) -> bool {
    addresses.iter().any(|net| net.contains(&address)) && !is_dynamic(addresses)
}

/// The narrowest prefix among `addresses` within which `address` may be a dynamic one.
pub(crate) fn prefix_of(addresses: &[Ipv4Net], address: Ipv4Addr) -> Option<Ipv4Net> {
    let within = |net: &&Ipv4Net| {
        let edge = net.prefix_len() < 31 && [net.network(), net.broadcast()].contains(&address);
        net.prefix_len() < 32 && net.contains(&address) && !edge && is_host(address)
    };
    let narrowest = addresses.iter().filter(within).max_by_key(|net| net.prefix_len()).copied();
    narrowest.filter(|_| is_dynamic(addresses))
}

/// Whether an address can be a host's.
pub(crate) const fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_link_goes_by_the_devices_own_prefix() {
        let device = Device {
            member: MemberId::from_bytes([1; 16]),
            mode: Mode::Protect,
            stance: Mode::Protect,
            quarantined: false,
            vlan: None,
            addresses: vec!["10.0.0.7/32".parse().unwrap()],
            held: Vec::new(),
            prefix_len: Some(24),
            router: None,
        };
        assert_eq!(device.on_link("10.0.0.200".parse().unwrap()), Some(true));
        assert_eq!(device.on_link("10.0.1.1".parse().unwrap()), Some(false));
        assert_eq!(Device { prefix_len: None, ..device }.on_link([10, 0, 0, 1].into()), None);
    }
}
