//! How many connections there may be: in all, from one address, and of those who haven't said who they are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::ConnectionLimits;

/// Why a connection isn't let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Turned {
    /// Too many in all.
    #[error("there are as many connections as there may be")]
    Total,
    /// Too many from this address.
    #[error("there are as many connections from this address as there may be")]
    Address,
    /// Too many that haven't said who they are.
    #[error("there are as many unknown connections as there may be")]
    Unknown,
    /// Too many from this address that haven't said who they are.
    #[error("there are as many unknown connections from this address as there may be")]
    UnknownAddress,
}

/// One address may hold this part of the connections that haven't said who they are, so that one machine can't keep
/// every gateway out. A gateway says who it is within milliseconds, so that many behind one address find their turn.
const SHARE: usize = 8;

/// How many were turned away since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TurnedAway {
    /// For want of room at all.
    pub total: u64,
    /// For want of room for their address.
    pub address: u64,
    /// For want of room for unknown ones.
    pub unknown: u64,
    /// For want of room for unknown ones from their address.
    pub unknown_address: u64,
}

/// Connections from one address.
#[derive(Debug, Clone, Copy, Default)]
struct Here {
    all: usize,
    unknown: usize,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    unknown: usize,
    per_address: HashMap<IpAddr, Here>,
    turned: TurnedAway,
    told: TurnedAway,
}

/// Counts connections.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: ConnectionLimits,
    counts: Arc<Mutex<Counts>>,
}

/// One admitted connection, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
    unknown: bool,
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    // Counts are whole after every step.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// Nobody is in yet.
    #[must_use]
    pub fn new(limits: ConnectionLimits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// Lets a connection from `address` in.
    ///
    /// # Errors
    /// [`Turned`], which is counted.
    pub fn admit(&self, address: IpAddr) -> Result<Permit, Turned> {
        let address = address.to_canonical();
        let mut counts = lock(&self.counts);
        let here = counts.per_address.get(&address).copied().unwrap_or_default();
        let turned = if counts.total >= self.limits.gateways {
            counts.turned.total += 1;
            Turned::Total
        } else if here.all >= self.limits.gateways_per_address {
            counts.turned.address += 1;
            Turned::Address
        } else if counts.unknown >= self.limits.unknown {
            counts.turned.unknown += 1;
            Turned::Unknown
        } else if here.unknown >= (self.limits.unknown / SHARE).max(1) {
            counts.turned.unknown_address += 1;
            Turned::UnknownAddress
        } else {
            counts.total += 1;
            counts.unknown += 1;
            let here = counts.per_address.entry(address).or_default();
            here.all += 1;
            here.unknown += 1;
            let counts = self.counts.clone();
            return Ok(Permit { counts, address, unknown: true });
        };
        Err(turned)
    }

    /// Whether so many are unknown that an address must first show that it can be reached.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        lock(&self.counts).unknown * 4 >= self.limits.unknown
    }

    /// How many were turned away, if more were since the last call.
    #[must_use]
    pub fn news(&self) -> Option<TurnedAway> {
        let mut counts = lock(&self.counts);
        let turned = counts.turned;
        (std::mem::replace(&mut counts.told, turned) != turned).then_some(turned)
    }

    /// Logs how many were turned away, if more were since the last call.
    pub fn log_news(&self) {
        if let Some(TurnedAway { total, address, unknown, unknown_address }) = self.news() {
            tracing::warn!(
                total,
                address,
                unknown,
                unknown_address,
                "gateways' connections were turned away; these are the counts since the start, by the limit \
                 that was reached (limits.gateways, limits.gateways_per_address, limits.unknown, and an eighth of that for \
                 one address)"
            );
        }
    }
}

impl Permit {
    /// The connection has said who it is.
    pub fn known(&mut self) {
        if std::mem::take(&mut self.unknown) {
            let mut counts = lock(&self.counts);
            counts.unknown -= 1;
            if let Some(here) = counts.per_address.get_mut(&self.address) {
                here.unknown -= 1;
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts.total -= 1;
        if self.unknown {
            counts.unknown -= 1;
        }
        if let Some(here) = counts.per_address.get_mut(&self.address) {
            here.all -= 1;
            here.unknown -= usize::from(self.unknown);
            if here.all == 0 {
                counts.per_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_holds_and_is_counted() {
        let limits = ConnectionLimits {
            gateways: 26,
            gateways_per_address: 4,
            unknown: 24,
            ..ConnectionLimits::default()
        };
        let admission = Admission::new(limits);
        assert_eq!(admission.news(), None);
        let from = |last| IpAddr::from([10, 0, 0, last]);
        let mut first = admission.admit(from(1)).unwrap();
        let mut others: Vec<_> = (0..2).map(|_| admission.admit(from(1)).unwrap()).collect();
        assert_eq!(admission.admit(from(1)).unwrap_err(), Turned::UnknownAddress);
        first.known();
        first.known();
        others.push(admission.admit(from(1)).unwrap());
        assert_eq!(admission.admit(from(1)).unwrap_err(), Turned::Address);
        for n in 2..9 {
            others.extend((0..3).map(|_| admission.admit(from(n)).unwrap()));
        }
        assert_eq!(admission.admit(from(9)).unwrap_err(), Turned::Unknown);
        for permit in &mut others[..2] {
            permit.known();
        }
        let _last = admission.admit(from(9)).unwrap();
        assert_eq!(admission.admit(from(9)).unwrap_err(), Turned::Total);
        let news = TurnedAway { total: 1, address: 1, unknown: 1, unknown_address: 1 };
        assert_eq!(admission.news(), Some(news));
        assert_eq!(admission.news(), None, "it was told already");
        drop(others);
        assert!(admission.admit(from(9)).is_ok());
        assert_eq!(admission.news(), None);
    }

    #[test]
    fn nothing_is_left_when_all_have_gone() {
        let admission = Admission::new(ConnectionLimits::default());
        let permits: Vec<_> =
            (0..10).map(|n| admission.admit(IpAddr::from([10, 0, 0, n])).unwrap()).collect();
        drop(permits);
        let counts = lock(&admission.counts);
        assert_eq!((counts.total, counts.unknown, counts.per_address.len()), (0, 0, 0));
    }
}
