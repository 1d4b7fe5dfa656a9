//! Alarms that stand: bounded per port, so that what happens on one port hides nothing of another.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::alarm::AlarmKind;
use anteroom_proto::id::MemberId;
use anteroom_proto::mac::MacAddr;

use crate::port::PortId;

/// How long an alarm stands after it was last seen.
pub(crate) const STANDS: Duration = Duration::from_secs(600);
/// How long an alarm must have been silent before another may take its place.
const GIVES_WAY: Duration = Duration::from_secs(60);
/// Most alarms of one port.
const PER_PORT: usize = 8;

/// What an alarm is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) kind: AlarmKind,
    pub(crate) mac: MacAddr,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) member: Option<MemberId>,
}

/// An alarm that stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) port: PortId,
    pub(crate) about: About,
    pub(crate) count: u64,
    pub(crate) first: Instant,
    pub(crate) last: Instant,
}

/// The alarms of all ports.
#[derive(Debug)]
pub(crate) struct Alarms {
    /// By [`PortId::index`].
    ports: Vec<Vec<Standing>>,
}

impl Alarms {
    /// No alarms at the uplink and so many device ports.
    pub(crate) fn new(ports: usize) -> Self {
        Self { ports: vec![Vec::new(); ports + 1] }
    }

    /// Raises an alarm, or counts it once more. Returns false where there is no room.
    pub(crate) fn raise(&mut self, port: PortId, about: About, now: Instant) -> bool {
        let Some(list) = self.ports.get_mut(port.index()) else { return false };
        if let Some(known) = list.iter_mut().find(|standing| standing.about == about) {
            known.count = known.count.saturating_add(1);
            known.last = now;
            return true;
        }
        let fresh = Standing { port, about, count: 1, first: now, last: now };
        if list.len() < PER_PORT {
            list.push(fresh);
            return true;
        }
        let silent =
            |standing: &&mut Standing| now.saturating_duration_since(standing.last) >= GIVES_WAY;
        let Some(oldest) = list.iter_mut().filter(silent).min_by_key(|standing| standing.last)
        else {
            return false;
        };
        *oldest = fresh;
        true
    }

    /// The alarms that stand.
    pub(crate) fn standing(&self, now: Instant) -> impl Iterator<Item = &Standing> {
        let stands =
            move |standing: &&Standing| now.saturating_duration_since(standing.last) < STANDS;
        self.ports.iter().flatten().filter(stands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_raises_alarms_without_end_hides_none_of_another() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut alarms = Alarms::new(2);
        let about = |byte| About {
            kind: AlarmKind::Conflict,
            mac: MacAddr([0, 0, 0, 0, 0, byte]),
            address: None,
            member: None,
        };
        let (one, two) = (PortId::device(0), PortId::device(1));
        assert!(alarms.raise(one, about(1), now) && alarms.raise(one, about(1), now));
        for byte in 0..200 {
            alarms.raise(two, about(byte), now);
        }
        let of = |alarms: &Alarms, port, at| {
            alarms.standing(at).filter(|s| s.port == port).map(|s| s.count).collect::<Vec<_>>()
        };
        assert_eq!((of(&alarms, one, now), of(&alarms, two, now)), (vec![2], vec![1; PER_PORT]));
        assert!(
            !alarms.raise(two, about(201), now) && alarms.raise(two, about(201), now + GIVES_WAY)
        );
        assert_eq!(alarms.standing(now + STANDS).count(), 1);
    }
}
