//! `export create|verify`: what auditors get, signed, and how it is checked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anteroom_controller_core::classify::shown;
use anteroom_controller_core::export::{
    Difference, Inventory, Observed, Reach, Sight, Stamp, UnconfirmedRow, content, files, names,
};
use anteroom_controller_core::model::Model;
use anteroom_controller_core::names::Names;
use anteroom_controller_core::stale::Stale;
use anteroom_proto::api::SightingRecord;
use anteroom_proto::authority::{Authority, AuthorityChain};
use anteroom_proto::cose::{Signed, Verified};
use anteroom_proto::export::{FileDigest, Manifest};
use anteroom_proto::key::Hash;
use anteroom_proto::time::UnixMillis;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::audit;
use super::device::{place_of, unconfirmed};
use super::holdings::Holdings;
use super::learn::millis;
use crate::archive::{MAX_FILES, pack, unpack_exact};
use crate::args::ExportCreate;
use crate::change;
use crate::error::{Error, Exit};
use crate::home::Home;
use crate::output::Output;
use crate::output::table::{bytes, count, facts};
use crate::output::time::Moment;
use crate::recognised::Recognised;
use crate::recorded::Recorded;
use crate::remote::Remote;
use crate::standing::{say, standing};

/// The signed manifest's file.
const MANIFEST: &str = "manifest.cose";
/// The authority chain's file.
const AUTHORITY: &str = "authority.json";
/// Digests as `sha256sum -c` reads them.
const SUMS: &str = "SHA256SUMS";
/// Longest bundle that is read, unpacked, in bytes.
const MAX_LEN: usize = 512 * 1024 * 1024;

type Files = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Serialize)]
struct Created {
    bundle: String,
    /// Hash of the signed manifest.
    manifest: Hash,
    made_at: Moment,
    revision: u64,
    audit_entry: Option<u64>,
    history: Option<(Moment, Moment)>,
    files: usize,
    bytes: u64,
    /// How many things differ from the earlier bundle.
    differences: Option<usize>,
    /// What whoever checks it needs.
    authority: Hash,
}

/// `anteroom export create`.
pub(super) fn create(
    args: &ExportCreate,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    if args.out.exists() {
        return Err(Error::file(&args.out, "it is there already: name a new file or directory"));
    }
    let before = match &args.since {
        None => None,
        Some(path) => {
            let files = read(path)?;
            let checked = check(path, &files, Some(remote.chain()), None)?;
            if let Some(number) = checked.removed {
                output.warn(format_args!(
                    "{}: {} is no operator any more, by authority document {number}, and nothing but the bundle says that it was made before",
                    path.display(),
                    checked.signer
                ))?;
            }
            Some((checked, files))
        }
    };
    let current = change::fetch(remote)?;
    let head = audit::head(remote)?;
    let standing = standing(&current.model, remote)?;
    say(&current.model, &standing, output)?;
    let recorded = Recorded::of(remote, &standing.apply(&current.model))?;
    recorded.warn_of_gaps(output)?;
    let sighted = remote.sighted()?;
    let names = Names::of(&current.model);
    sighted.warn_of_missing(|gateway| names.gateway(gateway), output)?;
    let sightings = sighted.records;
    let recognised = Recognised::load(remote, Some(&recorded.history))?;
    let observed = observed(&current.model, &sightings, &recorded, &recognised);
    let authority = remote.chain().newest();
    let mut manifest = Manifest {
        organisation: authority.organisation,
        made_at: recorded.now,
        authority: authority.number,
        incarnation: authority.incarnation,
        revision: current.base.number,
        root: current.base.hash,
        audit: head,
        history: recorded.history.span(),
        since: before.as_ref().map(|(checked, _)| checked.manifest.signed().hash()),
        files: Vec::new(),
    };
    let span = manifest.history.map(|(first, last)| (Moment(first), Moment(last)));
    let stamp = Stamp {
        organisation: manifest.organisation.to_string(),
        made_at: Moment(manifest.made_at).to_string(),
        made_by: format!("{} ({})", remote.config().operator, remote.key().public().fingerprint()),
        revision: manifest.revision,
        history: span.map(|(first, last)| (first.to_string(), last.to_string())),
        turned_away: recorded.turned_away.saturating_add(recorded.forgotten),
        audit: head.map(|(number, hash)| (number, hash.to_string())),
    };
    let since = UnixMillis(recorded.now.0.saturating_sub(millis(args.over)));
    let mut made =
        content(&recorded.resolved, &recorded.history, &observed, stamp, since, recorded.now);
    if let (Some((checked, old)), Some(path)) = (&before, &args.since) {
        let (inventory, reach, review): (Inventory, Reach, Stale) = (
            part(path, old, names::INVENTORY)?,
            part(path, old, names::REACH)?,
            part(path, old, names::REVIEW)?,
        );
        made.difference = Some(Difference::between(
            Moment(checked.manifest.made_at).to_string(),
            checked.manifest.revision,
            checked.manifest.signed().hash().to_string(),
            (&inventory, &reach, &review),
            (&made.inventory, &made.reach, &made.review),
        ));
    }
    let json = |error: serde_json::Error| {
        Error::Other(format!("the export can't be written as JSON: {error}"))
    };
    let mut all: Files = files(&made)
        .map_err(json)?
        .into_iter()
        .map(|(name, content)| (name.to_owned(), content))
        .collect();
    all.insert(AUTHORITY.into(), serde_json::to_vec(&remote.chain().to_signed()).map_err(json)?);
    let mut sums = String::new();
    for (name, content) in &all {
        let _ = writeln!(sums, "{}  {name}", FileDigest::of(name, content).sha256);
    }
    all.insert(SUMS.into(), sums.into_bytes());
    manifest.files = all.iter().map(|(name, content)| FileDigest::of(name, content)).collect();
    let signed = Signed::sign(&manifest, remote.key());
    all.insert(MANIFEST.into(), signed.as_bytes().to_vec());
    let total = all.values().map(|content| content.len() as u64).sum();
    write(&args.out, &all)?;
    let created = Created {
        bundle: args.out.display().to_string(),
        manifest: signed.hash(),
        made_at: Moment(manifest.made_at),
        revision: manifest.revision,
        audit_entry: head.map(|(number, _)| number),
        history: span,
        files: all.len(),
        bytes: total,
        differences: made.difference.as_ref().map(|found| found.changes.len() + found.left_out),
        authority: remote.chain().pin(),
    };
    output.data(&created, |created| {
        let mut text = format!(
            "Written to {}: {} with {}, of revision {}, signed with your key.\n",
            created.bundle,
            count(created.files, "file", "files"),
            bytes(created.bytes),
            created.revision
        );
        if let Some(differences) = created.differences {
            let _ = writeln!(text, "{} from the earlier bundle: difference.csv", count(differences, "difference", "differences"));
        }
        let _ = write!(
            text,
            "Whoever gets it checks it with: anteroom export verify {} --authority {}\nTell them that hash by another way than the bundle.",
            created.bundle, created.authority
        );
        text
    })?;
    Ok(Exit::Ok)
}

