//! Distribution: each connected gateway gets the view that the newest revision and its peers' tunnel ends make.
//!
//! Level-triggered: events only say whom to look at; what is sent follows from what should be and what the
//! gateway has. A change costs a signature for each gateway that it affects, and none for the others.

mod ends;
mod passes;
mod rekeys;
mod rotations;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::cbor::{self, Blob};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::Hash;
use anteroom_proto::merkle::Proof;
use anteroom_proto::operation::{Operation, PeerOperation, ViewNumber};
use anteroom_proto::rekey::{RekeyOffer, RekeyOrder};
use anteroom_proto::v1::{Refusal, RefusalCode, Rotate, ToAgent};
use anteroom_proto::view::SignedView;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock;
use crate::state::{Controller, Current};
use crate::store::{AppliedFacts, IssueView, StoreError, ViewState};

pub use ends::{EndsError, TunnelEnds};
use passes::PassState;
use rekeys::Rekey;
pub use rekeys::check_offer;

/// Events that wait.
pub const QUEUE: usize = 1024;
/// How long to wait after the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Something that may change what a gateway should have.
#[derive(Debug)]
pub enum Event {
    /// A revision was taken.
    Model {
        /// The one before it.
        before: Option<Arc<Current>>,
        /// The new one.
        after: Arc<Current>,
    },
    /// An authority document was taken.
    Authority,
    /// A gateway connected and said what it has.
    Connected {
        /// Which.
        gateway: GatewayId,
        /// The authority document that it has.
        authority: u64,
        /// Whether it was greeted as an approved one.
        approved: bool,
        /// What it has in force.
        applied: Option<AppliedFacts>,
        /// Its tunnel ends.
        ends: TunnelEnds,
        /// Whether it wants passes for relays.
        relayed: bool,
    },
    /// Operators want a gateway's tunnel keys replaced.
    Rotate {
        /// Which gateway's.
        gateway: GatewayId,
        /// Which keys, and how.
        rotate: Rotate,
    },
    /// Operators want a gateway's identity key replaced.
    Rekey {
        /// Which gateway's.
        gateway: GatewayId,
        /// The order, which was checked.
        order: Signed<RekeyOrder>,
    },
    /// A gateway offers another identity key.
    Offer {
        /// Which.
        gateway: GatewayId,
        /// What it offers, which was checked.
        offer: Box<RekeyOffer>,
    },
    /// A gateway's tunnel ends changed.
    Ends {
        /// Which.
        gateway: GatewayId,
        /// What they are now.
        ends: TunnelEnds,
    },
    /// A gateway has a view in force.
    Applied {
        /// Which.
        gateway: GatewayId,
        /// What it has in force.
        applied: AppliedFacts,
    },
}

/// What distribution knows of one gateway.
#[derive(Debug, Default)]
struct Known {
    ends: TunnelEnds,
    view: ViewState,
    applied: Option<AppliedFacts>,
    /// The authority document that it was told of.
    authority: u64,
    /// Whether the newest view went out over the connection of now.
    sent: bool,
    pass: PassState,
    /// Which of its tunnel keys operators want replaced.
    rotate: Option<Rotate>,
    /// The replacement of its identity key that isn't done.
    rekey: Option<Rekey>,
}

/// Takes events and sends views.
#[derive(Debug)]
pub struct Distribution {
    controller: Arc<Controller>,
    known: HashMap<GatewayId, Known>,
    dirty: BTreeSet<GatewayId>,
    /// Whose pass may have to be another one.
    passes: passes::Looks,
    /// Who may not know the newest authority document.
    unaware: BTreeSet<GatewayId>,
}

/// A view that is about to be numbered and signed.
struct Draft {
    issue: IssueView,
    peers: Vec<PeerOperation>,
}

impl Distribution {
    /// Reads back what was sent before.
    ///
    /// # Errors
    /// [`StoreError`] when that can't be read.
    pub async fn load(controller: Arc<Controller>) -> Result<Self, StoreError> {
        let rotations = controller.store.rotations().await?;
        let mut rekeys = controller.store.rekeys().await?;
        let known = controller
            .store
            .gateways()
            .await?
            .into_iter()
            .map(|(gateway, facts)| {
                let ends = facts.reachable.map(TunnelEnds::from_stored).unwrap_or_default();
                let known = Known {
                    ends,
                    view: facts.view,
                    applied: facts.applied,
                    authority: 0,
                    sent: false,
                    pass: PassState::default(),
                    rotate: rotations.get(&gateway).copied(),
                    rekey: rekeys.remove(&gateway).map(Rekey::stored),
                };
                (gateway, known)
            })
            .collect();
        let passes = passes::Looks::new();
        Ok(Self { controller, known, dirty: BTreeSet::new(), passes, unaware: BTreeSet::new() })
    }

