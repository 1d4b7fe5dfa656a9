//! An organisation without a controller: gateways that hold signed views as if they had been enrolled and approved.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anteroom_agent::state::{Enrolment, StateDir};
use anteroom_proto::authority::{Authority, AuthorityChain, Controller, Operator, Relay};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cbor::{self, Blob};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{
    GatewayId, InviteId, MemberId, OrganisationId, RuleId, SegmentId, SiteId,
};
use anteroom_proto::intent::{
    Device, Endpoint, Infrastructure, Intent, IntentRoot, Member, OnFailure, PeerGateway, Rule,
    Segment,
};
use anteroom_proto::key::{Hash, IdentityKey, PublicKey, TunnelSecret};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::merkle::{Tree, leaf_hash};
use anteroom_proto::mode::Mode;
use anteroom_proto::operation::{Operation, PeerOperation, ViewNumber};
use anteroom_proto::overlay::{gateway_address, member_address};
use anteroom_proto::relay::pass::{PassNumber, RelayPass};
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::{Peer, SignedView, View};
use anyhow::{Context as _, Result};

/// The organisation.
const ORGANISATION: OrganisationId = OrganisationId::from_bytes([0xbe; 16]);
/// Where its controller would be: nobody listens there.
const CONTROLLER: &str = "127.0.0.1:9";
/// When everything was signed.
const SIGNED_AT: UnixMillis = UnixMillis(1_000_000);

/// A gateway with its keys.
#[derive(Debug)]
pub struct Gateway {
    /// Who it is.
    pub id: GatewayId,
    /// Who signs its tunnel keys.
    pub identity: PublicKey,
    /// Its tunnel key.
    pub key: Signed<TunnelKeyBinding>,
    /// Where its tunnels end.
    pub endpoint: SocketAddr,
    /// Where the real one keeps its state; none for a gateway that is made believe.
    pub state: Option<PathBuf>,
}

/// An enforced device.
#[derive(Debug, Clone, Copy)]
pub struct Attached {
    /// Its place among the gateways.
    pub gateway: usize,
    /// The port: 0 for `port1`.
    pub port: usize,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its address.
    pub address: Ipv4Addr,
}

/// A rule that opens TCP, UDP and echo.
#[derive(Debug, Clone, Default)]
pub struct Opening {
    /// Who may open, as places of devices.
    pub from: Vec<usize>,
    /// To whom.
    pub to: Vec<usize>,
}

/// Everything that is signed.
#[derive(Debug)]
pub struct Organisation {
    operator: IdentityKey,
    controller: IdentityKey,
    chain: AuthorityChain,
    /// Its gateways.
    pub gateways: Vec<Gateway>,
    /// Its devices.
    pub devices: Vec<Attached>,
    /// Who may open connections to whom, as places of devices: a rule each.
    pub openings: Vec<Opening>,
    /// So many further rules between the first devices of the first opening, that fit none of the traffic.
    pub idle_rules: usize,
    /// Whether gateways know no address of each other.
    pub apart: bool,
}

/// The id with this number.
#[must_use]
pub fn gateway_id(number: usize) -> GatewayId {
    GatewayId::from_bytes((0x6a7e_0000_0000 + number as u128).to_be_bytes())
}

impl Organisation {
    /// One with an operator, and with a controller that can't be reached.
    ///
    /// # Errors
    /// If what it signs doesn't hold, which would be a defect.
    pub fn new() -> Result<Self> {
        let operator = IdentityKey::from_seed(&[1; 32]);
        let controller = IdentityKey::from_seed(&[2; 32]);
        let first = Authority {
            organisation: ORGANISATION,
            number: 1,
            previous: Hash::ZERO,
            operators: vec![Operator { name: "bench".parse()?, key: operator.public() }],
            threshold: 1,
            controllers: vec![Controller {
                key: controller.public(),
                addresses: vec![CONTROLLER.into()],
            }],
            relays: vec![],
            recovery: IdentityKey::from_seed(&[3; 32]).public(),
            incarnation: 0,
            root: None,
        };
        let signed = Signed::sign(&first, &operator);
        let chain = AuthorityChain::follow(signed.hash(), &[signed])?;
        Ok(Self {
            operator,
            controller,
            chain,
            gateways: Vec::new(),
            devices: Vec::new(),
            openings: Vec::new(),
            idle_rules: 0,
            apart: false,
        })
    }

