//! Passes for relays: with whom each connected gateway shares a view, signed, and signed again long before it is stale.

use std::time::Duration;

use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{Hash, PublicKey};
use anteroom_proto::relay::pass::{MAX_PEERS, PassNumber, RelayPass};
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
    at: Instant,
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
        let now = Instant::now();
        let drafts: Vec<Draft> = self
            .known
            .iter_mut()
            .filter(|(_, known)| known.pass.wanted)
            .filter_map(|(gateway, known)| {
                let identity = self.controller.online.identity(*gateway)?;
                if !current.approves(*gateway, identity) {
                    return None;
                }
                let leaf = current.compiled.leaves.get(gateway)?;
                let sent = &mut known.pass.sent;
                let good = sent.as_mut().filter(|sent| sent.at + renew_after(*gateway) > now);
                // This is done for everyone at each event: only where something changed it costs more than a look.
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
        let Some(count) = u32::try_from(drafts.len()).ok().filter(|count| *count > 0) else {
            return Ok(());
        };
        let first = self.controller.store.reserve_passes(count).await?;
        for (sequence, draft) in (first..).zip(drafts) {
            let Draft { gateway, identity, peers, leaf, content } = draft;
            let pass = RelayPass {
                organisation: chain.newest().organisation,
                gateway,
                identity,
                number: PassNumber { incarnation: chain.newest().incarnation, sequence },
                peers,
                issued_at: clock::now(),
                lifetime: u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX),
            };
            let signed = Signed::sign(&pass, &self.controller.identity);
            if self.controller.online.send(gateway, ToAgent::Pass(Box::new(signed))) {
                tracing::debug!(%gateway, number = %pass.number, peers = pass.peers.len(), "pass");
                self.known.entry(gateway).or_default().pass.sent =
                    Some(SentPass { leaf, content, at: now });
            }
        }
        Ok(())
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
}
