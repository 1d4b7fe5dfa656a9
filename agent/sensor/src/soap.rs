//! What XML says of the device that sends it: discovery (WS-Discovery, as IEEE 11073 SDC uses it), metadata (DPWS), and UPnP's
//! descriptions. Everything else in a body is passed by: reports of SDC hold patients' data, and files that servers hand out are
//! about anything.
//!
//! Elements count in their namespaces and at their places alone. A discovery proxy answers for all devices of a ward: what names
//! another's address is passed by, and of what names none only a device's own hello is taken.

mod xml;

use std::io::Read;
use std::net::IpAddr;

use anteroom_proto::inventory::HintKind;

use self::xml::{Path, Space, elements};
use crate::sight::{Sights, Station};
use crate::text;

/// Most words of one list.
const MOST_WORDS: usize = 32;

const BODY: [(Space, &str); 2] = [(Space::Soap, "Envelope"), (Space::Soap, "Body")];
/// A part of a device's metadata (DPWS 1.1, 5.2).
const PART: [(Space, &str); 4] =
    [BODY[0], BODY[1], (Space::Metadata, "Metadata"), (Space::Metadata, "MetadataSection")];
/// UPnP's description of the device itself; those of its parts lie deeper (UPnP Device Architecture, 2.3).
const DESCRIBED: [(Space, &str); 2] = [(Space::Upnp, "root"), (Space::Upnp, "device")];

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Gzip,
    Deflate,
}

/// A body, as far as it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Body<'a> {
    /// Who sends it, and by which address.
    pub(crate) who: Option<Station>,
    pub(crate) ip: IpAddr,
    pub(crate) bytes: &'a [u8],
    pub(crate) encoding: Encoding,
    /// Whether it answers somebody who asked for it by HTTP: nobody describes itself otherwise.
    pub(crate) answers: bool,
    /// Whether its sender is known to repeat what others say.
    pub(crate) repeats: bool,
}

/// Reads a body. A compressed one grows by `inflate` bytes at most, which are taken off that. Says whether it is about another
/// machine than its sender.
pub(crate) fn read(body: Body<'_>, inflate: &mut u64, sights: &mut Sights) -> bool {
    let mut inflated = Vec::new();
    // What was inflated before the bytes ended or broke is as good.
    let _ = match body.encoding {
        Encoding::Plain => Ok(0),
        Encoding::Gzip => {
            flate2::read::GzDecoder::new(body.bytes).take(*inflate).read_to_end(&mut inflated)
        }
        Encoding::Deflate => {
            flate2::read::ZlibDecoder::new(body.bytes).take(*inflate).read_to_end(&mut inflated)
        }
    };
    *inflate = inflate.saturating_sub(u64::try_from(inflated.len()).unwrap_or(u64::MAX));
    let bytes = if body.encoding == Encoding::Plain { body.bytes } else { &inflated };
    let mut reading = Reading {
        body,
        target: Target::default(),
        description: Description::default(),
        anothers: false,
    };
    elements(bytes, |path, text| reading.element(path, text, sights));
    reading.description.tell(body.who, sights);
    reading.anothers
}

/// What was read of a body so far.
struct Reading<'a> {
    body: Body<'a>,
    target: Target,
    description: Description,
    anothers: bool,
}

