//! Asset lists as FHIR `Device` resources (R4 and R5): one, a `Bundle` of them, or one on each line (NDJSON).

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use self::stream::{Kind, Piece, pieces, what};
use super::values::{Field, mac, put};
use super::{Asset, AssetList, ListError, MAX_ASSETS, MAX_FHIR_LEN};

mod stream;

/// Most list items that are looked at of one element of a resource.
const MAX_ITEMS: usize = 50;

/// A device, as far as it is looked at. What else it says is passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    id: Option<String>,
    #[serde(default)]
    identifier: Vec<Identifier>,
    status: Option<String>,
    manufacturer: Option<String>,
    serial_number: Option<String>,
    model_number: Option<String>,
    /// R4: names with types.
    #[serde(default)]
    device_name: Vec<Value>,
    /// R5: names with types.
    name: Option<Value>,
    display_name: Option<String>,
    /// R4: one concept; R5: several.
    r#type: Option<Value>,
    owner: Option<Reference>,
    location: Option<Reference>,
    url: Option<String>,
    #[serde(default)]
    udi_carrier: Vec<Udi>,
    #[serde(default)]
    version: Vec<Version>,
    #[serde(default)]
    contained: Vec<Value>,
}

/// An organisation or a place, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Other {
    id: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Identifier {
    r#type: Option<Value>,
    system: Option<String>,
    value: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    reference: Option<String>,
    display: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Udi {
    device_identifier: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Version {
    value: Option<String>,
}

/// Reads a list out of `bytes`; `file` is what problems call it. References to organisations and places are followed within the file, never beyond.
///
/// # Errors
/// When it is too long, isn't JSON, or holds no `Device`.
pub fn read_fhir(file: &str, bytes: &[u8]) -> Result<AssetList, ListError> {
    if bytes.len() > MAX_FHIR_LEN {
        return Err(ListError::new(
            file,
            format!("{} bytes are more than the {MAX_FHIR_LEN} that a list may have", bytes.len()),
        ));
    }
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    let mut reader = Reader {
        list: AssetList::default(),
        others: BTreeMap::new(),
        places: 0,
        devices: Vec::new(),
    };
    pieces(file, bytes, &mut |piece| reader.sort(piece))?;
    if reader.devices.is_empty() {
        let first = reader.list.problems.into_iter().next();
        return Err(first.map_or_else(
            || ListError::new(file, "it holds no resource of the type Device (FHIR R4 or R5)"),
            |first| ListError::new(first.place, first.problem),
        ));
    }
    // Those to whom they refer may stand behind them.
    for (place, text) in std::mem::take(&mut reader.devices) {
        match serde_json::from_str(text) {
            Ok(device) => reader.device(&place, &device),
            Err(error) => {
                reader.list.problem(place, format!("this Device can't be read: {}", what(&error)));
            }
        }
    }
    Ok(reader.list)
}

struct Reader<'a> {
    list: AssetList,
    /// What organisations and places are called, by their references.
    others: BTreeMap<String, String>,
    /// How many organisations and places those are: each may be referred to in two ways.
    places: usize,
    /// Where devices stand, and what.
    devices: Vec<(String, &'a str)>,
}

impl<'a> Reader<'a> {
    /// Puts a resource to the devices, or to what they refer to.
    fn sort(&mut self, piece: Piece<'a>) -> Result<(), ListError> {
        let (place, url, kind, text) = match piece {
            Piece::Resource { place, url, kind, text } => (place, url, kind, text),
            Piece::Odd { place, problem } => {
                self.list.problem(place, problem);
                return Ok(());
            }
        };
        if kind == Kind::Device {
            if self.devices.len() >= MAX_ASSETS {
                return Err(ListError::new(
                    place,
                    format!("a list has at most {MAX_ASSETS} devices: split it"),
                ));
            }
            self.devices.push((place, text));
            return Ok(());
        }
        let Other { id, name } = match serde_json::from_str(text) {
            Ok(other) => other,
            Err(error) => {
                let problem = format!("this {} can't be read: {}", kind.word(), what(&error));
                self.list.problem(place, problem);
                return Ok(());
            }
        };
        let Some(name) = name else { return Ok(()) };
        if self.places >= MAX_ASSETS {
            return Err(ListError::new(
                place,
                format!("a list names at most {MAX_ASSETS} places and organisations: split it"),
            ));
        }
        self.places += 1;
        let id = id.map(|id| format!("{}/{id}", kind.word()));
        for key in id.into_iter().chain(url) {
            self.others.insert(key, name.clone());
        }
        Ok(())
    }

    fn device(&mut self, place: &str, device: &Device) {
        let Self { list, others, .. } = self;
        let place = device.id.as_ref().map_or_else(
            || place.to_owned(),
            |id| format!("{place}: Device/{}", id.chars().take(64).collect::<String>()),
        );
        // FHIR's way of saying that a resource must be taken for never written.
        if device.status.as_deref() == Some("entered-in-error") {
            return;
        }
        let mut asset = Asset { place: place.clone(), ..Asset::default() };
        let mut put_at = |field: &Field, text: &str, element: &str| {
            put(&mut asset, field, text, &|| format!("{place}: {element}"), list);
        };
        let label = |name: &str| name.parse().ok().map(Field::Label);
        for (at, identifier) in device.identifier.iter().take(MAX_ITEMS).enumerate() {
            let Some(value) = &identifier.value else { continue };
            let element = format!("identifier {}", at + 1);
            let system = system_words(identifier.system.as_deref().unwrap_or_default());
            let kind =
                identifier.r#type.as_ref().map(concept_words).unwrap_or_default().to_lowercase();
            let says = |words: &[&str]| {
                let mut said = system.iter().map(String::as_str).chain(kind.split(' '));
                said.any(|one| words.contains(&one))
            };
            if says(&["bluetooth", "zigbee"]) {
                continue;
            }
            // What a system is called is a hint: a value that can't be that may be something else.
            let of_ethernet = says(&["eui", "eui-48", "eui48", "mac", "macaddress"]);
            if (of_ethernet || says(&["ethernet"])) && mac(value).is_some() {
                put_at(&Field::Mac, value, &element);
            } else if says(&["sno", "serial", "serialno", "serialnumber"])
                || kind.contains("serial")
            {
                put_at(&Field::Serial, value, &element);
            } else if says(&["hostname", "fqdn"]) {
                put_at(&Field::Hostname, value, &element);
            } else if value.parse::<std::net::Ipv4Addr>().is_ok() {
                put_at(&Field::Address, value, &element);
            } else if mac(value).is_some() && value.contains([':', '-', '.']) {
                put_at(&Field::Mac, value, &element);
            } else if kind.contains("asset") || kind.contains("inventory") || says(&["fill"]) {
                put_at(&Field::Name, value, &element);
            } else if of_ethernet {
                put_at(&Field::Mac, value, &element);
            }
        }
        if let Some(serial) = &device.serial_number {
            put_at(&Field::Serial, serial, "serialNumber");
        }
        if let Some(url) = &device.url {
            let host = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let host = host.split(['/', ':', '?', '#']).next().unwrap_or_default();
            let field = if host.parse::<std::net::Ipv4Addr>().is_ok() {
                Field::Address
            } else {
                Field::Hostname
            };
            put_at(&field, host, "url");
        }
        let mut texts: Vec<(&str, &str, Option<Cow<'_, str>>)> = vec![
            ("vendor", "manufacturer", device.manufacturer.as_deref().map(Cow::Borrowed)),
            ("model", "modelNumber", device.model_number.as_deref().map(Cow::Borrowed)),
            ("class", "type", device.r#type.as_ref().and_then(concept).map(Cow::Owned)),
            ("owner", "owner", others_name(others, device, device.owner.as_ref())),
            ("location", "location", others_name(others, device, device.location.as_ref())),
            (
                "udi",
                "udiCarrier",
                device
                    .udi_carrier
                    .first()
                    .and_then(|udi| udi.device_identifier.as_deref())
                    .map(Cow::Borrowed),
            ),
            (
                "software",
                "version",
                device.version.first().and_then(|one| one.value.as_deref()).map(Cow::Borrowed),
            ),
        ];
        let names = names(device);
        let model = names
            .iter()
            .find(|(kind, _)| kind == "model-name")
            .map(|(_, name)| Cow::Owned(name.clone()));
        texts.push(("model", "name", model));
        for (name, element, text) in texts {
            if let (Some(field), Some(text)) = (label(name), text) {
                put(&mut asset, &field, &text, &|| format!("{place}: {element}"), list);
            }
        }
        let own = device.display_name.clone().or_else(|| {
            let given =
                |wanted: &[&str]| names.iter().find(|(kind, _)| wanted.contains(&kind.as_str()));
            let found = given(&["user-friendly-name", "patient-reported-name"])
                .or_else(|| given(&["registered-name", "other", ""]));
            found.map(|(_, name)| name.clone())
        });
        if let Some(name) = own {
            put(&mut asset, &Field::Name, &name, &|| format!("{place}: name"), list);
        }
        let tells = asset.macs.len() + asset.addresses.len() > 0;
        if tells || asset.serial.is_some() || asset.hostname.is_some() || asset.name.is_some() {
            list.assets.push(asset);
        } else {
            list.problem(place, "nothing in this resource tells which device it is".into());
        }
    }
}

/// What is referred to is called: by the reference itself, or in the same file.
fn others_name<'a>(
    others: &'a BTreeMap<String, String>,
    device: &'a Device,
    reference: Option<&'a Reference>,
) -> Option<Cow<'a, str>> {
    let reference = reference?;
    if let Some(display) = &reference.display {
        return Some(Cow::Borrowed(display));
    }
    let wanted = reference.reference.as_deref()?;
    if let Some(id) = wanted.strip_prefix('#') {
        let within = device.contained.iter().take(MAX_ITEMS);
        let mut found = within.filter(|one| one.get("id").and_then(Value::as_str) == Some(id));
        return found.find_map(|one| one.get("name").and_then(Value::as_str)).map(Cow::Borrowed);
    }
    others.get(wanted).map(|name| Cow::Borrowed(name.as_str()))
}

/// The device's names with their types, R4's and R5's.
fn names(device: &Device) -> Vec<(String, String)> {
    let newer =
        device.name.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let both = device.device_name.iter().chain(newer).take(MAX_ITEMS);
    both.filter_map(|one| {
        let name = one.get("name").or_else(|| one.get("value"))?.as_str()?;
        let kind = one.get("type").and_then(Value::as_str).unwrap_or_default();
        Some((kind.to_owned(), name.to_owned()))
    })
    .collect()
}

/// What a concept, or the first of several, is called.
fn concept(value: &Value) -> Option<String> {
    let one = value.as_array().map_or(Some(value), |list| list.first())?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let coding = one.get("coding").and_then(Value::as_array).and_then(|list| list.first());
    text(one, "text").or_else(|| {
        coding.and_then(|coding| text(coding, "display").or_else(|| text(coding, "code")))
    })
}

/// All words by which a concept is told: its text, codes and their displays.
fn concept_words(value: &Value) -> String {
    let text = |value: &Value, key: &str| {
        value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut words = vec![text(value, "text")];
    for coding in
        value.get("coding").and_then(Value::as_array).into_iter().flatten().take(MAX_ITEMS)
    {
        words.extend([text(coding, "code"), text(coding, "display")]);
    }
    words.join(" ")
}

/// The words of what a system of identifiers is called. Whose it is says nothing, so a host's name is none of them.
fn system_words(uri: &str) -> Vec<String> {
    let called = match uri.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => uri,
    };
    let mut words = vec![String::new()];
    let mut before_is_lower = false;
    for c in called.chars() {
        // "macAddress" is two words, "mac-address" too.
        if !c.is_ascii_alphanumeric() || (before_is_lower && c.is_ascii_uppercase()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_lowercase());
        }
        before_is_lower = c.is_ascii_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const R4: &str = r#"{"resourceType":"Device","id":"ct1","status":"active",
        "identifier":[{"system":"http://hl7.org/fhir/sid/eui-48/ethernet","value":"00-1B-21-00-00-01"},
            {"type":{"coding":[{"code":"SNO"}]},"value":"S1"},{"value":"10.20.1.10"},
            {"system":"http://hl7.org/fhir/sid/eui-48/bluetooth","value":"00-1B-21-00-00-99"}],
        "manufacturer":"Siemens","modelNumber":"go.Up","deviceName":[{"name":"CT Raum 1","type":"user-friendly-name"}],
        "type":{"coding":[{"code":"706689003","display":"CT scanner"}]},
        "owner":{"display":"Radiology"},"location":{"reference":"Location/b2"},
        "patient":{"reference":"Patient/1"}}"#;
    const R5: &str = r##"{"resourceType":"Device","serialNumber":"P7","name":[{"value":"Pump 7","type":"registered-name"},{"value":"Alaris GH","type":"model-name"}],
        "type":[{"text":"infusion pump"}],"url":"https://pump-7.ward.example:8443/x","location":{"reference":"#l"},
        "contained":[{"resourceType":"Location","id":"l","name":"Ward 3"}]}"##;

    fn read(text: &str) -> AssetList {
        read_fhir("d.json", text.as_bytes()).unwrap()
    }

    fn label<'a>(asset: &'a Asset, name: &str) -> Option<&'a str> {
        asset.attributes.get(name).map(String::as_str)
    }

    #[test]
    fn both_releases_are_read_alone_in_bundles_and_line_by_line() {
        let line = |text: &str| text.replace('\n', " ");
        let place = r#"{"resourceType":"Location","id":"b2","name":"B2.14"}"#;
        let bundle = format!(
            r#"{{"resourceType":"Bundle","type":"searchset","entry":[{{"resource":{R4}}},{{"resource":{R5}}},{{"resource":{place}}},{{"resource":{{"resourceType":"Patient","name":[{{"family":"Doe"}}]}}}}]}}"#
        );
        let lines = format!("{}\n\n{}\n{place}\n", line(R4), line(R5));
        for text in [bundle, lines] {
            let list = read(&text);
            let [ct, pump] = list.assets.as_slice() else { panic!("{list:?}") };
            assert_eq!(
                (ct.name.as_deref(), ct.macs.len(), ct.serial.as_deref()),
                (Some("CT Raum 1"), 1, Some("S1"))
            );
            assert_eq!(ct.addresses, [std::net::Ipv4Addr::new(10, 20, 1, 10)]);
            let of_ct =
                ["vendor", "model", "class", "owner", "location"].map(|name| label(ct, name));
            assert_eq!(of_ct, ["Siemens", "go.Up", "CT scanner", "Radiology", "B2.14"].map(Some));
            assert_eq!(
                (pump.name.as_deref(), pump.hostname.as_deref()),
                (Some("Pump 7"), Some("pump-7.ward.example"))
            );
            let of_pump = ["model", "class", "location"].map(|name| label(pump, name));
            assert_eq!(of_pump, ["Alaris GH", "infusion pump", "Ward 3"].map(Some));
            assert!(!format!("{list:?}").contains("Doe"), "no patient");
        }
        assert_eq!(read(R4).assets[0].place, "d.json: Device/ct1");
    }

    #[test]
    fn what_cant_be_read_is_told_with_its_place() {
        let fails = |text: &str| read_fhir("d.json", text.as_bytes()).unwrap_err().to_string();
        assert!(fails("{\n\"resourceType\": Device}").contains("d.json:2: this is no JSON"));
        assert!(
            fails(&format!("{}\n{{\n", R4.replace('\n', "")))
                .contains("d.json:2: this line is no JSON")
        );
        assert!(fails("{\"resourceType\":\"Patient\"}").contains("no resource of the type Device"));
        assert!(fails("").contains("no JSON") || fails("").contains("no resource"));
        assert!(fails(&"[".repeat(100_000)).contains("no JSON"), "nested without end");
        let list = read(&format!(
            r#"{{"resourceType":"Bundle","entry":[{{"resource":{R4}}},{{"resource":{{"resourceType":"Device","manufacturer":7}}}},{{"resource":{{"resourceType":"Device"}}}},{{"resource":{{"resourceType":"Device","serialNumber":"x","status":"entered-in-error"}}}}]}}"#
        ));
        assert_eq!(list.assets.len(), 1);
        let problems: Vec<String> = list.problems.iter().map(ToString::to_string).collect();
        assert!(
            problems[0].starts_with("d.json: entry 2: this Device can't be read"),
            "{problems:?}"
        );
        assert!(
            problems[1].starts_with("d.json: entry 3: nothing in this resource"),
            "{problems:?}"
        );
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn what_is_broken_costs_itself_alone() {
        let entries = [
            "7".to_owned(),
            "{\"fullUrl\":7}".into(),
            "{\"resource\":[\"Device\"]}".into(),
            "{\"resource\":{\"resourceType\":7}}".into(),
            "{\"resource\":{\"resourceType\":\"Device\",\"resourceType\":\"Device\"}}".into(),
            "{\"resource\":{\"resourceType\":\"Bundle\",\"entry\":[]}}".into(),
            "{\"resource\":{\"resourceType\":\"Location\",\"name\":[]}}".into(),
            format!(
                "{{\"resource\":{{\"resourceType\":\"Device\",\"x\":\"{}\"}}}}",
                "x".repeat(1 << 20)
            ),
            format!(
                "{{\"resource\":{{\"resourceType\":\"Device\",\"contained\":[{}{}]}}}}",
                "[".repeat(500),
                "]".repeat(500)
            ),
            "{}".into(),
            format!("{{\"resource\":{R4}}}"),
        ];
        // What a bundle is may be said behind what it holds.
        let list =
            read(&format!("{{\"entry\":[{}],\"resourceType\":\"Bundle\"}}", entries.join(",")));
        assert_eq!(list.assets.len(), 1, "{list:?}");
        let problems: Vec<String> = list.problems.iter().map(ToString::to_string).collect();
        for (number, words) in [
            (1, "this entry can't be read"),
            (2, "this entry can't be read"),
            (4, "this resource can't be read"),
            (5, "duplicate field"),
            (6, "a bundle within a bundle"),
            (7, "this Location can't be read"),
            (8, "no more than 1048576 are read of one"),
            (9, "this Device can't be read"),
        ] {
            let place = format!("d.json: entry {number}: ");
            assert!(
                problems.iter().any(|one| one.starts_with(&place) && one.contains(words)),
                "{number}: {problems:?}"
            );
        }
        assert_eq!(problems.len(), 8, "{problems:?}");
        // Where nothing else is there, it is why the list isn't read.
        let fails = |text: &str| read_fhir("d.json", text.as_bytes()).unwrap_err().to_string();
        let bundle = fails("{\"resourceType\":\"Bundle\",\"entry\":{}}");
        assert!(
            bundle.contains("this Bundle can't be read") && bundle.contains("a list of entries"),
            "{bundle}"
        );
        let places: Vec<String> = (0..=MAX_ASSETS)
            .map(|id| format!("{{\"resourceType\":\"Location\",\"id\":\"{id}\",\"name\":\"x\"}}"))
            .collect();
        assert!(fails(&places.join("\n")).contains("at most 100000 places"));
        // In a bundle each has two names.
        let entries: Vec<String> = places
            .iter()
            .skip(1)
            .enumerate()
            .map(|(number, place)| format!("{{\"fullUrl\":\"urn:{number}\",\"resource\":{place}}}"))
            .collect();
        let device = r#"{"resource":{"resourceType":"Device","id":"d","location":{"reference":"urn:99999"},"serialNumber":"S-1"}}"#;
        let bundle =
            format!("{{\"resourceType\":\"Bundle\",\"entry\":[{},{device}]}}", entries.join(","));
        let list = read(&bundle);
        assert_eq!((list.assets.len(), list.problems.len()), (1, 0), "{:?}", list.problems.first());
        assert_eq!(list.assets[0].attributes.len(), 1, "{:?}", list.assets[0]);
    }

    #[test]
    fn identifiers_are_told_by_whole_words_and_by_what_they_can_be() {
        let one = |system: &str, value: &str| {
            read(&format!(
                r#"{{"resourceType":"Device","id":"p","identifier":[{{"system":"{system}","value":"{value}"}}],"deviceName":[{{"name":"Pump","type":"user-friendly-name"}}]}}"#
            ))
        };
        for system in [
            "https://hospital.example/pharmacy/serial",
            "https://mac.example/serialNumber",
            "https://hospital.example/mac/serial",
        ] {
            let list = one(system, "S-4711");
            assert_eq!(list.assets[0].serial.as_deref(), Some("S-4711"), "{system}: {list:?}");
            assert!(list.problems.is_empty() && list.assets[0].macs.is_empty(), "{list:?}");
        }
        for system in ["urn:mac", "https://a.example/macAddress", "https://a.example/mac-address"] {
            let list = one(system, "001b21000001");
            assert_eq!(list.assets[0].macs.len(), 1, "{system}: {list:?}");
        }
        // A concept of a terminology is no serial number, and filling no name.
        for system in ["http://snomed.info/sct/snomed", "https://a.example/fulfillment"] {
            let asset = &one(system, "1234").assets[0];
            assert_eq!((asset.serial.as_deref(), asset.name.as_deref()), (None, Some("Pump")));
        }
        let list = one("https://a.example/mac", "nonsense");
        assert!(!list.problems.is_empty(), "what should be an Ethernet address and isn't is told");
    }

    proptest! {
        #[test]
        fn broken_resources_are_read_without_a_panic(at in 0usize..1200, with in any::<u8>()) {
            let mut bytes = format!("{{\"resourceType\":\"Bundle\",\"entry\":[{{\"resource\":{R4}}},{{\"resource\":{R5}}}]}}").into_bytes();
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = read_fhir("d.json", &bytes);
        }
    }
}
