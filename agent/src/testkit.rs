//! An organisation of the tests' own: keys, an authority chain, and signed views for one gateway.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use anteroom_proto::authority::{Authority, AuthorityChain, Controller, Operator};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cbor::{self, Blob};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, InviteId, MemberId, OrganisationId, SiteId};
use anteroom_proto::intent::{Device, Infrastructure, Intent, IntentRoot, Member, OnFailure};
use anteroom_proto::invite::InviteCode;
use anteroom_proto::key::{Hash, IdentityKey, PublicKey};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::merkle::{self, Proof, leaf_hash};
use anteroom_proto::mode::Mode;
use anteroom_proto::operation::{Operation, ViewNumber};
use anteroom_proto::overlay::{gateway_address, member_address};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::{Floor, SignedView, View};

use crate::state::Enrolment;

/// The organisation.
pub(crate) const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);
/// The gateway under test.
pub(crate) const GATEWAY: GatewayId = GatewayId::from_bytes([3; 16]);
/// Its invite.
pub(crate) const INVITE: InviteId = InviteId::from_bytes([2; 16]);
/// Seed of the invite's one-time key.
pub(crate) const INVITE_SEED: [u8; 32] = [5; 32];

/// An organisation with one operator and one controller.
pub(crate) struct Organisation {
    pub(crate) operator: IdentityKey,
    pub(crate) controller: IdentityKey,
    pub(crate) chain: Vec<Signed<Authority>>,
}

impl Organisation {
    pub(crate) fn new(addresses: &[SocketAddr]) -> Self {
        let operator = IdentityKey::from_seed(&[10; 32]);
        let controller = IdentityKey::from_seed(&[11; 32]);
        let first = Authority {
            organisation: ORGANISATION,
            number: 1,
            previous: Hash::ZERO,
            operators: vec![Operator { name: "ana".parse().unwrap(), key: operator.public() }],
            threshold: 1,
            controllers: vec![Controller {
                key: controller.public(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
            }],
            relays: vec![],
            recovery: IdentityKey::from_seed(&[12; 32]).public(),
            incarnation: 0,
            root: None,
        };
        let chain = vec![Signed::sign(&first, &operator)];
        Self { operator, controller, chain }
    }

    pub(crate) fn pin(&self) -> Hash {
        self.chain[0].hash()
    }

    pub(crate) fn followed(&self) -> AuthorityChain {
        AuthorityChain::follow(self.pin(), &self.chain).unwrap()
    }

    /// Appends an authority document that `change` makes different from the one before.
    pub(crate) fn extend(&mut self, change: impl FnOnce(&mut Authority)) {
        let before = self.chain.last().unwrap();
        let mut next = before.verify_self_named().unwrap().into_document();
        next.number += 1;
        next.previous = before.hash();
        change(&mut next);
        self.chain.push(Signed::sign(&next, &self.operator));
    }

    pub(crate) fn enrolment(&self) -> Enrolment {
        let controller = self.followed().newest().controllers[0].clone();
        Enrolment {
            organisation: ORGANISATION,
            gateway: GATEWAY,
            invite: INVITE,
            controller: controller.key,
            addresses: controller.addresses.clone(),
            pin: self.pin(),
        }
    }

    pub(crate) fn invite(&self) -> InviteCode {
        let Enrolment { organisation, gateway, invite, controller, addresses, pin } =
            self.enrolment();
        let seed = Blob(INVITE_SEED.to_vec());
        InviteCode { organisation, invite, gateway, controller, addresses, authority: pin, seed }
    }

    /// A view for [`GATEWAY`] with one device in `mode`.
    pub(crate) fn view(&self, revision: u64, sequence: u64, mode: Mode) -> SignedView {
        self.view_for(GATEWAY, revision, sequence, mode)
    }

    pub(crate) fn view_for(
        &self,
        gateway: GatewayId,
        revision: u64,
        sequence: u64,
        mode: Mode,
    ) -> SignedView {
        self.view_of(&intent(gateway, mode), revision, sequence)
    }

    /// A view with this intent.
    pub(crate) fn view_of(&self, intent: &Intent, revision: u64, sequence: u64) -> SignedView {
        let incarnation = self.followed().newest().incarnation;
        let gateway = intent.gateway;
        let intent = cbor::encode(intent);
        let leaves = [leaf_hash(&intent), Hash::ZERO];
        let root = IntentRoot {
            organisation: ORGANISATION,
            authority: 1,
            incarnation,
            number: revision,
            previous: Hash::ZERO,
            model: Hash::ZERO,
            root: merkle::root(&leaves),
            signed_at: UnixMillis(1_000_000 + revision),
        };
        let operation = Operation {
            organisation: ORGANISATION,
            gateway,
            number: ViewNumber { incarnation, sequence },
            revision,
            peers: Vec::new(),
            quarantined: Vec::new(),
            suspended: Vec::new(),
            issued_at: UnixMillis(1_000_000 + sequence),
        };
        SignedView {
            intent: Blob(intent),
            proof: Proof::new(&leaves, 0).unwrap(),
            root: Signed::sign(&root, &self.operator),
            operation: Signed::sign(&operation, &self.controller),
        }
    }

    pub(crate) fn verified(&self, view: &SignedView) -> View {
        View::verify(view, GATEWAY, self.followed().newest(), &Floor::default()).unwrap()
    }
}

/// The intent of a gateway with one device in `mode` on `port1`.
pub(crate) fn intent(gateway: GatewayId, mode: Mode) -> Intent {
    let member = MemberId::from_bytes([7; 16]);
    let site = SiteId::of("north");
    Intent {
        identity: None,
        organisation: ORGANISATION,
        gateway,
        overlay: gateway_address(ORGANISATION, gateway),
        site,
        devices: vec![Device {
            member: Member {
                id: member,
                gateway,
                overlay: member_address(ORGANISATION, member),
                site,
                vlan: None,
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                addresses: vec!["10.0.0.1/32".parse().unwrap()],
                mode,
                mode_since: 1,
                quarantined: false,
            },
            port: "port1".parse().unwrap(),
            prefix_len: Some(24),
            router: None,
            on_failure: OnFailure::Default,
            rollout: anteroom_proto::rollout::Rollout::default(),
            two_person: false,
        }],
        members: Vec::new(),
        peers: Vec::new(),
        segments: Vec::new(),
        externals: Vec::new(),
        rules: Vec::new(),
        infrastructure: Infrastructure::default(),
        clients: Vec::new(),
        bypasses: Vec::new(),
    }
}

/// Checks a tunnel key's binding as a peer does.
pub(crate) fn check_binding(
    binding: &Signed<TunnelKeyBinding>,
    identity: PublicKey,
) -> TunnelKeyBinding {
    binding.verify(ORGANISATION, &[identity]).unwrap().into_document()
}

/// An address that nobody listens on.
pub(crate) fn nowhere() -> SocketAddr {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    // Kept for as long as the tests run: nobody else is given the port.
    std::mem::forget(socket);
    address
}

/// What stands in front of a controller or relay, at one port of both: of UDP each flow passes until it is cut, TCP is the test's.
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    pub(crate) listener: tokio::net::TcpListener,
    cuts: Arc<AtomicU32>,
    deaf: Arc<AtomicBool>,
    passing: tokio::task::JoinHandle<()>,
}

