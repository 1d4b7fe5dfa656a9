use anteroom_proto::mac::MacAddr;

use super::*;

const WHO: Station = Station { mac: MacAddr([2, 0, 0, 0, 0, 1]), vlan: None };
const OLD: &str = "http://schemas.xmlsoap.org/ws/2005/04/discovery";
const NEW: &str = "http://docs.oasis-open.org/ws-dd/ns/discovery/2009/01";

/// What a body tells of its sender, 10.0.0.1.
fn told(xml: &str, answers: bool, repeats: bool) -> (Vec<(HintKind, String)>, bool) {
    let mut sights = Sights::default();
    sights.begin();
    let body = Body {
        who: Some(WHO),
        ip: [10, 0, 0, 1].into(),
        bytes: xml.as_bytes(),
        encoding: Encoding::Plain,
        answers,
        repeats,
    };
    let anothers = read(body, &mut 0, &mut sights);
    (sights.drain().map(|sight| (sight.kind, sight.value)).collect(), anothers)
}

fn hints(wanted: &[(HintKind, &str)]) -> Vec<(HintKind, String)> {
    wanted.iter().map(|(kind, value)| (*kind, (*value).to_owned())).collect()
}

fn envelope(held: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" xmlns:m=\"http://schemas.xmlsoap.org/ws/2004/09/mex\" \
         xmlns:p=\"http://docs.oasis-open.org/ws-dd/ns/dpws/2009/01\"><s:Header/><s:Body>{held}</s:Body></s:Envelope>"
    )
}

/// Somebody's hello or match, reached at `addresses`.
fn target(space: &str, kind: &str, addresses: &str) -> String {
    let target = format!("<d:Types>p:Pump</d:Types><d:XAddrs>{addresses}</d:XAddrs>");
    envelope(&match kind {
        "Hello" => format!("<d:Hello xmlns:d=\"{space}\">{target}</d:Hello>"),
        kind => {
            format!("<d:{kind}es xmlns:d=\"{space}\"><d:{kind}>{target}</d:{kind}></d:{kind}es>")
        }
    })
}

#[test]
fn a_target_is_its_sender_only_where_its_address_is() {
    let pump = hints(&[(HintKind::WsdTypes, "Pump")]);
    for kind in ["Hello", "ProbeMatch", "ResolveMatch"] {
        for space in [OLD, NEW] {
            let told =
                |addresses: &str, repeats| told(&target(space, kind, addresses), false, repeats);
            let own = "http://[fe80::1]:80/x https://10.0.0.1:6464/x";
            assert_eq!(told(own, false), (pump.clone(), false), "{kind}");
            assert_eq!(told(own, true), (pump.clone(), false), "{kind} of a proxy's own");
            assert_eq!(told("http://10.0.0.7:80/x", false), (vec![], true), "{kind} of another");
            // Nothing says whose it is: a hello is its sender's, unless that is known to speak for others.
            for nothing in ["", "http://[fe80::1]:80/x", "http://pump.local/"] {
                let wanted = if kind == "Hello" { pump.clone() } else { vec![] };
                assert_eq!(told(nothing, false), (wanted, false), "{kind} at {nothing:?}");
                assert_eq!(told(nothing, true), (vec![], false), "{kind} at {nothing:?}");
            }
        }
        assert_eq!(told(&target("urn:x", kind, "http://10.0.0.1/"), false, false).0, []);
    }
}

#[test]
fn of_a_proxys_list_only_its_own_match_is_told() {
    let one = |kind: &str, address: &str| {
        format!(
            "<ProbeMatch><Types xmlns:p=\"urn:p\">p:{kind}</Types><XAddrs>http://{address}/</XAddrs></ProbeMatch>"
        )
    };
    let list = [one("Monitor", "10.0.0.5"), one("Proxy", "10.0.0.1"), one("Pump", "10.0.0.6")];
    let xml = envelope(&format!("<ProbeMatches xmlns=\"{NEW}\">{}</ProbeMatches>", list.concat()));
    assert_eq!(told(&xml, true, false), (hints(&[(HintKind::WsdTypes, "Proxy")]), true));
}

const METADATA: &str = "<m:Metadata><m:MetadataSection><p:ThisModel><p:Manufacturer>Acme</p:Manufacturer><p:ModelName>P 1</p:ModelName></p:ThisModel></m:MetadataSection>\
    <m:MetadataSection><p:ThisDevice><p:FriendlyName>Pump &amp; 7</p:FriendlyName></p:ThisDevice></m:MetadataSection>\
    <m:MetadataSection><p:Relationship><p:Host><p:Types>p:Device</p:Types></p:Host><p:Hosted><p:Types>x:Set</p:Types></p:Hosted></p:Relationship></m:MetadataSection></m:Metadata>";

#[test]
fn metadata_describe_whoever_answers_with_them_at_their_place() {
    let wanted = hints(&[
        (HintKind::WsdManufacturer, "Acme"),
        (HintKind::WsdModel, "P 1"),
        (HintKind::WsdName, "Pump & 7"),
        (HintKind::WsdTypes, "Device"),
    ]);
    assert_eq!(told(&envelope(METADATA), true, false).0, wanted);
    assert_eq!(told(&envelope(METADATA), false, false).0, [], "who sends them doesn't answer");
    let moved = envelope(&format!("<m:List>{METADATA}</m:List>"));
    assert_eq!(told(&moved, true, false).0, [], "a list of others'");
    let bare = METADATA.replace("p:", "").replace("m:", "");
    assert_eq!(told(&envelope(&bare), true, false).0, [], "of no namespace");
}

#[test]
fn upnp_describes_the_root_device_and_files_describe_nobody() {
    let description = |space: &str, root: &str| {
        format!(
            "<{root} xmlns=\"{space}\"><device><manufacturer>Belkin</manufacturer><modelName>Socket</modelName><modelNumber>1.0</modelNumber>\
            <deviceList><device><modelName>Part</modelName></device></deviceList></device></{root}>"
        )
    };
    let wanted = hints(&[(HintKind::SsdpModel, "Belkin Socket 1.0")]);
    for space in ["urn:schemas-upnp-org:device-1-0", "urn:Belkin:device-1-0"] {
        assert_eq!(told(&description(space, "root"), true, false).0, wanted);
        assert_eq!(told(&description(space, "root"), false, false).0, [], "somebody uploads it");
    }
    assert_eq!(told(&description("urn:assets", "root"), true, false).0, []);
    assert_eq!(told(&description("urn:schemas-upnp-org:device-1-0", "assets"), true, false).0, []);
}

#[test]
fn what_is_deep_long_or_full_of_namespaces_ends() {
    let deep = "<a>".repeat(100_000);
    assert_eq!(told(&envelope(&deep), true, false), (vec![], false));
    let names: String = (0..5_000).map(|n| format!(" xmlns:n{n}=\"urn:{n}\"")).collect();
    assert_eq!(told(&format!("<a{names}/>"), true, false), (vec![], false));
    let whole = target(NEW, "Hello", "http://10.0.0.1/");
    for end in 0..whole.len() {
        told(&whole[..end], true, false);
    }
}
