//! `audit list|verify`.

use std::collections::{BTreeSet, VecDeque};

use anteroom_proto::api::{AuditEntry, AuditQuery, ModelRevision, paths};
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::key::Hash;
use serde::Serialize;

use crate::args::AuditCommand;
use crate::change::{self, check_revision, signer_name};
use crate::error::{Error, Exit};
use crate::home::AuditSeen;
use crate::output::Output;
use crate::output::table::table;
use crate::output::time::Moment;
use crate::remote::Remote;

/// Entries that are fetched at once.
const PAGE: u32 = 10_000;

/// Does what `command` says.
pub(super) fn run(
    command: &AuditCommand,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    match command {
        AuditCommand::List { limit } => list(*limit, remote, output),
        AuditCommand::Verify => verify(remote, output),
    }
}

/// Walks through the whole log, page by page.
fn walk(
    remote: &mut Remote,
    mut visit: impl FnMut(&mut Remote, AuditEntry) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut after = None;
    loop {
        let page = remote.audit(&AuditQuery { after, limit: Some(PAGE) })?;
        let Some(last) = page.last().map(|entry| entry.number) else { return Ok(()) };
        // A controller that repeats a page would keep us here for ever.
        if after.is_some_and(|after| last <= after) {
            return Err(broken(last, "the controller repeats entries"));
        }
        after = Some(last);
        for entry in page {
            visit(remote, entry)?;
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    number: u64,
    at: Moment,
    actor: String,
    action: String,
    subject: String,
    reason: Option<String>,
    before: Option<String>,
    after: Option<String>,
    revision: Option<u64>,
    hash: Hash,
}

impl From<AuditEntry> for Row {
    fn from(entry: AuditEntry) -> Self {
        Self {
            number: entry.number,
            at: Moment(entry.at),
            actor: entry.actor,
            action: entry.action,
            subject: entry.subject,
            reason: entry.reason,
            before: entry.before,
            after: entry.after,
            revision: entry.revision,
            hash: entry.hash,
        }
    }
}

fn list(limit: u32, remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let mut newest = VecDeque::new();
    walk(remote, |_, entry| {
        if newest.len() >= limit as usize {
            newest.pop_front();
        }
        newest.push_back(Row::from(entry));
        Ok(())
    })?;
    output.data(&newest, |rows| {
        let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let lines = rows.iter().map(|row| {
            vec![
                row.number.to_string(),
                row.at.to_string(),
                row.actor.clone(),
                row.action.clone(),
                row.subject.clone(),
                dash(&row.reason),
                short(&row.before),
                short(&row.after),
                row.revision.map_or_else(|| "-".into(), |number| number.to_string()),
            ]
        });
        table(&["#", "WHEN", "WHO", "WHAT", "TO WHAT", "WHY", "BEFORE", "AFTER", "REVISION"], lines)
    })?;
    Ok(Exit::Ok)
}

/// The first line of a text, cut to a length that fits a table.
fn short(text: &Option<String>) -> String {
    let Some(text) = text else { return "-".into() };
    let mut lines = text.lines();
    let first: String = lines.next().unwrap_or_default().chars().take(60).collect();
    if first.len() < text.trim_end().len() { format!("{first} …") } else { first }
}

fn broken(number: u64, problem: impl std::fmt::Display) -> Error {
    Error::Other(format!(
        "the audit log is broken at entry {number}: {problem}. Keep a copy of the controller's data as it is, and treat the controller as stolen until you know better"
    ))
}

/// Number and hash of the newest entry, with the chain of hashes checked up to it; none where the log is empty.
pub(super) fn head(remote: &mut Remote) -> Result<Option<(u64, Hash)>, Error> {
    let incarnation = remote.chain().newest().incarnation;
    let seen = remote.home().audit_seen()?.filter(|seen| seen.incarnation >= incarnation);
    let (mut number, mut hash) = (0, Hash::ZERO);
    walk(remote, |_, entry| {
        link(number + 1, hash, &entry, seen)?;
        (number, hash) = (entry.number, entry.hash);
        Ok(())
    })?;
    reaches(number, seen)?;
    Ok((number > 0).then_some((number, hash)))
}

/// That an entry is the one with this number, and continues the one with the hash `previous`.
fn link(
    number: u64,
    previous: Hash,
    entry: &AuditEntry,
    seen: Option<AuditSeen>,
) -> Result<(), Error> {
    if entry.number != number {
        return Err(broken(number, format!("entry {} stands in its place", entry.number)));
    }
    if entry.previous != previous {
        return Err(broken(number, "it doesn't continue the entry before it"));
    }
    if entry.compute_hash() != entry.hash {
        return Err(broken(number, "what it says isn't what its hash covers: it was altered"));
    }
    if seen.is_some_and(|seen| seen.number == number && seen.hash != entry.hash) {
        return Err(broken(number, "this machine has seen another entry there: it was rewritten"));
    }
    Ok(())
}

/// That the log, which ends with the entry `number`, holds what this machine has seen.
fn reaches(number: u64, seen: Option<AuditSeen>) -> Result<(), Error> {
    match seen.filter(|seen| seen.number > number) {
        None => Ok(()),
        Some(seen) => Err(broken(
            number,
            format!(
                "it ends there, but this machine has seen entry {}: it was cut short",
                seen.number
            ),
        )),
    }
}

#[derive(Debug, Serialize)]
struct Verified {
    entries: u64,
    revisions: u64,
    newest: Hash,
    signers: Vec<String>,
}

/// Where a check of the log has come to.
struct Check {
    number: u64,
    hash: Hash,
    revision: u64,
    root: Hash,
    signers: BTreeSet<String>,
}

fn verify(remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let current = change::fetch(remote)?;
    let incarnation = remote.chain().newest().incarnation;
    let seen = remote.home().audit_seen()?;
    if let Some(old) = seen.filter(|seen| seen.incarnation < incarnation) {
        output.note(format_args!(
            "Operators have signed incarnation {incarnation} of the controller since this machine looked last, at entry {}: if it came from an older backup, entries are lost, and this machine can't tell which.",
            old.number
        ))?;
    }
    let seen = seen.filter(|seen| seen.incarnation >= incarnation);
    let mut check = Check {
        number: 0,
        hash: Hash::ZERO,
        revision: 0,
        root: Hash::ZERO,
        signers: BTreeSet::new(),
    };
    walk(remote, |remote, entry| check.entry(remote, &entry, seen))?;
    reaches(check.number, seen)?;
    if check.revision < current.base.number {
        return Err(broken(
            check.number,
            format!(
                "it knows of revision {}, but {} is in force: changes are missing in it",
                check.revision, current.base.number
            ),
        ));
    }
    remote.home().write_audit_seen(&AuditSeen {
        incarnation,
        number: check.number,
        hash: check.hash,
    })?;
    let verified = Verified {
        entries: check.number,
        revisions: check.revision,
        newest: check.hash,
        signers: check.signers.into_iter().collect(),
    };
    output.data(&verified, |verified| {
        format!(
            "The audit log holds: {} entries in an unbroken chain, {} revisions, each signed by an operator ({}).\nNewest entry: {}",
            verified.entries,
            verified.revisions,
            verified.signers.join(", "),
            verified.newest
        )
    })?;
    Ok(Exit::Ok)
}

impl Check {
    fn entry(
        &mut self,
        remote: &mut Remote,
        entry: &AuditEntry,
        seen: Option<AuditSeen>,
    ) -> Result<(), Error> {
        let number = self.number + 1;
        link(number, self.hash, entry, seen)?;
        (self.number, self.hash) = (number, entry.hash);
        match (entry.revision, entry.root) {
            (None, None) => Ok(()),
            (Some(revision), Some(root)) => self.revision(remote, number, revision, root),
            _ => {
                Err(broken(number, "it names a revision without its root, or the other way round"))
            }
        }
    }

    fn revision(
        &mut self,
        remote: &mut Remote,
        number: u64,
        revision: u64,
        root: Hash,
    ) -> Result<(), Error> {
        // A controller that was restored has lost what was between, and operators have signed where it goes on.
        let after_loss = revision > self.revision && goes_on_from(remote.chain(), revision, root);
        if revision != self.revision + 1 && !after_loss {
            let expected = self.revision + 1;
            return Err(broken(
                number,
                format!("it made revision {revision}, but {expected} comes next"),
            ));
        }
        let path = paths::MODEL_AT.replace("{number}", &revision.to_string());
        let served: ModelRevision = remote
            .find(&path)?
            .ok_or_else(|| broken(number, format!("the controller has no revision {revision}")))?;
        if served.root.hash() != root {
            return Err(broken(number, format!("revision {revision} isn't the one that it names")));
        }
        let (verified, _) = check_revision(remote.chain(), revision, &served)
            .map_err(|error| broken(number, error))?;
        if verified.previous != self.root && !after_loss {
            return Err(broken(
                number,
                format!("revision {revision} doesn't continue the one before it"),
            ));
        }
        self.signers.insert(signer_name(remote, verified.signer()));
        (self.revision, self.root) = (revision, root);
        Ok(())
    }
}

/// Whether operators have begun an incarnation with this revision as the newest.
fn goes_on_from(chain: &AuthorityChain, revision: u64, root: Hash) -> bool {
    let documents = chain.to_signed();
    let documents: Vec<_> =
        documents.iter().filter_map(|document| document.verify_self_named().ok()).collect();
    documents.windows(2).any(|two| {
        let named = two.last().and_then(|last| last.root);
        named.is_some_and(|named| (named.number, named.hash) == (revision, root))
            && two.first().map(|first| first.incarnation) < two.last().map(|last| last.incarnation)
    })
}
