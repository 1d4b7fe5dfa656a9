//! What is said by TCP.

mod banner;
mod dicom;
mod hl7;
mod http;
mod ja4;
mod modbus;
mod opcua;
mod opening;
mod smb;
mod tls;

pub(crate) use opening::{PASSING, opening};

use crate::sight::Sights;
use crate::stream::Talk;

/// Reads what was said so far. Says whether nothing more is to be learnt of this flow.
///
/// A protocol is told by the first bytes, not by its port, where it has some that others haven't.
pub(crate) fn read(talk: &mut Talk<'_>, sights: &mut Sights) -> bool {
    banner::read(talk, sights)
        || dicom::read(talk, sights)
        || hl7::read(talk, sights)
        || http::read(talk, sights)
        || tls::read(talk, sights)
        || smb::read(talk, sights)
        || opcua::read(talk, sights)
        || modbus::read(talk, sights)
}
