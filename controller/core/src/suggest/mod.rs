//! Learns a policy from the flow history.
//!
//! # What is asked of it
//!
//! Two things that pull against each other: that next weeks' legitimate flows pass (recall), and that little is
//! opened that nobody needs (precision). Exact edges open least and break with every pair that happens not to have met
//! yet; a rule for each two classes breaks nothing and opens most of the hospital. So each conversation between two classes
//! over one service is generalised just as far as its own record demands. Each step below answers a question with numbers out of
//! the history alone, so the same history always gives the same file.
//!
//! # The steps
//!
//! 1. **What counts as evidence** (`facts`). A flow that was dropped is none, nor are TCP, names, time and addresses that were asked for and never
//!    answered, nor what was seen 64 days ago or earlier: that is a question. Ports of the dynamic range (49152 and up), where a responder uses several, are one service.
//! 2. **Who belongs together** (`facts`, `kin`). Devices go by their confirmed `class` label. A device without one goes by the class that it is
//!    recognised as ([`crate::classify`]), where that is sure enough to be proposed. One that isn't recognised is taken for the class whose conversations its own resemble, if one stands out; it is then listed by name, for an operator to confirm.
//!    Each class is a ladder of cells that lie within each other: the device, its place (label `location`, or its
//!    subnet), its site, the class. An address without a gateway has two rungs: itself and its /24.
//! 3. **Who isn't to be learnt from** (`suspects`). A device that calls many whom nobody of its class calls, and gets no answer from most or
//!    calls none twice, is scanning. What only it does becomes a question, never a rule.
//! 4. **What every device has** (`infrastructure`). Name, time and address servers without a gateway, where labelled devices of two classes
//!    and a share of the site were answered on two days.
//! 5. **How far pairs are known** (`blocks`). For the pairs of two classes over a service, taken as cells of some two rungs, the
//!    Good-Turing estimate of what is still unseen is (cells seen on one day only) / (cell-days seen): the chance that the next thing
//!    seen is new. Of all pairs of rungs whose estimate is small enough the one that opens least is taken. Where each monitor talks to its one station day after
//!    day, that is the devices themselves. Where clerks print wherever they walk, it is their whole site.
//!    What a few strays of a large class do is never taken for the class's way. And where two classes meet within places, nine
//!    times of ten and in nine of ten places (a ward's monitors and its station), every place with both gets the rule, and none another's.
//! 6. **Where enough agree** (`blocks`). Cells rise to the next rung of the ladder where the silent ones among its cells are
//!    no more than chance would leave silent (each cell's expected number of contacts follows from the common rate and from how long it was watched),
//!    plus a tenth. So a scanner bought last week has what all scanners have, and pumps of one maker don't get the other
//!    maker's server: their long silence speaks against it.
//!    What was seen on one day alone, by however many, is nobody's way: one incident may have made it.
//! 7. **What is left** is exact: a pair that was seen on two days or more gets a rule of its own; one that was seen on one day is a question.
//! 8. **Writing it down** (`write`): cells become segments, addresses externals. Rules with the same ends are one. What a life may hang on and
//!    goes on around the clock and nearly every day, to few, is marked `essential`. Each rule's comment says what speaks for it and what it opens beyond what was seen.
//!
//! An existing policy keeps every line, but for the questions of an earlier suggestion, which are asked anew: what its rules open already is
//! left out, and the rest is written behind it. What a rule opened whose end has come isn't opened again, by a rule for a whole class neither: somebody wrote that end. Where it goes on, that is a question.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;

use crate::decide::Party;
use crate::history::History;
use crate::policy;
use crate::problem::Problems;
use crate::resolve::Resolved;

mod blocks;
mod bundle;
mod confidence;
mod facts;
mod infrastructure;
mod kin;
mod opened;
mod questions;
mod suspects;
#[cfg(test)]
mod tests;
mod write;

pub use infrastructure::ServerKind;

/// What the learning goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The chance, of all that comes next, that a pair of cells is new which is put up with before cells get larger.
    pub unseen: f64,
    /// The share of cells that may be silent against expectation and yet get what the others have.
    pub dissent: f64,
    /// How many devices must do something before others get it.
    pub agree: usize,
    /// Most lines of questions that are written into the file. What stands in none is in [`Suggestion::questions`] alone.
    pub lines_of_questions: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { unseen: 0.005, dissent: 0.1, agree: 3, lines_of_questions: 200 }
    }
}

