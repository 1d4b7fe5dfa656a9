//! The state directory itself: only root reads it, and one agent at a time has it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anteroom_agent_core::report::Learned;
use anteroom_proto::approval::Demands;
use anteroom_proto::authority::{Authority, AuthorityChain};
use anteroom_proto::cbor;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::Report;
use anteroom_proto::view::{Floor, KnownKeys, SignedView};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use super::StateError;
use super::file::Kind;
use super::records::{self, Enrolment, Marker, TunnelKey};
use super::seal::{Credentials, Secrets};
use crate::bypass::Kept;
use crate::keys::Ring;
use crate::trial;

/// The state directory, its permissions checked.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    marker: PathBuf,
    pub(super) secrets: Secrets,
    /// Held while identity keys are read and written in one go.
    identity: Arc<Mutex<()>>,
}

/// Held as long as an agent runs on the directory.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held, not read")] Flock<File>);

impl StateDir {
    /// Opens the directory, and makes it where it is missing.
    ///
    /// # Errors
    /// When it can't be made, isn't a directory of this user, or others can read it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        secure(path)?;
        Ok(Self::at(path))
    }

    /// The directory, if it is there. Nothing is made.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn find(path: &Path) -> Result<Option<Self>, StateError> {
        if !path.exists() {
            return Ok(None);
        }
        check(path)?;
        Ok(Some(Self::at(path)))
    }

    fn at(path: &Path) -> Self {
        // Beside the directory, not in it: whoever loses or wipes the one still has the other.
        let mut marker = path.as_os_str().to_owned();
        marker.push("-marker");
        let secrets = Secrets::new(path.to_owned(), Credentials::default());
        Self { path: path.to_owned(), marker: marker.into(), secrets, identity: Arc::default() }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the directory for one agent. The kernel gives it back when the process ends, however it ends.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another agent has it.
    pub fn lock(&self) -> Result<Lock, StateError> {
        self.lock_file("lock")
    }

    /// Takes the directory for an enrolment, which may happen while an agent that isn't enrolled runs.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another enrolment is under way.
    pub fn lock_enrolment(&self) -> Result<Lock, StateError> {
        self.lock_file("enrolment-lock")
    }

    fn lock_file(&self, name: &str) -> Result<Lock, StateError> {
        let path = self.path.join(name);
        let made =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        // A lock needs no room and changes nothing: a full or read-only disk mustn't keep a gateway from its view.
        let file = made
            .or_else(|error| File::open(&path).map_err(|_| error))
            .or_else(|error| match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
                    File::open(&self.path)
                }
                _ => Err(error),
            })
            .map_err(|error| StateError::File { path, verb: "written", error })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock(lock)),
            Err(_) => Err(StateError::InUse { path: self.path.clone() }),
        }
    }

    /// Keeps others from changing identity keys meanwhile.
    pub(super) fn changing_identity(&self) -> MutexGuard<'_, ()> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of this kind, for messages.
    pub(super) fn file(&self, kind: &Kind) -> PathBuf {
        kind.path(&self.path)
    }

    /// The tunnel keys, newest first.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn tunnel_keys(&self) -> Result<Vec<TunnelKey>, StateError> {
        records::TunnelKey::read_all(&self.secrets)
    }

    /// Looks whether the ML-KEM keys beside the tunnel keys can be read.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(super) fn check_kem_keys(&self) -> Result<(), StateError> {
        records::TunnelKey::check_kems(&self.secrets)
    }

    /// Takes ML-KEM keys off the disk whose tunnel keys were given up.
    ///
    /// # Errors
    /// When they can't be read, or not be written.
    pub(crate) fn drop_needless_kem_keys(&self, ring: &Ring) -> Result<(), StateError> {
        if records::TunnelKey::leaves_kems(&self.secrets, ring.all())? {
            self.write_tunnel_keys(ring)?;
        }
        Ok(())
    }

    /// Makes a tunnel key with a serial above all that `floor` and the clock allow to have been used.
    ///
    /// # Errors
    /// When it can't be written. It is on the disk on return.
    pub fn new_tunnel_key(
        &self,
        before: &[TunnelKey],
        floor_serial: u64,
    ) -> Result<TunnelKey, StateError> {
        records::TunnelKey::add(&self.secrets, before, floor_serial, false)
    }

    /// Records the tunnel keys.
    ///
    /// # Errors
    /// When they can't be written. What was there is as before then.
    pub fn write_tunnel_keys(&self, ring: &Ring) -> Result<(), StateError> {
        records::TunnelKey::write_all(&self.secrets, ring.all())
    }

    /// Makes a key for tunnels in the place of those that were lost. Their serials are unknown; seconds that somebody
    /// signed are a floor.
    ///
    /// # Errors
    /// As [`StateDir::new_tunnel_key`].
    pub(super) fn replace_lost_tunnel_keys(
        &self,
        floor: UnixMillis,
    ) -> Result<TunnelKey, StateError> {
        // They may lie there sealed with something that is lost.
        self.secrets.remove(&records::TUNNEL_KEYS)?;
        self.secrets.remove(&records::KEM_KEYS)?;
        records::TunnelKey::add(&self.secrets, &[], floor.0 / 1000, true)
    }

    /// The tunnel keys that were seen of peers; none where that was lost.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(super) fn known_keys(&self) -> Result<KnownKeys, StateError> {
        Ok(records::KNOWN_KEYS.read(&self.path)?.unwrap_or_default())
    }

    /// Records the tunnel keys that were seen of peers. They go after the view that they come from, as the floor does.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_known_keys(&self, keys: &KnownKeys) -> Result<(), StateError> {
        records::KNOWN_KEYS.write(&self.path, keys)
    }

    /// The enrolment, if there is one.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn enrolment(&self) -> Result<Option<Enrolment>, StateError> {
        records::ENROLMENT.read(&self.path)
    }

    /// Records the enrolment.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_enrolment(&self, enrolment: &Enrolment) -> Result<(), StateError> {
        records::ENROLMENT.write(&self.path, enrolment)
    }

    /// Records an authority chain.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_authority(&self, chain: &AuthorityChain) -> Result<(), StateError> {
        records::AUTHORITY.write(&self.path, &chain.to_signed())
    }

    /// The documents of the authority chain that is held, unverified.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn authority(&self) -> Result<Option<Vec<Signed<Authority>>>, StateError> {
        records::AUTHORITY.read(&self.path)
    }

    /// The bypass orders that were loaded from files, unverified.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(crate) fn bypasses(&self) -> Result<Vec<Kept>, StateError> {
        Ok(records::BYPASSES.read(&self.path)?.unwrap_or_default())
    }

    /// Records the bypass orders that were loaded from files.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write_bypasses(&self, kept: &[Kept]) -> Result<(), StateError> {
        records::BYPASSES.write(&self.path, &kept)
    }

    /// The trials that were under way.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(crate) fn trials(&self) -> Result<Vec<trial::Kept>, StateError> {
        Ok(records::TRIALS.read(&self.path)?.unwrap_or_default())
    }

    /// Records the trials that are under way.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write_trials(&self, kept: &[trial::Kept]) -> Result<(), StateError> {
        records::TRIALS.write(&self.path, &kept)
    }

    /// Forgets the trials that were under way: at the next start they all count as over.
    ///
    /// # Errors
    /// When the file can't be removed.
    pub(crate) fn forget_trials(&self) -> Result<(), StateError> {
        records::TRIALS.remove(&self.path)
    }

    /// The pass for relays, unverified.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn relay_pass(&self) -> Result<Option<Signed<RelayPass>>, StateError> {
        records::RELAY_PASS.read(&self.path)
    }

    /// Records the pass for relays.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_relay_pass(&self, pass: &Signed<RelayPass>) -> Result<(), StateError> {
        records::RELAY_PASS.write(&self.path, pass)
    }

    /// Records a view that was verified.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_view(&self, view: &SignedView) -> Result<(), StateError> {
        records::VIEW.write(&self.path, view)
    }

    /// Records on which devices two operators decide. It goes before the view that it belongs to: what that one holds
    /// back would be in force at the next start.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_demands(&self, demands: &Demands) -> Result<(), StateError> {
        records::DEMANDS.write(&self.path, demands)
    }

    /// Records the floor. It goes after the view that it comes from: a floor above the view would shut out the
    /// view at the next start.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_floor(&self, floor: &Floor) -> Result<(), StateError> {
        records::FLOOR.write(&self.path, floor)
    }

    /// Records what the engine has learnt.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_learned(&self, learned: &Learned) -> Result<(), StateError> {
        records::LEARNED.write(&self.path, learned)
    }

    /// Reports of this gateway that a run before this one left, the oldest first.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(crate) fn reports(&self, gateway: GatewayId) -> Result<Vec<Report>, StateError> {
        let left = records::REPORTS.read::<records::Left>(&self.path)?;
        Ok(left.filter(|left| left.gateway == gateway).map_or_else(Vec::new, |left| left.reports))
    }

    /// Records reports that no controller has stored, the oldest first, as many as fit; none takes the file away. What doesn't
    /// fit is counted in the last one that does.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write_reports(
        &self,
        gateway: GatewayId,
        reports: &[Report],
    ) -> Result<(), StateError> {
        if reports.is_empty() {
            return records::REPORTS.remove(&self.path);
        }
        let mut room = records::MOST_REPORTED;
        let fits = |report: &&Report| {
            let length = cbor::encode(report).len();
            room.checked_sub(length).inspect(|left| room = *left).is_some()
        };
        let mut kept: Vec<Report> = reports.iter().take_while(fits).cloned().collect();
        let away: usize = reports.iter().skip(kept.len()).map(|report| report.edges.len()).sum();
        if let Some(last) = kept.last_mut() {
            last.overflow = last.overflow.saturating_add(u64::try_from(away).unwrap_or(u64::MAX));
        }
        records::REPORTS.write(&self.path, &records::Left { gateway, reports: kept })
    }

    /// Where WireGuard clients' configurations name this gateway, as far as it knows.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(crate) fn client_place(&self) -> Result<Option<SocketAddr>, StateError> {
        records::CLIENT_PLACE.read(&self.path)
    }

    /// Records where WireGuard clients' configurations name this gateway.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write_client_place(&self, place: SocketAddr) -> Result<(), StateError> {
        records::CLIENT_PLACE.write(&self.path, &place)
    }

    /// Whether this machine ever held a view with an enforced device. Whatever is in the marker's place counts:
    /// a damaged marker is one.
    #[must_use]
    pub fn ever_enforced(&self) -> bool {
        // A place that can't be looked at may hide a marker.
        fs::symlink_metadata(self.marker_file())
            .map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |_| true)
    }

    /// Where the marker is.
    #[must_use]
    pub fn marker_file(&self) -> PathBuf {
        records::MARKER.path(&self.marker)
    }

    /// Leaves the marker, before a view with an enforced device comes into force.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn mark_enforced(&self) -> Result<(), StateError> {
        if self.ever_enforced() {
            return Ok(());
        }
        secure(&self.marker)?;
        records::MARKER.write(&self.marker, &Marker { enforced: true })
    }
}

fn secure(path: &Path) -> Result<(), StateError> {
    let failed = |error| StateError::Directory { path: path.to_owned(), error };
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    check(path)
}

/// Checks that nobody else can get at it.
fn check(path: &Path) -> Result<(), StateError> {
    let failed = |error| StateError::Directory { path: path.to_owned(), error };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    let shown = path.display();
    let exposed = |problem: String, remedy: String| StateError::Exposed {
        path: path.to_owned(),
        problem,
        remedy,
    };
    let user = geteuid();
    if metadata.uid() != user.as_raw() {
        let problem = format!("it belongs to user {}, not to {user}", metadata.uid());
        return Err(exposed(problem, format!("chown {user} {shown}")));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let problem = format!("others can get at it (mode {mode:03o})");
        return Err(exposed(problem, format!("chmod 700 {shown}")));
    }
    Ok(())
}
