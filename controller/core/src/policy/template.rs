//! A policy to start from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anteroom_proto::name::Name;

use super::key;
use crate::model::{Device, Model};

/// A commented policy to start from, made of the confirmed devices, for `policy init`: infrastructure for
/// each site, a segment for each `class` label, and examples of the rest.
#[must_use]
pub fn template(model: &Model) -> String {
    let mut out = String::from(HEAD);
    let sites: BTreeSet<&Name> = model.gateways.values().map(|gateway| &gateway.site).collect();
    if sites.is_empty() {
        out.push_str("\n# [infrastructure.north]\n# dhcp = [\"10.20.0.2\"]\n");
    }
    for site in sites {
        let _ = write!(out, "\n[infrastructure.{}]\ndhcp = []\ndns = []\nntp = []\n", key(site));
    }
    out.push_str(EXTERNALS);
    out.push_str(SEGMENTS);
    let classes = classes(model);
    for (class, devices) in &classes {
        for device in devices {
            let _ = writeln!(out, "{}", describe(model, device));
        }
        let _ =
            write!(out, "[segment.{}]\nmatch = {{ label.class = \"{class}\" }}\n\n", key(class));
    }
    let unlabelled: Vec<&Device> =
        model.devices.values().filter(|device| !in_class(&classes, device)).collect();
    if !unlabelled.is_empty() {
        out.push_str("# In no segment yet: label them, or name them in members.\n");
        for device in unlabelled {
            let _ = writeln!(out, "{}", describe(model, device));
        }
        out.push('\n');
    }
    out.push_str(RULES);
    out
}

const HEAD: &str = "\
# What may talk to what. Allow-only: what no rule opens is dropped once its device is in enforce.
# Order doesn't matter. Check with `anteroom policy check`, see the effect with `anteroom policy plan`.
format = 1

# Servers that every device of a site may use.
";

const EXTERNALS: &str = "
# Addresses outside that have no gateway. Traffic with them is in the clear: they are addresses, not identities.
# [external.archive]
# prefixes = [\"10.20.4.20/32\"]
# review = 2027-03-01

";

const SEGMENTS: &str = "\
# Segments: devices by label (as confirmed), by name, and externals.
";

const RULES: &str = "\
# Services beyond those that are built in (dicom, hl7, https, ping and many more).
# [service.ct-listen]
# ports = [\"tcp/4006\"]

# Rules: who may open what to whom. Replies are included; connections the other way need a rule of their own.
# [rule.ct-to-pacs]
# from = \"ct\"
# to = \"pacs\"
# services = [\"dicom\"]
# clear = true       # also in the clear, until both ends have gateways
# essential = true   # survives quarantine

# Tests: what must hold, judged at every plan.
# [test.pump-kept-from-pacs]
# from = \"pump\"
# to = \"pacs\"
# services = [\"dicom\"]
# expect = \"deny\"
";

/// Devices by their class, where the class can be the name of a segment.
fn classes(model: &Model) -> BTreeMap<Name, Vec<&Device>> {
    let mut classes: BTreeMap<Name, Vec<&Device>> = BTreeMap::new();
    for device in model.devices.values() {
        let class = device.labels.get("class").and_then(|class| class.parse::<Name>().ok());
        if let Some(class) = class.filter(|class| model.device_named(class.as_str()).is_none()) {
            classes.entry(class).or_default().push(device);
        }
    }
    classes.values_mut().for_each(|devices| devices.sort_by(|a, b| a.name.cmp(&b.name)));
    classes
}

fn in_class(classes: &BTreeMap<Name, Vec<&Device>>, device: &Device) -> bool {
    device.labels.get("class").is_some_and(|class| classes.contains_key(class.as_str()))
}

/// A comment that says who a device is.
fn describe(model: &Model, device: &Device) -> String {
    let gateway = model.gateways.get(&device.attachment.gateway);
    let place = gateway.map_or_else(
        || "no approved gateway".to_owned(),
        |gateway| format!("{} of {}, site {}", device.attachment.port, gateway.name, gateway.site),
    );
    let addresses: Vec<String> = device
        .addresses
        .iter()
        .map(|net| if net.prefix_len() == 32 { net.addr().to_string() } else { net.to_string() })
        .collect();
    format!("#   {}: {} ({place})", device.name, addresses.join(", "))
}
