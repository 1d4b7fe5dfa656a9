//! Which addresses devices have now: fixed ones by an operator's word, dynamic ones by their gateway's signed claim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anteroom_controller_core::model::{Device, Model};
use anteroom_proto::api::SightingRecord;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;

/// Where a station was sighted: gateway, Ethernet address, VLAN.
type Place = (GatewayId, MacAddr, Option<u16>);

/// Who has which address. Claims count where their device's own gateway signed them: the controller only passes
/// them on.
pub(super) struct Holdings<'a> {
    model: &'a Model,
    newest: BTreeMap<Place, &'a SightingRecord>,
    held: BTreeMap<MemberId, Vec<Ipv4Addr>>,
    by_address: BTreeMap<(&'a Name, Option<u16>, Ipv4Addr), Vec<MemberId>>,
}

fn held(
    id: MemberId,
    device: &Device,
    model: &Model,
    newest: &SightingRecord,
) -> Option<Vec<Ipv4Addr>> {
    let gateway = device.attachment.gateway;
    let signed = newest.sighting.claim.as_ref()?;
    let identity = model.gateways.get(&gateway)?.identity;
    let claim = signed.verify(model.organisation, &[identity]).ok()?;
    let within = |address: &Ipv4Addr| device.addresses.iter().any(|net| net.contains(address));
    (claim.member == id && claim.gateway == gateway)
        .then(|| claim.addresses.iter().copied().filter(within).collect())
}

impl<'a> Holdings<'a> {
    pub(super) fn new(model: &'a Model, sightings: &'a [SightingRecord]) -> Self {
        let mut found = Self {
            model,
            newest: BTreeMap::new(),
            held: BTreeMap::new(),
            by_address: BTreeMap::new(),
        };
        for record in sightings {
            let sighting = &record.sighting;
            let place = (record.gateway, sighting.mac, sighting.vlan);
            let newest = found.newest.entry(place).or_insert(record);
            if newest.sighting.last_seen <= sighting.last_seen {
                *newest = record;
            }
        }
        for (id, device) in &model.devices {
            let Some(newest) = found.newest(device) else { continue };
            found.held.extend(held(*id, device, model, newest).map(|held| (*id, held)));
        }
        for (id, device) in &model.devices {
            let mut places: Vec<_> = found.addresses(*id, device).collect();
            places.dedup();
            for place in places {
                found.by_address.entry(place).or_default().push(*id);
            }
        }
        found
    }

    /// The newest sighting of a device where it was confirmed.
    pub(super) fn newest(&self, device: &Device) -> Option<&'a SightingRecord> {
        let place = &device.attachment;
        self.newest.get(&(place.gateway, place.mac, place.vlan)).copied()
    }

    /// The addresses that a device has, with where they are its; none of one without an approved gateway.
    fn addresses(
        &self,
        id: MemberId,
        device: &Device,
    ) -> impl Iterator<Item = (&'a Name, Option<u16>, Ipv4Addr)> {
        let fixed = device.addresses.iter().filter(|net| net.prefix_len() == 32);
        let all: Vec<Ipv4Addr> =
            fixed.map(ipnet::Ipv4Net::addr).chain(self.of(id).iter().copied()).collect();
        let site = self.model.gateways.get(&device.attachment.gateway).map(|gateway| &gateway.site);
        let vlan = device.attachment.vlan;
        all.into_iter().filter_map(move |address| Some((site?, vlan, address)))
    }

    /// What a device holds of its dynamic addresses.
    pub(super) fn of(&self, id: MemberId) -> &[Ipv4Addr] {
        self.held.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// Other devices of the site that have one of a device's addresses.
    pub(super) fn others_with_an_address_of(&self, id: MemberId) -> Vec<String> {
        let Some(device) = self.model.devices.get(&id) else { return Vec::new() };
        let sharing = self.addresses(id, device).filter_map(|place| self.by_address.get(&place));
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
