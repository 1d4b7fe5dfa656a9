//! Verdicts and drop reasons: one vocabulary for the engine, telemetry, the command line and the docs.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal, $explanation:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* #[doc = $explanation] $variant,)*
        }

        impl $name {
            /// Every one, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word that stands in output and telemetry.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// What it means, in a sentence for an operator.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $explanation,)* }
            }

            /// Its place in [`Self::ALL`], for tables of counters.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The one with this word.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

pub(crate) use words;

words! {
    /// Why a packet or a flow went no further.
    DropReason {
        NoRule = "no-rule", "No rule allows it.";
        NotVisible = "not-visible", "The other end is neither a member nor an external that this device shares a rule with.";
        ClearNotAllowed = "clear-not-allowed", "A rule allows it, but its path would be in the clear and the rule doesn't say `clear = true`.";
        ClearFromTunnelPeer = "clear-from-tunnel-peer", "It came in the clear from an address whose member speaks through the tunnel.";
        Quarantined = "quarantined", "The device is quarantined and no essential rule allows it.";
        Expired = "expired", "The rule that allowed it has expired.";
        TimeUnknown = "time-unknown", "The rule has an end, and nobody has confirmed the time since this gateway started.";
        UnknownCondition = "unknown-condition", "The rule has a condition that this agent doesn't know: update the agent.";
        UnknownMode = "unknown-mode", "A device has a mode that this agent doesn't know: update the agent.";
        TunnelDown = "tunnel-down", "No live tunnel leads to the other end's gateway.";
        TunnelNotReady = "tunnel-not-ready", "The other end's gateway hasn't taken over the revision that opens this path.";
        ClientOfObserved = "client-of-observed", "The device is in observe and uses no tunnel, which is a client's only path.";
        UnknownMac = "unknown-mac", "An unknown Ethernet address on a port where a device has left observe: held until an operator confirms it.";
        MacSpoofed = "mac-spoofed", "A source Ethernet address that belongs to another port, the uplink or the gateway.";
        VlanSpoofed = "vlan-spoofed", "A frame in a VLAN that isn't the device's.";
        IpSpoofed = "ip-spoofed", "A source IP address that isn't the sender's: another device has it, or it isn't the device's own.";
        ToGateway = "to-gateway", "A device's frame to the gateway's own address.";
        SamePort = "same-port", "The destination is on the port that the frame came from.";
        LocalSourceFromUplink = "local-source-from-uplink", "A frame from the uplink with a local device's source address.";
        Looped = "looped", "A frame that this gateway itself sent out there a moment ago: a cable makes a loop.";
        Malformed = "malformed", "A frame or packet whose lengths or headers don't fit together.";
        NonIp = "non-ip", "A frame that is neither IPv4 nor ARP, to or from an enforced device.";
        Ipv6 = "ipv6", "An IPv6 packet to or from an enforced device.";
        Tagged = "tagged", "A VLAN-tagged frame to or from an enforced device.";
        Broadcast = "broadcast", "A broadcast or multicast packet that no infrastructure kind covers, to or from an enforced device.";
        Arp = "arp", "An ARP packet that an enforced device doesn't need, or that claims what isn't so.";
        Dhcp = "dhcp", "A DHCP message to or from an address that isn't one of the site's DHCP servers.";
        OtherProtocol = "other-protocol", "An IP protocol that no rule can open: neither TCP, UDP nor ICMP echo.";
        IcmpUnrelated = "icmp-unrelated", "An ICMP message that quotes no live flow.";
        NoState = "no-state", "A packet in the middle of a connection that nobody saw begin, in an orientation that no rule allows.";
        FragmentNoHeader = "fragment-no-header", "A first fragment too short to hold its transport header.";
        FragmentNoFirst = "fragment-no-first", "A fragment whose first fragment wasn't seen.";
        FragmentOverlap = "fragment-overlap", "A fragment that overlaps one before it.";
        FragmentTableFull = "fragment-table-full", "Too many fragmented packets at once.";
        FlowTableFull = "flow-table-full", "The device has as many flows open as it may have.";
        TooBig = "too-big", "A packet too large for its path that couldn't be cut.";
        NoNextHop = "no-next-hop", "The Ethernet address of the next hop isn't known.";
        PeerUnknown = "peer-unknown", "A datagram that belongs to no known tunnel.";
        PeerUnauthenticated = "peer-unauthenticated", "A tunnel packet that failed authentication or was seen before.";
        PeerSource = "peer-source", "A packet out of a tunnel whose source isn't a member of that peer.";
        PeerDestination = "peer-destination", "A packet out of a tunnel for an address that is no device here.";
        Classic = "classic", "A packet that another gateway sent without a pre-shared key, where `classic = \"never\"` under `[keys]` in agent.toml takes none.";
        PeerPlace = "peer-place", "A peer's handshake or knock from an address where it isn't: that of a relay, or of one that operators took out.";
        HandshakeLimit = "handshake-limit", "More handshakes, or messages of one gateway, at once than are answered.";
        QueueFull = "queue-full", "A bounded queue was full.";
        PartMissing = "part-missing", "A packet that its gateway cut to fit the path, and not all of whose parts came.";
        EgressFailed = "egress-failed", "The interface didn't take the frame.";
    }
}

