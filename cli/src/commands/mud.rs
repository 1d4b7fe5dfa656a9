//! `mud export|import`, and MUD files as evidence for `policy suggest`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anteroom_controller_core::history::History;
use anteroom_controller_core::model::Model;
use anteroom_controller_core::mud::{Draft, MAX_LEN, Mud, draft, of_class};
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use anteroom_proto::text::steers;
use serde::Serialize;

use super::policy;
use crate::args::MudCommand;
use crate::change::{self, ChangeError};
use crate::error::{Error, Exit};
use crate::home::write_new;
use crate::lists;
use crate::output::Output;
use crate::output::table::count;
use crate::output::time::now;
use crate::recognised::Recognised;
use crate::recorded::Recorded;
use crate::remote::Remote;

/// Does what `command` says.
pub(super) fn run(
    command: MudCommand,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    match command {
        MudCommand::Export { class, url, out } => {
            export(&class, &url, out.as_deref(), remote, output)
        }
        MudCommand::Import { file, class, peers, extend, out } => {
            let peers = peers.into_iter().collect();
            import(&file, &class, &peers, extend.as_deref(), out.as_deref(), remote, output)
        }
    }
}

#[derive(Debug, Serialize)]
struct Exported {
    class: String,
    devices: Vec<String>,
    /// What it says, as MUD has it.
    mud: serde_json::Value,
    /// What the policy permits some of them, which isn't in it.
    left_out: Vec<String>,
    file: Option<String>,
}

fn export(
    class: &str,
    url: &str,
    out: Option<&Path>,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let resolved = Resolved::new(&model).map_err(ChangeError::from)?;
    let members = members(&resolved, class)?;
    let made = of_class(&resolved, class, &members, url, now());
    let text = made.to_json();
    if let Some(path) = out {
        write_new(path, &text).map_err(|error| Error::file(path, error))?;
    }
    let exported = Exported {
        class: class.to_owned(),
        devices: members
            .iter()
            .filter_map(|id| model.member_name(*id))
            .map(ToString::to_string)
            .collect(),
        mud: serde_json::from_str(&text)
            .map_err(|error| Error::Other(format!("the MUD file can't be read back: {error}")))?,
        left_out: made.unread.clone(),
        file: out.map(|path| path.display().to_string()),
    };
    for line in &exported.left_out {
        output.warn(line)?;
    }
    output.data(&exported, |exported| match out {
        Some(path) => format!(
            "Written to {}: {} for {}.",
            path.display(),
            count(made.allows.len(), "permission", "permissions"),
            count(exported.devices.len(), "device", "devices")
        ),
        None => text.trim_end().to_owned(),
    })?;
    Ok(Exit::Ok)
}

/// The members that `class` names: by the label, or a segment, device or client of that name.
fn members(resolved: &Resolved, class: &str) -> Result<BTreeSet<MemberId>, Error> {
    let model: &Model = &resolved.model;
    let labelled = model
        .devices
        .iter()
        .filter(|(_, device)| device.labels.get("class").is_some_and(|value| value == class));
    let mut found: BTreeSet<MemberId> = labelled.map(|(id, _)| *id).collect();
    if found.is_empty()
        && let Some(side) = resolved.side_named(class)
    {
        found.extend(&resolved.side(side).members);
    }
    found.extend(model.member_named(class).filter(|_| found.is_empty()));
    if found.is_empty() {
        let classes: BTreeSet<&str> = model
            .devices
            .values()
            .filter_map(|device| device.labels.get("class"))
            .map(String::as_str)
            .collect();
        let known: Vec<&str> = classes.into_iter().take(30).collect();
        return Err(Error::Usage(format!(
            "no device has the label class={class}, and no segment or device is called so; the classes are: {}",
            if known.is_empty() { "none yet".to_owned() } else { known.join(", ") }
        )));
    }
    Ok(found)
}

/// Reads the MUD file at `path`, and says what it is called in comments.
pub(super) fn read(path: &Path) -> Result<(String, Mud), Error> {
    let bytes = lists::bounded(path, MAX_LEN)?;
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let called: String = file.chars().filter(|c| !steers(*c)).take(80).collect();
    let mud = Mud::parse(&path.display().to_string(), &bytes)
        .map_err(|error| Error::Other(error.to_string()))?;
    Ok((called, mud))
}

#[derive(Debug, Serialize)]
struct Imported {
    /// Devices of the class that tell where their maker's file is.
    told: Vec<Told>,
    policy: String,
    file: Option<String>,
    rules: Vec<String>,
    already: usize,
    questions: Vec<String>,
    beyond: Vec<String>,
}

/// Where a device says that its maker's file is.
#[derive(Debug, Serialize)]
struct Told {
    device: Name,
    url: String,
    /// Whether the file that is read names the same place.
    same: bool,
}

