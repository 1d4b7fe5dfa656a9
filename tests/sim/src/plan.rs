//! Views as a controller would compile them: need-to-know parts of one plan.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::id::{
    ExternalId, GatewayId, MemberId, OrganisationId, RuleId, SegmentId, SiteId,
};
use anteroom_proto::intent::{
    Bypass, Condition, Device, Endpoint, External, Infrastructure, Intent, Member, OnFailure,
    PeerGateway, Router, Rule, Segment,
};
use anteroom_proto::key::{Hash, IdentityKey, TunnelSecret};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::operation::{Operation, ViewNumber};
use anteroom_proto::overlay;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::{Peer, View};
use ipnet::Ipv4Net;

/// The organisation of all plans.
pub const ORGANISATION: OrganisationId = OrganisationId::from_bytes([0x0a; 16]);

/// A gateway in a plan.
#[derive(Debug, Clone)]
pub struct PlannedGateway {
    /// Its id.
    pub id: GatewayId,
    /// The private key of its tunnels.
    pub secret: TunnelSecret,
    /// Its identity key.
    pub identity: IdentityKey,
    /// Where its WireGuard socket is.
    pub endpoint: SocketAddr,
    /// Whether it was revoked: it is in nobody's view, and nothing of it either.
    pub revoked: bool,
}

/// A device in a plan.
#[derive(Debug, Clone)]
pub struct PlannedDevice {
    /// Its place among the gateways.
    pub gateway: usize,
    /// What the view says of it.
    pub device: Device,
}

/// One end of a rule, by places in the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Devices, as a segment.
    Devices(Vec<usize>),
    /// One device.
    Device(usize),
    /// An external.
    External(usize),
}

/// A rule in a plan.
#[derive(Debug, Clone)]
pub struct PlannedRule {
    /// Its name.
    pub name: String,
    /// Who may open.
    pub from: Who,
    /// To whom.
    pub to: Who,
    /// What: `tcp/104`.
    pub services: Vec<String>,
    /// Whether an enforced device may use it in the clear.
    pub clear: bool,
    /// Whether it survives quarantine.
    pub essential: bool,
    /// When it holds.
    pub conditions: Vec<Condition>,
}

/// All that operators decided.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The newest revision.
    pub revision: u64,
    /// Gateways.
    pub gateways: Vec<PlannedGateway>,
    /// Devices.
    pub devices: Vec<PlannedDevice>,
    /// Externals with their prefixes.
    pub externals: Vec<(String, Vec<Ipv4Net>)>,
    /// Rules.
    pub rules: Vec<PlannedRule>,
    /// Servers of the one site.
    pub infrastructure: Infrastructure,
    /// Orders to bypass gateways: each gateway is told all of them.
    pub bypasses: Vec<Bypass>,
    /// When operators signed.
    pub signed_at: UnixMillis,
}

/// The Ethernet address that ends in these bytes.
#[must_use]
pub const fn mac(kind: u8, number: u8) -> MacAddr {
    MacAddr([0x00, 0x1b, 0x21, 0, kind, number])
}

impl Plan {
    /// An empty plan at revision 1.
    #[must_use]
    pub fn new() -> Self {
        Self { revision: 1, ..Self::default() }
    }

    /// Adds a gateway; returns its place.
    pub fn gateway(&mut self) -> usize {
        let number = u8::try_from(self.gateways.len() + 1).unwrap_or(u8::MAX);
        self.gateways.push(PlannedGateway {
            id: GatewayId::from_bytes([number; 16]),
            secret: TunnelSecret::from_bytes([number; 32]),
            identity: IdentityKey::from_seed(&[number; 32]),
            endpoint: SocketAddr::from(([192, 0, 2, number], 51_820)),
            revoked: false,
        });
        self.gateways.len() - 1
    }

    /// Adds a device in observe, with its router at .1 of its /24; returns its place.
    pub fn device(&mut self, gateway: usize, port: &str, address: [u8; 4]) -> usize {
        let number = u8::try_from(self.devices.len() + 1).unwrap_or(u8::MAX);
        let address = Ipv4Addr::from(address);
        let [a, b, c, _] = address.octets();
        let id = MemberId::from_bytes([number; 16]);
        let member = Member {
            id,
            gateway: self.gateways[gateway].id,
            overlay: overlay::member_address(ORGANISATION, id),
            site: SiteId::of("north"),
            vlan: None,
            mac: mac(0xde, number),
            addresses: vec![address.into()],
            mode: Mode::Observe,
            mode_since: self.revision,
            quarantined: false,
        };
        let device = Device {
            member,
            port: port.parse::<Name>().unwrap_or_else(|error| panic!("{error}")),
            prefix_len: Some(24),
            router: Some(Router { address: Ipv4Addr::new(a, b, c, 1), mac: None }),
            on_failure: OnFailure::Default,
            rollout: anteroom_proto::rollout::Rollout::default(),
            two_person: false,
        };
        self.devices.push(PlannedDevice { gateway, device });
        self.devices.len() - 1
    }

    /// Adds an external; returns its place.
    pub fn external(&mut self, name: &str, prefixes: &[&str]) -> usize {
        let prefixes =
            prefixes.iter().map(|text| text.parse().unwrap_or_else(|e| panic!("{text}: {e}")));
        self.externals.push((name.to_owned(), prefixes.collect()));
        self.externals.len() - 1
    }

    /// Adds a rule; what it returns can be made `clear`, `essential` or conditional.
    pub fn rule(&mut self, name: &str, from: Who, to: Who, services: &[&str]) -> &mut PlannedRule {
        self.rules.push(PlannedRule {
            name: name.to_owned(),
            from,
            to,
            services: services.iter().map(|text| (*text).to_owned()).collect(),
            clear: false,
            essential: false,
            conditions: Vec::new(),
        });
        let last = self.rules.len() - 1;
        &mut self.rules[last]
    }