/// How sure a rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Seen on few days, or by one of many.
    Low,
    /// Seen for a week or more, by several.
    Medium,
    /// Seen for two weeks or more, by four fifths of those who get it.
    High,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        })
    }
}

/// Why something that was seen is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// It was seen on one day, and nobody else of the class does it.
    SeenOnce,
    /// The one who opened it looks as if it were scanning.
    Scanner,
    /// A rule opened it whose end has come, and it goes on.
    RanOut,
    /// It wasn't seen for 64 days, as long as days are kept.
    LongAgo,
}

/// Classes that devices without a confirmed one were recognised as, and how sure that is in percent.
pub type RecognisedClasses = BTreeMap<MemberId, (String, u8)>;

/// Something that only a person can answer: is this wanted?
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Who opened.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// What.
    pub service: PortMatch,
    /// Why it is asked.
    pub doubt: Doubt,
    /// Flows seen.
    pub flows: u64,
    /// Last seen.
    pub last: UnixMillis,
}

/// A rule as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct SuggestedRule {
    /// Its name.
    pub name: String,
    /// How sure it is.
    pub confidence: Confidence,
    /// Pairs (from, to, service) that it opens. A network outside counts as its addresses.
    pub opens: u64,
    /// How many of them were seen.
    pub seen: u64,
    /// Whether it is marked essential.
    pub essential: bool,
}

/// A server that was added to a site's infrastructure, and so opened to each of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuggestedServer {
    /// The site.
    pub site: Name,
    /// What it is for.
    pub kind: ServerKind,
    /// Its address.
    pub address: Ipv4Addr,
    /// How sure it is.
    pub confidence: Confidence,
    /// Pairs (device, service) that it opens.
    pub opens: u64,
    /// How many of them were seen.
    pub seen: u64,
}

/// What was learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Suggestion {
    /// The whole policy file: what there was, and what is new.
    pub text: String,
    /// The new rules, in the order of the file.
    pub rules: Vec<SuggestedRule>,
    /// What is new in the sites' infrastructure, sorted.
    pub servers: Vec<SuggestedServer>,
    /// What was seen and is in no rule, sorted.
    pub questions: Vec<Question>,
    /// Edges that no rule can be learnt from: dropped ones, and what nobody answered though its kind is.
    pub no_evidence: usize,
}

/// Suggests a policy for the model in `resolved`, whose own policy is extended.
///
/// # Errors
/// When the existing text is laid out such that nothing can be written behind it (a section as one inline table): the problems that the extended
/// text would have.
pub fn suggest(
    resolved: &Resolved,
    history: &History,
    recognised: &RecognisedClasses,
    options: &Options,
) -> Result<Suggestion, Problems> {
    let mut facts = facts::Facts::gather(resolved, history, recognised);
    kin::adopt(&mut facts);
    facts.build_cells(resolved);
    let suspects = suspects::take(&mut facts);
    let servers = infrastructure::take(&mut facts, resolved, options);
    let (grants, once) = blocks::learn(resolved, &facts, options);
    let mut questions: Vec<Question> = suspects
        .iter()
        .map(|pair| (pair, Doubt::Scanner))
        .chain(once.iter().map(|pair| (pair, Doubt::SeenOnce)))
        .chain(facts.ran_out.iter().map(|pair| (pair, Doubt::RanOut)))
        .chain(facts.long_ago.iter().map(|pair| (pair, Doubt::LongAgo)))
        .map(|(pair, doubt)| Question {
            from: facts.parties[pair.from as usize],
            to: facts.parties[pair.to as usize],
            service: facts.services[pair.service as usize],
            doubt,
            flows: pair.flows,
            last: pair.last,
        })
        .collect();
    questions.sort_unstable();
    let written = write::write(resolved, &facts, &servers, &grants, &questions, options);
    // What is handed out must be a policy that can be planned.
    Resolved::from_text(&resolved.model, policy::POLICY_FILE, &written.text)?;
    Ok(Suggestion {
        text: written.text,
        rules: written.rules,
        servers: servers.iter().map(infrastructure::Server::told).collect(),
        questions,
        no_evidence: facts.no_evidence,
    })
}
