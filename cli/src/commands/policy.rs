//! `policy init|fmt|check|history|show|diff`; what changes something is in [`super::policy_change`].

use std::fs;
use std::io::Read;
use std::path::Path;

use anteroom_controller_core::lint::{Finding, Severity, lint};
use anteroom_controller_core::model::Model;
use anteroom_controller_core::policy::{self, MAX_POLICY_LEN};
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::id::OrganisationId;
use serde::Serialize;
use similar::TextDiff;

use super::{learn, policy_change, stale};
use crate::args::PolicyCommand;
use crate::change::{self, ChangeError, fetch_revision, signer_name};
use crate::client::ClientError;
use crate::error::{Error, Exit};
use crate::home::{Home, write_new};
use crate::output::Output;
use crate::output::table::{count, table};
use crate::output::time::{Moment, ago, now};
use crate::remote::Remote;

/// Does what `command` says.
pub(super) fn run(
    command: PolicyCommand,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    match command {
        PolicyCommand::Init { out } => init(out.as_deref(), home, output),
        PolicyCommand::Fmt { file, check } => fmt(&file, check, output),
        PolicyCommand::Check { file } => check(&file, home, output),
        PolicyCommand::Plan { file, out, surface } => {
            let (text, remote) = (read(&file)?, &mut Remote::open(home)?);
            policy_change::plan(&file, &text, out.as_deref(), &surface, remote, output)
        }
        PolicyCommand::Suggest { out, extend, muds } => {
            let remote = &mut Remote::open(home)?;
            learn::suggest(out.as_deref(), extend.as_deref(), &muds, remote, output)
        }
        PolicyCommand::Simulate { file, over, devices, surface } => {
            learn::simulate(&file, over, &devices, &surface, &mut Remote::open(home)?, output)
        }
        PolicyCommand::Stale { over, record, surface } => {
            stale::stale(over, record, &surface, &mut Remote::open(home)?, output)
        }
        PolicyCommand::Apply { file, force, change } => {
            let text = read(&file)?;
            policy_change::apply(&file, &text, force, change, home, output)
        }
        PolicyCommand::Rollback { number, force, change } => {
            policy_change::rollback(number, force, change, &mut Remote::open(home)?, output)
        }
        PolicyCommand::History => history(&mut Remote::open(home)?, output),
        PolicyCommand::Show { number } => show(number, &mut Remote::open(home)?, output),
        PolicyCommand::Diff { from, to } => diff(from, to, &mut Remote::open(home)?, output),
    }
}

/// The text of the file at `path`, which must be no longer than a plan can be.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    // A plan holds the policy's text with JSON's escapes, and more beside.
    let max = 16 * MAX_POLICY_LEN as u64;
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(max + 1).read_to_string(&mut text))
        .map_err(|error| Error::file(path, format!("can't read it: {error}")))?;
    if text.len() as u64 > max {
        return Err(Error::file(path, format!("it is longer than {max} bytes")));
    }
    Ok(text)
}

fn init(out: Option<&Path>, home: &Home, output: &mut Output<'_>) -> Result<Exit, Error> {
    let model = if home.find_config()?.is_some() {
        change::fetch(&mut Remote::open(home)?)?.model
    } else {
        output.warn("not logged in, so that this knows none of your devices")?;
        Model::new(OrganisationId::from_bytes([0; 16]))
    };
    let text = policy::template(&model);
    match out {
        Some(path) => {
            write_new(path, &text).map_err(|error| Error::file(path, error))?;
            output.note(format_args!(
                "Written to {}. Change it to your needs, then: anteroom policy check {}",
                path.display(),
                path.display()
            ))?;
        }
        None => {
            output.data(&Shown { revision: None, policy: text }, |shown| shown.policy.clone())?;
        }
    }
    Ok(Exit::Ok)
}

fn fmt(path: &Path, check: bool, output: &mut Output<'_>) -> Result<Exit, Error> {
    let text = read(path)?;
    let file = path.display().to_string();
    let formatted = policy::format(&file, &text).map_err(ChangeError::from)?;
    if formatted == text {
        output.note(format_args!("{file} is in order."))?;
        return Ok(Exit::Ok);
    }
    if check {
        output.note(unified(&text, &formatted, &file, "in order"))?;
        output
            .warn(format_args!("{file} isn't in order: `anteroom policy fmt {file}` mends that"))?;
        return Ok(Exit::Error);
    }
    replace(path, &formatted)?;
    output.note(format_args!("{file} brought into order."))?;
    Ok(Exit::Ok)
}

/// Writes a policy that was drafted to `path`. A file that is there is replaced only if it is the one that was asked to be `extended`.
pub(crate) fn deliver(path: &Path, extended: Option<&Path>, text: &str) -> Result<(), Error> {
    let same = |other: &Path| {
        other == path
            || matches!((other.canonicalize(), path.canonicalize()), (Ok(a), Ok(b)) if a == b)
    };
    if extended.is_some_and(same) {
        return replace(path, text);
    }
    write_new(path, text).map_err(|error| Error::file(path, error))
}

/// Replaces a file of the operator's in one step, keeping its permissions.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let fail = |error: std::io::Error| Error::file(path, format!("can't write it: {error}"));
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    fs::write(draft, text).map_err(fail)?;
    let done = fs::metadata(path)
        .map_or(Ok(()), |found| fs::set_permissions(draft, found.permissions()))
        .and_then(|()| fs::rename(draft, path));
    done.map_err(|error| {
        let _ = fs::remove_file(draft);
        fail(error)
    })
}

