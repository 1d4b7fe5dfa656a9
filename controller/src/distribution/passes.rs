//! Passes for relays: with whom each connected gateway shares a view, signed, and signed again long before it is stale.

use std::collections::BTreeSet;
use std::time::Duration;

use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{Hash, PublicKey};
use anteroom_proto::relay::pass::{MAX_PEERS, PassNumber, RelayPass};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::ToAgent;
use tokio::time::Instant;

use super::Distribution;
use crate::clock;
use crate::store::StoreError;

/// How often it is looked whether a pass should be renewed, at least.
pub(super) const LOOK: Duration = Duration::from_secs(60);
/// For how long a pass is fresh while others are signed. A gateway that has lost sight of its controllers for so long
/// is still relayed to peers that haven't.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// After how long a gateway gets another, at most; and by how much sooner, each at a time of its own. Else all that
/// were given out together, after a start, would be signed and judged anew together.
const RENEW: Duration = Duration::from_secs(12 * 60 * 60);
const SPREAD: Duration = Duration::from_secs(4 * 60 * 60);

/// By how much the wall clock may stray from the monotonic one before passes are signed anew. Far less than [`LIFETIME`]: relays compare
/// the times at which passes were signed, so after a step those of before would be stale all at once.
const STRAY: Duration = Duration::from_secs(60 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is known of a gateway's pass, on its connection of now.
#[derive(Debug, Default)]
pub(super) struct PassState {
    wanted: bool,
    sent: Option<SentPass>,
}

/// The newest pass that a gateway was sent.
#[derive(Debug, Clone, Copy)]
struct SentPass {
    /// The gateway's part of the intent when it was last looked at: while that is the same, so are the peers.
    leaf: Hash,
    /// What the pass says, but for number and time.
    content: Hash,
    signed: Moment,
}

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    at: Instant,
    wall: UnixMillis,
}

/// Which way the wall clock was set, and by how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    On(Duration),
    Back(Duration),
}

impl Step {
    fn tell(self) {
        let (Self::On(off) | Self::Back(off)) = self;
        let seconds = off.as_secs();
        tracing::warn!(seconds, "this machine's clock was set: passes for relays are signed anew");
        if let Self::Back(off) = self
            && off >= DAY
        {
            tracing::error!(
                days = seconds / DAY.as_secs(),
                "this controller's clock was ahead: gateways that it told the time hold on to that, and count rules with `expires` up to then as over; docs/failures.md has what to do"
            );
        }
    }
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), wall: clock::now() }
    }

    /// Whether the wall clock was set since then by more than clocks stray.
    fn stepped(self, now: Self) -> Option<Step> {
        let passed = now.at.saturating_duration_since(self.at);
        let passed = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let expected = self.wall.saturating_add(passed);
        let (on, back) = (now.wall.since(expected), expected.since(now.wall));
        if on > STRAY {
            Some(Step::On(on))
        } else if back > STRAY {
            Some(Step::Back(back))
        } else {
            None
        }
    }
}

impl SentPass {
    /// Whether it is good for longer.
    fn lasts(&self, gateway: GatewayId, now: Moment) -> bool {
        self.signed.at + renew_after(gateway) > now.at && self.signed.stepped(now).is_none()
    }
}

/// For whom it is to be looked whether they should have another pass.
#[derive(Debug)]
pub(super) struct Looks {
    gateways: BTreeSet<GatewayId>,
    all: bool,
    /// When the wall clock was right the last time.
    clock: Moment,
}

impl Looks {
    pub(super) fn new() -> Self {
        Self { gateways: BTreeSet::new(), all: true, clock: Moment::now() }
    }

    pub(super) fn at(&mut self, gateways: impl IntoIterator<Item = GatewayId>) {
        self.gateways.extend(gateways);
    }

    pub(super) const fn at_all(&mut self) {
        self.all = true;
    }

    /// All are looked at where the wall clock was set.
    fn notice(&mut self, now: Moment) -> Option<Step> {
        let step = self.clock.stepped(now)?;
        (self.clock, self.all) = (now, true);
        Some(step)
    }
}

/// After how long this gateway gets another.
fn renew_after(gateway: GatewayId) -> Duration {
    // Ids are random.
    let [first, second, ..] = *gateway.as_bytes();
    RENEW - SPREAD * u32::from(u16::from_be_bytes([first, second])) / u32::from(u16::MAX)
}

impl PassState {
    /// None was sent yet; whether one is wanted at all.
    pub(super) const fn new(wanted: bool) -> Self {
        Self { wanted, sent: None }
    }
}

/// What a pass is to say.
struct Draft {
    gateway: GatewayId,
    identity: PublicKey,
    peers: Vec<GatewayId>,
    leaf: Hash,
    content: Hash,
}

