//! What labels and segments say of how much hangs on a device.

use std::collections::BTreeMap;

use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;

use super::{Findings, Severity};
use crate::policy::Segment;
use crate::resolve::Resolved;
use crate::surface::{CRITICALITY, Criticality, SENSITIVITY, Sensitivity, problem};

pub(super) fn check(resolved: &Resolved, findings: &mut Findings) {
    for (id, device) in &resolved.model.devices {
        let labelled = Labelled { kind: "device", name: &device.name, labels: &device.labels };
        labelled.check(resolved, *id, findings);
    }
    for (id, client) in &resolved.model.clients {
        let labelled = Labelled { kind: "client", name: &client.name, labels: &client.labels };
        labelled.check(resolved, *id, findings);
    }
}

/// A device or a client with its labels.
struct Labelled<'a> {
    kind: &'static str,
    name: &'a Name,
    labels: &'a BTreeMap<Name, String>,
}

impl Labelled<'_> {
    fn check(&self, resolved: &Resolved, id: MemberId, findings: &mut Findings) {
        self.words(findings);
        let sides = resolved.sides_of(id).iter().map(|side| &resolved.side(*side).name);
        let segments: Vec<(&Name, &Segment)> =
            sides.filter_map(|name| Some((name, resolved.policy.segments.get(name)?))).collect();
        let said = |segment: &Segment| segment.surface.criticality;
        let code = "criticality-below-segment";
        self.below::<Criticality>((CRITICALITY, code), &segments, said, findings);
        let said = |segment: &Segment| segment.surface.sensitivity;
        let code = "sensitivity-below-segment";
        self.below::<Sensitivity>((SENSITIVITY, code), &segments, said, findings);
    }

    /// Words that were set before there were any to choose from.
    fn words(&self, findings: &mut Findings) {
        for key in [CRITICALITY, SENSITIVITY] {
            let Some(message) = self.labels.get(key).and_then(|value| problem(key, value)) else {
                continue;
            };
            findings.add(
                Severity::Warning,
                "label-not-understood",
                format!("{} {}", self.kind, self.name),
                format!("Label {key}: {message}. It counts as not set."),
            );
        }
    }

    /// A word below what a segment says of all that are in it.
    fn below<T: std::str::FromStr + std::fmt::Display + Copy + Ord>(
        &self,
        (key, code): (&str, &'static str),
        segments: &[(&Name, &Segment)],
        said: impl Fn(&Segment) -> Option<T>,
        findings: &mut Findings,
    ) {
        let own: Option<T> = self.labels.get(key).and_then(|word| word.parse().ok());
        let Some(own) = own else { return };
        let above = segments
            .iter()
            .filter_map(|(name, segment)| Some((said(segment)?, *name)))
            .filter(|(said, _)| *said > own)
            .max();
        let Some((said, segment)) = above else { return };
        let mend = match self.kind {
            "device" => {
                format!("; `anteroom device label {} {key}=` leaves it to the segment.", self.name)
            }
            // A client's labels are of its making.
            _ => ".".to_owned(),
        };
        findings.add(
            Severity::Warning,
            code,
            format!("{} {}", self.kind, self.name),
            format!(
                "Its label says {own}, and segment {segment}, which it is in, {said}. Its label counts{mend}"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{NOW, client, hospital, member_id, name};
    use crate::lint::{Evidence, lint};
    use crate::model::Model;
    use crate::resolve::Resolved;

    fn found(model: &Model) -> Vec<(String, String)> {
        lint(&Resolved::new(model).unwrap(), &Evidence::default(), NOW)
            .into_iter()
            .filter(|found| {
                ["criticality", "sensitivity", "label"]
                    .iter()
                    .any(|what| found.code.starts_with(what))
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

    #[test]
    fn clients_are_looked_at_and_sensitivity_is_too() {
        let mut model = hospital();
        model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "ct")]);
        let labels = &mut model.clients.get_mut(&member_id(70)).unwrap().labels;
        labels.insert(name("criticality"), "vital".into());
        labels.insert(name("sensitivity"), "none".into());
        let said = "[segment.ct]\nsensitivity = \"patient-data\"";
        model.policy = model.policy.replace("[segment.ct]", said);
        let [(first, message), (second, below)] = found(&model).try_into().unwrap();
        assert_eq!(
            (first.as_str(), second.as_str()),
            ("label-not-understood", "sensitivity-below-segment")
        );
        assert!(message.contains("vital"), "{message}");
        assert!(below.contains("says none, and segment ct"), "{below}");
        assert!(!below.contains("device label"), "no command sets a client's labels: {below}");
    }
}
