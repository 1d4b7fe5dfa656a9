//! nftables by its netlink interface: tables, chains and rules as values, carried out all or not at all.
//!
//! Only what the gateway's own tables use is here. A rule is a list of expressions, as `nft --debug=netlink` prints
//! them: each loads a register, compares it (and ends the rule if it differs) or gives the verdict.

mod tally;

use std::io;
use std::time::Duration;

use crate::net::netlink::{APPEND, CREATE, Message, Refused, Session};

pub(crate) use tally::counted;

pub(crate) const NETLINK_NETFILTER: libc::c_int = 12;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const DEL_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DEL_ELEMENT: u16 = 14;

/// A table that belongs to the connection that made it: others can't change it, and it goes with the connection.
const TABLE_OWNED: u32 = 0x2;

/// A set whose elements end by themselves.
const SET_TIMES_OUT: u32 = 0x10;
/// A set that rules put elements into.
const SET_DYNAMIC: u32 = 0x20;

/// A limit that counts packets.
const LIMIT_PACKETS: u32 = 0;
/// A limit that is met by what is above it.
const LIMIT_ABOVE: u32 = 1;

/// Elements of a set in one message: its list has a length of 16 bits.
const ELEMENTS_A_MESSAGE: usize = 1000;

/// The one register that rules here load; it holds 16 bytes, an interface name.
const REGISTER: u32 = 1;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4 and IPv6, at the hooks of the IP stack.
    Inet = 1,
    /// ARP, as the kernel itself hears and sends it.
    Arp = 3,
    /// Whole frames, at an interface.
    Netdev = 5,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook<'a> {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// ARP that the kernel hears.
    ArpInput,
    /// ARP that the kernel sends.
    ArpOutput,
    /// Frames that come in on this interface, behind the packet taps.
    Ingress(&'a str),
    /// Frames that go out on this interface.
    Egress(&'a str),
}

impl Hook<'_> {
    fn number(self) -> u32 {
        match self {
            Self::Prerouting | Self::ArpInput | Self::Ingress(_) => 0,
            Self::Input | Self::ArpOutput | Self::Egress(_) => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// What happens to a packet that no rule of a base chain decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Drop = 0,
    Accept = 1,
}

/// A packet's property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Transport = 16,
    PacketType = 19,
}

/// Which header an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// What the elements of a set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Ethernet,
    Mark,
    Ipv4,
    Ipv6,
}

impl Key {
    /// The number by which the `nft` tool knows it, and its length in bytes.
    fn kind(self) -> (u32, u32) {
        match self {
            Self::Ethernet => (9, 6),
            Self::Mark => (19, 4),
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
        }
    }
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads a property, in host order.
    Meta(Meta),
    /// Loads bytes of the packet.
    Payload(Header, u32, u32),
    /// Loads this.
    Load(Vec<u8>),
    /// Marks the packet with what is loaded.
    SetMark,
    /// Ends the rule unless what is loaded is in this set.
    InSet(String),
    /// Puts what is loaded into this set, for so long from now on.
    Refresh(&'static str, Duration),
    /// Takes what is loaded out of this set.
    Forget(&'static str),
    /// Sends the packet out of the interface whose number is loaded, and ends the chain.
    ForwardTo,
    /// Sends a copy of the packet out of the interface whose number is loaded.
    CopyTo,
    /// Loads the connection's state as a bit set, in host order.
    ConnectionState,
    /// Keeps these bits only.
    Mask(Vec<u8>),
    /// Ends the rule unless the register equals this.
    Equal(Vec<u8>),
    /// Ends the rule if the register equals this.
    NotEqual(Vec<u8>),
    /// Ends the rule unless the register, in network order, is at least this.
    AtLeast(Vec<u8>),
    /// Ends the rule unless there were more packets here than so many a second, and than so many at once.
    Above {
        /// Packets a second.
        rate: u64,
        /// Packets at once.
        burst: u32,
    },
    /// Ends the rule unless there were more packets with what is loaded than so many a second, and than so many at once.
    /// The set keeps count of each for so long.
    EachAbove {
        /// The set.
        set: &'static str,
        /// How long it remembers.
        lifetime: Duration,
        /// Packets a second.
        rate: u64,
        /// Packets at once.
        burst: u32,
    },
    /// Leaves the packet out of connection tracking.
    NoTrack,
    /// Counts the packet.
    Counter,
    /// Ends the chain.
    Accept,
    /// Drops the packet.
    Drop,
    /// Goes on in another chain, and here again if that doesn't decide.
    Jump(String),
}

/// A transaction: carried out whole by [`Batch::commit`], or not at all.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    messages: Vec<(Message, String)>,
}

/// Why the kernel refused a transaction.
#[derive(Debug, thiserror::Error)]
#[error("the packet filter refused {what}: {source}")]
pub(crate) struct NftError {
    /// The part that it objected to.
    pub(crate) what: String,
    /// What the kernel said.
    pub(crate) source: io::Error,
}

impl Batch {
    fn push(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        what: String,
        fill: impl FnOnce(&mut Message),
    ) {
        let mut message = Message::new(SUBSYSTEM << 8 | kind, flags, &[family as u8, 0, 0, 0]);
        fill(&mut message);
        self.messages.push((message, what));
    }