/// What happens to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Through the tunnel.
    Tunnel,
    /// To another port of this gateway.
    Local,
    /// In the clear, as the device's mode or the rule has it.
    Clear,
    /// In the clear for want of a live tunnel (protect only).
    ClearTunnelDown,
    /// In the clear, but in enforce it would have been dropped.
    WouldDrop(DropReason),
    /// Dropped.
    Drop(DropReason),
}

impl Verdict {
    /// Whether packets of the flow go on.
    #[must_use]
    pub const fn passes(self) -> bool {
        !matches!(self, Self::Drop(_))
    }

    /// The reason, where it is or would be a drop.
    #[must_use]
    pub const fn reason(self) -> Option<DropReason> {
        match self {
            Self::WouldDrop(reason) | Self::Drop(reason) => Some(reason),
            _ => None,
        }
    }

    /// The verdict with this text, as [`fmt::Display`] writes it.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let inner = |prefix: &str| {
            text.strip_prefix(prefix)?.strip_suffix(')').and_then(DropReason::from_word)
        };
        match text {
            "tunnel" => Some(Self::Tunnel),
            "local" => Some(Self::Local),
            "clear" => Some(Self::Clear),
            "clear(tunnel-down)" => Some(Self::ClearTunnelDown),
            _ => {
                inner("would-drop(").map(Self::WouldDrop).or_else(|| inner("drop(").map(Self::Drop))
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel => f.pad("tunnel"),
            Self::Local => f.pad("local"),
            Self::Clear => f.pad("clear"),
            Self::ClearTunnelDown => f.pad("clear(tunnel-down)"),
            Self::WouldDrop(reason) => f.pad(&format!("would-drop({reason})")),
            Self::Drop(reason) => f.pad(&format!("drop({reason})")),
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Verdict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_text(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a verdict")))
    }
}

impl Serialize for DropReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for DropReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_word(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a drop reason")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_is_read_as_it_is_written() {
        let reasons = DropReason::ALL.iter().copied();
        let verdicts = [Verdict::Tunnel, Verdict::Local, Verdict::Clear, Verdict::ClearTunnelDown]
            .into_iter()
            .chain(reasons.clone().map(Verdict::Drop))
            .chain(reasons.map(Verdict::WouldDrop));
        for verdict in verdicts {
            assert_eq!(Verdict::from_text(&verdict.to_string()), Some(verdict));
        }
        assert_eq!(Verdict::from_text("drop(never)"), None);
    }

    #[test]
    fn reasons_have_words_of_their_own_and_sentences() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), i);
            assert_eq!(DropReason::from_word(reason.as_str()), Some(*reason));
            assert!(reason.explanation().ends_with('.'));
        }
    }
}