/// What gateways tell, beside what is signed.
fn observed(
    model: &Model,
    sightings: &[SightingRecord],
    recorded: &Recorded,
    recognised: &Recognised,
) -> Observed {
    let holdings = Holdings::new(model, sightings);
    let mut seen: BTreeMap<_, (UnixMillis, UnixMillis)> = BTreeMap::new();
    for record in sightings {
        let place = (record.gateway, record.sighting.mac, record.sighting.vlan);
        let (first, last) = (record.first_seen, record.sighting.last_seen);
        let kept = seen.entry(place).or_insert((first, last));
        *kept = (kept.0.min(first), kept.1.max(last));
    }
    let names = Names::of(model);
    let devices = model.devices.iter().map(|(id, device)| {
        let place = &device.attachment;
        let times = seen.get(&(place.gateway, place.mac, place.vlan));
        let sight = Sight {
            first: times.map(|times| times.0),
            last: times.map(|times| times.1),
            holds: holdings.of(*id).to_vec(),
        };
        (*id, sight)
    });
    let unconfirmed = unconfirmed(model, sightings).into_iter().map(|record| UnconfirmedRow {
        mac: record.sighting.mac.to_string(),
        gateway: names.gateway(record.gateway),
        port: record.sighting.port.to_string(),
        addresses: record.sighting.addresses.iter().map(ToString::to_string).collect(),
        last_seen: Moment(record.sighting.last_seen).to_string(),
        claims: shown::known(&recognised.stranger(&place_of(record))),
    });
    let claims = model.devices.iter();
    let claims = claims.map(|(id, device)| (*id, shown::known(&recognised.device(*id, device))));
    Observed {
        devices: devices.collect(),
        unconfirmed: unconfirmed.collect(),
        coverage: recorded.coverage(),
        claims: claims.collect(),
    }
}

fn part<T: DeserializeOwned>(path: &Path, files: &Files, name: &str) -> Result<T, Error> {
    let bytes = files.get(name).map(Vec::as_slice).unwrap_or_default();
    serde_json::from_slice(bytes).map_err(|error| {
        Error::file(
            path,
            format!(
                "{name} in it is of another version of this program, and can't be compared: {error}"
            ),
        )
    })
}

