//! What an auditor gets: inventory, network map and who can reach what, as files that can be read without this program.
//!
//! Everything here is text: [`files`] makes JSON and CSV for programs, and one HTML page for people, which needs no scripts, loads nothing and prints well. Signing
//! and packing is the command line's. What differs from an earlier bundle is computed from that bundle's own JSON.
//!
//! Who can reach what goes by segments, not by pairs: twenty thousand devices make a few hundred segments and some hundred million pairs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::classify::shown::Rows;
use crate::coverage::Coverage;
use crate::history::History;
use crate::map::Map;
use crate::resolve::Resolved;
use crate::stale::Stale;
use crate::surface::Surfaces;

mod difference;
mod html;
mod inventory;
mod reach;
mod tables;
#[cfg(test)]
mod tests;

pub use difference::{Change, Difference};
pub use inventory::{ClientRow, DeviceRow, GatewayRow, Inventory, UnconfirmedRow};
pub use reach::{Group, Opens, Path, Reach};

/// Names of the files in a bundle.
pub mod names {
    /// What the bundle is, and how to check it.
    pub const README: &str = "README.txt";
    /// All of it for people.
    pub const REPORT: &str = "report.html";
    /// The inventory, for programs.
    pub const INVENTORY: &str = "inventory.json";
    /// The inventory, as a table.
    pub const INVENTORY_CSV: &str = "inventory.csv";
    /// The network map, for programs.
    pub const MAP: &str = "map.json";
    /// The network map, as a table.
    pub const MAP_CSV: &str = "map.csv";
    /// The network map, as a picture.
    pub const MAP_SVG: &str = "map.svg";
    /// Who can reach what, for programs.
    pub const REACH: &str = "reach.json";
    /// Who can reach what, as a table.
    pub const REACH_CSV: &str = "reach.csv";
    /// The review of what is stale, for programs.
    pub const REVIEW: &str = "review.json";
    /// What differs from an earlier bundle, for programs.
    pub const DIFFERENCE: &str = "difference.json";
    /// What differs from an earlier bundle, as a table.
    pub const DIFFERENCE_CSV: &str = "difference.csv";
    /// The policy, as operators wrote it.
    pub const POLICY: &str = "policy.toml";
}

/// When and of what a bundle is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// The organisation's id.
    pub organisation: String,
    /// When it was made.
    pub made_at: String,
    /// Who made it.
    pub made_by: String,
    /// The model's revision that it is of.
    pub revision: u64,
    /// First and last packet of the recorded traffic; none where none was recorded.
    pub history: Option<(String, String)>,
    /// Edges of traffic that found no room, or made some after weeks of silence, and are in no map.
    pub turned_away: u64,
    /// Newest entry of the audit log: its number and hash.
    pub audit: Option<(u64, String)>,
}

/// Everything that a bundle says.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// When and of what.
    pub stamp: Stamp,
    /// Devices, clients, gateways.
    pub inventory: Inventory,
    /// Who talks to whom.
    pub map: Map,
    /// Who can reach what.
    pub reach: Reach,
    /// What is stale.
    pub review: Stale,
    /// What differs from an earlier bundle.
    pub difference: Option<Difference>,
    /// The policy.
    pub policy: String,
}

/// What gateways tell of devices, beside what operators signed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// By device.
    pub devices: BTreeMap<MemberId, Sight>,
    /// What was seen and is confirmed by nobody.
    pub unconfirmed: Vec<UnconfirmedRow>,
    /// How much was seen of each.
    pub coverage: BTreeMap<MemberId, Coverage>,
    /// What each is taken for.
    pub claims: BTreeMap<MemberId, Rows>,
}

/// When a device was seen, and with which addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sight {
    /// When first.
    pub first: Option<UnixMillis>,
    /// When last.
    pub last: Option<UnixMillis>,
    /// What it holds of its dynamic addresses.
    pub holds: Vec<Ipv4Addr>,
}

