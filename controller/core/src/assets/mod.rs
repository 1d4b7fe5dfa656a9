//! Asset lists: what a hospital's own books say that there is, held against what gateways see.
//!
//! A list is read at the operator's machine, compared with the model and the sightings, and forgotten. What operators take over from it becomes labels and names of
//! devices, signed like any other change. Lists come as CSV ([`read_csv`]), as FHIR `Device` resources ([`read_fhir`]), and, for what manufacturers say of a model, as MDS2 forms
//! ([`read_mds2`]).
//!
//! A list is somebody's work of years and never clean, so a value that can't be read is told with its place and left out, and the rest of its row is
//! kept. Only a file that isn't one of these, or is too large, is refused.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use serde::Serialize;

mod compare;
mod csv;
mod fhir;
mod mds2;
mod values;

pub use crate::words::slug;
pub use compare::{Contradiction, Difference, Key, Known, Match, Matched, Report, Sure, compare};
pub use csv::read_csv;
pub use fhir::read_fhir;
pub use mds2::{Answer, Mds2, read_mds2};

/// Longest list of any other kind that is read, in bytes.
pub const MAX_LIST_LEN: usize = 64 * 1024 * 1024;
/// Longest list of FHIR resources that is read, in bytes: servers write some kilobytes of each device, and reading one after the other costs little more than the bytes.
pub const MAX_FHIR_LEN: usize = 256 * 1024 * 1024;
/// Most things that one list names.
pub const MAX_ASSETS: usize = 100_000;
/// Most problems that are kept by themselves; the rest is counted.
pub const MAX_PROBLEMS: usize = 200;

/// One thing that a list names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Asset {
    /// Where it stands: `assets.csv:12`.
    pub place: String,
    /// What the list calls it.
    pub name: Option<String>,
    /// Its Ethernet addresses.
    pub macs: Vec<MacAddr>,
    /// Its addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Its host name.
    pub hostname: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// What the list says of it besides: `class`, `vendor`, `model`, `owner`, `location`, `criticality` and labels by their own names.
    pub attributes: BTreeMap<Name, String>,
}

/// A list as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct AssetList {
    /// What it names, in its order.
    pub assets: Vec<Asset>,
    /// What couldn't be read, at most [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// How many more there were.
    pub more_problems: usize,
    /// Columns that nothing was taken from.
    pub unused: Vec<String>,
}

/// Something in a list that couldn't be read and was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Problem {
    /// Where: `assets.csv:12: column "MAC"`.
    pub place: String,
    /// What is wrong.
    pub problem: String,
}

/// Why a file isn't read as a list at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ListError {
    /// The file, and the line in it where one is to blame.
    pub place: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl ListError {
    fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

impl AssetList {
    fn problem(&mut self, place: String, problem: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { place, problem });
        } else {
            self.more_problems += 1;
        }
    }

    /// Takes another list's things behind its own.
    pub fn append(&mut self, other: Self) {
        self.assets.extend(other.assets);
        for problem in other.problems {
            self.problem(problem.place, problem.problem);
        }
        self.more_problems += other.more_problems;
        self.unused.extend(other.unused);
    }
}
