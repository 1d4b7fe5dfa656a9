//! SNMP 1 and 2c, and of version 3 the engine that answers: who asks and who answers, and what an agent answers of itself (RFC 3418, system group). Communities are
//! passwords and are passed by.

use anteroom_proto::inventory::HintKind;
use snmp_parser::{
    ObjectSyntax, PduType, SecurityParameters, SnmpPdu, TrapType, VarBindValue, parse_snmp_v1,
    parse_snmp_v2c, parse_snmp_v3,
};

use crate::frame::Datagram;
use crate::sight::Sights;

/// The kind of trap that a MIB defines.
const ENTERPRISE_SPECIFIC: u8 = 6;
/// Most variables of a message that are looked at.
const MOST_VARIABLES: usize = 32;

pub(super) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
    let message = match parse_snmp_v1(datagram.payload) {
        Ok((_, message)) => message,
        Err(_) => match parse_snmp_v2c(datagram.payload) {
            Ok((_, message)) => message,
            Err(_) => return engine(datagram, sights),
        },
    };
    let who = datagram.from;
    let (source, destination) = datagram.ports;
    match message.pdu.pdu_type() {
        PduType::Response if source == 161 => sights.tell(who, HintKind::SnmpRole, "agent"),
        PduType::TrapV1 | PduType::TrapV2 | PduType::InformRequest if destination == 162 => {
            sights.tell(who, HintKind::SnmpRole, "agent");
        }
        PduType::GetRequest | PduType::GetNextRequest | PduType::GetBulkRequest
            if destination == 161 =>
        {
            sights.tell(who, HintKind::SnmpRole, "manager");
            return;
        }
        _ => return,
    }
    if let SnmpPdu::TrapV1(trap) = &message.pdu {
        // Of an enterprise's own traps this is the MIB's number (RFC 1157, 4.1.6), not the device's.
        if trap.generic_trap == TrapType(ENTERPRISE_SPECIFIC) {
            return;
        }
        sights.tell(who, HintKind::SnmpObjectId, trap.enterprise.to_id_string());
        return;
    }
    for variable in message.pdu.vars_iter().take(MOST_VARIABLES) {
        let VarBindValue::Value(value) = &variable.val else { continue };
        let kind = match variable.oid.to_id_string().as_str() {
            "1.3.6.1.2.1.1.1.0" => HintKind::SnmpDescription,
            "1.3.6.1.2.1.1.2.0" => HintKind::SnmpObjectId,
            "1.3.6.1.2.1.1.5.0" => HintKind::SnmpName,
            _ => continue,
        };
        match value {
            ObjectSyntax::String(text) => sights.tell(who, kind, text),
            ObjectSyntax::Object(id) => sights.tell(who, kind, id.to_id_string()),
            _ => {}
        }
    }
}

/// What an agent names of its engine before anything is encrypted (RFC 3411, SnmpEngineID): whose it is. The user and the rest of the
/// engine's id are passed by.
fn engine(datagram: &Datagram<'_>, sights: &mut Sights) {
    if datagram.ports.0 != 161 {
        return;
    }
    let Ok((_, message)) = parse_snmp_v3(datagram.payload) else { return };
    sights.tell(datagram.from, HintKind::SnmpRole, "agent");
    let SecurityParameters::USM(parameters) = &message.security_params else { return };
    let Some(first) = parameters.msg_authoritative_engine_id.first_chunk::<4>() else { return };
    // The first bit says that what follows the number is of a known form.
    let enterprise = u32::from_be_bytes(*first) & 0x7fff_ffff;
    if enterprise != 0 {
        sights.tell(datagram.from, HintKind::SnmpEngine, enterprise.to_string());
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::mac::MacAddr;

    use super::*;
    use crate::sight::Station;

    fn told(ports: (u16, u16), payload: &[u8]) -> Vec<(HintKind, String)> {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let datagram = Datagram {
            from: station(1),
            to: station(2),
            ips: ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
            ports,
            forwarded: false,
            payload,
        };
        let mut sights = Sights::default();
        sights.begin();
        read(&datagram, &mut sights);
        sights.drain().map(|sight| (sight.kind, sight.value)).collect()
    }

    /// An element of BER.
    fn element(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let held = parts.concat();
        [&[kind, u8::try_from(held.len()).unwrap()][..], &held].concat()
    }

    #[test]
    fn of_version_3_the_engine_is_told_and_never_the_user() {
        let engine = [0x80, 0, 0x1f, 0x88, 4, b'e', b'r', b'i', b'k', b'a'];
        let header =
            element(0x30, &[&[2, 1, 9], &[2, 3, 0, 0xff, 0xe3], &element(4, &[&[0]]), &[2, 1, 3]]);
        let usm = element(
            0x30,
            &[
                &element(4, &[&engine]),
                &[2, 1, 1],
                &[2, 1, 1],
                &element(4, &[b"mustermann"]),
                &element(4, &[]),
                &element(4, &[]),
            ],
        );
        let pdu = element(0xa8, &[&[2, 1, 9], &[2, 1, 0], &[2, 1, 0], &element(0x30, &[])]);
        let scoped = element(0x30, &[&element(4, &[&engine]), &element(4, &[]), &pdu]);
        let message = element(0x30, &[&[2, 1, 3], &header, &element(4, &[&usm]), &scoped]);
        let wanted =
            [(HintKind::SnmpRole, "agent".to_owned()), (HintKind::SnmpEngine, "8072".to_owned())];
        assert_eq!(told((161, 40_000), &message), wanted);
        assert_eq!(told((40_000, 161), &message), [], "who asks names the other's engine");
    }

    #[test]
    fn who_sends_word_unasked_is_an_agent() {
        // InformRequest of version 2c, whose community is passed by.
        let pdu = element(0xa6, &[&[2, 1, 9], &[2, 1, 0], &[2, 1, 0], &element(0x30, &[])]);
        let message = element(0x30, &[&[2, 1, 1], &element(4, &[b"mustermann"]), &pdu]);
        assert_eq!(told((40_000, 162), &message), [(HintKind::SnmpRole, "agent".to_owned())]);
    }
}
