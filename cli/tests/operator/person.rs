//! An operator at a keyboard.

use std::io::{self, Cursor, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::spawn;
use std::time::{Duration, Instant};

use anteroom::output::Terminal;
use serde_json::Value;
use tempfile::TempDir;

use crate::controller::Controller;

/// The end of a pipe that a command writes to.
struct Pipe(mpsc::Sender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(bytes.to_vec());
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A command that goes on, and what it has said.
pub(crate) struct Followed {
    lines: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Followed {
    /// Reads on until it has said this.
    #[track_caller]
    pub(crate) fn until(&mut self, wanted: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.text.contains(wanted) {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(why) => panic!("no \"{wanted}\" ({why}): {}", self.text),
            }
        }
    }
}

/// A person with a home directory of their own.
pub(crate) struct Person {
    pub(crate) dir: TempDir,
}

/// The id of the newest plan that a command showed before it ended with this exit status.
#[track_caller]
pub(crate) fn shown_plan(ran: &Ran, code: u8) -> String {
    assert_eq!(ran.code, code, "{ran:#?}");
    let (_, after) = ran.out.rsplit_once("(plan ").unwrap_or_else(|| panic!("{ran:#?}"));
    after[..8].to_owned()
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: u8,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// The error text, when the command failed with this exit status.
    #[track_caller]
    pub(crate) fn fails(&self, code: u8) -> &str {
        assert_eq!(self.code, code, "{self:#?}");
        self.err.trim_end()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl Person {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Runs a command as a script would: nobody can be asked.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_as(args, None)
    }

    /// Runs a command as a person would, who types `answers`.
    pub(crate) fn type_in(&self, args: &[&str], answers: &str) -> Ran {
        self.run_as(args, Some(answers))
    }

    /// Runs a command that goes on until nobody reads it any more.
    pub(crate) fn follow(&self, args: &[&str]) -> Followed {
        let home = self.home().display().to_string();
        let line = ["anteroom", "--home", &home].into_iter().chain(args.iter().copied());
        let line: Vec<String> = line.map(str::to_owned).collect();
        let (told, lines) = mpsc::channel();
        spawn(move || {
            let (mut out, mut err) = (Pipe(told.clone()), Pipe(told));
            let mut input = Cursor::new(Vec::new());
            let terminal = Terminal {
                out: &mut out,
                err: &mut err,
                input: &mut input,
                interactive: false,
                coloured: false,
            };
            anteroom::run(line, terminal);
        });
        Followed { lines, text: String::new() }
    }

    fn run_as(&self, args: &[&str], answers: Option<&str>) -> Ran {
        let home = self.home().display().to_string();
        let line = ["anteroom", "--home", &home].into_iter().chain(args.iter().copied());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut input = Cursor::new(answers.unwrap_or_default().as_bytes().to_vec());
        let exit = anteroom::run(
            line,
            Terminal {
                out: &mut out,
                err: &mut err,
                input: &mut input,
                interactive: answers.is_some(),
                coloured: answers.is_some(),
            },
        );
        Ran {
            code: exit.code(),
            out: String::from_utf8(out).unwrap(),
            err: String::from_utf8(err).unwrap(),
        }
    }

    pub(crate) fn login(&self, controller: &Controller) -> Ran {
        let recovery = self.path("recovery.key").display().to_string();
        self.run(&["login", &controller.setup_code(), "--name", "ana", "--recovery-out", &recovery])
    }

    /// A person who is the controller's first operator.
    pub(crate) fn logged_in(controller: &Controller) -> Self {
        let person = Self::new();
        person.login(controller).ok();
        person
    }

    /// Invites a gateway, lets it enrol, and approves it.
    pub(crate) fn gateway(&self, controller: &Controller, name: &str, seed: u8) {
        let invite = self.invite(name);
        controller.enrol(&invite, seed);
        self.run(&["gateway", "approve", name, "--yes"]).ok();
    }

    pub(crate) fn invite(&self, name: &str) -> String {
        let made = self.run(&["--json", "gateway", "invite", name, "--site", "north"]).ok().json();
        made["invite"].as_str().unwrap().to_owned()
    }
}
