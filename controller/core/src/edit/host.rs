//! Hosts: machines that are members by an agent of their own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::HOST_PORT;

use super::{EditError, unknown};
use crate::model::{Attachment, Device, Gateway, Model};

/// What an operator says of a host beyond what its enrolment does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHost {
    /// Its id as a member.
    pub member: MemberId,
    /// The address that members know it by.
    pub address: Ipv4Addr,
    /// Labels that an operator set.
    pub labels: BTreeMap<Name, String>,
    /// When it was approved.
    pub approved_at: UnixMillis,
}

impl Model {
    /// Takes a host into the model: its agent in a gateway's place, and the machine itself as the only device there, in
    /// enforce. `revision` is the number of the revision being made. A name whose host was revoked may be used again.
    ///
    /// # Errors
    /// When an id, the name, the key or the address is taken, its site has no gateway, or a value can't be.
    pub fn approve_host(
        &mut self,
        id: GatewayId,
        gateway: Gateway,
        host: NewHost,
        revision: u64,
    ) -> Result<(), EditError> {
        let mut next = self.clone();
        let (name, site) = (gateway.name.clone(), gateway.site.clone());
        next.forget_revoked_host(&name);
        next.site_is_there(&site)?;
        next.client_address_is_free(&site, host.address)?;
        next.approve_gateway(id, gateway)?;
        let attachment = Attachment {
            gateway: id,
            port: HOST_PORT.parse().map_err(|_| unknown("port", HOST_PORT, []))?,
            vlan: None,
            mac: MacAddr::of_host(id),
        };
        let device = Device {
            name,
            attachment,
            addresses: vec![host.address.into()],
            prefix_len: None,
            router: None,
            labels: host.labels,
            mode: Mode::Enforce,
            mode_since: revision,
            confirmed_at: host.approved_at,
            quarantined: false,
            on_failure: OnFailure::Closed,
            rollout: anteroom_proto::rollout::Rollout::default(),
        };
        next.confirm_device(host.member, device)?;
        *self = next;
        Ok(())
    }

    /// Whether a device is a host whose agent was revoked: no gateway can have it any more.
    #[must_use]
    pub fn is_revoked_host(&self, device: &Device) -> bool {
        Self::is_host(device) && !self.is_attached(device)
    }

    /// Takes a host out that was revoked, if that is what has this name.
    pub(super) fn forget_revoked_host(&mut self, name: &Name) {
        let found = self.device_named(name.as_str());
        let revoked = found.filter(|(_, device)| self.is_revoked_host(device)).map(|(id, _)| id);
        if let Some(id) = revoked {
            self.devices.remove(&id);
        }
    }

    /// The host with this name, whose agent is approved.
    #[must_use]
    pub fn host_named(&self, name: &str) -> Option<(MemberId, &Device)> {
        self.device_named(name)
            .filter(|(_, device)| Self::is_host(device) && self.is_attached(device))
    }

