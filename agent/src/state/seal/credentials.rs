//! systemd-creds, which seals and opens 32 bytes. They go through pipes, never through arguments or files.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::Sealing;

/// The name that is sealed with the bytes, so that no other credential passes for them.
const NAME: &str = "anteroom-agent-keys";
/// How long the program may take: a discrete TPM makes keys in seconds.
const DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 120 } else { 30 });
/// Longest output that is read.
const MOST: u64 = 32 * 1024;
/// Longest credential that is kept, in bytes; a TPM's have about 1,000.
const LONGEST: usize = 8 * 1024;

/// Why something can't be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The program isn't there.
    #[error("systemd-creds can't be started ({said}): it comes with systemd 250 and newer")]
    NoProgram {
        /// What the system says.
        said: String,
    },
    /// No TPM answers.
    #[error(
        "no TPM 2.0 answers: see that it is switched on in the firmware's settings, that /dev/tpmrm0 is there, that this service may use it (anteroom-agent.service.d/tpm.conf), and that the packages of tpm2-tss are installed (libtss2-esys, libtss2-rc0, tpm-udev). The agent tries again by itself. systemd-creds said: {said}"
    )]
    NoTpm {
        /// The program's words.
        said: String,
    },
    /// It is another TPM, or the same and cleared.
    #[error(
        "the TPM of this machine isn't the one that sealed them, or was cleared since. If the mainboard was changed, or the disk moved, put the old one back; if the TPM was cleared, the keys are lost: ask for a new invite (`anteroom gateway invite`), move the state directory away and enrol again. systemd-creds said: {said}"
    )]
    OtherTpm {
        /// The program's words.
        said: String,
    },
    /// The TPM opens nothing for a while.
    #[error(
        "the TPM opens nothing for a while: it counts power cuts as attempts to guess, and there were too many. It gets over that by itself within hours, and the agent tries again; `tpm2_dictionarylockout --clear-lockout` (package tpm2-tools) does it at once. systemd-creds said: {said}"
    )]
    Locked {
        /// The program's words.
        said: String,
    },
    /// The secret of this machine is another one, or gone.
    #[error(
        "the secret of this machine isn't the one that sealed them (/var/lib/systemd/credential.secret): bring it back from a backup of this machine, or ask for a new invite (`anteroom gateway invite`), move the state directory away and enrol again. systemd-creds said: {said}"
    )]
    OtherHost {
        /// The program's words.
        said: String,
    },
    /// It takes too long.
    #[error(
        "systemd-creds gave no answer within {} s: the TPM may hang, and a cold start of the machine help",
        DEADLINE.as_secs()
    )]
    TimedOut,
    /// Something else.
    #[error("systemd-creds failed: {said}")]
    Failed {
        /// The program's words.
        said: String,
    },
}

/// The program and what it goes by.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    program: PathBuf,
    device: Option<String>,
    secret: Option<PathBuf>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self { program: "systemd-creds".into(), device: None, secret: None }
    }
}

impl Credentials {
    /// With another TPM and another secret than the system's.
    #[cfg(test)]
    pub(crate) fn at(device: Option<String>, secret: PathBuf) -> Self {
        Self { device, secret: Some(secret), ..Self::default() }
    }

    /// Another program in its place.
    #[cfg(test)]
    pub(crate) fn by(program: PathBuf) -> Self {
        Self { program, ..Self::default() }
    }

    /// Seals these bytes.
    pub(super) fn seal(&self, sealing: Sealing, bytes: &[u8; 32]) -> Result<String, SealError> {
        let mut command = self.command("encrypt");
        command.arg(format!("--with-key={sealing}"));
        // PCR 16 is for debugging, and no firmware measures into it; without any, systemd 252 can't open what it sealed.
        command.arg("--tpm2-pcrs=16");
        let sealed = run(command, bytes)?;
        let failed = |said: &str| SealError::Failed { said: said.into() };
        let text = String::from_utf8(sealed.to_vec());
        let text = text.map_err(|_| failed("what it printed isn't text"))?;
        if text.len() > LONGEST {
            return Err(failed("what it printed is too long to be a sealed key"));
        }
        Ok(text)
    }