    /// Begins a new revision.
    pub fn revise(&mut self) {
        self.revision += 1;
    }

    /// Sets a device's mode in a new revision.
    pub fn mode(&mut self, device: usize, mode: Mode) {
        self.revise();
        let member = &mut self.devices[device].device.member;
        if member.mode != mode {
            member.mode = mode;
            member.mode_since = self.revision;
        }
    }

    /// What a device's member is.
    #[must_use]
    pub fn member(&self, device: usize) -> &Member {
        &self.devices[device].device.member
    }

    fn is_in(who: &Who, device: usize) -> bool {
        match who {
            Who::Device(one) => *one == device,
            Who::Devices(several) => several.contains(&device),
            Who::External(_) => false,
        }
    }

    /// The view of one gateway.
    #[must_use]
    pub fn view(&self, gateway: usize) -> Arc<View> {
        let here = |device: usize| self.devices[device].gateway == gateway;
        let live = |device: usize| !self.gateways[self.devices[device].gateway].revoked;
        let all = 0..self.devices.len();
        let touches = |rule: &&PlannedRule| {
            all.clone().any(|d| here(d) && (Self::is_in(&rule.from, d) || Self::is_in(&rule.to, d)))
        };
        let rules: Vec<&PlannedRule> = self.rules.iter().filter(touches).collect();
        let named = |device: usize| {
            rules.iter().any(|r| Self::is_in(&r.from, device) || Self::is_in(&r.to, device))
        };
        let members: Vec<usize> =
            all.clone().filter(|d| !here(*d) && live(*d) && named(*d)).collect();
        let known = |device: &usize| here(*device) || members.contains(device);
        let mut segments = Vec::new();
        let mut externals = Vec::new();
        let mut end = |rule: &PlannedRule, who: &Who, side: &str| match who {
            Who::Device(device) => Endpoint::Member(self.member(*device).id),
            Who::External(external) => {
                externals.push(*external);
                Endpoint::External(ExternalId::of(&self.externals[*external].0))
            }
            Who::Devices(several) => {
                let id = SegmentId::of(&format!("{}-{side}", rule.name));
                let inside = several.iter().filter(|device| known(device));
                segments.push(Segment {
                    id,
                    members: inside.map(|device| self.member(*device).id).collect(),
                    externals: Vec::new(),
                });
                Endpoint::Segment(id)
            }
        };
        let compiled = rules
            .iter()
            .map(|rule| Rule {
                id: RuleId::of(&rule.name),
                from: end(rule, &rule.from, "from"),
                to: end(rule, &rule.to, "to"),
                services: rule
                    .services
                    .iter()
                    .map(|text| text.parse().unwrap_or_else(|e| panic!("{e}")))
                    .collect(),
                clear: rule.clear,
                essential: rule.essential,
                conditions: rule.conditions.clone(),
            })
            .collect();
        externals.sort_unstable();
        externals.dedup();
        let intent = Intent {
            identity: None,
            organisation: ORGANISATION,
            gateway: self.gateways[gateway].id,
            overlay: overlay::gateway_address(ORGANISATION, self.gateways[gateway].id),
            site: SiteId::of("north"),
            devices: all
                .clone()
                .filter(|d| here(*d))
                .map(|d| self.devices[d].device.clone())
                .collect(),
            members: members.iter().map(|device| self.member(*device).clone()).collect(),
            peers: self.peers(gateway, &members),
            segments,
            externals: externals
                .iter()
                .map(|at| External {
                    id: ExternalId::of(&self.externals[*at].0),
                    prefixes: self.externals[*at].1.clone(),
                })
                .collect(),
            rules: compiled,
            infrastructure: self.infrastructure.clone(),
            clients: Vec::new(),
            bypasses: self.bypasses.clone(),
        };
        Arc::new(self.assemble(gateway, intent))
    }

    fn peers(&self, gateway: usize, members: &[usize]) -> Vec<PeerGateway> {
        let mut peers: Vec<usize> = members.iter().map(|d| self.devices[*d].gateway).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
            .into_iter()
            .filter(|peer| *peer != gateway)
            .map(|peer| {
                let id = self.gateways[peer].id;
                PeerGateway {
                    gateway: id,
                    identity: self.gateways[peer].identity.public(),
                    overlay: overlay::gateway_address(ORGANISATION, id),
                }
            })
            .collect()
    }

    fn assemble(&self, gateway: usize, intent: Intent) -> View {
        let peers = intent
            .peers
            .iter()
            .filter_map(|peer| {
                let known = self.gateways.iter().find(|known| known.id == peer.gateway)?;
                let key = TunnelKeyBinding {
                    organisation: ORGANISATION,
                    gateway: known.id,
                    x25519: known.secret.public(),
                    ml_kem_768: None,
                    serial: 1,
                    not_before: UnixMillis(0),
                };
                Some(Peer {
                    gateway: peer.clone(),
                    endpoints: vec![known.endpoint],
                    keys: vec![key],
                    quic: None,
                })
            })
            .collect();
        let operation = Operation {
            organisation: ORGANISATION,
            gateway: self.gateways[gateway].id,
            number: ViewNumber { incarnation: 1, sequence: self.revision },
            revision: self.revision,
            peers: Vec::new(),
            quarantined: Vec::new(),
            suspended: Vec::new(),
            issued_at: self.signed_at,
        };
        View {
            intent,
            revision: self.revision,
            incarnation: 1,
            signed_at: self.signed_at,
            root_hash: Hash::ZERO,
            intent_hash: Hash::ZERO,
            operation,
            peers,
            upheld: anteroom_proto::approval::Upheld::default(),
            left_out: Vec::new(),
        }
    }
}
