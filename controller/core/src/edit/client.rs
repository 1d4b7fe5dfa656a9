//! Clients: members that speak WireGuard themselves.

use std::net::Ipv4Addr;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::name::Name;
use ipnet::Ipv4Net;

use super::{
    EditError, MAX_THINGS, address_problem, labels_fit, taken, too_many, unknown, words_fit,
};
use crate::model::{Client, Device, Model};
use crate::policy::{POLICY_FILE, parse_all};
use crate::resolve::Addresses;

impl Model {
    /// The client with this name, or an error with a suggestion.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn find_client(&self, name: &str) -> Result<(MemberId, &Client), EditError> {
        self.client_named(name).ok_or_else(|| {
            unknown("client", name, self.clients.values().map(|client| client.name.as_str()))
        })
    }

    /// Takes a client into the model. A name whose host was revoked may be used again.
    ///
    /// # Errors
    /// When its id, name, key or address is taken, its site has no gateway, or a value can't be.
    pub fn add_client(&mut self, id: MemberId, client: Client) -> Result<(), EditError> {
        let mut next = self.clone();
        next.forget_revoked_host(&client.name);
        next.add_new_client(id, client)?;
        *self = next;
        Ok(())
    }

    fn add_new_client(&mut self, id: MemberId, client: Client) -> Result<(), EditError> {
        if self.clients.len() + self.former_clients.len() >= MAX_THINGS {
            return Err(too_many("clients"));
        }
        self.client_name_is_free(&client.name)?;
        for (other, found) in self.clients.iter().chain(&self.former_clients) {
            if *other == id {
                return Err(taken("the id", &id, format!("client \"{}\"", found.name)));
            }
            if found.key == client.key {
                let by = format!("client \"{}\": a key is one client's for good", found.name);
                return Err(taken("the WireGuard key", &client.key.to_wireguard(), by));
            }
        }
        if self.devices.contains_key(&id) || self.gateways.contains_key(&GatewayId::from(id)) {
            return Err(taken("the id", &id, "a device or a gateway".to_owned()));
        }
        self.site_is_there(&client.site)?;
        self.client_address_is_free(&client.site, client.address)?;
        let what = format!("client {}", client.name);
        labels_fit(&what, &client.labels)?;
        words_fit(&what, &client.labels)?;
        self.clients.insert(id, client);
        Ok(())
    }

    /// Cuts a client off for good.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn revoke_client(&mut self, name: &str) -> Result<MemberId, EditError> {
        let (id, _) = self.find_client(name)?;
        if let Some(client) = self.clients.remove(&id) {
            self.former_clients.insert(id, client);
        }
        Ok(id)
    }

    fn client_name_is_free(&self, name: &Name) -> Result<(), EditError> {
        if self.client_named(name.as_str()).is_some() {
            return Err(taken("the name", name, "another client".to_owned()));
        }
        if self.device_named(name.as_str()).is_some() {
            return Err(taken("the name", name, "a device".to_owned()));
        }
        self.name_is_free(name)
    }

    pub(super) fn site_is_there(&self, site: &Name) -> Result<(), EditError> {
        let sites = || self.gateways.values().map(|gateway| gateway.site.as_str());
        if sites().any(|known| known == site.as_str()) {
            return Ok(());
        }
        Err(unknown("site", site.as_str(), sites()))
    }

    pub(super) fn client_address_is_free(
        &self,
        site: &Name,
        address: Ipv4Addr,
    ) -> Result<(), EditError> {
        if let Some(problem) = address_problem(address.into()) {
            let what = "the client's address".to_owned();
            return Err(EditError::Invalid { what, problem: format!("{address} {problem}") });
        }
        let holder = Addresses::of(self).fixed(site, address);
        if let Some(name) = holder.and_then(|id| self.member_name(id)) {
            return Err(taken("the address", &address, format!("\"{name}\" in the same site")));
        }
        match self
            .claimed_by_a_device(site, address)
            .or_else(|| self.claimed_by_the_policy(site, address))
        {
            Some(by) => Err(taken("the address", &address, by)),
            None => Ok(()),
        }
    }

    /// The device of the site that needs the address for a router of its own, or may have it itself one day.
    fn claimed_by_a_device(&self, site: &Name, address: Ipv4Addr) -> Option<String> {
        let at_site = |device: &&Device| {
            self.gateways.get(&device.attachment.gateway).is_some_and(|found| found.site == *site)
        };
        self.devices.values().filter(at_site).find_map(|device| {
            let name = &device.name;
            if device.router.is_some_and(|router| router.address == address) {
                return Some(format!("the router of \"{name}\" in the same site"));
            }
            let net = device.addresses.iter().find(|net| net.contains(&address))?;
            Some(format!("\"{name}\" in the same site, within its prefix {net}"))
        })
    }

    /// The server, router or external in the policy that has the address. Members may well lie within an external that is
    /// a network: they go before it.
    fn claimed_by_the_policy(&self, site: &Name, address: Ipv4Addr) -> Option<String> {
        let (policy, _) = parse_all(POLICY_FILE, &self.policy);
        let servers = policy.infrastructure.get(site).into_iter().flat_map(|found| {
            [
                (&found.dhcp, "a DHCP server"),
                (&found.dns, "a DNS server"),
                (&found.ntp, "an NTP server"),
                (&found.routers, "a router"),
            ]
        });
        for (addresses, what) in servers {
            if addresses.contains(&address) {
                return Some(format!("{what} in [infrastructure.{site}] of the policy"));
            }
        }
        policy.externals.iter().find_map(|(name, external)| {
            let own = |prefix: &&Ipv4Net| prefix.prefix_len() == 32 && prefix.addr() == address;
            external.prefixes.iter().find(own)?;
            Some(format!("the external \"{name}\""))
        })
    }
}
