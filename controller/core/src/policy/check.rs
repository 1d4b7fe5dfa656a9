//! What can be checked of a policy's names without a model.

use anteroom_proto::name::Name;

use super::Policy;
use crate::problem::did_you_mean;
use crate::reader::Reader;
use crate::service_catalog;

/// Reports names that stand for two things, and externals and services that aren't there.
pub(super) fn check(policy: &Policy, reader: &mut Reader<'_>) {
    for (name, segment) in &policy.segments {
        if let Some(external) = policy.externals.get(name) {
            let (later, earlier, kind) = if segment.position > external.position {
                (segment.position, external.position, "segment")
            } else {
                (external.position, segment.position, "external")
            };
            let message = format!(
                "line {} has \"{name}\" already; segments, members and externals share one namespace",
                earlier.line
            );
            reader.problem(later, &format!("{kind}.{name}"), message);
        }
        for external in &segment.externals {
            if !policy.externals.contains_key(&external.value) {
                let known = policy.externals.keys().map(Name::as_str);
                let hint = did_you_mean(external.value.as_str(), known);
                let message = format!("no external \"{}\"{hint}", external.value);
                reader.problem(external.position, &format!("segment.{name}"), message);
            }
        }
    }
    for (path, service) in std::mem::take(&mut reader.services) {
        let name = service.value.as_str();
        if policy.services.contains_key(name) || service_catalog::find(name).is_some() {
            continue;
        }
        let built_in = service_catalog::all().iter().map(|service| service.name);
        let known = policy.services.keys().map(Name::as_str).chain(built_in);
        let message = match name {
            "dhcp" => {
                "DHCP is infrastructure: list the servers in [infrastructure.SITE]".to_owned()
            }
            _ => format!("no service \"{name}\"{}", did_you_mean(name, known)),
        };
        reader.problem(service.position, &path, message);
    }
}
