//! What a relay counts.

/// Why a relay doesn't carry a packet on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// It isn't a sealed packet behind a header.
    Malformed,
    /// Its sender's connection has ended.
    Gone,
    /// It names a number that this connection doesn't have.
    Unknown,
    /// The two passes don't name each other, or both are stale.
    NotShared,
    /// The other gateway isn't here.
    Absent,
    /// The other gateway's path can't carry it.
    TooLong,
    /// Its sender is over its rate.
    Rate,
    /// It, or an older one of the same sender, found no room.
    Full,
    /// It waited for too long.
    Late,
    /// It came faster than the relay reads.
    Unread,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::Gone,
        Self::Unknown,
        Self::NotShared,
        Self::Absent,
        Self::TooLong,
        Self::Rate,
        Self::Full,
        Self::Late,
        Self::Unread,
    ];

    /// Its name in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Gone => "gone",
            Self::Unknown => "unknown-number",
            Self::NotShared => "not-shared",
            Self::Absent => "absent",
            Self::TooLong => "too-long",
            Self::Rate => "rate",
            Self::Full => "full",
            Self::Late => "late",
            Self::Unread => "unread",
        }
    }
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets handed out. Those that weren't sent after all count as dropped as well.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Greetings and passes that were refused.
    pub refused: u64,
    dropped: [u64; Dropped::ALL.len()],
}

impl Counts {
    /// Packets that weren't carried on, for this reason.
    #[must_use]
    pub const fn dropped(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize]
    }

    /// All packets that weren't carried on.
    #[must_use]
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    pub(super) const fn drop(&mut self, reason: Dropped) {
        self.drop_many(reason, 1);
    }

    pub(super) const fn drop_many(&mut self, reason: Dropped, packets: u64) {
        let count = &mut self.dropped[reason as usize];
        *count = count.saturating_add(packets);
    }

    pub(super) const fn hand_out(&mut self, bytes: usize) {
        self.packets = self.packets.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }
}
