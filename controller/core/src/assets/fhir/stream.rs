//! FHIR resources out of JSON, one after the other: what is handed on lies in the file's own bytes, so that no file costs much more memory than it is long.

use std::borrow::Cow;
use std::fmt::{self, Display};

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use crate::assets::ListError;

/// Longest resource that is read, in bytes. What is made of one while it is read may be some thirty times as long.
pub(super) const MAX_RESOURCE_LEN: usize = 1024 * 1024;

/// Something of a file.
pub(super) enum Piece<'a> {
    /// A resource of a kind that is looked at.
    Resource {
        place: String,
        /// Under which address a bundle has it.
        url: Option<String>,
        kind: Kind,
        text: &'a str,
    },
    /// What is passed over and should be told.
    Odd { place: String, problem: String },
}

/// Kinds of resources that are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Device,
    Location,
    Organization,
}

impl Kind {
    fn of(word: &str) -> Option<Self> {
        match word {
            "Device" => Some(Self::Device),
            "Location" => Some(Self::Location),
            "Organization" => Some(Self::Organization),
            _ => None,
        }
    }

    /// As `resourceType` has it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Device => "Device",
            Self::Location => "Location",
            Self::Organization => "Organization",
        }
    }
}

/// Takes pieces as they come. An error ends the reading.
pub(super) type Take<'t, 'a> = dyn FnMut(Piece<'a>) -> Result<(), ListError> + 't;

/// Hands on the pieces of a file: of one resource, of a bundle of them, or of one on each line.
///
/// # Errors
/// When it isn't JSON, or `take` says so.
pub(super) fn pieces<'a>(
    file: &str,
    bytes: &'a [u8],
    take: &mut Take<'_, 'a>,
) -> Result<(), ListError> {
    let whole = match serde_json::from_slice::<&RawValue>(bytes) {
        Ok(raw) => return resource(&file, None, raw.get(), false, take),
        Err(error) => error,
    };
    let mut first = true;
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    for (at, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let place = format_args!("{file}:{}", at + 1);
        match serde_json::from_slice::<&RawValue>(line) {
            Ok(raw) => resource(&place, None, raw.get(), false, take)?,
            // The first line alone is no JSON: then the file as a whole was meant to be.
            Err(_) if first => {
                let place = format!("{file}:{}", whole.line());
                return Err(ListError::new(place, format!("this is no JSON: {whole}")));
            }
            Err(error) => {
                let problem = format!("this line is no JSON: {}", what(&error));
                return Err(ListError::new(place.to_string(), problem));
            }
        }
        first = false;
    }
    if first {
        return Err(ListError::new(file, "this is no JSON: nothing is in it"));
    }
    Ok(())
}

/// What is wrong, without the place, which counts from where the resource begins.
pub(super) fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned()
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "resourceType", borrow, default)]
    kind: Cow<'a, str>,
}

fn resource<'a>(
    place: &dyn Display,
    url: Option<String>,
    text: &'a str,
    in_bundle: bool,
    take: &mut Take<'_, 'a>,
) -> Result<(), ListError> {
    // Lists would be read as what they hold.
    if !text.starts_with('{') {
        return Ok(());
    }
    let odd = |problem: String| Piece::Odd { place: place.to_string(), problem };
    let kind = match serde_json::from_str::<Head<'_>>(text) {
        Ok(head) => head.kind,
        Err(error) => {
            return take(odd(format!("this resource can't be read: {}", what(&error))));
        }
    };
    match (kind.as_ref(), Kind::of(&kind)) {
        ("Bundle", _) if in_bundle => take(odd("a bundle within a bundle is passed over".into())),
        ("Bundle", _) => bundle(place, text, take),
        (_, None) => Ok(()),
        (_, Some(kind)) if text.len() > MAX_RESOURCE_LEN => take(odd(format!(
            "this {} has {} bytes, and no more than {MAX_RESOURCE_LEN} are read of one",
            kind.word(),
            text.len()
        ))),
        (_, Some(kind)) => take(Piece::Resource { place: place.to_string(), url, kind, text }),
    }
}

fn bundle<'a>(
    place: &dyn Display,
    text: &'a str,
    take: &mut Take<'_, 'a>,
) -> Result<(), ListError> {
    let mut failed = None;
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = Bundle { place, take: &mut *take, failed: &mut failed }.deserialize(&mut reader);
    match (failed, read) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) => take(Piece::Odd {
            place: place.to_string(),
            problem: format!("this Bundle can't be read: {}", what(&error)),
        }),
    }
}

/// A bundle, of which the entries are handed on as they are met.
struct Bundle<'s, 't, 'a> {
    place: &'s dyn Display,
    take: &'s mut Take<'t, 'a>,
    failed: &'s mut Option<ListError>,
}

impl<'a> DeserializeSeed<'a> for Bundle<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Bundle<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bundle")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        let Self { place, take, failed } = self;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key == "entry" {
                map.next_value_seed(Entries(Bundle {
                    place,
                    take: &mut *take,
                    failed: &mut *failed,
                }))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// A bundle's entries.
struct Entries<'s, 't, 'a>(Bundle<'s, 't, 'a>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    full_url: Option<String>,
    #[serde(borrow)]
    resource: Option<&'a RawValue>,
}

impl<'a> DeserializeSeed<'a> for Entries<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for Entries<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<(), S::Error> {
        let Bundle { place: bundle, take, failed } = self.0;
        let mut number = 0_usize;
        while let Some(raw) = list.next_element::<&'a RawValue>()? {
            number += 1;
            let place = format_args!("{bundle}: entry {number}");
            let done = match serde_json::from_str::<Entry<'a>>(raw.get()) {
                Ok(Entry { full_url, resource: Some(raw) }) => {
                    resource(&place, full_url, raw.get(), true, take)
                }
                Ok(_) => Ok(()),
                Err(error) => take(Piece::Odd {
                    place: place.to_string(),
                    problem: format!("this entry can't be read: {}", what(&error)),
                }),
            };
            if let Err(error) = done {
                *failed = Some(error);
                return Err(S::Error::custom("it isn't read on"));
            }
        }
        Ok(())
    }
}
