//! What labels and segments say of how much hangs on a device.

use super::{Findings, Severity};
use crate::model::Device;
use crate::resolve::Resolved;
use crate::surface::{CRITICALITY, SENSITIVITY, problem};

pub(super) fn check(resolved: &Resolved, findings: &mut Findings) {
    for (id, device) in &resolved.model.devices {
        words(device, findings);
        let sides = resolved.sides_of(*id).iter().map(|side| &resolved.side(*side).name);
        let segments = sides.filter_map(|name| Some((name, resolved.policy.segments.get(name)?)));
        let own: Option<crate::surface::Criticality> =
            device.labels.get(CRITICALITY).and_then(|word| word.parse().ok());
        let Some(own) = own else { continue };
        let above = segments
            .filter_map(|(name, segment)| Some((segment.surface.criticality?, name)))
            .filter(|(said, _)| *said > own)
            .max();
        if let Some((said, segment)) = above {
            findings.add(
                Severity::Warning,
                "criticality-below-segment",
                format!("device {}", device.name),
                format!(
                    "Its label says {own}, and segment {segment}, which it is in, {said}. Its label counts; `anteroom device \
                     label {} {CRITICALITY}=` leaves it to the segment.",
                    device.name
                ),
            );
        }
    }
}

/// Words that were set before there were any to choose from.
fn words(device: &Device, findings: &mut Findings) {
    for key in [CRITICALITY, SENSITIVITY] {
        let Some(message) = device.labels.get(key).and_then(|value| problem(key, value)) else {
            continue;
        };
        findings.add(
            Severity::Warning,
            "label-not-understood",
            format!("device {}", device.name),
            format!("Label {key}: {message}. It counts as not set."),
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{NOW, hospital, member_id, name};
    use crate::lint::{Evidence, lint};
    use crate::model::Model;
    use crate::resolve::Resolved;

    fn found(model: &Model) -> Vec<(String, String)> {
        lint(&Resolved::new(model).unwrap(), &Evidence::default(), NOW)
            .into_iter()
            .filter(|found| {
                found.code.starts_with("criticality") || found.code.starts_with("label")
            })
            .map(|found| (found.code, found.message))
            .collect()
    }

    #[test]
    fn words_that_say_nothing_and_devices_below_their_segment_are_named() {
        let mut model = hospital();
        assert_eq!(found(&model), []);
        let labels = &mut model.devices.get_mut(&member_id(4)).unwrap().labels;
        labels.insert(name("criticality"), "lifesupport".into());
        let [(code, message)] = found(&model).try_into().unwrap();
        assert_eq!(code, "label-not-understood");
        assert!(message.contains("did you mean \"life-support\"?"), "{message}");
        model.label_device("monitor-1", &[(name("criticality"), Some("support".into()))]).unwrap();
        let critical = "[segment.monitors]\ncriticality = \"clinical\"";
        model.policy = model.policy.replace("[segment.monitors]", critical);
        let [(code, message)] = found(&model).try_into().unwrap();
        assert_eq!(code, "criticality-below-segment");
        assert!(message.contains("says support, and segment monitors"), "{message}");
    }
}
