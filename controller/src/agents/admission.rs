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
}

/// How many were turned away since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TurnedAway {
    /// For want of room at all.
    pub total: u64,
    /// For want of room for their address.
    pub address: u64,
    /// For want of room for unknown ones.
    pub unknown: u64,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    unknown: usize,
    per_address: HashMap<IpAddr, usize>,
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
        } else if here >= self.limits.gateways_per_address {
            counts.turned.address += 1;
            Turned::Address
        } else if counts.unknown >= self.limits.unknown {
            counts.turned.unknown += 1;
            Turned::Unknown
        } else {
            counts.total += 1;
            counts.unknown += 1;
            *counts.per_address.entry(address).or_default() += 1;
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
        if let Some(TurnedAway { total, address, unknown }) = self.news() {
            tracing::warn!(
                total,
                address,
                unknown,
                "gateways' connections were turned away; these are the counts since the start, by the limit \
                 that was reached (limits.gateways, limits.gateways_per_address, limits.unknown)"
            );
        }
    }
}

impl Permit {
    /// The connection has said who it is.
    pub fn known(&mut self) {
        if std::mem::take(&mut self.unknown) {
            lock(&self.counts).unknown -= 1;
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
            *here -= 1;
            if *here == 0 {
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
            gateways: 4,
            gateways_per_address: 2,
            unknown: 3,
            ..ConnectionLimits::default()
        };
        let admission = Admission::new(limits);
        assert_eq!(admission.news(), None);
        let from = |last| IpAddr::from([10, 0, 0, last]);
        let mut first = admission.admit(from(1)).unwrap();
        let _second = admission.admit(from(1)).unwrap();
        assert_eq!(admission.admit(from(1)).unwrap_err(), Turned::Address);
        let _third = admission.admit(from(2)).unwrap();
        assert_eq!(admission.admit(from(3)).unwrap_err(), Turned::Unknown);
        first.known();
        first.known();
        let _fourth = admission.admit(from(3)).unwrap();
        assert_eq!(admission.admit(from(4)).unwrap_err(), Turned::Total);
        drop(first);
        assert!(admission.admit(from(1)).is_err(), "three are unknown still");
        assert_eq!(admission.news(), Some(TurnedAway { total: 1, address: 1, unknown: 2 }));
        assert_eq!(admission.news(), None, "it was told already");
        assert!(admission.admit(from(5)).is_err(), "three are unknown still");
        assert_eq!(admission.news(), Some(TurnedAway { total: 1, address: 1, unknown: 3 }));
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
