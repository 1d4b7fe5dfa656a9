//! What was refused though a controller, or whoever passes for one, wanted it: kept for people to find.

use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

/// Different alarms that are kept; the one that was quiet longest makes room.
const MOST: usize = 16;
/// For how long an alarm is told to the controller, in milliseconds.
const TOLD: u64 = 24 * 60 * 60 * 1000;

/// Something that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// What, in a sentence.
    pub what: String,
    /// When it happened first, by this gateway's clock.
    pub first: UnixMillis,
    /// When it happened last.
    pub last: UnixMillis,
    /// How often.
    pub count: u64,
}

/// Notes that `what` happened. Gives whether it is new.
pub(super) fn raise(alarms: &mut Vec<Alarm>, what: &str, now: UnixMillis) -> bool {
    if let Some(alarm) = alarms.iter_mut().find(|alarm| alarm.what == what) {
        alarm.last = now;
        alarm.count = alarm.count.saturating_add(1);
        return false;
    }
    if alarms.len() >= MOST
        && let Some(oldest) = (0..alarms.len()).min_by_key(|at| alarms.get(*at).map(|a| a.last))
    {
        alarms.remove(oldest);
    }
    alarms.push(Alarm { what: what.to_owned(), first: now, last: now, count: 1 });
    true
}

/// What a controller is told, for operators to see: the alarms of the last day.
pub(super) fn told(alarms: &[Alarm], now: UnixMillis) -> impl Iterator<Item = String> {
    alarms.iter().filter(move |alarm| now.0.saturating_sub(alarm.last.0) < TOLD).map(move |alarm| {
        let minutes = now.0.saturating_sub(alarm.last.0) / 60_000;
        format!("alarm: {} ({} times, last {minutes} min ago)", alarm.what, alarm.count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_alarm_counts_and_many_make_room() {
        let mut alarms = Vec::new();
        assert!(raise(&mut alarms, "an old view", UnixMillis(1)));
        assert!(!raise(&mut alarms, "an old view", UnixMillis(5)));
        assert_eq!(
            (alarms[0].first, alarms[0].last, alarms[0].count),
            (UnixMillis(1), UnixMillis(5), 2)
        );
        for n in 0..100 {
            raise(&mut alarms, &format!("alarm {n}"), UnixMillis(10 + n));
        }
        assert_eq!(alarms.len(), MOST);
        assert_eq!(alarms.last().unwrap().what, "alarm 99");
        let now = UnixMillis(10 + 99 + TOLD);
        assert_eq!(told(&alarms, now).count(), 0);
        assert_eq!(told(&alarms, UnixMillis(now.0 - 1)).count(), 1);
    }
}