/// Most devices that are named for telling of another file.
const NAMED: usize = 10;

/// What devices tell of their makers' files.
fn told(
    model: &Model,
    members: &BTreeSet<MemberId>,
    mud: &Mud,
    recognised: &Recognised,
) -> Vec<Told> {
    let devices = members.iter().filter_map(|id| Some((*id, model.devices.get(id)?)));
    let told = devices.flat_map(|(id, device)| {
        let urls = recognised.mud_urls(&device.attachment, Some(id)).into_iter();
        urls.map(|url| Told { device: device.name.clone(), same: url == mud.url, url })
    });
    told.collect()
}

fn warn_of_others(told: &[Told], mud: &Mud, output: &mut Output<'_>) -> Result<(), Error> {
    let others: Vec<&Told> = told.iter().filter(|one| !one.same).collect();
    for one in others.iter().take(NAMED) {
        output.warn(format_args!(
            "{} tells of another file of its maker's: {}; this one is of {}",
            one.device, one.url, mud.url
        ))?;
    }
    if others.len() > NAMED {
        output.warn(format_args!("and {} more do", others.len() - NAMED))?;
    }
    Ok(())
}

fn import(
    file: &Path,
    class: &str,
    peers: &BTreeMap<String, Name>,
    extend: Option<&Path>,
    out: Option<&Path>,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let (called, mud) = read(file)?;
    let model = change::fetch(remote)?.model;
    let resolved = match extend {
        Some(path) => {
            Resolved::from_text(&model, &path.display().to_string(), &policy::read(path)?)
        }
        None => Resolved::new(&model),
    };
    let resolved = resolved.map_err(ChangeError::from)?;
    let devices = members(&resolved, class)?;
    known(&resolved, peers)?;
    let told = told(&model, &devices, &mud, &Recognised::load(remote, None)?);
    warn_of_others(&told, &mud, output)?;
    let recorded = Recorded::load(remote, resolved)?;
    recorded.warn_of_gaps(output)?;
    let Draft { text, rules, already, questions, beyond } =
        draft(&recorded.resolved, &recorded.history, &called, &mud, class, peers, now())
            .map_err(ChangeError::from)?;
    if let Some(path) = out {
        policy::deliver(path, extend, &text)?;
    }
    let imported = Imported {
        told,
        policy: text,
        file: out.map(|path| path.display().to_string()),
        rules,
        already,
        questions,
        beyond,
    };
    output.data(&imported, |imported| match out {
        Some(path) => format!(
            "Written to {}: {}, {} allowed already, {} open, {} seen beyond the file.{}\nRead it, then: anteroom policy plan {}",
            path.display(),
            count(imported.rules.len(), "new rule", "new rules"),
            imported.already,
            count(imported.questions.len(), "question", "questions"),
            count(imported.beyond.len(), "conversation", "conversations"),
            match imported.told.iter().filter(|one| one.same).count() {
                0 => String::new(),
                same => format!(" Of this very file {}.", count(same, "device tells", "devices tell")),
            },
            path.display()
        ),
        None => imported.policy.trim_end().to_owned(),
    })?;
    Ok(Exit::Ok)
}

fn known(resolved: &Resolved, peers: &BTreeMap<String, Name>) -> Result<(), Error> {
    let names = |name: &Name| {
        resolved.policy.segments.contains_key(name)
            || resolved.policy.externals.contains_key(name)
            || resolved.model.member_named(name.as_str()).is_some()
    };
    match peers.iter().find(|(_, name)| !names(name)) {
        None => Ok(()),
        Some((word, name)) => Err(Error::Usage(format!(
            "--peer {word}={name}: the policy knows no segment or external \"{name}\", and no device is called so"
        ))),
    }
}

/// Extends a suggestion by what makers say: `files` are pairs of a class and its MUD file. Gives the extended text, and how many rules
/// came of it. Warns of devices that tell of other files.
pub(super) fn extend_suggestion(
    model: &Model,
    (history, recognised): (&History, &Recognised),
    text: String,
    files: &[(String, std::path::PathBuf)],
    output: &mut Output<'_>,
) -> Result<(String, usize), Error> {
    let (mut text, mut rules) = (text, 0);
    for (class, path) in files {
        let (called, mud) = read(path)?;
        let resolved =
            Resolved::from_text(model, "the suggestion", &text).map_err(ChangeError::from)?;
        let devices = members(&resolved, class)?;
        warn_of_others(&told(model, &devices, &mud, recognised), &mud, output)?;
        // The same history gives the same file.
        let at = history.span().map_or_else(now, |(_, last)| last);
        let found = draft(&resolved, history, &called, &mud, class, &BTreeMap::new(), at)
            .map_err(ChangeError::from)?;
        rules += found.rules.len();
        text = found.text;
    }
    Ok((text, rules))
}