    /// Makes the table, unless it is there.
    pub(crate) fn table(&mut self, family: Family, table: &str) {
        self.push(NEW_TABLE, CREATE, family, format!("table {table}"), |message| {
            message.put_text(1, table).put_u32(2, 0);
        });
    }

    /// Makes a table that belongs to the connection by which this is committed, and isn't there yet.
    pub(crate) fn own_table(&mut self, family: Family, table: &str) {
        self.push(NEW_TABLE, CREATE, family, format!("table {table}"), |message| {
            message.put_text(1, table).put_u32(2, TABLE_OWNED);
        });
    }

    /// Removes a table that is there.
    pub(crate) fn remove_standing_table(&mut self, family: Family, table: &str) {
        self.push(DEL_TABLE, 0, family, format!("removal of table {table}"), |message| {
            message.put_text(1, table);
        });
    }

    /// Removes the table with all that is in it, whether it was there or not.
    pub(crate) fn remove_table(&mut self, family: Family, table: &str) {
        self.table(family, table);
        self.remove_standing_table(family, table);
    }

    /// Makes a chain that packets come to by themselves. Lower priorities come first.
    pub(crate) fn base_chain(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        hook: Hook<'_>,
        priority: i32,
        policy: Policy,
    ) {
        let what = match hook {
            Hook::Ingress(interface) | Hook::Egress(interface) => {
                format!("chain {chain} at {interface}")
            }
            _ => format!("chain {chain}"),
        };
        self.push(NEW_CHAIN, CREATE, family, what, |message| {
            message.put_text(1, table).put_text(3, chain);
            message.nest(4, |nested| {
                nested.put_u32(1, hook.number()).put_u32(2, priority.cast_unsigned());
                if let Hook::Ingress(interface) | Hook::Egress(interface) = hook {
                    nested.put_text(3, interface);
                }
            });
            message.put_u32(5, policy as u32).put_text(7, "filter");
        });
    }

    /// Makes a chain that rules jump to.
    pub(crate) fn chain(&mut self, family: Family, table: &str, chain: &str) {
        self.push(NEW_CHAIN, CREATE, family, format!("chain {chain}"), |message| {
            message.put_text(1, table).put_text(3, chain);
        });
    }

    /// Appends a rule to a chain.
    pub(crate) fn rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        expressions: &[Expression],
    ) {
        let what = format!("a rule of chain {chain}");
        self.push(NEW_RULE, CREATE | APPEND, family, what, |message| {
            message.put_text(1, table).put_text(2, chain);
            message.nest(4, |list| {
                for expression in expressions {
                    list.nest(1, |element| expression.write(element));
                }
            });
        });
    }

