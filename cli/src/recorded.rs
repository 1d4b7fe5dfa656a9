//! What gateways recorded, read from the controller page by page.

use anteroom_controller_core::coverage::{Coverage, Demand, coverage};
use anteroom_controller_core::history::{Folded, History};
use anteroom_controller_core::model::Model;
use anteroom_controller_core::names::Names;
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::api::{Edge, HistoryQuery};
use anteroom_proto::id::MemberId;
use anteroom_proto::time::UnixMillis;
use std::collections::BTreeMap;

use crate::change::ChangeError;
use crate::error::Error;
use crate::output::Output;
use crate::output::time::now;
use crate::remote::Remote;

/// Edges of one page.
const PAGE: u32 = 10_000;
/// Most edges that are read, whatever a controller serves.
const MOST: usize = 4_000_000;

/// The flow history, with the model by which its ends are known.
#[derive(Debug)]
pub struct Recorded {
    /// The model and its policy.
    pub resolved: Resolved,
    /// What was recorded.
    pub history: History,
    /// Edges that found no room, at gateways, the controller or here.
    pub turned_away: u64,
    /// Edges of devices that nobody confirmed: nothing is learnt of them.
    pub unconfirmed: usize,
    /// By which moment it was read.
    pub now: UnixMillis,
}

impl Recorded {
    /// Reads all that was recorded, as `resolved` knows its ends.
    ///
    /// # Errors
    /// When the controller can't be reached, or is too old to give it.
    pub fn load(remote: &mut Remote, resolved: Resolved) -> Result<Self, Error> {
        let (history, unconfirmed, away) = {
            let mut reader = Reader::new(&resolved);
            let away = each(remote, &mut |edge| reader.take(&edge))?.ok_or_else(|| {
                Error::Other(
                    "the controller is too old to give its flow history: bring it to this version first"
                        .into(),
                )
            })?;
            (reader.history, reader.unconfirmed, away)
        };
        let turned_away = away.saturating_add(history.turned_away());
        Ok(Self { resolved, history, turned_away, unconfirmed, now: now() })
    }

    /// As [`Recorded::load`], by the policy that is in force.
    ///
    /// # Errors
    /// As [`Recorded::load`], or when the policy has problems.
    pub fn of(remote: &mut Remote, model: &Model) -> Result<Self, Error> {
        Self::load(remote, Resolved::new(model).map_err(ChangeError::from)?)
    }

    /// How much was seen of each device.
    #[must_use]
    pub fn coverage(&self) -> BTreeMap<MemberId, Coverage> {
        coverage(&self.resolved, &self.history, &Demand::default(), self.now)
    }

    /// Says what isn't in it.
    ///
    /// # Errors
    /// When the output can't be written.
    pub fn warn_of_gaps(&self, output: &mut Output<'_>) -> Result<(), Error> {
        if self.turned_away > 0 {
            output.warn(format_args!(
                "{} edges of traffic found no room and aren't in the history",
                self.turned_away
            ))?;
        }
        if self.unconfirmed > 0 {
            output.warn(format_args!(
                "{} edges are of devices that nobody confirmed, and teach nothing: `anteroom device list --new`",
                self.unconfirmed
            ))?;
        }
        Ok(())
    }
}

/// Folds edges into a history as they come.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    resolved: &'a Resolved,
    names: Names,
    now: UnixMillis,
    pub(crate) history: History,
    unconfirmed: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(resolved: &'a Resolved) -> Self {
        Self {
            resolved,
            names: Names::of(&resolved.model),
            now: now(),
            history: History::new(MOST),
            unconfirmed: 0,
        }
    }

    pub(crate) fn take(&mut self, edge: &Edge) {
        let folded = self.history.recorded(self.resolved, &self.names, edge, self.now);
        self.unconfirmed += usize::from(folded == Folded::Stranger);
    }
}

/// Calls `visit` with every edge that the controller holds. Gives how many found no room there or at gateways; none where the
/// controller is too old for this, and `visit` was never called.
///
/// # Errors
/// When it can't be read.
pub(crate) fn each(remote: &mut Remote, visit: &mut dyn FnMut(Edge)) -> Result<Option<u64>, Error> {
    let mut query = HistoryQuery { after: None, limit: Some(PAGE) };
    let (mut read, mut away) = (0_usize, 0);
    loop {
        let Some(page) = remote.history_page(&query)? else {
            return if query.after.is_none() {
                Ok(None)
            } else {
                Err(Error::Other("the controller stopped in the middle of its flow history".into()))
            };
        };
        if query.after.is_none() {
            away = page.turned_away;
        }
        read = read.saturating_add(page.edges.len());
        let full = read > MOST;
        page.edges.into_iter().for_each(&mut *visit);
        match page.next {
            Some(next) if !full && query.after.is_none_or(|after| next > after) => {
                query.after = Some(next);
            }
            Some(_) if !full => {
                return Err(Error::Other(
                    "the controller gives the same page of its flow history again and again".into(),
                ));
            }
            _ => return Ok(Some(away)),
        }
    }
}
