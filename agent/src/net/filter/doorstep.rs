//! Bounds in the kernel how many handshakes come in, so that a flood of them costs what a router's would: it fills no socket,
//! wakes nobody, and what live tunnels carry goes on.
//!
//! - Peers' handshakes aren't counted among strangers'. Who is a peer, the kernel learns from what leaves: this gateway
//!   begins and answers handshakes with its peers alone, while strangers get cookies at most. So an address to which an
//!   initiation or a response went is familiar for a while, longer than a peer stays without another one. Whoever forges a
//!   peer's address uses up what that address has, and no other's.
//! - A stranger has so many for its address, so that a flood from few addresses takes nothing from other newcomers; and all
//!   strangers together have so many, which is what bounds a flood from many forged ones.
//!
//! QUIC's packets of handshakes are bounded in the same way where peers' QUIC is taken, with as much for all strangers
//! together again: on a port of its own or on the tunnels'. There, too, what leaves goes to peers alone, but for an answer that
//! whoever plays back a peer's first packet may get once. So whom QUIC answered is familiar to QUIC alone.
//!
//! Merged datagrams count as one, by what the first of them is, so a single sender may bring up to 64 times as many. What comes in here is bounded again,
//! by sender and by whether it carries a cookie, in `anteroom_agent_core`. Data, and whatever isn't WireGuard's, isn't
//! bounded here: what doesn't open is dropped there, after a look at whom it is for.

use std::time::Duration;

use super::{
    Batch, Expression, Family, GUARD, Guard, Header, Hook, IPV4, IPV6, Meta, UDP, base, family,
    from_port, named, to_port, transport,
};
use crate::net::nft::Key;

/// Handshakes of all strangers together, in messages a second and at once: some thousand gateways that come back together are
/// heard in seconds.
const RATE: u64 = 1_024;
const BURST: u32 = 2_048;
/// Those of one stranger's address, behind which may be a site's worth of gateways.
const RATE_OF_ONE: u64 = 32;
const BURST_OF_ONE: u32 = 128;
/// Those of one peer's address.
const RATE_OF_PEER: u64 = 256;
const BURST_OF_PEER: u32 = 512;
/// How long an address stays familiar: a live tunnel shakes hands every two minutes.
const FAMILIAR: Duration = Duration::from_secs(15 * 60);
/// How long an address is counted after it was heard: longer than it takes to have its whole burst again.
const COUNTED: Duration = Duration::from_secs(10);
/// Addresses of peers at most, of each family.
const MOST_PEERS: u32 = 65_536;
/// Addresses that are counted at most. Those beyond have their share of what all strangers have, and no bound of their own.
const MOST_COUNTED: u32 = 16_384;

/// How addresses of a family are told, and which sets know them.
struct Addresses {
    family: u8,
    key: Key,
    /// Where the sender and the receiver stand in the header, and how long they are.
    sender: u32,
    receiver: u32,
    length: u32,
    /// What of an address tells one stranger from another: a host may have all of an IPv6 network's addresses.
    mask: &'static [u8],
    familiar: &'static str,
    quic_familiar: &'static str,
    peers: &'static str,
    strangers: &'static str,
}

const FAMILIES: [Addresses; 2] = [
    Addresses {
        family: IPV4,
        key: Key::Ipv4,
        sender: 12,
        receiver: 16,
        length: 4,
        mask: &[0xff; 4],
        familiar: "familiar4",
        quic_familiar: "quic_familiar4",
        peers: "peers4",
        strangers: "strangers4",
    },
    Addresses {
        family: IPV6,
        key: Key::Ipv6,
        sender: 8,
        receiver: 24,
        length: 16,
        mask: &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
        familiar: "familiar6",
        quic_familiar: "quic_familiar6",
        peers: "peers6",
        strangers: "strangers6",
    },
];

/// Names of the chains: where everything comes in and leaves, and where handshakes go on.
const COMES: &str = "coming";
const DOORSTEP: &str = "doorstep";
const LEAVES: &str = "leaving";
const SHAKES: &str = "shakes";
/// The same for QUIC.
const QUIC_DOORSTEP: &str = "quic_doorstep";
const QUIC_SHAKES: &str = "quic_shakes";

/// The first four bytes of WireGuard's messages, behind the UDP header.
const INITIATION: [u8; 4] = [1, 0, 0, 0];
const RESPONSE: [u8; 4] = [2, 0, 0, 0];
const DATA: [u8; 4] = [4, 0, 0, 0];
/// Of these bits none is set in a message that belongs to a handshake: 1, 2 and 3, the cookie.
const NO_HANDSHAKE: [u8; 4] = [0xfc, 0xff, 0xff, 0xff];

/// Of QUIC's first byte, what is set in all of its packets, and what is in those of handshakes alone.
const HANDSHAKE: u8 = 0xc0;

fn kind() -> Expression {
    Expression::Payload(Header::Transport, 8, 4)
}

/// Goes on with packets of QUIC's handshakes alone.
fn is_quics_handshake() -> Vec<Expression> {
    vec![
        Expression::Payload(Header::Transport, 8, 1),
        Expression::Mask(vec![HANDSHAKE]),
        Expression::Equal(vec![HANDSHAKE]),
    ]
}

