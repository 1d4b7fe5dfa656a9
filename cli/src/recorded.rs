//! What gateways recorded, read from the controller page by page.

use anteroom_controller_core::coverage::{Coverage, Wanted, coverage};
use anteroom_controller_core::history::{Folded, History};
use anteroom_controller_core::model::Model;
use anteroom_controller_core::names::Names;
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::api::{Edge, HistoryQuery};
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::rhythm::Rhythm;
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
    /// Answered edges that were quiet for long and made room for others.
    pub forgotten: u64,
    /// Whether there were more edges than are read.
    pub cut_off: bool,
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
        let (history, unconfirmed, told) = {
            let mut reader = Reader::new(&resolved);
            let told = reader.read(remote, &mut |_| ())?.ok_or_else(|| {
                Error::Other(
                    "the controller is too old to give its flow history: bring it to this version first"
                        .into(),
                )
            })?;
            (reader.history, reader.unconfirmed, told)
        };
        let turned_away = told.turned_away.saturating_add(history.turned_away());
        let Told { cut_off, forgotten, .. } = told;
        Ok(Self { resolved, history, turned_away, forgotten, cut_off, unconfirmed, now: now() })
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
        coverage(&self.resolved, &self.history, &Wanted::default(), self.now)
    }

    /// Says what isn't in it.
    ///
    /// # Errors
    /// When the output can't be written.
    pub fn warn_of_gaps(&self, output: &mut Output<'_>) -> Result<(), Error> {
        let Self { turned_away, forgotten, cut_off, .. } = *self;
        Told { turned_away, forgotten, cut_off, ..Told::default() }.warn(output)?;
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

    /// Folds all that the controller holds, and shows each edge. Gives what isn't there; none where the controller is too old for this.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn read(
        &mut self,
        remote: &mut Remote,
        visit: &mut dyn FnMut(Edge),
    ) -> Result<Option<Told>, Error> {
        let told = each(remote, &mut |edge| {
            self.take(&edge);
            visit(edge);
        })?;
        for (gateway, when) in told.iter().flat_map(|told| &told.watched) {
            self.history.watched(*gateway, when);
        }
        Ok(told)
    }

    fn take(&mut self, edge: &Edge) {
        let folded = self.history.recorded(self.resolved, &self.names, edge, self.now);
        self.unconfirmed += usize::from(folded == Folded::Stranger);
    }
}

/// What is told beside the edges that were read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Told {
    /// How many found no room, at gateways or at the controller.
    pub(crate) turned_away: u64,
    /// How many were quiet for long and made room for others.
    pub(crate) forgotten: u64,
    /// When gateways reported anything.
    pub(crate) watched: BTreeMap<GatewayId, Rhythm>,
    /// Whether there are more than are read.
    pub(crate) cut_off: bool,
}

impl Told {
    /// Says so.
    pub(crate) fn warn(&self, output: &mut Output<'_>) -> Result<(), Error> {
        if self.turned_away > 0 {
            output.warn(format_args!(
                "{} edges of traffic found no room and aren't in the history",
                self.turned_away
            ))?;
        }
        if self.forgotten > 0 {
            output.warn(format_args!(
                "{} conversations that were quiet for weeks made room for others, and aren't in the history any more: what \
                 happens rarely may be missing",
                self.forgotten
            ))?;
        }
        if self.cut_off {
            output.warn(format_args!(
                "the history has more than {MOST} edges: those beyond weren't read"
            ))?;
        }
        Ok(())
    }
}

/// Which edges to read. What a controller can't choose by it gives all of: whoever asks looks again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Only {
    /// Those of this member.
    pub(crate) member: Option<MemberId>,
    /// Those of these kinds.
    pub(crate) verdicts: &'static [&'static str],
}

/// Calls `visit` with every edge that the controller holds. Gives what found no room; none where the controller is too old for this, and
/// `visit` was never called.
///
/// # Errors
/// When it can't be read.
pub(crate) fn each(
    remote: &mut Remote,
    visit: &mut dyn FnMut(Edge),
) -> Result<Option<Told>, Error> {
    each_of(remote, &Only::default(), visit)
}

/// As [`each`], with the edges of `only`, and others where the controller is too old to choose.
///
/// # Errors
/// When it can't be read.
pub(crate) fn each_of(
    remote: &mut Remote,
    only: &Only,
    visit: &mut dyn FnMut(Edge),
) -> Result<Option<Told>, Error> {
    let verdicts = (!only.verdicts.is_empty()).then(|| only.verdicts.join(","));
    let plain = HistoryQuery { limit: Some(PAGE), ..HistoryQuery::default() };
    let mut query = HistoryQuery { member: only.member, verdicts, ..plain.clone() };
    let (mut read, mut told) = (0_usize, Told::default());
    loop {
        let page = match remote.history_page(&query) {
            // It knows no such words.
            Err(Error::Client(error))
                if error.has_status(400)
                    && (query.member.is_some() || query.verdicts.is_some()) =>
            {
                query = HistoryQuery { after: query.after, ..plain.clone() };
                continue;
            }
            found => found?,
        };
        let Some(page) = page else {
            return if query.after.is_none() {
                Ok(None)
            } else {
                Err(Error::Other("the controller stopped in the middle of its flow history".into()))
            };
        };
        if query.after.is_none() {
            told.turned_away = page.turned_away;
            told.forgotten = page.forgotten;
            told.watched = page.watched;
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
            next => {
                told.cut_off = next.is_some();
                return Ok(Some(told));
            }
        }
    }
}
