//! SNMP 1 and 2c: who asks and who answers, and what an agent answers of itself (RFC 3418, system group). Communities are
//! passwords and are passed by.

use anteroom_proto::inventory::HintKind;
use snmp_parser::{ObjectSyntax, PduType, SnmpPdu, VarBindValue, parse_snmp_v1, parse_snmp_v2c};

use crate::frame::Datagram;
use crate::sight::Sights;

/// Most variables of a message that are looked at.
const MOST_VARIABLES: usize = 32;

pub(super) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
    let message = match parse_snmp_v1(datagram.payload) {
        Ok((_, message)) => message,
        Err(_) => match parse_snmp_v2c(datagram.payload) {
            Ok((_, message)) => message,
            Err(_) => return,
        },
    };
    let who = datagram.from;
    let (source, destination) = datagram.ports;
    match message.pdu.pdu_type() {
        PduType::Response if source == 161 => sights.tell(who, HintKind::SnmpRole, "agent"),
        PduType::TrapV1 | PduType::TrapV2 if destination == 162 => {
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