fn is_zip(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("zip"))
}

/// Writes a bundle whole or not at all, for its owner only.
fn write(path: &Path, files: &Files) -> Result<(), Error> {
    let fail =
        |error: &dyn std::fmt::Display| Error::file(path, format!("can't write it: {error}"));
    let put = |path: &Path, content: &[u8]| -> std::io::Result<()> {
        use std::io::Write as _;
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    if is_zip(path) {
        let packed = pack(files.iter().map(|(name, content)| (name.as_str(), content.as_slice())));
        let packed = packed.map_err(|error| fail(&error))?;
        return put(path, &packed).map_err(|error| fail(&error));
    }
    fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| fail(&error))?;
    for (name, content) in files {
        if let Err(error) = put(&path.join(name), content) {
            // Half a bundle is none.
            let _ = fs::remove_dir_all(path);
            return Err(fail(&error));
        }
    }
    Ok(())
}

/// Reads a bundle.
fn read(path: &Path) -> Result<Files, Error> {
    let fail = |error: &dyn std::fmt::Display| Error::file(path, format!("can't read it: {error}"));
    let large = || Error::file(path, "it is larger than any bundle");
    let mut left = MAX_LEN;
    let mut take = |path: &Path| -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        let limit = left as u64 + 1;
        fs::File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut content))
            .map_err(|error| fail(&error))?;
        left = left.checked_sub(content.len()).ok_or_else(large)?;
        Ok(content)
    };
    if !path.is_dir() {
        let packed = take(path)?;
        let mut files = Files::new();
        for (name, content) in
            unpack_exact(&packed, MAX_LEN).map_err(|error| Error::file(path, error))?
        {
            if files.insert(name.clone(), content).is_some() {
                return Err(Error::file(
                    path,
                    format!("it holds {name:?} twice: somebody altered it"),
                ));
            }
        }
        return Ok(files);
    }
    let mut files = Files::new();
    for entry in fs::read_dir(path).map_err(|error| fail(&error))? {
        let entry = entry.map_err(|error| fail(&error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if files.len() >= MAX_FILES {
            return Err(large());
        }
        let kind = entry.file_type().map_err(|error| fail(&error))?;
        if !kind.is_file() {
            return Err(Error::file(
                path,
                format!("{name:?} in it is no plain file: no bundle has such"),
            ));
        }
        files.insert(name, take(&entry.path())?);
    }
    Ok(files)
}

/// A bundle that is what an operator signed.
struct Checked {
    manifest: Verified<Manifest>,
    chain: AuthorityChain,
    /// The name by which the authority documents know the signer.
    signer: String,
    /// The number of the first document that doesn't name the signer any more, as far as is known here.
    removed: Option<u64>,
}

/// Checks a bundle against the chain that is known here, or against the pin that was given.
fn check(
    path: &Path,
    files: &Files,
    known: Option<&AuthorityChain>,
    pin: Option<Hash>,
) -> Result<Checked, Error> {
    let refuse = |problem: String| Error::file(path, format!("it isn't to be trusted: {problem}"));
    let file = |name: &str| files.get(name).ok_or_else(|| refuse(format!("{name} is missing")));
    let documents: Vec<Signed<Authority>> = serde_json::from_slice(file(AUTHORITY)?)
        .map_err(|error| refuse(format!("{AUTHORITY} can't be read: {error}")))?;
    let pin = pin.or_else(|| known.map(AuthorityChain::pin)).ok_or_else(|| {
        Error::Usage("this machine trusts no organisation yet: give the hash of the first authority document with --authority HEX, as `anteroom whoami` shows it to an operator".into())
    })?;
    let chain = AuthorityChain::follow(pin, &documents)
        .map_err(|error| refuse(format!("{AUTHORITY}: {error}")))?;
    // Where both are of one organisation, neither chain may have left the other's way.
    let newer = match known.filter(|known| known.pin() == pin) {
        Some(known) if known.check_replacement(&chain).is_ok() => None,
        Some(known) if chain.check_replacement(known).is_ok() => Some(known),
        Some(_) => {
            return Err(refuse(
                "its authority documents aren't those that this machine has seen".into(),
            ));
        }
        None => None,
    };
    let signed = Signed::<Manifest>::from_bytes(file(MANIFEST)?.clone());
    // Who was an operator when the newest of the bundle's own documents was in force.
    let signers = chain.newest().operator_keys();
    let organisation = chain.newest().organisation;
    let manifest = signed
        .verify(organisation, &signers)
        .map_err(|error| refuse(format!("{MANIFEST}: {error}")))?;
    if manifest.authority != chain.newest().number {
        return Err(refuse(format!(
            "it was signed under authority document {}, but holds the chain up to {}",
            manifest.authority,
            chain.newest().number
        )));
    }
    let others = files.iter().filter(|(name, _)| *name != MANIFEST);
    let faults = manifest.faults(others.map(|(name, content)| (name.as_str(), content.as_slice())));
    if !faults.is_empty() {
        let told: Vec<String> = faults.iter().take(10).map(ToString::to_string).collect();
        return Err(refuse(told.join("; ")));
    }
    let key = manifest.signer();
    let signer = chain
        .newest()
        .operator(key)
        .map_or_else(|| key.fingerprint().to_string(), |operator| operator.name.to_string());
    let later = newer.into_iter().flat_map(AuthorityChain::documents);
    let mut later = later.filter(|document| document.number > manifest.authority);
    let removal = later.find(|document| document.operator(key).is_none());
    // The document that removed them names the newest root of that moment: nobody signed for a later one before it.
    let root = removal.and_then(|document| document.root.as_ref());
    if root.is_some_and(|root| (manifest.incarnation, manifest.revision) > root.place()) {
        return Err(refuse(format!(
            "{signer} signed it after they had ceased to be an operator: it is of revision {}, which came later",
            manifest.revision
        )));
    }
    let removed = removal.map(|document| document.number);
    Ok(Checked { manifest, signer, removed, chain })
}

#[derive(Debug, Serialize)]
struct Verification {
    bundle: String,
    made_at: Moment,
    signer: String,
    signer_fingerprint: String,
    /// The number of the authority document by which they ceased to be an operator, as far as is known here.
    signer_removed: Option<u64>,
    organisation: String,
    authority: Hash,
    authority_document: u64,
    revision: u64,
    root: Hash,
    audit_entry: Option<u64>,
    audit_hash: Option<Hash>,
    history: Option<(Moment, Moment)>,
    files: usize,
    manifest: Hash,
    since: Option<Hash>,
}

/// `anteroom export verify`.
pub(super) fn verify(
    path: &Path,
    pin: Option<Hash>,
    former: bool,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let known = match home.trust()? {
        Some(trust) => Some(trust.follow()?),
        None => None,
    };
    let files = read(path)?;
    let checked = check(path, &files, known.as_ref(), pin)?;
    if let Some(number) = checked.removed {
        let gone = format!(
            "{} is no operator any more, by authority document {number}, and nothing but the bundle says that it was made before",
            checked.signer
        );
        if !former {
            return Err(Error::Refused(format!(
                "{}: {gone}: ask them and another operator, then add --former-operator",
                path.display()
            )));
        }
        output.warn(format_args!("{gone}"))?;
    }
    let Checked { manifest, chain, signer, removed } = checked;
    let shown = Verification {
        bundle: path.display().to_string(),
        made_at: Moment(manifest.made_at),
        signer,
        signer_fingerprint: manifest.signer().fingerprint().to_string(),
        signer_removed: removed,
        organisation: manifest.organisation.to_string(),
        authority: chain.pin(),
        authority_document: manifest.authority,
        revision: manifest.revision,
        root: manifest.root,
        audit_entry: manifest.audit.map(|(number, _)| number),
        audit_hash: manifest.audit.map(|(_, hash)| hash),
        history: manifest.history.map(|(first, last)| (Moment(first), Moment(last))),
        files: manifest.files.len(),
        manifest: manifest.signed().hash(),
        since: manifest.since,
    };
    output.data(&shown, |shown| {
        let table = facts(&[
            (
                "Made",
                format!("{} by {} ({})", shown.made_at, shown.signer, shown.signer_fingerprint),
            ),
            ("Organisation", shown.organisation.clone()),
            ("Revision", format!("{}, {}", shown.revision, shown.root)),
            (
                "Audit log",
                match (shown.audit_entry, shown.audit_hash) {
                    (Some(number), Some(hash)) => format!("entry {number}, {hash}"),
                    _ => String::new(),
                },
            ),
            (
                "Traffic",
                shown.history.map(|(first, last)| format!("{first} to {last}")).unwrap_or_default(),
            ),
            (
                "Compared with",
                shown
                    .since
                    .map(|hash| format!("the bundle whose manifest is {hash}"))
                    .unwrap_or_default(),
            ),
            ("Manifest", shown.manifest.to_string()),
        ]);
        format!(
            "{table}The bundle holds: {} as they were signed, none missing, none added.",
            count(shown.files, "file", "files")
        )
    })?;
    Ok(Exit::Ok)
}
