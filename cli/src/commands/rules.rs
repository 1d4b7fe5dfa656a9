//! `device rules|learn`: what devices are recognised by.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anteroom_controller_core::classify::Field;
use anteroom_controller_core::classify::learnt::{self, Example};
use anteroom_controller_core::model::{Device, Model};
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::name::Name;
use serde::Serialize;

use crate::change::{self, ChangeError};
use crate::error::{Error, Exit};
use crate::home::{Home, write_new};
use crate::output::Output;
use crate::output::table::{count, facts, join};
use crate::recognised::{Book, Recognised};
use crate::recorded::Recorded;
use crate::remote::Remote;

#[derive(Debug, Serialize)]
struct RulesRow {
    /// Files that were read besides what is shipped.
    files: Vec<String>,
    rules: usize,
    makers: usize,
    likenesses: usize,
    /// Prefixes of Ethernet addresses.
    prefixes: usize,
}

/// `anteroom device rules`.
pub(super) fn rules(
    files: &[PathBuf],
    shipped: bool,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    if shipped {
        let all: BTreeMap<&str, &str> = anteroom_controller_core::classify::shipped().collect();
        output.data(&all, |all| {
            let file = |(name, text): (&&str, &&str)| format!("# --- {name}\n\n{text}");
            all.iter().map(file).collect::<Vec<_>>().join("\n")
        })?;
        return Ok(Exit::Ok);
    }
    let mut book = Book::load(home)?;
    for path in files {
        book.add(path)?;
    }
    let [rules, makers, likenesses, prefixes] = book.rules.counts();
    let files = book.files.iter().map(|path| path.display().to_string()).collect();
    let row = RulesRow { files, rules, makers, likenesses, prefixes };
    output.data(&row, |row| {
        facts(&[
            ("Files", join(&row.files)),
            ("Rules", row.rules.to_string()),
            ("Makers", row.makers.to_string()),
            ("Likenesses", row.likenesses.to_string()),
            ("Address prefixes", row.prefixes.to_string()),
        ])
    })?;
    Ok(Exit::Ok)
}

#[derive(Debug, Serialize)]
struct LearntRow {
    /// Names that were learnt, and from how many devices each.
    likenesses: BTreeMap<String, u32>,
    /// Where it was written.
    file: Option<String>,
    text: String,
}

/// `anteroom device learn`.
pub(super) fn learn(
    out: Option<&Path>,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let recorded = Recorded::load(remote, Resolved::new(&model).map_err(ChangeError::from)?)?;
    let recognised = Recognised::load(remote, Some(&recorded.history))?;
    let examples: Vec<Example> = model
        .devices
        .iter()
        .filter(|(_, device)| !Model::is_host(device))
        .filter_map(|(id, device)| {
            let (name, fields) = named(device)?;
            let observation = recognised.observation(&device.attachment, Some(*id));
            (!observation.is_empty()).then_some(Example { name, fields, observation })
        })
        .collect();
    let likes = learnt::learn(&examples);
    if likes.is_empty() {
        return Err(Error::Other(
            "there is nothing to learn from: of no device with a confirmed class or model anything was seen. `anteroom device label NAME class=CLASS model=MODEL` confirms them"
                .into(),
        ));
    }
    let text = learnt::write(&likes);
    if let Some(path) = out {
        write_new(path, &text).map_err(|error| Error::file(path, error))?;
    }
    let row = LearntRow {
        likenesses: likes.iter().map(|(name, like)| (name.to_string(), like.seen)).collect(),
        file: out.map(|path| path.display().to_string()),
        text,
    };
    output.data(&row, |row| match &row.file {
        Some(file) => {
            format!("Written to {file}: {}.", count(row.likenesses.len(), "likeness", "likenesses"))
        }
        None => row.text.trim_end().to_owned(),
    })?;
    Ok(Exit::Ok)
}

/// Under which name something is learnt of a device, and what it is: by the labels that an operator confirmed.
fn named(device: &Device) -> Option<(Name, BTreeMap<Field, String>)> {
    let fields: BTreeMap<Field, String> = [Field::Class, Field::Make, Field::Model]
        .into_iter()
        .filter_map(|field| Some((field, device.labels.get(field.word())?.clone())))
        .collect();
    if !fields.contains_key(&Field::Class) && !fields.contains_key(&Field::Model) {
        return None;
    }
    let words: Vec<&str> = fields.values().map(String::as_str).collect();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let text: String =
        words.join("-").to_lowercase().chars().map(|c| if fits(c) { c } else { '-' }).collect();
    let text: String = text.trim_start_matches('-').chars().take(Name::MAX_LEN).collect();
    Some((text.parse().ok()?, fields))
}
