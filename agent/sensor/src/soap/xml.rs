//! XML, element by element, with what its namespaces are to us. Bounded in depth, length and number.

use quick_xml::NsReader;
use quick_xml::events::Event;
use quick_xml::name::{Namespace, ResolveResult};

/// Most elements within one another, most names of namespaces, and most pieces of XML, that are looked at.
const DEEPEST: usize = 32;
const MOST_NAMESPACES: usize = 64;
const MOST_EVENTS: usize = 8192;
/// Longest text that is put together for one element.
const LONGEST_TEXT: usize = 4096;

/// A namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// SOAP's envelope, 1.1 and 1.2.
    Soap,
    /// WS-Discovery, of April 2005 and 1.1.
    Discovery,
    /// What devices say of themselves (DPWS), of 2006 and 1.1.
    Devices,
    /// Metadata (WS-MetadataExchange).
    Metadata,
    /// UPnP's descriptions of devices. Some makers write their own name in place of UPnP's: `urn:Belkin:device-1-0`.
    Upnp,
    Other,
}

impl Space {
    fn of(name: &ResolveResult<'_>) -> Self {
        let ResolveResult::Bound(Namespace(name)) = name else { return Self::Other };
        match *name {
            "http://www.w3.org/2003/05/soap-envelope"
            | "http://schemas.xmlsoap.org/soap/envelope/" => Self::Soap,
            "http://schemas.xmlsoap.org/ws/2005/04/discovery"
            | "http://docs.oasis-open.org/ws-dd/ns/discovery/2009/01" => Self::Discovery,
            "http://schemas.xmlsoap.org/ws/2006/02/devprof"
            | "http://docs.oasis-open.org/ws-dd/ns/dpws/2009/01" => Self::Devices,
            "http://schemas.xmlsoap.org/ws/2004/09/mex" => Self::Metadata,
            name if name.starts_with("urn:") && name.ends_with(":device-1-0") => Self::Upnp,
            _ => Self::Other,
        }
    }
}

/// The element that one is in, within those around it: namespaces and local names, the outermost first.
pub(super) struct Path(Vec<(Space, String)>);

impl Path {
    /// Whether these are the elements, all of them.
    pub(super) fn is(&self, wanted: &[(Space, &str)]) -> bool {
        self.0.len() == wanted.len() && self.is_under(wanted)
    }

    /// Whether these are the outermost of the elements.
    pub(super) fn is_under(&self, wanted: &[(Space, &str)]) -> bool {
        self.0.len() >= wanted.len()
            && self
                .0
                .iter()
                .zip(wanted)
                .all(|((space, name), (of, wanted))| space == of && name == wanted)
    }

    /// The innermost element but so many.
    pub(super) fn inner(&self, but: usize) -> Option<(Space, &str)> {
        let (space, name) = self.0.iter().rev().nth(but)?;
        Some((*space, name))
    }
}

/// Calls `ended` with each element that ends, and the text in it.
pub(super) fn elements(xml: &[u8], mut ended: impl FnMut(&Path, &str)) {
    let xml = String::from_utf8_lossy(xml);
    let mut reader = NsReader::from_str(&xml);
    reader.resolver_mut().set_max_namespace_bindings(MOST_NAMESPACES);
    let mut path = Path(Vec::new());
    let mut text = String::new();
    for _ in 0..MOST_EVENTS {
        let Ok((space, event)) = reader.read_resolved_event() else { return };
        match event {
            Event::Start(start) => {
                if path.0.len() >= DEEPEST {
                    return;
                }
                path.0.push((Space::of(&space), start.local_name().as_ref().to_owned()));
                text.clear();
            }
            Event::Text(part) if text.len() + part.len() <= LONGEST_TEXT => text.push_str(&part),
            Event::GeneralRef(entity) if text.len() < LONGEST_TEXT => {
                text.push(match entity.as_ref() {
                    "amp" => '&',
                    "lt" => '<',
                    "gt" => '>',
                    "quot" => '"',
                    "apos" => '\'',
                    _ => ' ',
                });
            }
            Event::End(_) => {
                ended(&path, text.trim());
                text.clear();
                path.0.pop();
            }
            Event::Eof => return,
            _ => {}
        }
    }
}
