//! What the engine knows of its peers, and what it tells them.

use std::sync::Arc;
use std::time::Instant;

use anteroom_proto::id::{GatewayId, MemberId};

use super::Engine;
use super::prepared::Peers;
use crate::clock::Heard;
use crate::peer::{self, KeyUse, OwnKey, PeerEvent};
use crate::policy::{Past, PeerState, Policy};
use crate::report::LearnedClient;

/// Most peers that are admitted in one turn, as packets wait meanwhile.
const ADMITTED_AT_ONCE: usize = 64;
/// Most different policies of the past that are kept for peers that lag. One that lags further behind is taken to
/// have followed: a policy may be large.
const MAX_PASTS: usize = 8;

impl Engine {
    /// Takes over the peers of a view. `before` is the policy until now. Who isn't one any more is cut off; the others
    /// are admitted in steps, which [`Self::admit_some`] takes.
    pub(super) fn set_peers(&mut self, peers: Peers, before: Option<&Arc<Policy>>, now: Instant) {
        self.tell_peers(now);
        // Who comes back with another key is called where it was heard last.
        let places = self.client_places();
        self.clients_were = places.into_iter().map(|client| (client.member, client.at)).collect();
        self.peers.cut_off(|gateway| peers.get(gateway), now);
        self.peer_states.retain(|gateway, _| peers.get(*gateway).is_some());
        for peer in &peers.list {
            self.peer_states.entry(peer.gateway).or_insert_with(|| PeerState::new(now));
            if !peer.client {
                self.leave(peer.gateway, peer.relation, before, now);
            }
        }
        self.bound_pasts();
        self.joining = peers.list.into_iter();
        self.admit_some(now);
    }

    /// Admits some of the peers of the view in force.
    pub(super) fn admit_some(&mut self, now: Instant) {
        let mut admitted = Vec::new();
        for mut config in self.joining.by_ref().take(ADMITTED_AT_ONCE) {
            if config.client {
                let member = MemberId::from_bytes(*config.gateway.as_bytes());
                config.endpoints.extend(self.clients_were.get(&member));
            }
            self.peers.admit(&config, now);
            admitted.push(config.gateway);
            #[cfg(test)]
            {
                self.admitted += 1;
            }
        }
        self.meet_lanes(admitted, now);
        self.next_admission = (self.joining.len() > 0).then_some(now);
    }

    /// Where each client of the view was last heard, in this run or before it.
    pub(super) fn client_places(&self) -> Vec<LearnedClient> {
        let before = |member: &MemberId| self.clients_were.get(member).copied();
        let Some(policy) = &self.policy else {
            let all = self.clients_were.iter();
            return all.map(|(member, at)| LearnedClient { member: *member, at: *at }).collect();
        };
        let clients = policy.view.intent.clients.iter().map(|client| client.id);
        let places = clients.filter_map(|member| {
            let slot = self.peers.slot(member.into());
            let heard = slot.and_then(|slot| self.peers.get(slot)?.endpoint());
            Some(LearnedClient { member, at: heard.or_else(|| before(&member))? })
        });
        places.collect()
    }

    /// Remembers what was agreed on with a peer, if the view just taken holds something else in common with it.
    fn leave(
        &mut self,
        gateway: GatewayId,
        relation: u64,
        before: Option<&Arc<Policy>>,
        now: Instant,
    ) {
        let Some(state) = self.peer_states.get_mut(&gateway) else { return };
        let Some(before) = before.filter(|before| before.relation(gateway) != Some(relation))
        else {
            return;
        };
        match &mut state.past {
            // It hasn't followed even to where this gateway was until now.
            Some(past) if past.followed.is_none() => past.left = now,
            past => {
                *past = Some(Past { policy: Arc::clone(before), left: now, followed: None });
            }
        }
        self.settling = true;
        self.compare(gateway, now);
    }

