//! What was seen of whom.

use anteroom_proto::inventory::{HintKind, most_of, value};
use anteroom_proto::mac::MacAddr;

/// Most sights that one frame leads to, of a station and a kind no more than are kept of it. A frame that shows more shows too much
/// to be true.
const MOST_OF_A_FRAME: usize = 160;

/// Whom a frame comes from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Station {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its VLAN, or none.
    pub vlan: Option<u16>,
}

/// A hint that a station showed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sight {
    /// Who showed it.
    pub who: Station,
    /// Where it stood.
    pub kind: HintKind,
    /// What stood there, as [`value`] makes it.
    pub value: String,
}

/// Where parsers tell what they see. Bounded for each frame.
#[derive(Debug, Default)]
pub struct Sights {
    seen: Vec<Sight>,
    begun: usize,
    turned_away: u64,
}

impl Sights {
    /// What was seen since the last time.
    pub fn drain(&mut self) -> impl Iterator<Item = Sight> + '_ {
        self.begun = 0;
        self.seen.drain(..)
    }

    /// How many were turned away, since one frame showed too many.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Begins another frame.
    pub(crate) const fn begin(&mut self) {
        self.begun = self.seen.len();
    }

    /// Tells of bytes off the wire. Nothing is told of nobody and of groups, nor what [`value`] leaves nothing of.
    pub(crate) fn tell(
        &mut self,
        who: impl Into<Option<Station>>,
        kind: HintKind,
        bytes: impl AsRef<[u8]>,
    ) {
        let Some(who) = who.into().filter(|who| !who.mac.is_group()) else { return };
        let Some(value) = value(bytes.as_ref()) else { return };
        let sight = Sight { who, kind, value };
        let seen = &self.seen[self.begun..];
        if seen.contains(&sight) {
            return;
        }
        let alike = seen.iter().filter(|seen| (seen.who, seen.kind) == (who, kind)).count();
        if seen.len() >= MOST_OF_A_FRAME || alike >= most_of(kind) {
            self.turned_away += 1;
            return;
        }
        self.seen.push(sight);
    }
}
