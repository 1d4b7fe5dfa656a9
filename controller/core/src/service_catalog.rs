//! Services that are built in: the ones that hospitals and their buildings run on.

use anteroom_proto::service::{PortMatch, Protocol};

/// A built-in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIn {
    /// What rules call it.
    pub name: &'static str,
    /// Its protocols and ports, sorted.
    pub ports: &'static [PortMatch],
    /// What it is, in a line.
    pub description: &'static str,
    /// Where its ports are laid down.
    pub source: &'static str,
    /// Whether its messages name patients, as a rule. Of what carries anything at all, as web pages do, nobody knows.
    pub patient_data: bool,
}

const fn tcp(port: u16) -> PortMatch {
    PortMatch { protocol: Protocol::Tcp, first: port, last: port }
}

const fn udp(port: u16) -> PortMatch {
    PortMatch { protocol: Protocol::Udp, first: port, last: port }
}

const ECHO: PortMatch = PortMatch { protocol: Protocol::IcmpEcho, first: 0, last: 0 };
const IANA: &str = "IANA service name registry";
/// Its messages name patients.
const PATIENTS: bool = true;
/// Shells and remote screens, by which machines are looked after.
const MAINTENANCE: [&str; 4] = ["rdp", "ssh", "telnet", "vnc"];

macro_rules! catalog {
    ($($name:literal [$($port:expr),+] $description:literal, $source:expr $(, $patients:ident)?;)*) => {
        const CATALOG: &[BuiltIn] = &[$(BuiltIn {
            name: $name,
            ports: &[$($port),+],
            description: $description,
            source: $source,
            patient_data: false $(|| $patients)?,
        }),*];
    };
}

catalog! {
    "bacnet" [udp(47808)] "BACnet/IP: building automation, air handling", "ASHRAE 135 Annex J";
    "dicom" [tcp(104), tcp(11112)] "DICOM: images, worklists, storage commitment", "DICOM PS3.8 9.1.1", PATIENTS;
    "dicom-tls" [tcp(2762)] "DICOM over TLS", "DICOM PS3.15 B.1", PATIENTS;
    "dnp3" [tcp(20000), udp(20000)] "DNP3: power and water supply", "IEEE 1815";
    "dns" [tcp(53), udp(53)] "DNS: names to addresses", "RFC 1035, RFC 7766";
    "ethernet-ip" [tcp(44818), udp(2222), udp(44818)] "EtherNet/IP: industrial controllers", IANA;
    "ftp" [tcp(21)] "FTP: the control connection; active mode opens data connections back", "RFC 959";
    "hl7" [tcp(2575)] "HL7 version 2 over MLLP: orders, results, admissions, alarms", IANA, PATIENTS;
    "http" [tcp(80)] "HTTP: web pages and interfaces, in the clear", "RFC 9110";
    "https" [tcp(443)] "HTTPS: web pages and interfaces, DICOMweb, FHIR", "RFC 9110";
    "iec-104" [tcp(2404)] "IEC 60870-5-104: power supply", IANA;
    "intellivue" [udp(24105)] "Philips IntelliVue: data export of patient monitors", "Philips IntelliVue Data Export Interface Programming Guide", PATIENTS;
    "ipp" [tcp(631)] "IPP: printing", "RFC 8010";
    "jetdirect" [tcp(9100)] "Raw printing, as film and label printers take it", IANA;
    "kerberos" [tcp(88), udp(88)] "Kerberos: sign-on in a Windows domain", "RFC 4120";
    "knx" [tcp(3671), udp(3671)] "KNXnet/IP: lighting and blinds", IANA;
    "ldap" [tcp(389), udp(389)] "LDAP: directories, in the clear or with StartTLS", "RFC 4511";
    "ldaps" [tcp(636)] "LDAP over TLS", IANA;
    "modbus" [tcp(502)] "Modbus/TCP: industrial controllers, power meters", "Modbus Messaging on TCP/IP Implementation Guide";
    "mqtt" [tcp(1883)] "MQTT: sensors, in the clear", "OASIS MQTT 5.0";
    "mqtts" [tcp(8883)] "MQTT over TLS", "OASIS MQTT 5.0";
    "mssql" [tcp(1433)] "Microsoft SQL Server", IANA;
    "mysql" [tcp(3306)] "MySQL and MariaDB", IANA;
    "netbios" [tcp(139), udp(137), udp(138)] "NetBIOS: file shares of old Windows", "RFC 1002";
    "niagara-fox" [tcp(1911), tcp(4911)] "Niagara Fox: building management", IANA;
    "ntp" [udp(123)] "NTP: time", "RFC 5905";
    "opcua" [tcp(4840)] "OPC UA: industrial controllers", "OPC 10000-6";
    "oracle" [tcp(1521)] "Oracle Database", "Oracle Net Services";
    "ping" [ECHO] "ICMP echo and its reply", "RFC 792";
    "postgresql" [tcp(5432)] "PostgreSQL", IANA;
    "rdp" [tcp(3389), udp(3389)] "Remote Desktop", IANA;
    "s7" [tcp(102)] "Siemens S7 over ISO-TSAP: industrial controllers", "RFC 1006";
    "smb" [tcp(445)] "SMB: file shares", IANA;
    "smtp" [tcp(25)] "SMTP: mail", "RFC 5321";
    "snmp" [udp(161)] "SNMP: asking a device how it is", "RFC 3417";
    "snmp-trap" [udp(162)] "SNMP notifications, from a device to its manager", "RFC 3417";
    "ssh" [tcp(22)] "SSH: shells, SFTP", "RFC 4253";
    "syslog" [udp(514)] "Syslog, in the clear", "RFC 5426";
    "syslog-tls" [tcp(6514)] "Syslog over TLS; IHE ATNA audit records", "RFC 5425";
    "telnet" [tcp(23)] "Telnet: shells in the clear", "RFC 854";
    "tftp" [udp(69)] "TFTP: the first packet; the answer comes from another port", "RFC 1350";
    "vnc" [tcp(5900)] "VNC: remote screens", "RFC 6143";
}

