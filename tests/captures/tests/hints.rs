//! The sensor on captures of real devices and real programs.

use std::collections::BTreeSet;
use std::path::Path;

use anteroom_captures::folder;
use anteroom_proto::inventory::HintKind;
use anteroom_sensor::{Look, Sensor, Sight, Sights, capture};

/// What a capture shows.
fn sights(folder: &Path, name: &str) -> BTreeSet<Sight> {
    let bytes = std::fs::read(folder.join(name)).expect("a capture");
    let (mut sensor, mut sights) = (Sensor::new(), Sights::default());
    let mut seen = BTreeSet::new();
    for frame in capture::frames(&bytes).expect("a capture of Ethernet") {
        sensor.frame(frame.bytes, None, Look::Further, &mut sights);
        seen.extend(sights.drain());
    }
    seen
}

/// That a capture shows all of this.
#[track_caller]
fn shows(folder: &Path, name: &str, wanted: &[(HintKind, &str)]) {
    let seen = sights(folder, name);
    for (kind, value) in wanted {
        assert!(
            seen.iter().any(|sight| sight.kind == *kind && sight.value == *value),
            "{name}: no {kind} {value:?} among {:#?}",
            seen.iter()
                .map(|s| (s.who.mac.to_string(), s.kind.word(), &s.value))
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn associations_of_dicom_name_both_sides() {
    let Some(folder) = folder() else { return };
    shows(
        &folder,
        "medical/dicom-orthanc.pcap",
        &[
            (HintKind::DicomRole, "scu"),
            (HintKind::DicomRole, "scp"),
            (HintKind::DicomCallingAe, "MODALITY"),
            (HintKind::DicomCalledAe, "ORTHANC"),
            (HintKind::DicomImplementation, "1.2.276.0.7230010.3.0.3.6.7"),
            (HintKind::DicomVersion, "OFFIS_DCMTK_367"),
            (HintKind::DicomUses, "1.2.840.10008.1.1"),
            (HintKind::DicomOffers, "1.2.840.10008.1.1"),
            (HintKind::Listens, "tcp/4242"),
            (HintKind::HttpAgent, "curl/7.88.1"),
        ],
    );
}

#[test]
fn hl7_opc_ua_ftp_and_dicom_are_told_apart_on_one_host() {
    let Some(folder) = folder() else { return };
    shows(
        &folder,
        "medical/mixed-peers.pcap",
        &[
            (HintKind::Hl7Sender, "MONITOR"),
            (HintKind::Hl7Receiver, "EHR"),
            (HintKind::Hl7Message, "ORU^R01"),
            (HintKind::OpcuaRole, "client"),
            (HintKind::OpcuaRole, "server"),
            (HintKind::OpcuaEndpoint, "opc.tcp://127.0.0.1:4840"),
            (HintKind::OpcuaApplication, "urn:freeopcua.github.io:client"),
            (HintKind::Banner, "ftp: pyftpdlib 2.2.0 ready."),
            (HintKind::DicomCallingAe, "STORESCU"),
        ],
    );
}

#[test]
fn medical_devices_announce_themselves_by_discovery_and_metadata() {
    let Some(folder) = folder() else { return };
    shows(
        &folder,
        "medical/sdc-wsdiscovery.pcap",
        &[
            (HintKind::WsdTypes, "MedicalDevice"),
            (HintKind::WsdScope, "sdc.mds.pkp:1.2.840.10004.20701.1.1"),
            (HintKind::WsdManufacturer, "Draeger"),
            (HintKind::WsdModel, "TestDevice"),
        ],
    );
    let patients = sights(&folder, "medical/sdc-wsdiscovery.pcap")
        .into_iter()
        .filter(|sight| sight.value.to_ascii_lowercase().contains("ctxt.pat"));
    assert_eq!(patients.count(), 0);
}

#[test]
fn descriptions_of_use_are_found_wherever_they_are_given() {
    let Some(folder) = folder() else { return };
    shows(
        &folder,
        "legacy/lldp_mudurl.pcap",
        &[(HintKind::LldpMudUrl, "https://imright.mud.example.com/.well-known/mud/v1/vomitv2.0")],
    );
    // What relays carry isn't their own.
    for name in ["legacy/dhcp-mud.pcap", "legacy/dhcpv6-mud.pcap"] {
        let relayed = sights(&folder, name);
        assert!(relayed.iter().all(|sight| sight.kind != HintKind::DhcpMudUrl), "{relayed:#?}");
    }
}

#[test]
fn old_machines_and_controllers_of_buildings_are_recognised() {
    let Some(folder) = folder() else { return };
    shows(
        &folder,
        "legacy/winxp.pcap",
        &[
            (HintKind::SmbOs, "Windows 5.1"),
            (HintKind::NetbiosName, "OICU812-XP"),
            (HintKind::Listens, "tcp/3389"),
        ],
    );
    shows(
        &folder,
        "legacy/snmpwalk.pcap",
        &[
            (HintKind::SnmpRole, "agent"),
            (HintKind::SnmpRole, "manager"),
            (HintKind::SnmpName, "ubuntu-512mb-sfo2-01"),
            (HintKind::SnmpObjectId, "1.3.6.1.4.1.8072.3.2.10"),
        ],
    );
    shows(
        &folder,
        "ot/modbus_example.pcap",
        &[
            (HintKind::ModbusRole, "client"),
            (HintKind::ModbusRole, "server"),
            (HintKind::ModbusIdentity, "Zeek Modbus Test Protocol Parsing is fun! 1.2.3.6"),
        ],
    );
    shows(
        &folder,
        "ot/modicon.pcap",
        &[(HintKind::HttpServer, "Schneider-WEB/V2.1.4"), (HintKind::ModbusRole, "server")],
    );
    // It was captured on both sides of a router, who only passed that on.
    let server = sights(&folder, "ot/modicon.pcap");
    let server = server.iter().filter(|sight| sight.kind == HintKind::HttpServer);
    let macs: Vec<_> = server.map(|sight| sight.who.mac.to_string()).collect();
    assert_eq!(macs, ["00:00:54:14:f2:4f"]);
    shows(&folder, "ot/bacnet_example.pcap", &[(HintKind::BacnetInstance, "136")]);
}

#[test]
fn things_of_a_household_name_themselves_as_they_are_set_up() {
    let Some(folder) = folder() else { return };
    let name = "iot-setup/EdimaxCam1/Setup-A-1-STA.pcap";
    shows(
        &folder,
        name,
        &[
            (HintKind::DhcpVendorClass, "udhcp 0.9.8"),
            (HintKind::DhcpParameters, "1,3,6,12,15,28,42"),
            (HintKind::MdnsName, "localcam"),
            (HintKind::MdnsService, "_http._tcp"),
            (HintKind::SsdpType, "urn:schemas-upnp-org:device:Basic:1"),
        ],
    );
    shows(
        &folder,
        "iot-setup/WeMoLink/Setup-A-1-STA.pcap",
        &[(HintKind::TlsName, "api.xbcs.net"), (HintKind::DnsQuery, "api.xbcs.net")],
    );
    // A certificate over several segments.
    shows(
        &folder,
        "iot-setup/D-LinkSwitch/Setup-A-1-STA.pcap",
        &[(HintKind::TlsCertificate, "*.dch.dlink.com")],
    );
}

/// Frames that are cut anywhere, or changed anywhere, do no harm.
#[test]
fn broken_frames_do_no_harm() {
    let Some(folder) = folder() else { return };
    let (mut sensor, mut sights) = (Sensor::new(), Sights::default());
    for name in ["medical/mixed-peers.pcap", "medical/sdc-wsdiscovery.pcap", "legacy/dhcp.pcap"] {
        let bytes = std::fs::read(folder.join(name)).expect("a capture");
        for (n, frame) in capture::frames(&bytes).expect("a capture of Ethernet").enumerate() {
            let mut broken = frame.bytes.to_vec();
            broken.truncate(n * 37 % frame.bytes.len().max(1));
            sensor.frame(&broken, None, Look::Further, &mut sights);
            let mut broken = frame.bytes.to_vec();
            for at in (n % 11..broken.len()).step_by(11) {
                broken[at] ^= 0x5a;
            }
            sensor.frame(&broken, None, Look::Anew, &mut sights);
            for sight in sights.drain() {
                assert!(sight.value.len() <= anteroom_proto::inventory::MAX_VALUE);
            }
        }
    }
}