    /// Opens what [`Credentials::seal`] gave.
    pub(super) fn open(&self, sealed: &str) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let bytes = run(self.command("decrypt"), sealed.as_bytes())?;
        <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new).map_err(|_| SealError::Failed {
            said: format!("it gave {} bytes instead of 32", bytes.len()),
        })
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args([verb, "--name", NAME]);
        if let Some(device) = &self.device {
            command.arg(format!("--tpm2-device={device}"));
        }
        // The service must open it without what is set where it was sealed.
        command.env_remove("SYSTEMD_TPM2_DEVICE").env_remove("SYSTEMD_CREDENTIAL_SECRET");
        if let Some(secret) = &self.secret {
            command.env("SYSTEMD_CREDENTIAL_SECRET", secret);
        }
        command.args(["-", "-"]).env("LC_ALL", "C").env_remove("SYSTEMD_LOG_LEVEL");
        command
    }
}

/// Runs the program with this input, for [`DEADLINE`] at most.
fn run(mut command: Command, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let failed = |error: io::Error| SealError::Failed { said: error.to_string() };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().map_err(|error| SealError::NoProgram { said: error.to_string() })?;
    // What is written fits a pipe, so this waits for nobody; a program that doesn't read says why at its end.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(SealError::Failed { said: "it has no output".into() });
    };
    std::thread::scope(|scope| {
        let printed = scope.spawn(move || read(stdout));
        let said = scope.spawn(move || read(stderr));
        let ended = wait(&mut child);
        let printed = printed.join().unwrap_or_else(|_| Ok(Zeroizing::default()));
        let said = said.join().unwrap_or_else(|_| Ok(Zeroizing::default())).map_err(failed)?;
        match ended.map_err(failed)? {
            Some(true) => printed.map_err(failed),
            Some(false) => Err(explain(&String::from_utf8_lossy(&said))),
            None => Err(SealError::TimedOut),
        }
    })
}

fn read(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Its full room from the start, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MOST as usize));
    from.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether it ended well. None where it had to be ended.
fn wait(child: &mut Child) -> io::Result<Option<bool>> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= deadline {
            // It may have ended by itself just now.
            let killed = child.kill();
            child.wait()?;
            return killed.map(|()| None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the program's words mean. It has one exit status for everything.
fn explain(said: &str) -> SealError {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let line = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let said: String = line.trim().chars().take(300).collect();
    // TPM_RC_INTEGRITY: the object was made under another owner's seed.
    if has(&["integrity check failed", "0x000001df"]) {
        SealError::OtherTpm { said }
    } else if has(&["lockout", "0x00000921"]) {
        SealError::Locked { said }
    } else if has(&[
        "TCTI",
        "TPM2 support",
        "No suitable TPM2 device",
        "No TPM2 device",
        "libtss2",
        "tpm2: not supported",
    ]) {
        SealError::NoTpm { said }
    } else if has(&["incorrect key", "Failed to determine local credential key"]) {
        SealError::OtherHost { said }
    } else {
        SealError::Failed { said }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_says_is_told_apart() {
        for (said, expected) in [
            (
                "x\nFailed to load HMAC key in TPM: tpm:parameter(1):integrity check failed\n",
                "isn't the one",
            ),
            (
                "ERROR:tcti\nFailed to initialize TCTI context: tcti:IO failure\n",
                "no TPM 2.0 answers",
            ),
            (
                "Decryption failed (incorrect key?): error:00000000:lib(0)::reason(0)",
                "secret of this machine",
            ),
            ("Failed to determine local credential key: No such file", "secret of this machine"),
            ("TPM2 device is in dictionary attack lockout mode.", "opens nothing for a while"),
            (
                "TPM2 device supports SHA256 PCR bank but none of the selected PCRs are valid!\nOut of memory.",
                "failed: Out of memory.",
            ),
            ("", "failed: "),
            ("Out of memory.", "Out of memory."),
        ] {
            let text = explain(said).to_string();
            assert!(text.contains(expected), "{said}: {text}");
        }
    }

    #[test]
    fn a_missing_program_and_a_broken_one_are_errors() {
        let missing = Credentials::by("/nowhere/systemd-creds".into());
        let error = missing.seal(Sealing::Host, &[1; 32]).unwrap_err();
        assert!(matches!(error, SealError::NoProgram { .. }), "{error}");
        // It says nothing and gives nothing.
        let silent = Credentials::by("true".into());
        assert!(silent.open("x").unwrap_err().to_string().contains("0 bytes instead of 32"));
        let failing = Credentials::by("false".into());
        assert!(matches!(failing.open("x"), Err(SealError::Failed { .. })));
    }
}
