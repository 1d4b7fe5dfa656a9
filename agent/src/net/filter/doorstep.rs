//! Bounds in the kernel how many handshakes strangers may begin, so that a flood of them costs what a router's would: it
//! fills no socket, wakes nobody, and what live tunnels carry goes on.
//!
//! Handshakes of peers aren't counted among strangers'. Who is a peer, the kernel learns from what leaves: this gateway
//! begins and answers handshakes with its peers alone, while strangers get cookies at most. So an address to which an
//! initiation or a response went is familiar for a while, longer than a peer stays without another one.
//!
//! Merged datagrams count as one, so a single sender may bring up to 64 times as many. What comes in here is bounded again,
//! by sender and by whether it carries a cookie, in `anteroom_agent_core`.

use std::time::Duration;

use super::{
    Batch, Expression, Family, GUARD, Guard, Header, Hook, IPV4, IPV6, Meta, UDP, base, family,
    from_port, named, to_port, transport,
};
use crate::net::nft::Key;

/// Initiations of strangers a second, and at once: some thousand gateways that come back together are heard in seconds.
const RATE: u64 = 512;
const BURST: u32 = 2_048;
/// How long an address stays familiar: a live tunnel shakes hands every two minutes.
const FAMILIAR: Duration = Duration::from_secs(15 * 60);
/// Addresses that are familiar at most, of each family.
const MOST: u32 = 65_536;

/// Sets of familiar addresses: how a packet's family is told, where its sender and receiver stand, and what they are.
const SETS: [(u8, &str, Key, u32, u32, u32); 2] =
    [(IPV4, "familiar4", Key::Ipv4, 12, 16, 4), (IPV6, "familiar6", Key::Ipv6, 8, 24, 16)];

/// Names of the chains: what comes in, what leaves, and what of that is no data.
const COMES: &str = "doorstep";
const LEAVES: &str = "leaving";
const SHAKES: &str = "shakes";

/// The first four bytes of WireGuard's messages, behind the UDP header.
const INITIATION: [u8; 4] = [1, 0, 0, 0];
const RESPONSE: [u8; 4] = [2, 0, 0, 0];
const DATA: [u8; 4] = [4, 0, 0, 0];

fn kind() -> Expression {
    Expression::Payload(Header::Transport, 8, 4)
}

/// Adds sets and chains to the guard's table.
pub(super) fn add(batch: &mut Batch, guard: &Guard<'_>) {
    for (_, set, key, ..) in SETS {
        batch.passing_set(Family::Inet, GUARD, set, key, MOST);
    }
    // Before connection tracking, and before the chains that leave tunnels out of it.
    base(batch, COMES, Hook::Prerouting, -310);
    base(batch, LEAVES, Hook::Output, -310);
    batch.chain(Family::Inet, GUARD, SHAKES);
    for (number, set, _, _, receiver, length) in SETS {
        for shake in [INITIATION, RESPONSE] {
            let rule = [
                vec![kind(), Expression::Equal(shake.to_vec())],
                family(number),
                vec![
                    Expression::Payload(Header::Network, receiver, length),
                    Expression::Refresh(set, FAMILIAR),
                ],
            ];
            batch.rule(Family::Inet, GUARD, SHAKES, &rule.concat());
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
            vec![kind(), Expression::Equal(INITIATION.to_vec())],
        ]
        .concat();
        for (number, set, _, sender, _, length) in SETS {
            let known = vec![
                Expression::Payload(Header::Network, sender, length),
                Expression::InSet(set.into()),
                Expression::Accept,
            ];
            let rule = [comes.clone(), family(number), known].concat();
            batch.rule(Family::Inet, GUARD, COMES, &rule);
        }
        let above = vec![
            Expression::Above { rate: RATE, burst: BURST },
            Expression::Counter,
            Expression::Drop,
        ];
        batch.rule(Family::Inet, GUARD, COMES, &[comes, above].concat());
    }
}

#[cfg(test)]
mod tests;