    /// Works until nobody can send events any more.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut retry: Option<Instant> = None;
        let mut renew = tokio::time::interval(passes::LOOK);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wait = async {
                match retry {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    None => return,
                },
                () = wait => {}
                _ = renew.tick() => self.passes.at_all(),
            }
            for _ in 0..QUEUE {
                match events.try_recv() {
                    Ok(event) => self.take(event),
                    Err(_) => break,
                }
            }
            let pushed = match self.push().await {
                Ok(()) => self.push_passes().await,
                failed => failed,
            };
            retry = match pushed {
                Ok(()) => None,
                Err(error) => {
                    tracing::error!(%error, "views can't be numbered; trying again");
                    Some(Instant::now() + RETRY)
                }
            };
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Model { before, after } => self.model(before.as_deref(), &after),
            Event::Authority => {
                self.unaware.extend(self.controller.online.gateways());
                // A new incarnation makes new views of all, and passes were withheld until then.
                self.dirty.extend(self.controller.online.gateways());
                self.passes.at_all();
            }
            Event::Connected { gateway, approved, authority, applied, ends, relayed } => {
                self.unaware.insert(gateway);
                let known = self.known.entry(gateway).or_default();
                known.authority = authority;
                known.applied = applied;
                known.sent = false;
                known.pass = PassState::new(relayed);
                self.dirty.insert(gateway);
                self.passes.at([gateway]);
                let lost = self.lost(gateway, &ends);
                self.set_ends(gateway, ends);
                match lost {
                    Some(lost) => self.want_rotation(gateway, lost),
                    None => self.ask_to_rotate(gateway),
                }
                self.end_rekey(gateway);
                self.ask_to_rekey(gateway);
                self.cut_off_if_unwanted(gateway, approved);
            }
            Event::Rotate { gateway, rotate } => self.want_rotation(gateway, rotate),
            Event::Rekey { gateway, order } => self.want_rekey(gateway, order),
            Event::Offer { gateway, offer } => self.take_offer(gateway, &offer),
            Event::Ends { gateway, ends } => self.set_ends(gateway, ends),
            Event::Applied { gateway, applied } => {
                self.known.entry(gateway).or_default().applied = Some(applied);
            }
        }
    }

    fn model(&mut self, before: Option<&Current>, after: &Current) {
        // Closing goes first.
        for gateway in self.controller.online.gateways() {
            let was = before.is_some_and(|before| before.model.gateways.contains_key(&gateway));
            self.cut_off_if_unwanted(gateway, was);
        }
        let affected = match before {
            Some(before) if before.as_signed => before.compiled.affected(&after.compiled),
            _ => after.compiled.leaves.keys().copied().collect(),
        };
        self.passes.at(affected.iter().copied());
        self.dirty.extend(affected);
    }

    /// Closes a gateway's connection if the newest revision has revoked it, or no longer has it. The greeting
    /// checks the same, against a revision that may be older by now.
    fn cut_off_if_unwanted(&self, gateway: GatewayId, was_approved: bool) {
        let online = &self.controller.online;
        let (Some(current), Some(identity)) = (self.controller.current(), online.identity(gateway))
        else {
            return;
        };
        let gone = was_approved && !current.approves(gateway, identity);
        if gone && current.model.gateways.contains_key(&gateway) {
            tracing::info!(%gateway, "a gateway is to come with its new identity key");
            online.refuse(gateway, replaced());
        } else if gone || current.revokes(gateway, identity) {
            tracing::info!(%gateway, "cutting off a gateway that is no longer approved");
            online.refuse(gateway, revoked());
        }
    }

    fn set_ends(&mut self, gateway: GatewayId, ends: TunnelEnds) {
        let known = self.known.entry(gateway).or_default();
        if known.ends == ends {
            return;
        }
        known.ends = ends;
        self.touch_peers(gateway);
    }

    /// What peers are told of a gateway has changed.
    fn touch_peers(&mut self, gateway: GatewayId) {
        // Whoever has it for a peer is its peer, too.
        if let Some(current) = self.controller.current()
            && let Some(leaf) = current.compiled.leaves.get(&gateway)
        {
            self.dirty.extend(leaf.intent.peers.iter().map(|peer| peer.gateway));
        }
    }

    /// Sends the authority chain to every connected gateway that doesn't know its newest document.
    fn herald(&mut self) {
        let Some(chain) = self.controller.authority() else { return };
        for gateway in std::mem::take(&mut self.unaware) {
            self.inform(gateway, &chain);
        }
    }

    fn inform(&mut self, gateway: GatewayId, chain: &AuthorityChain) {
        let newest = chain.newest().number;
        let known = self.known.entry(gateway).or_default();
        if known.authority < newest {
            known.authority = newest;
            self.controller.online.send(gateway, ToAgent::Authority(chain.to_signed()));
        }
    }

    /// Sends a view to every connected gateway that should have another than it has.
    async fn push(&mut self) -> Result<(), StoreError> {
        // Views are judged by the newest document, so that goes first.
        self.herald();
        let (Some(current), Some(chain)) = (self.controller.current(), self.controller.authority())
        else {
            return Ok(());
        };
        let incarnation = chain.newest().incarnation;
        let in_force =
            current.root.incarnation == incarnation && self.controller.restored().is_none();
        if !current.as_signed || !in_force {
            return Ok(());
        }
        let drafts: HashMap<GatewayId, Draft> = self
            .dirty
            .iter()
            .filter_map(|gateway| {
                let draft = self.draft(*gateway, &current, incarnation)?;
                Some((*gateway, draft))
            })
            .collect();
        if drafts.is_empty() {
            self.dirty.clear();
            return Ok(());
        }
        let views: Vec<IssueView> = drafts.values().map(|draft| draft.issue).collect();
        let numbers = self.controller.store.issue_views(incarnation, &views).await?;
        self.dirty.clear();
        for (gateway, number) in numbers {
            let Some(draft) = drafts.get(&gateway) else { continue };
            let Some(proof) = current.compiled.proof(gateway) else { continue };
            // The root may have been signed under a document of which the event is still on its way.
            self.inform(gateway, &chain);
            self.send(&current, draft, number, proof);
        }
        Ok(())
    }

    /// The view that a gateway should have, unless it has it, or isn't there to take it.
    fn draft(&self, gateway: GatewayId, current: &Current, incarnation: u64) -> Option<Draft> {
        if !self.controller.online.contains(gateway) {
            return None;
        }
        let leaf = current.compiled.leaves.get(&gateway)?;
        let takes_quic = self.controller.online.takes_quic(gateway);
        let peers: Vec<PeerOperation> = leaf
            .intent
            .peers
            .iter()
            .filter_map(|peer| {
                // A peer that was never heard of says nothing, before a restart as after it.
                let known = self.known.get(&peer.gateway)?;
                let ends = &known.ends;
                if *ends == TunnelEnds::default() {
                    return None;
                }
                Some(PeerOperation {
                    gateway: peer.gateway,
                    endpoints: ends.endpoints.clone(),
                    keys: known.keys_by(peer.identity).to_vec(),
                    quic: ends.quic.filter(|_| takes_quic),
                })
            })
            .collect();
        let operation = Hash::of("anteroom operation content", &[&cbor::encode(&peers)]);
        let issue =
            IssueView { gateway, revision: current.root.number, intent: leaf.hash, operation };
        let has_it = self.known.get(&gateway).is_some_and(|known| {
            let view = &known.view;
            let in_force = known.applied.is_some_and(|applied| applied.number == view.number);
            view.number.incarnation == incarnation
                && view.intent == Some(leaf.hash)
                && view.operation == Some(operation)
                && (known.sent || in_force)
        });
        (!has_it).then_some(Draft { issue, peers })
    }

    fn send(&mut self, current: &Current, draft: &Draft, number: ViewNumber, proof: Proof) {
        let IssueView { gateway, intent, operation, revision } = draft.issue;
        let Some(leaf) = current.compiled.leaves.get(&gateway) else { return };
        let signed = Signed::sign(
            &Operation {
                organisation: current.model.organisation,
                gateway,
                number,
                revision,
                peers: draft.peers.clone(),
                quarantined: Vec::new(),
                suspended: Vec::new(),
                issued_at: clock::now(),
            },
            &self.controller.identity,
        );
        let view = SignedView {
            intent: Blob(leaf.bytes.clone()),
            proof,
            root: current.signed_root().clone(),
            operation: signed,
        };
        let known = self.known.entry(gateway).or_default();
        known.view = ViewState { number, intent: Some(intent), operation: Some(operation) };
        known.sent = self.controller.online.send(gateway, ToAgent::View(Box::new(view)));
        tracing::info!(%gateway, %number, revision, sent = known.sent, "view");
    }
}

/// What a gateway hears that operators took out.
#[must_use]
pub fn revoked() -> Refusal {
    Refusal {
        code: RefusalCode::Revoked,
        message: "this gateway was revoked: an operator took it out of the organisation. To use \
                  the machine again, reset it and enrol it with a new invite"
            .into(),
        fatal: false,
    }
}

/// What whoever has an identity key hears that operators replaced by another one.
#[must_use]
pub fn replaced() -> Refusal {
    Refusal {
        code: RefusalCode::Unknown,
        message: "operators have approved another identity key for this gateway, and this one is \
                  void. A gateway that holds the other one comes with it by itself; if it is lost, \
                  enrol the machine anew"
            .into(),
        fatal: false,
    }
}