/// Adds sets and chains to the guard's table.
pub(super) fn add(batch: &mut Batch, guard: &Guard<'_>) {
    for of in &FAMILIES {
        batch.passing_set(Family::Inet, GUARD, of.familiar, of.key, MOST_PEERS);
        batch.passing_set(Family::Inet, GUARD, of.peers, of.key, MOST_COUNTED);
        batch.passing_set(Family::Inet, GUARD, of.strangers, of.key, MOST_COUNTED);
    }
    // Before connection tracking, and before the chains that leave tunnels out of it.
    base(batch, COMES, Hook::Prerouting, -310);
    base(batch, LEAVES, Hook::Output, -310);
    batch.chain(Family::Inet, GUARD, DOORSTEP);
    batch.chain(Family::Inet, GUARD, SHAKES);
    note_whom_we_shake_hands_with(batch);
    bound_who_comes(batch, DOORSTEP, |of| vec![of.familiar]);
    if let Some(port) = guard.quic_port {
        batch.chain(Family::Inet, GUARD, QUIC_DOORSTEP);
        batch.chain(Family::Inet, GUARD, QUIC_SHAKES);
        for of in &FAMILIES {
            batch.passing_set(Family::Inet, GUARD, of.quic_familiar, of.key, MOST_PEERS);
            batch.rule(Family::Inet, GUARD, QUIC_SHAKES, &remember(of, of.quic_familiar));
        }
        bound_who_comes(batch, QUIC_DOORSTEP, |of| vec![of.familiar, of.quic_familiar]);
        for interface in &guard.interfaces {
            let leaves = [named(Meta::OutputName, interface), transport(UDP), from_port(port)];
            let shakes = vec![Expression::Jump(QUIC_SHAKES.into())];
            let leaves = [leaves.concat(), is_quics_handshake(), shakes];
            batch.rule(Family::Inet, GUARD, LEAVES, &leaves.concat());
            let comes = [named(Meta::InputName, interface), transport(UDP), to_port(port)];
            let doorstep = vec![Expression::Jump(QUIC_DOORSTEP.into())];
            let comes = [comes.concat(), is_quics_handshake(), doorstep];
            batch.rule(Family::Inet, GUARD, COMES, &comes.concat());
        }
    }
    for interface in &guard.interfaces {
        let leaves = [
            named(Meta::OutputName, interface),
            transport(UDP),
            from_port(guard.tunnel_port),
            vec![kind(), Expression::NotEqual(DATA.to_vec()), Expression::Jump(SHAKES.into())],
        ];
        batch.rule(Family::Inet, GUARD, LEAVES, &leaves.concat());
        let comes = [
            named(Meta::InputName, interface),
            transport(UDP),
            to_port(guard.tunnel_port),
            vec![
                kind(),
                Expression::Mask(NO_HANDSHAKE.to_vec()),
                Expression::Equal(vec![0; 4]),
                Expression::Jump(DOORSTEP.into()),
            ],
        ];
        batch.rule(Family::Inet, GUARD, COMES, &comes.concat());
    }
}

fn note_whom_we_shake_hands_with(batch: &mut Batch) {
    for of in &FAMILIES {
        for shake in [INITIATION, RESPONSE] {
            let rule = [vec![kind(), Expression::Equal(shake.to_vec())], remember(of, of.familiar)];
            batch.rule(Family::Inet, GUARD, SHAKES, &rule.concat());
        }
    }
}

/// Makes the receiver of what leaves familiar, in this set.
fn remember(of: &Addresses, familiar: &'static str) -> Vec<Expression> {
    let receiver = vec![
        Expression::Payload(Header::Network, of.receiver, of.length),
        Expression::Refresh(familiar, FAMILIAR),
    ];
    [family(of.family), receiver].concat()
}

/// `familiar`: the sets of those that are no strangers here.
fn bound_who_comes(
    batch: &mut Batch,
    doorstep: &str,
    familiar: impl Fn(&Addresses) -> Vec<&'static str>,
) {
    let drop = || vec![Expression::Counter, Expression::Drop];
    for of in &FAMILIES {
        let sender = || {
            let sender = Expression::Payload(Header::Network, of.sender, of.length);
            [family(of.family), vec![sender]].concat()
        };
        for set in familiar(of) {
            let is_familiar = || [sender(), vec![Expression::InSet(set.into())]].concat();
            let too_many = Expression::EachAbove {
                set: of.peers,
                lifetime: COUNTED,
                rate: RATE_OF_PEER,
                burst: BURST_OF_PEER,
            };
            let rule = [is_familiar(), vec![too_many], drop()].concat();
            batch.rule(Family::Inet, GUARD, doorstep, &rule);
            let rule = [is_familiar(), vec![Expression::Accept]].concat();
            batch.rule(Family::Inet, GUARD, doorstep, &rule);
        }
        let too_many = Expression::EachAbove {
            set: of.strangers,
            lifetime: COUNTED,
            rate: RATE_OF_ONE,
            burst: BURST_OF_ONE,
        };
        let network = vec![Expression::Mask(of.mask.to_vec()), too_many];
        batch.rule(Family::Inet, GUARD, doorstep, &[sender(), network, drop()].concat());
    }
    let above = vec![Expression::Above { rate: RATE, burst: BURST }];
    batch.rule(Family::Inet, GUARD, doorstep, &[above, drop()].concat());
}

#[cfg(test)]
mod tests;