    /// Empties a chain.
    pub(crate) fn flush_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.push(DEL_RULE, 0, family, format!("rules of chain {chain}"), |message| {
            message.put_text(1, table).put_text(2, chain);
        });
    }

    /// Makes a set of plain elements, unless it is there.
    pub(crate) fn set(&mut self, family: Family, table: &str, set: &str, key: Key) {
        self.push_set(family, table, set, key, 0, |_| {});
    }

    /// Makes a set of at most `size` elements that rules put in and that leave by themselves.
    pub(crate) fn passing_set(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: Key,
        size: u32,
    ) {
        self.push_set(family, table, set, key, SET_TIMES_OUT | SET_DYNAMIC, |message| {
            message.nest(9, |description| {
                description.put_u32(1, size);
            });
        });
    }

    fn push_set(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: Key,
        flags: u32,
        more: impl FnOnce(&mut Message),
    ) {
        let (kind, length) = key.kind();
        let id = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        self.push(NEW_SET, CREATE, family, format!("set {set}"), |message| {
            message.put_text(1, table).put_text(2, set).put_u32(3, flags);
            message.put_u32(4, kind).put_u32(5, length).put_u32(10, id);
            more(message);
        });
    }

    /// Empties a set.
    pub(crate) fn flush_set(&mut self, family: Family, table: &str, set: &str) {
        self.push(DEL_ELEMENT, 0, family, format!("elements of set {set}"), |message| {
            message.put_text(1, table).put_text(2, set);
        });
    }

    /// Puts elements into a set; for so long, where it is one that they leave by themselves.
    pub(crate) fn elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        keys: &[Vec<u8>],
        lifetime: Option<Duration>,
    ) {
        for keys in keys.chunks(ELEMENTS_A_MESSAGE) {
            self.push(NEW_ELEMENT, CREATE, family, format!("elements of set {set}"), |message| {
                message.put_text(1, table).put_text(2, set);
                message.nest(3, |list| {
                    for key in keys {
                        list.nest(1, |element| {
                            element.nest(1, |data| {
                                data.put(1, key);
                            });
                            if let Some(lifetime) = lifetime {
                                element.put(4, &millis(lifetime));
                            }
                        });
                    }
                });
            });
        }
    }

    /// Carries everything out, or nothing.
    ///
    /// # Errors
    /// Where the kernel refuses a part, or the process lacks CAP_NET_ADMIN.
    pub(crate) fn commit(self) -> Result<(), NftError> {
        let session = Session::open(NETLINK_NETFILTER)
            .map_err(|source| NftError { what: "a connection to it".into(), source })?;
        self.commit_on(&session)
    }

    /// As [`Batch::commit`], on a connection that notifications tell from others'.
    ///
    /// # Errors
    /// As [`Batch::commit`].
    pub(crate) fn commit_on(self, session: &Session) -> Result<(), NftError> {
        let bracket = |kind| Message::new(kind, 0, &[0, 0, 0, 10]);
        let (messages, names): (Vec<_>, Vec<_>) = self.messages.into_iter().unzip();
        session.transaction(bracket(BATCH_BEGIN), messages, bracket(BATCH_END)).map_err(
            |Refused { message, source }| NftError {
                what: message
                    .and_then(|i| names.get(i).cloned())
                    .unwrap_or_else(|| "the gateway's tables".into()),
                source,
            },
        )
    }
}