/// Gathers what a bundle says, of traffic seen `since` then.
#[must_use]
pub fn content(
    resolved: &Resolved,
    history: &History,
    observed: &Observed,
    stamp: Stamp,
    since: UnixMillis,
    now: UnixMillis,
) -> Content {
    let everything = |_: &crate::history::Edge| true;
    let surfaces = Surfaces::of(resolved);
    Content {
        stamp,
        inventory: inventory::inventory(resolved, &surfaces, observed, now),
        map: crate::map::map(
            resolved,
            &surfaces,
            history,
            crate::map::Grain::Class,
            since,
            &everything,
        ),
        reach: reach::reach(resolved, history, now),
        review: crate::stale::stale(resolved, history, since, now),
        difference: None,
        policy: resolved.model.policy.clone(),
    }
}

/// The files of a bundle, by name.
///
/// # Errors
/// When JSON can't be written of it.
pub fn files(content: &Content) -> Result<BTreeMap<&'static str, Vec<u8>>, serde_json::Error> {
    fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        Ok(text)
    }
    let mut files = BTreeMap::from([
        (names::README, readme(content).into_bytes()),
        (names::REPORT, html::page(content).into_bytes()),
        (names::INVENTORY, json(&content.inventory)?),
        (names::INVENTORY_CSV, tables::inventory(&content.inventory).into_bytes()),
        (names::MAP, json(&content.map)?),
        (names::MAP_CSV, tables::map(&content.map).into_bytes()),
        (names::MAP_SVG, content.map.svg().into_bytes()),
        (names::REACH, json(&content.reach)?),
        (names::REACH_CSV, tables::reach(&content.reach).into_bytes()),
        (names::REVIEW, json(&content.review)?),
        (names::POLICY, content.policy.clone().into_bytes()),
    ]);
    if let Some(difference) = &content.difference {
        files.insert(names::DIFFERENCE, json(difference)?);
        files.insert(names::DIFFERENCE_CSV, tables::difference(difference).into_bytes());
    }
    Ok(files)
}

fn readme(content: &Content) -> String {
    let stamp = &content.stamp;
    let mut text = format!(
        "Anteroom: inventory, network map and who can reach what\n\n\
         Organisation  {}\nMade          {} by {}\nRevision      {}\n",
        stamp.organisation, stamp.made_at, stamp.made_by, stamp.revision
    );
    let history = stamp.history.as_ref();
    let history =
        history.map_or_else(|| "none".to_owned(), |(first, last)| format!("{first} to {last}"));
    let _ = writeln!(text, "Traffic       {history}");
    if let Some((number, hash)) = &stamp.audit {
        let _ = writeln!(text, "Audit log     entry {number}, {hash}");
    }
    text.push_str(
        "\nreport.html      all of it, for people: opens in any browser, loads nothing, prints\n\
         inventory.*      devices, clients and gateways, and what was seen and confirmed by nobody\n\
         map.*            who talks to whom, by classes of devices\n\
         reach.*          who can reach what: rules, and the segments that they name\n\
         review.json      rules that no flow used, externals past their day, devices that weren't seen\n\
         policy.toml      the policy that it is of\n\
         authority.json   who may sign, as a chain of signed documents\n\
         SHA256SUMS       digests, for sha256sum -c\n\
         manifest.cose    digests and dates, signed by an operator (COSE_Sign1)\n",
    );
    if content.difference.is_some() {
        text.push_str("difference.*     what differs from an earlier bundle\n");
    }
    text.push_str(
        "\nTo check it, with no connection to anything:\n  anteroom export verify BUNDLE --authority HEX\n\
         HEX is the hash of the organisation's first authority document. Get it from somebody else than whoever handed you this:\n\
         `anteroom whoami` shows it to each operator.\n",
    );
    text
}

/// A moment as people and programs read it (RFC 3339, UTC).
pub(crate) fn moment(at: UnixMillis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| "unknown".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
