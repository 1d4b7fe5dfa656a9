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
/// After how long a gateway gets another.
const RENEW: Duration = Duration::from_secs(12 * 60 * 60);

/// What is known of a gateway's pass, on its connection of now.
#[derive(Debug, Default)]
pub(super) struct PassState {
    wanted: bool,
    /// What the newest one says, but for number and time, and when it was sent.
    sent: Option<(Hash, Instant)>,
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
            .iter()
            .filter(|(_, known)| known.pass.wanted)
            .filter_map(|(gateway, known)| {
                let identity = self.controller.online.identity(*gateway)?;
                if !current.approves(*gateway, identity) {
                    return None;
                }
                let leaf = current.compiled.leaves.get(gateway)?;
                let due = known.pass.sent.filter(|(_, at)| now.duration_since(*at) < RENEW);
                let mut peers: Vec<GatewayId> =
                    leaf.intent.peers.iter().map(|peer| peer.gateway).collect();
                peers.sort_unstable();
                peers.dedup();
                peers.truncate(MAX_PEERS);
                let bytes: Vec<&[u8]> =
                    peers.iter().map(|peer| peer.as_bytes().as_slice()).collect();
                let content = Hash::of("anteroom relay pass content", &bytes);
                let same = due.is_some_and(|(sent, _)| sent == content);
                (!same).then_some(Draft { gateway: *gateway, identity, peers, content })
            })
            .collect();
        let Some(count) = u32::try_from(drafts.len()).ok().filter(|count| *count > 0) else {
            return Ok(());
        };
        let first = self.controller.store.reserve_passes(count).await?;
        for (sequence, draft) in (first..).zip(drafts) {
            let Draft { gateway, identity, peers, content } = draft;
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
                self.known.entry(gateway).or_default().pass.sent = Some((content, now));
            }
        }
        Ok(())
    }
}