    /// Cuts a host off for good.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn revoke_host(&mut self, name: &str) -> Result<GatewayId, EditError> {
        let found = self.host_named(name).map(|(_, device)| device.attachment.gateway);
        let gateway =
            found.and_then(|id| self.gateways.get(&id)).map(|gateway| gateway.name.clone());
        match gateway {
            Some(gateway) => self.revoke_gateway(gateway.as_str()),
            None => {
                let hosts =
                    self.devices.values().filter(|d| Self::is_host(d) && self.is_attached(d));
                Err(unknown("client", name, hosts.map(|device| device.name.as_str())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::key::{IdentityKey, TunnelSecret};

    use super::*;
    use crate::compile::compile;
    use crate::fixture::{NOW, hospital};
    use crate::model::Client;

    const ID: GatewayId = GatewayId::from_bytes([200; 16]);

    fn gateway(seed: u8) -> Gateway {
        Gateway {
            name: "reading-1".parse().unwrap(),
            site: "north".parse().unwrap(),
            identity: IdentityKey::from_seed(&[seed; 32]).public(),
            former: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    fn new(address: [u8; 4]) -> NewHost {
        NewHost {
            member: MemberId::from_bytes([201; 16]),
            address: address.into(),
            labels: BTreeMap::new(),
            approved_at: NOW,
        }
    }

    #[test]
    fn a_host_is_a_member_with_an_agent_of_its_own_and_knows_its_partners_only() {
        let mut model = hospital();
        model.approve_host(ID, gateway(200), new([10, 20, 9, 8]), 7).unwrap();
        let (id, device) = model.host_named("reading-1").unwrap();
        assert_eq!((device.mode, device.mode_since), (Mode::Enforce, 7));
        assert_eq!(model.host_of(ID).map(|(id, _)| id), Some(id));
        let leaf = |model: &Model| compile(model).unwrap().leaves[&ID].intent.clone();
        let alone = leaf(&model);
        assert_eq!((alone.devices.len(), alone.members.len(), alone.peers.len()), (1, 0, 0));
        assert_eq!(alone.devices[0].member.mac, MacAddr::of_host(ID));
        let rule = "[rule.reading]\nfrom = \"reading-1\"\nto = \"ct-1\"\nservices = [\"dicom\"]\n";
        model.policy.push_str(rule);
        let known = leaf(&model);
        assert_eq!((known.members.len(), known.peers.len(), known.rules.len()), (1, 1, 1));
        let ct = model.device_named("ct-1").unwrap().0;
        assert_eq!(known.members[0].id, ct);

        assert!(model.set_mode("reading-1", Mode::Observe, 8).is_err(), "there is no clear path");
        assert!(model.revoke_host("ct-1").is_err());
        assert_eq!(model.revoke_host("reading-1"), Ok(ID));
        assert!(model.host_named("reading-1").is_none());
        assert!(
            !compile(&model).unwrap().leaves.contains_key(&ID),
            "and the policy still names it"
        );
        // Its name is free, for the same machine by a stock app or with other keys.
        let client = Client {
            name: "reading-1".parse().unwrap(),
            site: "north".parse().unwrap(),
            key: TunnelSecret::from_bytes([44; 32]).public(),
            address: [10, 20, 9, 8].into(),
            labels: BTreeMap::new(),
            added_at: NOW,
        };
        let mut stock = model.clone();
        stock.add_client(MemberId::from_bytes([204; 16]), client).unwrap();
        assert!(stock.device_named("reading-1").is_none() && compile(&stock).is_ok());
        let other = GatewayId::from_bytes([202; 16]);
        let refused = model.approve_host(other, gateway(200), new([10, 20, 9, 8]), 9);
        assert!(
            matches!(refused, Err(EditError::Taken { what: "the identity key", .. })),
            "{refused:?}"
        );
        let again = NewHost { member: MemberId::from_bytes([203; 16]), ..new([10, 20, 9, 8]) };
        model.approve_host(other, gateway(202), again, 9).unwrap();
        assert_eq!(model.host_named("reading-1").unwrap().1.attachment.gateway, other);
    }

    #[test]
    fn what_is_taken_is_refused_and_nothing_is_changed() {
        let model = hospital();
        let taken = model.device_named("ct-1").unwrap().1.addresses[0].addr().octets();
        let refused = |gateway: Gateway, host: NewHost| {
            let mut changed = model.clone();
            let error = changed.approve_host(ID, gateway, host, 7).unwrap_err();
            assert_eq!(changed, model);
            error.to_string()
        };
        let said = refused(gateway(200), new(taken));
        assert!(said.contains("is taken by \"ct-1\""), "{said}");
        let named = Gateway { name: "ct-1".parse().unwrap(), ..gateway(200) };
        let said = refused(named, new([10, 20, 9, 8]));
        assert!(said.contains("the name ct-1 is taken"), "{said}");
        let nowhere = Gateway { site: "nort".parse().unwrap(), ..gateway(200) };
        let said = refused(nowhere, new([10, 20, 9, 8]));
        assert!(said.contains("did you mean \"north\"?"), "{said}");
        let said = refused(gateway(200), new([255, 255, 255, 255]));
        assert!(said.contains("255.255.255.255"), "{said}");
    }
}
