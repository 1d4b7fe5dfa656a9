//! What XML says of the device that sends it: discovery (WS-Discovery, as IEEE 11073 SDC uses it), metadata (DPWS), and UPnP's
//! descriptions. Everything else in a body is passed by: reports of SDC hold patients' data.

use std::io::Read;

use anteroom_proto::inventory::HintKind;
use quick_xml::Reader;
use quick_xml::events::Event;

use crate::sight::{Sights, Station};

/// Most elements within one another, and most pieces of XML, that are looked at.
const DEEPEST: usize = 32;
const MOST_EVENTS: usize = 8192;
/// Longest text that is put together for one element.
const LONGEST_TEXT: usize = 4096;
/// Most words of one list.
const MOST_WORDS: usize = 32;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Gzip,
    Deflate,
}

/// Reads a body, as far as it came. A compressed one grows by `inflate` bytes at most, which are taken off that.
pub(crate) fn read(
    who: Station,
    body: &[u8],
    encoding: Encoding,
    inflate: &mut u64,
    sights: &mut Sights,
) {
    let mut inflated = Vec::new();
    // What was inflated before the bytes ended or broke is as good.
    let _ = match encoding {
        Encoding::Plain => Ok(0),
        Encoding::Gzip => {
            flate2::read::GzDecoder::new(body).take(*inflate).read_to_end(&mut inflated)
        }
        Encoding::Deflate => {
            flate2::read::ZlibDecoder::new(body).take(*inflate).read_to_end(&mut inflated)
        }
    };
    *inflate = inflate.saturating_sub(u64::try_from(inflated.len()).unwrap_or(u64::MAX));
    let body = if encoding == Encoding::Plain { body } else { &inflated };
    let mut description = Description::default();
    elements(body, |path, text| element(who, path, text, &mut description, sights));
    description.tell(who, sights);
}

/// The maker and model of a UPnP device, whose first description is the device itself; parts of it follow.
#[derive(Default)]
struct Description {
    maker: Option<String>,
    model: Option<String>,
    number: Option<String>,
}

impl Description {
    fn tell(&self, who: Station, sights: &mut Sights) {
        if self.model.is_none() {
            return;
        }
        let parts = [&self.maker, &self.model, &self.number];
        let words: Vec<&str> = parts.into_iter().filter_map(Option::as_deref).collect();
        sights.tell(who, HintKind::SsdpModel, words.join(" "));
    }
}

fn element(
    who: Station,
    path: &[String],
    text: &str,
    description: &mut Description,
    sights: &mut Sights,
) {
    let mut names = path.iter().rev().map(String::as_str);
    let (name, parent) = (names.next().unwrap_or(""), names.next().unwrap_or(""));
    // A probe says what is sought, not what one is.
    let tells = matches!(parent, "Hello" | "ProbeMatch" | "ResolveMatch" | "Host" | "Hosted");
    match (name, parent) {
        ("Types", _) if tells && parent != "Hosted" => {
            for word in text.split_whitespace().take(MOST_WORDS) {
                let local = word.rsplit_once(':').map_or(word, |(_, local)| local);
                sights.tell(who, HintKind::WsdTypes, local);
            }
        }
        ("Scopes", _) if tells => {
            for scope in
                text.split_whitespace().take(MOST_WORDS).filter(|scope| is_of_device(scope))
            {
                sights.tell(who, HintKind::WsdScope, scope);
            }
        }
        ("Manufacturer", "ThisModel") => sights.tell(who, HintKind::WsdManufacturer, text),
        ("ModelName", "ThisModel") => sights.tell(who, HintKind::WsdModel, text),
        ("FriendlyName", "ThisDevice") => sights.tell(who, HintKind::WsdName, text),
        ("manufacturer", "device") => keep(&mut description.maker, text),
        ("modelName", "device") => keep(&mut description.model, text),
        ("modelNumber", "device") => keep(&mut description.number, text),
        _ => {}
    }
}

fn keep(place: &mut Option<String>, text: &str) {
    place.get_or_insert_with(|| text.to_owned());
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

/// Calls `told` with the path (local names) and the text of each element that ends.
fn elements(xml: &[u8], mut told: impl FnMut(&[String], &str)) {
    let xml = String::from_utf8_lossy(xml);
    let mut reader = Reader::from_str(&xml);
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    for _ in 0..MOST_EVENTS {
        match reader.read_event() {
            Ok(Event::Start(start)) => {
                if path.len() >= DEEPEST {
                    return;
                }
                path.push(start.local_name().as_ref().to_owned());
                text.clear();
            }
            Ok(Event::Text(part)) => {
                if text.len() + part.len() <= LONGEST_TEXT {
                    text.push_str(&part);
                }
            }
            Ok(Event::GeneralRef(entity)) if text.len() < LONGEST_TEXT => {
                text.push(match entity.as_ref() {
                    "amp" => '&',
                    "lt" => '<',
                    "gt" => '>',
                    "quot" => '"',
                    "apos" => '\'',
                    _ => ' ',
                });
            }
            Ok(Event::End(_)) => {
                if !text.trim().is_empty() {
                    told(&path, text.trim());
                }
                text.clear();
                path.pop();
            }
            Ok(Event::Eof) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