/// Every built-in service, in the order of names.
#[must_use]
pub const fn all() -> &'static [BuiltIn] {
    CATALOG
}

/// Whether messages to a port name patients, as a rule: by the first of the policy's own services in `own` (ports, and what the policy
/// says of them) that holds it and says so or not, else by the built-in ones.
pub(crate) fn patient_data<'a>(
    own: impl IntoIterator<Item = (&'a [PortMatch], Option<bool>)>,
    protocol: Protocol,
    port: u16,
) -> bool {
    said(own, protocol, port, |service| service.patient_data)
}

/// Whether people look after machines from elsewhere by a port, as a rule: found as [`patient_data`] is.
pub(crate) fn maintenance<'a>(
    own: impl IntoIterator<Item = (&'a [PortMatch], Option<bool>)>,
    protocol: Protocol,
    port: u16,
) -> bool {
    said(own, protocol, port, |service| MAINTENANCE.contains(&service.name))
}

fn said<'a>(
    own: impl IntoIterator<Item = (&'a [PortMatch], Option<bool>)>,
    protocol: Protocol,
    port: u16,
    of_built_in: fn(&BuiltIn) -> bool,
) -> bool {
    let holds = |ports: &[PortMatch]| ports.iter().any(|one| one.matches(protocol, port));
    let said = own.into_iter().find_map(|(ports, said)| said.filter(|_| holds(ports)));
    let built_in = || all().iter().any(|service| of_built_in(service) && holds(service.ports));
    said.unwrap_or_else(built_in)
}

/// The built-in service with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static BuiltIn> {
    CATALOG
        .binary_search_by(|service| service.name.cmp(name))
        .ok()
        .and_then(|index| CATALOG.get(index))
}

#[cfg(test)]
mod tests {
    use anteroom_proto::name::Name;

    use super::*;

    #[test]
    fn names_are_sorted_unique_and_found() {
        assert!(all().windows(2).all(|pair| pair[0].name < pair[1].name));
        for service in all() {
            assert!(service.name.parse::<Name>().is_ok(), "{service:?}");
            assert_eq!(find(service.name), Some(service));
            assert!(!service.ports.is_empty() && !service.source.is_empty());
            assert!(service.ports.windows(2).all(|pair| pair[0] < pair[1]), "{service:?}");
            for port in service.ports {
                assert_eq!(port.to_string().parse::<PortMatch>().as_ref(), Ok(port));
            }
        }
        assert_eq!(find("dicm"), None);
    }

    #[test]
    fn the_ports_of_the_main_job_are_the_standards() {
        let ports = |name| {
            find(name).unwrap().ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(ports("dicom"), "tcp/104 tcp/11112");
        assert_eq!(ports("hl7"), "tcp/2575");
        assert_eq!(ports("ping"), "icmp/echo");
    }

    #[test]
    fn what_machines_are_looked_after_by_is_known_and_the_policy_can_say_otherwise() {
        let known = |name: &&str| find(name).is_some();
        assert!(MAINTENANCE.iter().all(known), "{MAINTENANCE:?}");
        let of = |own: &[(&[PortMatch], Option<bool>)], port| {
            maintenance(own.iter().copied(), Protocol::Tcp, port)
        };
        assert_eq!(
            [22, 23, 3389, 5900, 104, 4711].map(|port| of(&[], port)),
            [true, true, true, true, false, false]
        );
        let (shell, vendor) = ([tcp(22)], [tcp(4711)]);
        let own: [(&[PortMatch], _); 3] =
            [(&shell, None), (&shell, Some(false)), (&vendor, Some(true))];
        assert_eq!([22, 23, 4711].map(|port| of(&own, port)), [false, true, true]);
    }

    #[test]
    fn what_names_patients_is_known_and_the_policy_can_say_otherwise() {
        let named: Vec<&str> = all()
            .iter()
            .filter(|service| service.patient_data)
            .map(|service| service.name)
            .collect();
        assert_eq!(named, ["dicom", "dicom-tls", "hl7", "intellivue"]);
        let asked = |own: &[(&[PortMatch], Option<bool>)], port| {
            patient_data(own.iter().copied(), Protocol::Tcp, port)
        };
        assert!(asked(&[], 104) && !asked(&[], 4711));
        let own: &[PortMatch] = &[tcp(4711), tcp(104)];
        assert!(asked(&[(own, None)], 104), "nothing said");
        assert!(asked(&[(own, None), (own, Some(true))], 4711));
        assert!(!asked(&[(own, Some(false))], 104));
        assert!(asked(&[(own, Some(false))], 2575), "of others it says nothing");
    }
}
