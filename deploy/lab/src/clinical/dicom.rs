//! DICOM spoken by programs that others wrote: dicom-rs always; DCMTK and Orthanc where they are installed.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::study::Study;
use crate::process::{Process, wait_listening};
use crate::programs::{self, Programs};
use crate::topology::Host;
use crate::wait;

/// Where archives listen.
pub const STORE_PORT: u16 = 11112;

/// Where a modality listens for what it asked for.
pub const RETRIEVE_PORT: u16 = 4006;

/// The registered port, where Orthanc listens.
pub const ORTHANC_PORT: u16 = 104;

/// How long a transfer may take.
const TRANSFER: Duration = Duration::from_secs(60);

/// A dicom-storescp that keeps what it gets.
#[derive(Debug)]
pub struct Archive {
    /// Where it keeps it.
    pub directory: PathBuf,
    process: Process,
}

impl Archive {
    /// Starts one on a host, and waits until it listens.
    ///
    /// # Errors
    /// If it doesn't.
    pub fn start(
        programs: &Programs,
        host: &Host,
        port: u16,
        directory: &Path,
        log: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut command = host.command(programs.tool("dicom-storescp"));
        command.args(["--verbose", "--non-blocking", "--promiscuous", "-p", &port.to_string()]);
        command.arg("-o").arg(directory);
        let mut process = Process::spawn("dicom-storescp", &mut command, log)?;
        wait_listening(host, port, &mut process, Duration::from_secs(60))?;
        Ok(Self { directory: directory.into(), process })
    }

    /// Forgets what it has got.
    ///
    /// # Errors
    /// If the directory can't be emptied.
    pub fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// What it printed last.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.tail()
    }
}

/// Sends a study with dicom-storescu and waits until it lies in `directory`, byte-identical.
///
/// # Errors
/// If it can't be sent, or doesn't arrive whole.
pub fn store(
    programs: &Programs,
    from: &Host,
    to: (Ipv4Addr, u16),
    study: &Study,
    directory: &Path,
) -> Result<usize> {
    send(programs, from, to, study)?;
    let what = "every slice of the study to arrive byte-identical";
    wait::until_ok(Duration::from_secs(60), what, || {
        let arrived = study.arrived(directory)?;
        if arrived < study.files.len() {
            bail!("{arrived} of {} slices", study.files.len());
        }
        Ok(arrived)
    })
}

/// Sends a study with dicom-storescu.
///
/// # Errors
/// If it can't be sent.
pub fn send(programs: &Programs, from: &Host, to: (Ipv4Addr, u16), study: &Study) -> Result<()> {
    let mut command = from.command(programs.tool("dicom-storescu"));
    command.args(["--fail-first", "--never-transcode", "--connect-timeout", "5"]);
    command.args(["--read-timeout", "15", "--write-timeout", "15"]);
    command.arg(format!("{}:{}", to.0, to.1)).args(&study.files);
    run_to_end(command, TRANSFER).map(|_| ())
}

/// Asks for an echo with dicom-echoscu.
///
/// # Errors
/// If there is none.
pub fn echo(programs: &Programs, from: &Host, to: (Ipv4Addr, u16), limit: Duration) -> Result<()> {
    let mut command = from.command(programs.tool("dicom-echoscu"));
    command.args(["--connect-timeout", &limit.as_secs().max(1).to_string()]);
    command.arg(format!("{}:{}", to.0, to.1));
    run_to_end(command, limit + Duration::from_secs(2)).map(|_| ())
}

/// Runs a command to its end, killing it when the time is up.
///
/// # Errors
/// If it fails or is too slow: with what it printed.
pub fn run_to_end(mut command: std::process::Command, limit: Duration) -> Result<String> {
    let name = Path::new(command.get_program())
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let log = tempfile::Builder::new().prefix("run-").suffix(".log").tempfile()?;
    let mut process = Process::spawn(&name, &mut command, log.path())?;
    let status = wait::until(limit, &format!("{name} to end"), || process.ended())
        .with_context(|| process.tail())?;
    if !status.success() {
        bail!("{name} ended with {status}: {}", process.tail());
    }
    Ok(process.output())
}

/// Orthanc as a PACS, where it is installed.
#[derive(Debug)]
pub struct Orthanc {
    /// Where it keeps what it gets.
    pub storage: PathBuf,
    process: Process,
}

impl Orthanc {
    /// Starts it on a host, if it is installed. It knows one modality: CT-1, which listens on [`RETRIEVE_PORT`].
    ///
    /// # Errors
    /// If it is installed and doesn't start.
    pub fn start(
        host: &Host,
        modality: Ipv4Addr,
        directory: &Path,
        log: &Path,
    ) -> Result<Option<Self>> {
        let Some(program) = programs::find("Orthanc") else { return Ok(None) };
        let storage = directory.join("storage");
        std::fs::create_dir_all(&storage)?;
        let configuration = directory.join("orthanc.json");
        let text = serde_json::json!({
            "Name": "PACS-1",
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "HttpServerEnabled": false,
            "DicomServerEnabled": true,
            "DicomAet": "PACS-1",
            "DicomPort": ORTHANC_PORT,
            "DicomCheckCalledAet": false,
            "DicomAlwaysAllowStore": true,
            "DicomAlwaysAllowEcho": true,
            "DicomModalities": { "ct": ["CT-1", modality.to_string(), RETRIEVE_PORT] },
            "DicomScuTimeout": 10,
            "OverwriteInstances": true,
            "Plugins": [],
        });
        std::fs::write(&configuration, serde_json::to_vec_pretty(&text)?)?;
        let mut command = host.command(program);
        command.arg(&configuration);
        let mut process = Process::spawn("Orthanc", &mut command, log)?;
        wait_listening(host, ORTHANC_PORT, &mut process, Duration::from_secs(60))?;
        Ok(Some(Self { storage, process }))
    }

    /// What it printed last.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.tail()
    }
}

/// The CT asks a PACS for a study with DCMTK's movescu: the PACS opens a connection back to it. `None` where DCMTK isn't
/// installed; otherwise how many slices came, byte-identical.
///
/// # Errors
/// If the study doesn't come.
pub fn retrieve(
    ct: &Host,
    pacs: Ipv4Addr,
    study: &Study,
    directory: &Path,
) -> Result<Option<usize>> {
    let Some(program) = programs::find("movescu") else { return Ok(None) };
    std::fs::create_dir_all(directory)?;
    let mut command = ct.command(program);
    command.args(["--aetitle", "CT-1", "--move", "CT-1", "--call", "PACS-1"]);
    command.args(["--port", &RETRIEVE_PORT.to_string(), "--study"]);
    // Written bit by bit as they come, slices go where movescu stands, whatever directory it is told.
    command.current_dir(directory);
    command.args(["--verbose", "-to", "5", "-ta", "10", "-td", "10", "--bit-preserving"]);
    command.args(["--key", "QueryRetrieveLevel=STUDY"]);
    command.args(["--key", &format!("StudyInstanceUID={}", study.uid)]);
    command.args([&pacs.to_string(), &ORTHANC_PORT.to_string()]);
    let said = run_to_end(command, TRANSFER)?;
    let arrived = study.arrived(directory)?;
    if arrived < study.files.len() {
        bail!("{arrived} of {} slices came back; movescu said: {said}", study.files.len());
    }
    Ok(Some(arrived))
}