impl Front {
    /// In front of whoever has UDP at `to`.
    pub(crate) fn new(to: SocketAddr) -> Self {
        let (listener, socket) = loop {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            // Another may have the same port for UDP.
            if let Ok(socket) = std::net::UdpSocket::bind(listener.local_addr().unwrap()) {
                break (listener, socket);
            }
        };
        listener.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicU32::new(0));
        let socket = Arc::new(tokio::net::UdpSocket::from_std(socket).unwrap());
        let deaf = Arc::new(AtomicBool::new(false));
        let passing = tokio::spawn(pass(socket, to, cuts.clone(), deaf.clone()));
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        Self { address, listener, cuts, deaf, passing }
    }

    /// Lets no datagram pass any more of the flows that there are.
    pub(crate) fn cut(&self) {
        self.cuts.fetch_add(1, Relaxed);
    }

    /// Lets those pass again that the last cut ended.
    pub(crate) fn mend(&self) {
        self.cuts.fetch_sub(1, Relaxed);
    }

    /// Lets no datagram pass any more but those that come back.
    pub(crate) fn deafen(&self) {
        self.deaf.store(true, Relaxed);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.passing.abort();
    }
}

async fn pass(
    front: Arc<tokio::net::UdpSocket>,
    to: SocketAddr,
    cuts: Arc<AtomicU32>,
    deaf: Arc<AtomicBool>,
) {
    let mut flows = HashMap::<SocketAddr, (u32, Arc<tokio::net::UdpSocket>)>::new();
    let mut back = tokio::task::JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((len, from)) = front.recv_from(&mut buffer).await else { continue };
        let now = cuts.load(Relaxed);
        let (begun, behind) = match flows.entry(from) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let behind = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                behind.connect(to).await.unwrap();
                let behind = Arc::new(behind);
                let both = (behind.clone(), front.clone());
                back.spawn(pass_back(both, from, now, cuts.clone()));
                new.insert((now, behind))
            }
        };
        if *begun == now && !deaf.load(Relaxed) {
            let _ = behind.send(&buffer[..len]).await;
        }
    }
}

async fn pass_back(
    (behind, front): (Arc<tokio::net::UdpSocket>, Arc<tokio::net::UdpSocket>),
    to: SocketAddr,
    begun: u32,
    cuts: Arc<AtomicU32>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(len) = behind.recv(&mut buffer).await else { continue };
        if begun == cuts.load(Relaxed) {
            let _ = front.send_to(&buffer[..len], to).await;
        }
    }
}
