//! Who is where: the devices of a view in their places on this gateway's ports, each in the mode that it is in.

use std::sync::Arc;

use anteroom_proto::intent::{Device as IntentDevice, Member};

use super::Engine;
use crate::device::Device;
use crate::on_failure;
use crate::policy::{Place, Policy};
use crate::port::PortId;
use crate::security::Guarded;
use crate::station::Absent;

impl Engine {
    /// Gives the devices of a policy's view their places here, each in the mode that it is in.
    pub(super) fn seat(&mut self, policy: &mut Policy) {
        let view = Arc::clone(&policy.view);
        let quarantined =
            |member: &Member| member.quarantined || view.operation.quarantined.contains(&member.id);
        let ports = &self.config.ports;
        let lost = |device: &&IntentDevice| {
            !ports.iter().any(|port| port.name == device.port)
                && !on_failure::is_wire(device, quarantined(&device.member))
        };
        let absent = view.intent.devices.iter().filter(lost).map(|device| {
            let member = &device.member;
            (member.mac, Absent { member: member.id, addresses: member.addresses.clone() })
        });
        let absent = absent.collect();
        let devices = view
            .intent
            .devices
            .iter()
            .filter_map(|device| {
                let at = ports.iter().position(|port| port.name == device.port)?;
                let member = &device.member;
                let mode = self.recorder.trials.gone_back(member.id).unwrap_or(member.mode);
                let entry = Device {
                    member: member.id,
                    mode,
                    stance: mode,
                    quarantined: quarantined(member),
                    vlan: member.vlan,
                    addresses: member.addresses.clone(),
                    held: Vec::new(),
                    prefix_len: device.prefix_len,
                    router: device.router,
                };
                Some((PortId::device(u16::try_from(at).ok()?), member.mac, entry))
            })
            .collect();
        self.stations.confirm(devices);
        self.stations.hold_absent(absent);
        self.guarded = Guarded::of(&self.stations, &view.intent.infrastructure.routers);
        let stations = &self.stations;
        let place = |member: &Member| {
            let id = stations.find(member.mac)?;
            let station = stations.get(id)?;
            let device = station.device.as_ref().filter(|device| device.member == member.id)?;
            let shared = stations.port(station.port)?.mode.unwrap_or(device.mode);
            Some(Place { station: id, mode: device.mode, shared, stance: device.stance })
        };
        if !policy.place(place) {
            // The view has more devices than places for them.
            let ports = &self.config.ports;
            *policy = Policy::new(&view, &mut self.seeds, |device| {
                ports.iter().any(|port| port.name == device.port) && place(&device.member).is_some()
            });
            policy.place(place);
        }
        self.holders.retain(|address, holder| {
            policy.set_holder(*address, holder.member);
            policy.is_shared(*address)
        });
        for device in &view.intent.devices {
            if let Some(Place { station, .. }) = place(&device.member) {
                self.recorder.trials.place(device.member.id, station);
            }
        }
    }
}