    /// What a relay pins: the hash of the first authority document.
    ///
    /// # Errors
    /// If there is none, which would be a defect.
    pub fn pin(&self) -> Result<Hash> {
        Ok(self.chain.to_signed().first().context("the chain begins somewhere")?.hash())
    }

    /// Has the next authority document name a relay. To be done before gateways are enrolled.
    ///
    /// # Errors
    /// If what is signed doesn't hold, which would be a defect.
    pub fn name_relay(&mut self, key: PublicKey, addresses: Vec<String>) -> Result<()> {
        let mut signed = self.chain.to_signed();
        let newest = signed.last().context("the chain begins somewhere")?;
        let mut next = self.chain.newest().next(newest);
        next.relays = vec![Relay { name: "relay".parse()?, key, addresses }];
        signed.push(Signed::sign(&next, &self.operator));
        self.chain = AuthorityChain::follow(self.pin()?, &signed)?;
        Ok(())
    }

    /// Enrols a real gateway, whose keys are made in `state`.
    ///
    /// # Errors
    /// If the directory can't be written.
    pub fn enrol(&mut self, state: PathBuf, endpoint: SocketAddr) -> Result<()> {
        let id = gateway_id(self.gateways.len());
        let directory = StateDir::open(&state)?;
        let identity = directory.identity_or_new()?;
        let enrolment = Enrolment {
            organisation: ORGANISATION,
            gateway: id,
            invite: InviteId::from_bytes([4; 16]),
            controller: self.controller.public(),
            addresses: vec![CONTROLLER.into()],
            pin: self.pin()?,
        };
        directory.write_enrolment(&enrolment)?;
        directory.write_authority(&self.chain)?;
        let key = directory.new_tunnel_key(&[], 0)?.bind(&enrolment, &identity);
        let identity = identity.public();
        self.gateways.push(Gateway { id, identity, key, endpoint, state: Some(state) });
        Ok(())
    }

    /// Adds a gateway that is made believe by an engine of this program. Returns the keys that it is to have.
    pub fn pretend(&mut self, endpoint: SocketAddr) -> (IdentityKey, TunnelSecret) {
        let number = self.gateways.len();
        let id = gateway_id(number);
        let seed = |what| Hash::of(what, &[&number.to_be_bytes()]);
        let identity = IdentityKey::from_seed(seed("bench identity").as_bytes());
        let secret = TunnelSecret::from_bytes(*seed("bench tunnel").as_bytes());
        let binding = TunnelKeyBinding {
            organisation: ORGANISATION,
            gateway: id,
            x25519: secret.public(),
            ml_kem_768: None,
            serial: 1,
            not_before: UnixMillis(0),
        };
        let key = Signed::sign(&binding, &identity);
        self.gateways.push(Gateway { id, identity: identity.public(), key, endpoint, state: None });
        (identity, secret)
    }

    /// The view of a gateway that is made believe, without the signatures, which it wouldn't look at.
    ///
    /// # Errors
    /// If a key's own signature doesn't hold, which would be a defect.
    pub fn view(&self, place: usize) -> Result<View> {
        let intent = self.intent(place)?;
        let operation = self.operation(place, &intent);
        let peers = intent.peers.iter().zip(&operation.peers).map(|(gateway, known)| {
            let keys = known
                .keys
                .iter()
                .map(|key| Ok(key.verify(ORGANISATION, &[gateway.identity])?.into_document()));
            let keys = keys.collect::<Result<_>>()?;
            Ok(Peer {
                gateway: gateway.clone(),
                endpoints: known.endpoints.clone(),
                keys,
                quic: None,
            })
        });
        Ok(View {
            peers: peers.collect::<Result<_>>()?,
            intent,
            revision: 1,
            root_hash: Hash::ZERO,
            incarnation: 0,
            signed_at: SIGNED_AT,
            intent_hash: Hash::ZERO,
            operation,
            upheld: anteroom_proto::approval::Upheld::default(),
            left_out: Vec::new(),
        })
    }

