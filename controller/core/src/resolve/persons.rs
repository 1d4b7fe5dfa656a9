//! On which devices two operators decide.

use anteroom_proto::id::MemberId;

use super::Resolved;
use crate::model::{Device, Model};
use crate::policy::Segment;

impl Resolved {
    /// Whether two operators must approve before a device is enforced. It is so wherever the device is: one whose gateway
    /// was revoked is in no segment, and goes on being what it was. A host is never in another mode, so of that there is
    /// nothing to decide.
    #[must_use]
    pub fn wants_two_persons(&self, device: MemberId) -> bool {
        let Some(device) = self.model.devices.get(&device) else { return false };
        let mut demanding = self.policy.segments.values().filter(|segment| segment.two_person);
        !Model::is_host(device) && demanding.any(|segment| holds(&self.model, device, segment))
    }
}

fn holds(model: &Model, device: &Device, segment: &Segment) -> bool {
    let listed = segment.members.iter().any(|member| member.value == device.name);
    let gateway = &device.attachment.gateway;
    let gateway = model.gateways.get(gateway).or_else(|| model.revoked.get(gateway));
    let site = gateway.map(|gateway| &gateway.site);
    listed
        || segment.matches.as_ref().is_some_and(|matches| {
            matches.site.as_ref().is_none_or(|wanted| site == Some(&wanted.value))
                && matches
                    .labels
                    .iter()
                    .all(|(label, value)| device.labels.get(label) == Some(value))
        })
}