impl Expression {
    fn write(&self, element: &mut Message) {
        let mut put = |name: &str, data: &dyn Fn(&mut Message)| {
            element.put_text(1, name);
            element.nest(2, |message| data(message));
        };
        let compare = |operator: u32, value: &[u8], message: &mut Message| {
            message.put_u32(1, REGISTER).put_u32(2, operator).nest(3, |data| {
                data.put(1, value);
            });
        };
        let verdict = |code: i32, chain: Option<&str>, message: &mut Message| {
            message.put_u32(1, 0).nest(2, |data| {
                data.nest(2, |verdict| {
                    verdict.put_u32(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        verdict.put_text(2, chain);
                    }
                });
            });
        };
        match self {
            Self::Meta(key) => put("meta", &|m| {
                m.put_u32(2, *key as u32).put_u32(1, REGISTER);
            }),
            Self::Payload(header, offset, length) => put("payload", &|m| {
                m.put_u32(1, REGISTER)
                    .put_u32(2, *header as u32)
                    .put_u32(3, *offset)
                    .put_u32(4, *length);
            }),
            Self::Load(value) => put("immediate", &|m| {
                m.put_u32(1, REGISTER).nest(2, |data| {
                    data.put(1, value);
                });
            }),
            Self::SetMark => put("meta", &|m| {
                m.put_u32(2, Meta::Mark as u32).put_u32(3, REGISTER);
            }),
            Self::InSet(set) => put("lookup", &|m| {
                m.put_text(1, set).put_u32(2, REGISTER);
            }),
            Self::Refresh(set, lifetime) => put("dynset", &|m| {
                m.put_text(1, set).put_u32(3, 1).put_u32(4, REGISTER).put(6, &millis(*lifetime));
            }),
            Self::Forget(set) => put("dynset", &|m| {
                m.put_text(1, set).put_u32(3, 2).put_u32(4, REGISTER);
            }),
            Self::ForwardTo => put("fwd", &|m| {
                m.put_u32(1, REGISTER);
            }),
            Self::CopyTo => put("dup", &|m| {
                m.put_u32(2, REGISTER);
            }),
            Self::ConnectionState => put("ct", &|m| {
                m.put_u32(2, 0).put_u32(1, REGISTER);
            }),
            Self::Mask(mask) => put("bitwise", &|m| {
                let length = u32::try_from(mask.len()).unwrap_or(0);
                m.put_u32(1, REGISTER).put_u32(2, REGISTER).put_u32(3, length);
                m.nest(4, |data| {
                    data.put(1, mask);
                });
                m.nest(5, |data| {
                    data.put(1, &vec![0; mask.len()]);
                });
            }),
            Self::Equal(value) => put("cmp", &|m| compare(0, value, m)),
            Self::NotEqual(value) => put("cmp", &|m| compare(1, value, m)),
            Self::AtLeast(value) => put("cmp", &|m| compare(5, value, m)),
            Self::Above { rate, burst } => put("limit", &|m| limit(m, *rate, *burst)),
            Self::EachAbove { set, lifetime, rate, burst } => put("dynset", &|m| {
                m.put_text(1, set).put_u32(3, 0).put_u32(4, REGISTER).put(6, &millis(*lifetime));
                m.nest(7, |expression| {
                    expression.put_text(1, "limit");
                    expression.nest(2, |data| limit(data, *rate, *burst));
                });
            }),
            Self::NoTrack => {
                element.put_text(1, "notrack");
            }
            Self::Counter => put("counter", &|_| {}),
            Self::Accept => put("immediate", &|m| verdict(1, None, m)),
            Self::Drop => put("immediate", &|m| verdict(0, None, m)),
            Self::Jump(chain) => put("immediate", &|m| verdict(-3, Some(chain.as_str()), m)),
        }
    }
}

/// What is met by packets above a rate.
fn limit(message: &mut Message, rate: u64, burst: u32) {
    message.put(1, &rate.to_be_bytes()).put(2, &1_u64.to_be_bytes());
    message.put_u32(3, burst).put_u32(4, LIMIT_PACKETS).put_u32(5, LIMIT_ABOVE);
}

/// A time as nftables has it.
fn millis(time: Duration) -> [u8; 8] {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).to_be_bytes()
}