    /// Signs the views and puts them into the real gateways' state.
    ///
    /// # Errors
    /// If a directory can't be written.
    pub fn sign(&self) -> Result<()> {
        let real = self.gateways.iter().enumerate().filter(|(_, gateway)| gateway.state.is_some());
        let intents: Vec<(usize, Intent)> =
            real.map(|(place, _)| Ok((place, self.intent(place)?))).collect::<Result<_>>()?;
        let leaves: Vec<Blob> =
            intents.iter().map(|(_, intent)| Blob(cbor::encode(intent))).collect();
        let tree = Tree::new(leaves.iter().map(|leaf| leaf_hash(&leaf.0)).collect());
        let root = IntentRoot {
            organisation: ORGANISATION,
            authority: self.chain.newest().number,
            incarnation: 0,
            number: 1,
            previous: Hash::ZERO,
            model: Hash::ZERO,
            root: tree.root(),
            signed_at: SIGNED_AT,
        };
        let root = Signed::sign(&root, &self.operator);
        for (index, ((place, intent), leaf)) in intents.iter().zip(leaves).enumerate() {
            let operation = Signed::sign(&self.operation(*place, intent), &self.controller);
            let proof = tree.proof(index).context("a leaf has a place in the tree")?;
            let view = SignedView { intent: leaf, proof, root: root.clone(), operation };
            let state = self.gateways[*place].state.as_deref().context("a real gateway")?;
            let directory = StateDir::open(state)?;
            directory.mark_enforced()?;
            directory.write_view(&view)?;
            if !self.chain.newest().relays.is_empty() {
                directory.write_relay_pass(&self.pass(*place, intent))?;
            }
        }
        Ok(())
    }

    /// What a relay is to know of a gateway.
    fn pass(&self, place: usize, intent: &Intent) -> Signed<RelayPass> {
        let pass = RelayPass {
            organisation: ORGANISATION,
            gateway: self.gateways[place].id,
            identity: self.gateways[place].identity,
            number: PassNumber { incarnation: 0, sequence: 1 },
            peers: intent.peers.iter().map(|peer| peer.gateway).collect(),
            issued_at: SIGNED_AT,
            lifetime: 24 * 3600,
        };
        Signed::sign(&pass, &self.controller)
    }

    /// The first who may open anything, and to whom.
    fn first(&self) -> Option<(usize, usize)> {
        let opening = self.openings.first()?;
        Some((*opening.from.first()?, *opening.to.first()?))
    }

    fn member(&self, place: usize) -> Member {
        let attached = &self.devices[place];
        let id = member_id(place);
        Member {
            id,
            gateway: self.gateways[attached.gateway].id,
            overlay: member_address(ORGANISATION, id),
            site: SiteId::of("bench"),
            vlan: None,
            mac: MacAddr(attached.mac),
            addresses: vec![attached.address.into()],
            mode: Mode::Enforce,
            mode_since: 1,
            quarantined: false,
        }
    }

    /// What the gateway at this place is to do: its own devices, and those that they talk to.
    ///
    /// # Errors
    /// If a name doesn't fit, which would be a defect.
    pub fn intent(&self, gateway: usize) -> Result<Intent> {
        let here = |device: &usize| self.devices[*device].gateway == gateway;
        let mut members: Vec<usize> = Vec::new();
        let mut rules = Vec::new();
        let mut segments = Vec::new();
        for (number, Opening { from, to }) in self.openings.iter().enumerate() {
            // Each end is cut down to what is here and what those here may talk to.
            let [from_here, to_here] = [from, to].map(|end| end.iter().any(here));
            if !from_here && !to_here {
                continue;
            }
            let mut end = |name: &str, devices: &[usize], all: bool| {
                let known = devices.iter().filter(|device| all || here(device));
                let id = SegmentId::of(&format!("{name}-{number}"));
                let ids = known.clone().map(|device| member_id(*device)).collect();
                segments.push(Segment { id, members: ids, externals: Vec::new() });
                members.extend(known.filter(|device| !here(device)));
                Endpoint::Segment(id)
            };
            let ends = (end("from", from, to_here), end("to", to, from_here));
            let services = ["tcp/1-65535", "udp/1-65535", "icmp/echo"];
            let services = services.into_iter().map(str::parse).collect::<Result<_, _>>()?;
            rules.push(rule(&format!("opening-{number}"), ends, services));
        }
        if let Some((from, to)) = self.first().filter(|(from, to)| here(from) || here(to)) {
            let ends = [from, to].map(|device| Endpoint::Member(member_id(device)));
            for number in 0..self.idle_rules {
                // One that the traffic here doesn't use.
                let port = format!("tcp/{}", 10_000 + number % 50_000).parse()?;
                rules.push(rule(&format!("idle-{number}"), (ends[0], ends[1]), vec![port]));
            }
        }
        members.sort_unstable();
        members.dedup();
        let mut peers: Vec<usize> = members.iter().map(|m| self.devices[*m].gateway).collect();
        peers.sort_unstable();
        peers.dedup();
        let devices = (0..self.devices.len()).filter(here).map(|place| {
            let attached = &self.devices[place];
            Ok(Device {
                member: self.member(place),
                port: format!("port{}", attached.port + 1).parse()?,
                prefix_len: Some(24),
                router: None,
                on_failure: OnFailure::Default,
                rollout: anteroom_proto::rollout::Rollout::default(),
                two_person: false,
            })
        });
        Ok(Intent {
            identity: None,
            organisation: ORGANISATION,
            gateway: self.gateways[gateway].id,
            overlay: gateway_address(ORGANISATION, self.gateways[gateway].id),
            site: SiteId::of("bench"),
            devices: devices.collect::<Result<_>>()?,
            members: members.iter().map(|member| self.member(*member)).collect(),
            peers: peers
                .iter()
                .map(|peer| PeerGateway {
                    gateway: self.gateways[*peer].id,
                    identity: self.gateways[*peer].identity,
                    overlay: gateway_address(ORGANISATION, self.gateways[*peer].id),
                })
                .collect(),
            segments,
            externals: Vec::new(),
            clients: Vec::new(),
            rules,
            infrastructure: Infrastructure::default(),
            bypasses: Vec::new(),
        })
    }