#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    rules: usize,
    segments: usize,
    externals: usize,
    tests: usize,
    /// Whether names of devices were checked too.
    with_devices: bool,
    findings: Vec<Finding>,
}

fn check(path: &Path, home: &Home, output: &mut Output<'_>) -> Result<Exit, Error> {
    let text = read(path)?;
    let file = path.display().to_string();
    let policy = policy::parse(&file, &text).map_err(ChangeError::from)?;
    let mut checked = Checked {
        file: file.clone(),
        rules: policy.rules.len(),
        segments: policy.segments.len(),
        externals: policy.externals.len(),
        tests: policy.tests.len(),
        with_devices: false,
        findings: Vec::new(),
    };
    match reach(home) {
        Ok(Some(mut remote)) => {
            let model = change::fetch(&mut remote)?.model;
            let resolved = Resolved::from_text(&model, &file, &text).map_err(ChangeError::from)?;
            checked.findings = lint(&resolved, &change::evidence(&mut remote)?, now());
            checked.with_devices = true;
        }
        Ok(None) => {
            output.warn("not logged in: names of devices and segments' members weren't checked")?;
        }
        Err(error) => output.warn(format_args!("names of devices weren't checked: {error}"))?,
    }
    let stops = checked.findings.iter().any(|finding| finding.severity != Severity::Warning);
    output.data(&checked, |checked| {
        let mut text = format!(
            "{}: {}, {}, {}, {}",
            checked.file,
            count(checked.rules, "rule", "rules"),
            count(checked.segments, "segment", "segments"),
            count(checked.externals, "external", "externals"),
            count(checked.tests, "test", "tests")
        );
        for finding in &checked.findings {
            let mark = if finding.severity == Severity::Warning { '!' } else { 'x' };
            text.push_str(&format!("\n  {mark} {finding}"));
        }
        if stops {
            text.push_str("\nA plan of it would be refused.");
        } else {
            text.push_str("\nNo problems found.");
        }
        text
    })?;
    Ok(if stops { Exit::Refused } else { Exit::Ok })
}

/// The controller, where there is one to be reached.
fn reach(home: &Home) -> Result<Option<Remote>, ClientError> {
    if !matches!(home.find_config(), Ok(Some(_))) {
        return Ok(None);
    }
    match Remote::open(home) {
        Ok(remote) => Ok(Some(remote)),
        Err(Error::Client(error)) => Err(error),
        Err(error) => Err(ClientError::Setup(error.to_string())),
    }
}

#[derive(Debug, Serialize)]
struct HistoryRow {
    revision: u64,
    at: Moment,
    operator: String,
    fingerprint: String,
    action: String,
    subject: String,
    reason: Option<String>,
}

fn history(remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    change::fetch(remote)?;
    let rows: Vec<HistoryRow> = remote
        .revisions()?
        .into_iter()
        .map(|revision| HistoryRow {
            revision: revision.number,
            at: Moment(revision.at),
            operator: signer_name(remote, revision.operator),
            fingerprint: revision.operator.fingerprint().to_string(),
            action: revision.action,
            subject: revision.subject,
            reason: revision.reason,
        })
        .collect();
    output.data(&rows, |rows| {
        if rows.is_empty() {
            return "No revisions yet.".into();
        }
        let now = now();
        let lines = rows.iter().map(|row| {
            vec![
                row.revision.to_string(),
                ago(row.at.0, now),
                row.operator.clone(),
                row.action.clone(),
                row.subject.clone(),
                row.reason.clone().unwrap_or_else(|| "-".into()),
            ]
        });
        table(&["REVISION", "WHEN", "WHO", "WHAT", "TO WHAT", "WHY"], lines)
    })?;
    Ok(Exit::Ok)
}

#[derive(Debug, Serialize)]
struct Shown {
    revision: Option<u64>,
    policy: String,
}

/// The policy of revision `number`, or the one in force.
fn policy_of(number: Option<u64>, remote: &mut Remote) -> Result<Shown, Error> {
    let current = change::fetch(remote)?;
    match number {
        Some(number) if number != current.base.number => {
            let (root, model) = fetch_revision(remote, number)?;
            Ok(Shown { revision: Some(root.number), policy: model.policy })
        }
        _ => Ok(Shown { revision: Some(current.base.number), policy: current.model.policy }),
    }
}

fn show(number: Option<u64>, remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let shown = policy_of(number, remote)?;
    output.data(&shown, |shown| shown.policy.clone())?;
    Ok(Exit::Ok)
}

#[derive(Debug, Serialize)]
struct Difference {
    from: u64,
    to: u64,
    same: bool,
    diff: String,
}

fn diff(
    from: u64,
    to: Option<u64>,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let (old, new) = (policy_of(Some(from), remote)?, policy_of(to, remote)?);
    let to = new.revision.unwrap_or_default();
    let difference = Difference {
        from,
        to,
        same: old.policy == new.policy,
        diff: unified(
            &old.policy,
            &new.policy,
            &format!("revision {from}"),
            &format!("revision {to}"),
        ),
    };
    output.data(&difference, |difference| {
        if difference.same {
            format!("Revisions {from} and {to} have the same policy.")
        } else {
            difference.diff.clone()
        }
    })?;
    Ok(Exit::Ok)
}

/// The lines that differ, as `diff -u` prints them.
pub(super) fn unified(old: &str, new: &str, old_name: &str, new_name: &str) -> String {
    TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(3)
        .header(old_name, new_name)
        .to_string()
}