    /// Looks whether a peer holds the same in common, and notes when it came to.
    fn compare(&mut self, gateway: GatewayId, now: Instant) {
        let own = self.policy.as_ref().and_then(|policy| policy.relation(gateway));
        let Some(state) = self.peer_states.get_mut(&gateway) else { return };
        let follows = state.relation.is_some() && state.relation == own;
        let Some(past) = &mut state.past else { return };
        if follows && past.followed.is_none() {
            past.followed = Some(now);
            self.settling = true;
        } else if !follows && past.over().is_some_and(|over| over <= now) {
            // It is ahead: what both last agreed on is what is in force here.
            state.past = None;
        }
    }

    fn bound_pasts(&mut self) {
        let mut pasts: Vec<(Instant, *const Policy)> = self
            .peer_states
            .values()
            .filter_map(|state| state.past.as_ref())
            .map(|past| (past.left, Arc::as_ptr(&past.policy)))
            .collect();
        pasts.sort_unstable_by_key(|(left, _)| std::cmp::Reverse(*left));
        let mut kept: Vec<*const Policy> = Vec::new();
        for (_, policy) in pasts {
            if kept.len() < MAX_PASTS && !kept.contains(&policy) {
                kept.push(policy);
            }
        }
        for state in self.peer_states.values_mut() {
            let is_kept = |past: &Past| kept.contains(&Arc::as_ptr(&past.policy));
            if !state.past.as_ref().is_some_and(is_kept) {
                state.past = None;
            }
        }
    }

    /// Has cached verdicts found again while pairs may be changing their path: some change with time alone.
    pub(super) fn settle(&mut self, now: Instant) {
        if !self.settling {
            return;
        }
        self.epoch += 1;
        self.settling = false;
        for state in self.peer_states.values_mut() {
            if state.past.as_ref().and_then(Past::over).is_some_and(|over| over <= now) {
                state.past = None;
            }
            self.settling |= state.past.as_ref().is_some_and(|past| now < past.settled());
        }
    }

    /// Makes `keys` this gateway's tunnel keys, newest first. What peers and clients have with those that stay goes on.
    pub fn set_own_keys(&mut self, keys: &[OwnKey], now: Instant) {
        self.peers.set_own_keys(keys, now);
        self.change_lane_keys(keys, now);
    }

    /// This gateway's tunnel keys for other gateways, and who still needs each. What waits to be admitted counts.
    #[must_use]
    pub fn key_use(&self, now: Instant) -> Vec<KeyUse> {
        let mut uses = self.peers.key_use(now);
        let strange =
            |peer: &&peer::PeerConfig| !peer.client && self.peers.slot(peer.gateway).is_none();
        let joining = self.joining.as_slice().iter().filter(strange).count();
        for found in &mut uses {
            found.away += joining;
        }
        uses
    }

    pub(super) fn tell_peers(&mut self, now: Instant) {
        let Some(policy) = &self.policy else { return };
        let local = peer::Local {
            overlay: policy.view.intent.overlay,
            revision: policy.view.revision,
            authority: self.authority,
            // A peer's word isn't passed on: one liar would have the whole fleet's.
            confirmed_time: self.clock.by_controller(now).map(|wall| (wall, now)),
        };
        self.peers.set_local(local, now);
    }

    pub(super) fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.peers.poll_event() {
            match event {
                PeerEvent::Live { gateway, live } => {
                    if let Some(state) = self.peer_states.get_mut(&gateway)
                        && state.live != live
                    {
                        (state.live, state.since) = (live, now);
                    }
                    if live {
                        self.peer_is_up(gateway, now);
                    }
                }
                PeerEvent::Holds { gateway, revision, relation } => {
                    if let Some(state) = self.peer_states.get_mut(&gateway) {
                        (state.revision, state.relation) = (Some(revision), relation);
                    }
                    self.compare(gateway, now);
                }
                PeerEvent::Time { gateway, time } => {
                    if self.clock.hear(gateway, time, now) != Heard::Taken {
                        continue;
                    }
                    self.find_boundary(now);
                }
            }
            self.epoch += 1;
        }
    }
}