impl Distribution {
    /// Sends a pass to every connected gateway that wants one and has none, or none that is good for much longer.
    pub(super) async fn push_passes(&mut self) -> Result<(), StoreError> {
        let (Some(current), Some(chain)) = (self.controller.current(), self.controller.authority())
        else {
            return Ok(());
        };
        if self.controller.restored().is_some() {
            return Ok(());
        }
        let now = Moment::now();
        if let Some(step) = self.passes.notice(now) {
            step.tell();
        }
        let looked: Vec<GatewayId> = if self.passes.all {
            self.known.keys().copied().collect()
        } else {
            self.passes.gateways.iter().copied().collect()
        };
        let drafts: Vec<Draft> = looked
            .iter()
            .filter_map(|gateway| {
                let known = self.known.get_mut(gateway).filter(|known| known.pass.wanted)?;
                let identity = self.controller.online.identity(*gateway)?;
                if !current.approves(*gateway, identity) {
                    return None;
                }
                let leaf = current.compiled.leaves.get(gateway)?;
                let sent = &mut known.pass.sent;
                let good = sent.as_mut().filter(|sent| sent.lasts(*gateway, now));
                if good.as_ref().is_some_and(|sent| sent.leaf == leaf.hash) {
                    return None;
                }
                let mut peers: Vec<GatewayId> =
                    leaf.intent.peers.iter().map(|peer| peer.gateway).collect();
                peers.sort_unstable();
                peers.dedup();
                peers.truncate(MAX_PEERS);
                let bytes: Vec<&[u8]> =
                    peers.iter().map(|peer| peer.as_bytes().as_slice()).collect();
                let content = Hash::of("anteroom relay pass content", &bytes);
                if let Some(sent) = good.filter(|sent| sent.content == content) {
                    sent.leaf = leaf.hash;
                    return None;
                }
                Some(Draft { gateway: *gateway, identity, peers, leaf: leaf.hash, content })
            })
            .collect();
        if let Some(count) = u32::try_from(drafts.len()).ok().filter(|count| *count > 0) {
            let first = self.controller.store.reserve_passes(count).await?;
            self.send_passes(&chain, drafts, first);
        }
        self.passes.gateways.clear();
        self.passes.all = false;
        Ok(())
    }

    fn send_passes(&mut self, chain: &AuthorityChain, drafts: Vec<Draft>, first: u64) {
        let now = Moment::now();
        for (sequence, draft) in (first..).zip(drafts) {
            let Draft { gateway, identity, peers, leaf, content } = draft;
            let pass = RelayPass {
                organisation: chain.newest().organisation,
                gateway,
                identity,
                number: PassNumber { incarnation: chain.newest().incarnation, sequence },
                peers,
                issued_at: now.wall,
                lifetime: u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX),
            };
            let signed = Signed::sign(&pass, &self.controller.identity);
            if self.controller.online.send(gateway, ToAgent::Pass(Box::new(signed))) {
                tracing::debug!(%gateway, number = %pass.number, peers = pass.peers.len(), "pass");
                self.known.entry(gateway).or_default().pass.sent =
                    Some(SentPass { leaf, content, signed: now });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_are_spread_and_none_comes_too_late() {
        let after = |first, second| {
            let mut bytes = [7; 16];
            (bytes[0], bytes[1]) = (first, second);
            renew_after(GatewayId::from_bytes(bytes))
        };
        assert_eq!(after(0, 0), RENEW);
        assert_eq!(after(255, 255), RENEW - SPREAD);
        assert!(after(1, 0) < after(0, 255) && after(255, 0) > RENEW - SPREAD);
    }

    /// A machine whose clock has no battery, until its time servers answer; and one that was a day ahead until somebody saw it.
    #[test]
    fn passes_that_a_clock_signed_before_it_was_set_are_good_no_longer() {
        let gateway = GatewayId::from_bytes([255; 16]);
        let begun = Moment { at: Instant::now(), wall: UnixMillis(1_500_000_000_000) };
        let later = |hours: u64, ahead: i64| Moment {
            at: begun.at + Duration::from_secs(hours * 3600),
            wall: UnixMillis((begun.wall.0 + hours * 3_600_000).saturating_add_signed(ahead)),
        };
        let sent = SentPass { leaf: Hash::ZERO, content: Hash::ZERO, signed: begun };
        let years = 7 * 365 * 86_400_000;
        assert!(sent.lasts(gateway, later(7, 0)) && !sent.lasts(gateway, later(8, 0)));
        for ahead in [years, -years, 7_200_000, -7_200_000] {
            assert!(!sent.lasts(gateway, later(1, ahead)), "{ahead}");
            let mut looks = Looks { gateways: BTreeSet::new(), all: false, clock: begun };
            assert_eq!(looks.notice(later(1, 0)), None);
            assert!(!looks.all);
            let off = Duration::from_millis(ahead.unsigned_abs());
            let step = if ahead > 0 { Step::On(off) } else { Step::Back(off) };
            assert_eq!(looks.notice(later(1, ahead)), Some(step));
            assert!(looks.all, "whoever was given one: {ahead}");
            assert_eq!(looks.notice(later(2, ahead)), None, "it is said once");
        }
        assert!(sent.lasts(gateway, later(1, 600_000)), "clocks stray");
    }
}
