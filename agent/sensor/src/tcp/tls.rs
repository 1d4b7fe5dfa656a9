//! TLS: hellos, and the certificate where TLS 1.2 or older shows it in the clear.

use anteroom_proto::inventory::HintKind;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ja4;
use crate::cursor::Cursor;
use crate::sight::Sights;
use crate::stream::Talk;
use crate::text;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const CERTIFICATE: u8 = 11;
/// Extensions.
const SERVER_NAME: u16 = 0;
/// Most names of one certificate that are told of.
const MOST_NAMES: usize = 4;
/// Most records and messages that are looked at.
const MOST_RECORDS: usize = 64;

/// A client's hello, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello<'a> {
    pub(super) version: u16,
    pub(super) ciphers: Vec<u16>,
    /// In the client's order.
    pub(super) extensions: Vec<(u16, &'a [u8])>,
}

impl Hello<'_> {
    pub(super) fn extension(&self, wanted: u16) -> Option<&[u8]> {
        self.extensions.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value)
    }
}

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    let asked = handshakes(talk.asked);
    if let Some(hello) = message(&asked, CLIENT_HELLO).and_then(hello) {
        if let Some(name) =
            hello.extension(SERVER_NAME).and_then(server_name).and_then(text::host_name)
        {
            sights.tell(talk.client, HintKind::TlsName, name);
        }
        sights.tell(talk.client, HintKind::TlsJa4, ja4::of(&hello));
    }
    let answered = handshakes(talk.answered);
    let Some(certificates) = message(&answered, CERTIFICATE) else { return false };
    // It takes several segments; one that never becomes whole ends with the bytes that are kept.
    let Some(certificate) = first_certificate(certificates) else { return false };
    for name in certificate_names(certificate).into_iter().flatten().take(MOST_NAMES) {
        sights.tell(talk.server, HintKind::TlsCertificate, name);
    }
    true
}

/// What the handshake's records hold, put together up to the first record of another kind.
fn handshakes(bytes: &[u8]) -> Vec<u8> {
    let mut records = Cursor(bytes);
    let mut held = Vec::new();
    for _ in 0..MOST_RECORDS {
        let Some(HANDSHAKE) = records.u8() else { break };
        let (Some(3), Some(0..=4), Some(length)) = (records.u8(), records.u8(), records.be16())
        else {
            break;
        };
        held.extend_from_slice(records.take_most(length.into()));
    }
    held
}

/// The first message of a kind, where it is there in whole; of certificates as much as came.
fn message(bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut messages = Cursor(bytes);
    for _ in 0..MOST_RECORDS {
        let (kind, length) = (messages.u8()?, messages.be24()?);
        if kind == wanted && wanted == CERTIFICATE {
            return Some(messages.take_most(length));
        }
        let message = messages.take(length)?;
        if kind == wanted {
            return Some(message);
        }
    }
    None
}

fn hello(message: &[u8]) -> Option<Hello<'_>> {
    let mut message = Cursor(message);
    let version = message.be16()?;
    message.take(32)?;
    message.short()?;
    let ciphers = numbers(message.long()?);
    message.short()?;
    let mut extensions = Vec::new();
    if !message.is_empty() {
        let mut listed = Cursor(message.long()?);
        while let Some(kind) = listed.be16() {
            extensions.push((kind, listed.long()?));
        }
    }
    Some(Hello { version, ciphers, extensions })
}

/// Numbers of two bytes each.
pub(super) fn numbers(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

/// The first host name of the extension (RFC 6066).
fn server_name(extension: &[u8]) -> Option<&[u8]> {
    let mut names = Cursor(extension);
    let mut names = Cursor(names.long()?);
    (names.u8()? == 0).then(|| names.long())?
}

/// The first certificate of a chain, once it is there in whole.
fn first_certificate(message: &[u8]) -> Option<&[u8]> {
    let mut message = Cursor(message);
    let length = message.be24()?;
    let mut chain = Cursor(message.take_most(length));
    let length = chain.be24()?;
    chain.take(length)
}

/// The subject's common name and its DNS names.
fn certificate_names(certificate: &[u8]) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names: Vec<String> = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .map(str::to_owned)
        .collect();
    for extension in certificate.extensions() {
        if let ParsedExtension::SubjectAlternativeName(alternatives) = extension.parsed_extension()
        {
            for name in &alternatives.general_names {
                if let GeneralName::DNSName(name) = name
                    && !names.iter().any(|known| known == name)
                {
                    names.push((*name).to_owned());
                }
            }
        }
    }
    Some(names)
}
