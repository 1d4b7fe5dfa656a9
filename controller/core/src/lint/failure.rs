//! What ports do while their gateway's agent is dead.

use std::collections::BTreeMap;

use anteroom_proto::intent::OnFailure;
use anteroom_proto::mode::Mode;

use super::{Findings, Severity};
use crate::model::Device;
use crate::parties::some_of;
use crate::resolve::Resolved;
use crate::surface::{Surface, Surfaces};

/// A device, and whether a life may hang on it.
type Found<'a> = (&'a Device, bool);

pub(super) fn check(resolved: &Resolved, surfaces: &Surfaces, findings: &mut Findings) {
    let mut ports: BTreeMap<_, Vec<Found<'_>>> = BTreeMap::new();
    let devices = resolved.model.devices.iter();
    for (id, device) in devices.filter(|(_, device)| resolved.model.is_attached(device)) {
        let surface = surfaces.member(*id);
        must_choose(device, surface, findings);
        let attachment = &device.attachment;
        let place = (attachment.gateway, &attachment.port);
        ports.entry(place).or_default().push((device, surface.is_life_support()));
    }
    for ((gateway, port), devices) in ports {
        let Some(gateway) = resolved.model.gateways.get(&gateway) else { continue };
        shared(&format!("{port} of gateway {}", gateway.name), &devices, findings);
    }
}

fn is_wire(device: &Device) -> bool {
    match device.on_failure {
        OnFailure::Wire => true,
        OnFailure::Closed => false,
        OnFailure::Default => device.mode != Mode::Enforce,
    }
}

/// In enforce the default would cut a ventilator's alarms off with a dead gateway, and the other choice would lay it open:
/// a person decides that.
fn must_choose(device: &Device, surface: &Surface, findings: &mut Findings) {
    if device.mode == Mode::Enforce
        && device.on_failure == OnFailure::Default
        && surface.is_life_support()
    {
        let name = &device.name;
        let segment = surface.criticality.as_ref().and_then(|said| said.segment.as_ref());
        let by = segment.map_or_else(String::new, |segment| format!(", as segment {segment} is"));
        findings.add(
            Severity::Error,
            "life-support-must-choose",
            format!("device {name}"),
            format!(
                "It is life support{by}, and nobody has said what happens to it in enforce while its gateway's agent is \
                 dead. Choose first: `anteroom device on-failure {name} wire` keeps it connected as if no gateway were \
                 there, `… {name} closed` cuts it off."
            ),
        );
    }
}

/// The kernel knows ports, not devices: one that is to be closed closes its port for all.
fn shared(port: &str, devices: &[Found<'_>], findings: &mut Findings) {
    let (wire, closed): (Vec<Found<'_>>, Vec<Found<'_>>) =
        devices.iter().partition(|(device, _)| is_wire(device));
    // Where the modes differ that is said already, and is what to mend.
    let one_mode = devices.windows(2).all(|pair| pair[0].0.mode == pair[1].0.mode);
    if wire.is_empty() || closed.is_empty() || !one_mode {
        return;
    }
    let names = |devices: &[Found<'_>]| {
        let names: Vec<String> = devices.iter().map(|(found, _)| found.name.to_string()).collect();
        some_of(&names, 8)
    };
    let life = wire.iter().any(|(_, life)| *life);
    findings.add(
        if life { Severity::Refusal } else { Severity::Warning },
        "port-mixed-failure",
        port,
        format!(
            "While the gateway's agent is dead the port is closed for {} too, because {} there is closed on failure. \
             Give each a port of its own, or the same `anteroom device on-failure`.",
            names(&wire),
            names(&closed)
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{hospital, name};
    use crate::lint::{Evidence, lint};
    use crate::model::Model;

    fn codes(model: &Model) -> Vec<(Severity, String, String)> {
        let resolved = Resolved::new(model).unwrap();
        lint(&resolved, &Evidence::default(), crate::fixture::NOW)
            .into_iter()
            .filter(|f| f.code.contains("failure") || f.code.contains("life"))
            .map(|finding| (finding.severity, finding.code, finding.subject))
            .collect()
    }

    fn change(model: &mut Model, which: &str, change: impl FnOnce(&mut Device)) {
        let device = model.devices.values_mut().find(|d| d.name.as_str() == which).unwrap();
        change(device);
    }

    #[test]
    fn life_support_goes_to_enforce_only_by_choice() {
        let mut model = hospital();
        change(&mut model, "monitor-1", |device| {
            device.mode = Mode::Enforce;
            device.labels.insert(name("criticality"), "life-support".into());
        });
        let refused =
            (Severity::Error, "life-support-must-choose".into(), "device monitor-1".into());
        assert_eq!(codes(&model), [refused]);
        for choice in [OnFailure::Wire, OnFailure::Closed] {
            change(&mut model, "monitor-1", |device| device.on_failure = choice);
            assert_eq!(codes(&model), []);
        }
        change(&mut model, "monitor-1", |device| {
            (device.mode, device.on_failure) = (Mode::Protect, OnFailure::Default);
        });
        assert_eq!(codes(&model), []);
        change(&mut model, "monitor-1", |device| {
            device.mode = Mode::Enforce;
            device.labels.remove("criticality");
        });
        assert_eq!(codes(&model), []);
        let critical = "[segment.monitors]\ncriticality = \"life-support\"";
        model.policy = model.policy.replace("[segment.monitors]", critical);
        assert_eq!(codes(&model).len(), 1, "what its segment says counts as well");
    }

    #[test]
    fn a_port_that_one_device_closes_for_another_is_named() {
        let mut model = hospital();
        let place = model.device_named("ct-1").unwrap().1.attachment.clone();
        change(&mut model, "monitor-1", |device| {
            device.attachment.gateway = place.gateway;
            device.attachment.port = place.port.clone();
            device.on_failure = OnFailure::Closed;
        });
        let mixed = codes(&model);
        assert_eq!(mixed.len(), 1, "{mixed:?}");
        assert_eq!((mixed[0].0, mixed[0].1.as_str()), (Severity::Warning, "port-mixed-failure"));
        change(&mut model, "ct-1", |device| {
            device.labels.insert(name("criticality"), "life-support".into());
        });
        assert_eq!(codes(&model)[0].0, Severity::Refusal);
        change(&mut model, "ct-1", |device| device.on_failure = OnFailure::Closed);
        assert_eq!(codes(&model), []);
    }
}