    /// What a controller would add: where peers are, and their keys.
    fn operation(&self, place: usize, intent: &Intent) -> Operation {
        let peers = self.gateways.iter().filter(|gateway| {
            intent.peers.binary_search_by_key(&gateway.id, |peer| peer.gateway).is_ok()
        });
        Operation {
            organisation: ORGANISATION,
            gateway: self.gateways[place].id,
            number: ViewNumber { incarnation: 0, sequence: 1 },
            revision: 1,
            peers: peers
                .map(|gateway| PeerOperation {
                    gateway: gateway.id,
                    endpoints: if self.apart { Vec::new() } else { vec![gateway.endpoint] },
                    keys: vec![gateway.key.clone()],
                    quic: None,
                })
                .collect(),
            quarantined: Vec::new(),
            suspended: Vec::new(),
            issued_at: SIGNED_AT,
        }
    }
}

fn member_id(place: usize) -> MemberId {
    MemberId::from_bytes((0xde_0000_0000 + place as u128).to_be_bytes())
}

fn rule(name: &str, (from, to): (Endpoint, Endpoint), services: Vec<PortMatch>) -> Rule {
    Rule {
        id: RuleId::of(name),
        from,
        to,
        services,
        clear: false,
        essential: false,
        conditions: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use anteroom_agent::state::Held;

    use super::*;

    #[test]
    fn views_are_such_as_a_gateway_takes() {
        let directory = tempfile::tempdir().unwrap();
        let mut organisation = Organisation::new().unwrap();
        for number in 0..2_u8 {
            let state = directory.path().join(format!("state-{number}"));
            organisation.enrol(state, ([192, 168, 7, number + 1], 51_820).into()).unwrap();
            organisation.devices.push(Attached {
                gateway: number.into(),
                port: 0,
                mac: [0, 0, 0x5e, 0, 0x53, number],
                address: Ipv4Addr::new(10, 0, 0, number + 1),
            });
        }
        organisation.openings.push(Opening { from: vec![0], to: vec![1] });
        organisation.idle_rules = 10;
        organisation.sign().unwrap();
        for gateway in &organisation.gateways {
            let state = StateDir::open(gateway.state.as_deref().unwrap()).unwrap();
            assert!(state.ever_enforced());
            let held = Held::load(&state).unwrap();
            assert!(held.problems.is_empty(), "{:?}", held.problems);
            let view = held.enrolled.unwrap().view.unwrap();
            assert_eq!((view.intent.rules.len(), view.intent.members.len()), (11, 1));
            assert!(view.left_out.is_empty(), "{:?}", view.left_out);
            assert_eq!((view.peers.len(), view.peers[0].keys.len()), (1, 1));
        }
    }
}
