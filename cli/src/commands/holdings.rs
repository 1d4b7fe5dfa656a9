//! Which addresses devices have now: fixed ones by an operator's word, dynamic ones by their gateway's signed claim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anteroom_controller_core::model::{Device, Model};
use anteroom_proto::api::SightingRecord;
use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;

use super::device::is_of;

/// Who has which address. Claims count where their device's own gateway signed them: the controller only passes
/// them on.
pub(super) struct Holdings<'a> {
    model: &'a Model,
    held: BTreeMap<MemberId, Vec<Ipv4Addr>>,
    by_address: BTreeMap<(&'a Name, Option<u16>, Ipv4Addr), Vec<MemberId>>,
}

/// The newest sighting of a device.
pub(super) fn newest<'a>(
    device: &Device,
    sightings: &'a [SightingRecord],
) -> Option<&'a SightingRecord> {
    sightings
        .iter()
        .filter(|record| is_of(record, device))
        .max_by_key(|record| record.sighting.last_seen)
}

fn held(
    id: MemberId,
    device: &Device,
    model: &Model,
    sightings: &[SightingRecord],
) -> Option<Vec<Ipv4Addr>> {
    let gateway = device.attachment.gateway;
    let signed = newest(device, sightings)?.sighting.claim.as_ref()?;
    let identity = model.gateways.get(&gateway)?.identity;
    let claim = signed.verify(model.organisation, &[identity]).ok()?;
    let within = |address: &Ipv4Addr| device.addresses.iter().any(|net| net.contains(address));
    (claim.member == id && claim.gateway == gateway)
        .then(|| claim.addresses.iter().copied().filter(within).collect())
}

impl<'a> Holdings<'a> {
    pub(super) fn new(model: &'a Model, sightings: &[SightingRecord]) -> Self {
        let mut found = Self { model, held: BTreeMap::new(), by_address: BTreeMap::new() };
        for (id, device) in &model.devices {
            let Some(gateway) = model.gateways.get(&device.attachment.gateway) else { continue };
            let held = held(*id, device, model, sightings).unwrap_or_default();
            let fixed = device.addresses.iter().filter(|net| net.prefix_len() == 32);
            for address in fixed.map(ipnet::Ipv4Net::addr).chain(held.iter().copied()) {
                let key = (&gateway.site, device.attachment.vlan, address);
                found.by_address.entry(key).or_default().push(*id);
            }
            found.held.insert(*id, held);
        }
        found
    }

    /// What a device holds of its dynamic addresses.
    pub(super) fn of(&self, id: MemberId) -> &[Ipv4Addr] {
        self.held.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// Other devices of the site that have one of a device's addresses.
    pub(super) fn others_with_an_address_of(&self, id: MemberId) -> Vec<String> {
        let sharing = self.by_address.values().filter(|holders| holders.contains(&id));
        let others: BTreeSet<MemberId> =
            sharing.flatten().copied().filter(|other| *other != id).collect();
        let name = |id: &MemberId| self.model.devices.get(id).map(|device| device.name.to_string());
        others.iter().filter_map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use anteroom_controller_core::model::{Attachment, Gateway};
    use anteroom_proto::claim::AddressClaim;
    use anteroom_proto::cose::Signed;
    use anteroom_proto::id::{GatewayId, OrganisationId};
    use anteroom_proto::intent::OnFailure;
    use anteroom_proto::key::IdentityKey;
    use anteroom_proto::mac::MacAddr;
    use anteroom_proto::mode::Mode;
    use anteroom_proto::time::UnixMillis;
    use anteroom_proto::v1::telemetry::Sighting;

    use super::*;

    const GATEWAY: GatewayId = GatewayId::from_bytes([2; 16]);
    const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);

    fn member(number: u8) -> MemberId {
        MemberId::from_bytes([number; 16])
    }

    fn at(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 20, 1, last)
    }

    /// Devices 1 to 3 behind one gateway: two with a dynamic address, one with a fixed one.
    fn model() -> Model {
        let mut model = Model::new(ORGANISATION);
        let gateway = Gateway {
            name: "ward".parse().unwrap(),
            site: "north".parse().unwrap(),
            identity: IdentityKey::from_seed(&[7; 32]).public(),
            former: Vec::new(),
            labels: BTreeMap::new(),
        };
        model.gateways.insert(GATEWAY, gateway);
        for (number, address) in [(1, "10.20.1.0/24"), (2, "10.20.1.0/24"), (3, "10.20.1.50/32")] {
            let mac = MacAddr([2, 0, 0, 0, 0, number]);
            let port = "port1".parse().unwrap();
            let device = Device {
                name: format!("pump-{number}").parse().unwrap(),
                attachment: Attachment { gateway: GATEWAY, port, vlan: None, mac },
                addresses: vec![address.parse().unwrap()],
                prefix_len: None,
                router: None,
                labels: BTreeMap::new(),
                mode: Mode::Enforce,
                mode_since: 1,
                confirmed_at: UnixMillis(1),
                quarantined: false,
                on_failure: OnFailure::Default,
                rollout: anteroom_proto::rollout::Rollout::default(),
            };
            model.devices.insert(member(number), device);
        }
        model
    }

    fn sighting(number: u8, claim: &AddressClaim, seed: u8) -> SightingRecord {
        let sighting = Sighting {
            port: "port1".parse().unwrap(),
            mac: MacAddr([2, 0, 0, 0, 0, number]),
            vlan: None,
            addresses: Vec::new(),
            prefix_len: None,
            router: None,
            member: None,
            held: false,
            kinds: Vec::new(),
            claim: Some(Signed::sign(claim, &IdentityKey::from_seed(&[seed; 32]))),
            first_seen: UnixMillis(1),
            last_seen: UnixMillis(1),
        };
        SightingRecord { gateway: GATEWAY, sighting, first_seen: UnixMillis(1) }
    }

    fn claim(number: u8, addresses: &[Ipv4Addr]) -> AddressClaim {
        AddressClaim {
            organisation: ORGANISATION,
            gateway: GATEWAY,
            member: member(number),
            number: 1,
            addresses: addresses.to_vec(),
            lease_seconds: Some(60),
        }
    }

    #[test]
    fn addresses_that_two_devices_have_are_named() {
        let model = model();
        let sightings = [
            sighting(1, &claim(1, &[at(50)]), 7),
            sighting(2, &claim(2, &[at(60), Ipv4Addr::new(10, 9, 9, 9)]), 7),
        ];
        let found = Holdings::new(&model, &sightings);
        assert_eq!(found.of(member(1)), [at(50)]);
        assert_eq!(found.of(member(2)), [at(60)], "nothing outside its prefix");
        assert_eq!(found.others_with_an_address_of(member(1)), ["pump-3"]);
        assert_eq!(found.others_with_an_address_of(member(3)), ["pump-1"]);
        assert!(found.others_with_an_address_of(member(2)).is_empty());
    }

    #[test]
    fn a_claim_that_its_own_gateway_didnt_sign_for_the_device_is_nobodys() {
        let model = model();
        let other = AddressClaim { gateway: GatewayId::from_bytes([3; 16]), ..claim(1, &[at(9)]) };
        for forged in [
            sighting(1, &claim(1, &[at(9)]), 8),
            sighting(1, &claim(2, &[at(9)]), 7),
            sighting(1, &other, 7),
        ] {
            let sightings = [forged];
            assert!(Holdings::new(&model, &sightings).of(member(1)).is_empty());
        }
    }
}
