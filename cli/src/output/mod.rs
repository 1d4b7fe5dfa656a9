//! What people and programs get to read: tables or JSON on standard output, talk and questions on standard error.

pub mod qr;
pub mod table;
pub mod time;

use std::fmt::{self, Display};
use std::io::{self, BufRead, Write};

use anteroom_proto::text::steers;
use serde::Serialize;

use crate::error::{Error, Exit};

/// The streams that the program talks through.
pub struct Terminal<'a> {
    /// Standard output.
    pub out: &'a mut dyn Write,
    /// Standard error.
    pub err: &'a mut dyn Write,
    /// Standard input.
    pub input: &'a mut dyn BufRead,
    /// Whether a person sits at them, who can be asked.
    pub interactive: bool,
    /// Whether standard output is a terminal, which takes colours.
    pub coloured: bool,
}

/// The one way to standard output and error.
pub struct Output<'a> {
    terminal: Terminal<'a>,
    json: bool,
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output(json: {}, interactive: {})", self.json, self.terminal.interactive)
    }
}

impl<'a> Output<'a> {
    /// Output to `terminal`, for people.
    #[must_use]
    pub const fn new(terminal: Terminal<'a>) -> Self {
        Self { terminal, json: false }
    }

    /// Whether to write JSON from now on.
    pub const fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    /// Whether JSON is written.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person can be asked.
    #[must_use]
    pub const fn is_interactive(&self) -> bool {
        self.terminal.interactive
    }

    /// Writes `value`: as JSON for programs, as what `text` makes of it for people.
    ///
    /// # Errors
    /// When the output can't be written.
    pub fn data<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        let text = if self.json { to_json(value, true)? } else { printable(&text(value)) };
        Ok(line(self.terminal.out, &text)?)
    }

    /// Writes `value` as one line of JSON, or as text: for output that goes on.
    ///
    /// # Errors
    /// When the output can't be written.
    pub fn stream<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        let text = if self.json { to_json(value, false)? } else { printable(&text(value)) };
        line(self.terminal.out, &text)?;
        Ok(self.terminal.out.flush()?)
    }

    /// Says something to a person: on standard output, or beside the JSON on standard error.
    ///
    /// # Errors
    /// When the output can't be written.
    pub fn note(&mut self, text: impl Display) -> Result<(), Error> {
        let text = printable(&text.to_string());
        let stream = if self.json { &mut *self.terminal.err } else { &mut *self.terminal.out };
        Ok(line(stream, &text)?)
    }

    /// Says something that a person should look into.
    ///
    /// # Errors
    /// When the output can't be written.
    pub fn warn(&mut self, text: impl Display) -> Result<(), Error> {
        self.terminal.out.flush()?;
        Ok(line(self.terminal.err, &printable(&format!("warning: {text}")))?)
    }

    /// Clears the screen before the next picture of a `--watch`, where a person is looking.
    ///
    /// # Errors
    /// When the output can't be written.
    pub fn clear(&mut self) -> Result<(), Error> {
        if self.terminal.interactive && !self.json {
            self.terminal.out.write_all(b"\x1b[H\x1b[2J")?;
        }
        Ok(())
    }

    /// Draws `text` as a QR code for people; JSON has none. Says how many columns it took, or that it is too long for any.
    ///
    /// # Errors
    /// When the output can't be written.
    pub fn qr_code(&mut self, text: &str) -> Result<Option<usize>, Error> {
        if self.json {
            return Ok(Some(0));
        }
        let Some((drawn, columns)) = qr::draw(text, self.terminal.coloured) else {
            return Ok(None);
        };
        line(self.terminal.out, &drawn)?;
        Ok(Some(columns))
    }

    /// Asks for a line of text.
    ///
    /// # Errors
    /// When nobody can be asked any more.
    pub fn ask(&mut self, question: &str) -> Result<String, Error> {
        self.terminal.out.flush()?;
        write!(self.terminal.err, "{} ", printable(question))?;
        self.terminal.err.flush()?;
        let mut answer = String::new();
        if self.terminal.input.read_line(&mut answer)? == 0 {
            return Err(Error::Usage("no answer was given. Nothing was changed.".into()));
        }
        Ok(answer.trim().to_owned())
    }

    /// Says why the program ends without having done what was asked.
    pub(crate) fn error(&mut self, error: &Error) {
        let _ = self.terminal.out.flush();
        // With nowhere left to write to, the exit status has to do.
        let text = format!("{error}");
        let text = if self.json { json_error(&text) } else { printable(&format!("error: {text}")) };
        let _ = line(self.terminal.err, &text);
    }

    /// Prints what clap has to say: help on standard output, a misuse on standard error.
    pub(crate) fn usage(&mut self, error: &clap::Error) -> Exit {
        let mut text = error.render().to_string();
        if self.json && error.use_stderr() {
            text = format!("{}\n", json_error(text.trim_start_matches("error: ").trim_end()));
        }
        let (stream, exit) = if error.use_stderr() {
            (&mut *self.terminal.err, Exit::Usage)
        } else {
            (&mut *self.terminal.out, Exit::Ok)
        };
        let _ = stream.write_all(text.as_bytes());
        exit
    }
}

/// An error as programs read it, in one line.
fn json_error(text: &str) -> String {
    serde_json::json!({ "error": text }).to_string()
}

fn to_json<T: Serialize>(value: &T, pretty: bool) -> Result<String, Error> {
    let text =
        if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.map_err(|error| Error::Output(io::Error::other(error)))
}

fn line(stream: &mut dyn Write, text: &str) -> io::Result<()> {
    stream.write_all(text.trim_end_matches('\n').as_bytes())?;
    stream.write_all(b"\n")
}

/// `text` without what would steer a terminal: much of what is shown was written by others.
#[must_use]
pub fn printable(text: &str) -> String {
    let unsafe_char = |c: char| steers(c) && c != '\n' && c != '\t';
    text.chars().map(|c| if unsafe_char(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cant_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\u{202e}c\td\n"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\td\n");
    }

    #[test]
    fn talk_stays_out_of_json() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut input = io::Cursor::new(b"yes\n".to_vec());
        let mut output = Output::new(Terminal {
            out: &mut out,
            err: &mut err,
            input: &mut input,
            interactive: true,
            coloured: true,
        });
        output.note("before").unwrap();
        output.set_json(true);
        output.note("talk").unwrap();
        assert_eq!(output.ask("Sure?").unwrap(), "yes");
        assert!(matches!(output.ask("Sure?"), Err(Error::Usage(_))));
        output.data(&[1, 2], |_| unreachable!("JSON was asked for")).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out, "before\n[\n  1,\n  2\n]\n");
        let err = String::from_utf8(err).unwrap();
        assert_eq!(err, "talk\nSure? Sure? ");
    }
}