/// What is said of one target of discovery.
#[derive(Default)]
struct Target {
    types: Vec<String>,
    scopes: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// The maker and model of a UPnP device.
#[derive(Default)]
struct Description {
    maker: Option<String>,
    model: Option<String>,
    number: Option<String>,
}

impl Description {
    fn tell(&self, who: Option<Station>, sights: &mut Sights) {
        if self.model.is_none() {
            return;
        }
        let parts = [&self.maker, &self.model, &self.number];
        let words: Vec<&str> = parts.into_iter().filter_map(Option::as_deref).collect();
        sights.tell(who, HintKind::SsdpModel, words.join(" "));
    }
}

impl Reading<'_> {
    fn element(&mut self, path: &Path, text: &str, sights: &mut Sights) {
        let (Some((space, name)), around) = (path.inner(0), path.inner(1)) else { return };
        if path.is_under(&BODY) {
            match (space, name) {
                (Space::Discovery, "Hello") => self.target_ends(true, sights),
                (Space::Discovery, "ProbeMatch" | "ResolveMatch") => {
                    self.target_ends(false, sights);
                }
                // A probe says what is sought, not what one is.
                (Space::Discovery, _)
                    if matches!(
                        around,
                        Some((Space::Discovery, "Hello" | "ProbeMatch" | "ResolveMatch"))
                    ) =>
                {
                    self.target(name, text);
                }
                (Space::Devices, _) if self.body.answers => self.metadata(path, text, sights),
                _ => {}
            }
        } else if self.body.answers && path.is(&[DESCRIBED[0], DESCRIBED[1], (Space::Upnp, name)]) {
            let place = match name {
                "manufacturer" => &mut self.description.maker,
                "modelName" => &mut self.description.model,
                "modelNumber" => &mut self.description.number,
                _ => return,
            };
            if !text.is_empty() {
                place.get_or_insert_with(|| text.to_owned());
            }
        }
    }

    fn target(&mut self, name: &str, text: &str) {
        let words = text.split_whitespace().take(MOST_WORDS);
        match name {
            "Types" => self.target.types.extend(words.map(local)),
            "Scopes" => {
                let own = words.filter(|scope| is_of_device(scope));
                self.target.scopes.extend(own.map(str::to_owned));
            }
            "XAddrs" => {
                self.target
                    .addresses
                    .extend(words.filter_map(|word| text::address_of_url(word.as_bytes())));
            }
            _ => {}
        }
    }

    fn target_ends(&mut self, is_hello: bool, sights: &mut Sights) {
        let target = std::mem::take(&mut self.target);
        let Body { who, ip, repeats, .. } = self.body;
        match text::is_own(ip, target.addresses) {
            Some(false) => {
                self.anothers = true;
                return;
            }
            None if repeats || !is_hello => return,
            Some(true) | None => {}
        }
        for word in target.types {
            sights.tell(who, HintKind::WsdTypes, word);
        }
        for scope in target.scopes {
            sights.tell(who, HintKind::WsdScope, scope);
        }
    }

    fn metadata(&self, path: &Path, text: &str, sights: &mut Sights) {
        let who = self.body.who;
        let is = |within: &[&str]| {
            let mut wanted = PART.to_vec();
            wanted.extend(within.iter().map(|name| (Space::Devices, *name)));
            path.is(&wanted)
        };
        if is(&["ThisModel", "Manufacturer"]) {
            sights.tell(who, HintKind::WsdManufacturer, text);
        } else if is(&["ThisModel", "ModelName"]) {
            sights.tell(who, HintKind::WsdModel, text);
        } else if is(&["ThisDevice", "FriendlyName"]) {
            sights.tell(who, HintKind::WsdName, text);
        } else if is(&["Relationship", "Host", "Types"]) {
            for word in text.split_whitespace().take(MOST_WORDS) {
                sights.tell(who, HintKind::WsdTypes, local(word));
            }
        }
    }
}

/// A name without its prefix.
fn local(word: &str) -> String {
    word.rsplit_once(':').map_or(word, |(_, local)| local).to_owned()
}

/// Beginnings of scopes that are about the device, its kind or its place.
const SCOPES: [&str; 6] = [
    "sdc.mds.pkp:",
    "sdc.cdc.type:",
    "sdc.ctxt.loc:",
    "onvif://www.onvif.org/hardware/",
    "onvif://www.onvif.org/type/",
    "onvif://www.onvif.org/profile/",
];

/// Whether a scope is known to be about the device or its place. SDC also has scopes for the patient, the operator and the order
/// that a device is at work for (IEEE 11073-20701), and makers have their own: those are nobody's business here.
fn is_of_device(scope: &str) -> bool {
    let scope = scope.to_ascii_lowercase();
    SCOPES.iter().any(|known| scope.starts_with(known))
}

#[cfg(test)]
mod tests;
