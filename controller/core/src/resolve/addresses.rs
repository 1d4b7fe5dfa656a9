//! Who has which address, by site.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use ipnet::Ipv4Net;

use crate::model::Model;

/// Members by site and address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    fixed: BTreeMap<Name, BTreeMap<Ipv4Addr, MemberId>>,
    dynamic: BTreeMap<Name, Vec<(Ipv4Net, MemberId)>>,
}

impl Addresses {
    /// The addresses of all clients, and of all devices with an approved gateway. Where two claim one, the first id has it.
    pub(crate) fn of(model: &Model) -> Self {
        let mut addresses = Self::default();
        for (id, device) in &model.devices {
            let Some(gateway) = model.gateways.get(&device.attachment.gateway) else { continue };
            for net in &device.addresses {
                if net.prefix_len() == 32 {
                    let site = addresses.fixed.entry(gateway.site.clone()).or_default();
                    site.entry(net.addr()).or_insert(*id);
                } else {
                    let site = addresses.dynamic.entry(gateway.site.clone()).or_default();
                    site.push((*net, *id));
                }
            }
        }
        for (id, client) in &model.clients {
            let site = addresses.fixed.entry(client.site.clone()).or_default();
            site.entry(client.address).or_insert(*id);
        }
        // The narrowest prefix comes first.
        for site in addresses.dynamic.values_mut() {
            site.sort_by_key(|(net, id)| (std::cmp::Reverse(net.prefix_len()), *id));
        }
        addresses
    }

    /// The member to which operators gave this very address in this site.
    pub(crate) fn fixed(&self, site: &Name, address: Ipv4Addr) -> Option<MemberId> {
        self.fixed.get(site)?.get(&address).copied()
    }

    /// The member with this address in this site.
    pub(crate) fn at(&self, site: &Name, address: Ipv4Addr) -> Option<MemberId> {
        self.fixed(site, address).or_else(|| {
            let within = self.dynamic.get(site)?;
            within.iter().find(|(net, _)| net.contains(&address)).map(|(_, id)| *id)
        })
    }
}
