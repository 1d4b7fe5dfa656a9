//! What a gateway holds at start, everything verified again.

use std::borrow::Cow;
use std::sync::Arc;

use anteroom_agent_core::report::Learned;
use anteroom_proto::approval::Demands;
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::mode::Mode;
use anteroom_proto::view::{Floor, KnownKeys, SignedView, View};

use crate::config::Config;
use crate::keys::Ring;
use crate::net::wiring::Wiring;
use crate::trial;

use super::{Enrolment, Nexts, StateDir, StateError, records};

/// What was found on disk and holds.
#[derive(Debug)]
pub struct Held {
    /// Who this gateway is. None: not enrolled, or no longer able to show it.
    pub enrolled: Option<Enrolled>,
    /// Whose gateway this is, where the keys that show it are sealed and can't be opened yet.
    pub locked: Option<Enrolment>,
    /// What the engine learnt.
    pub learned: Learned,
    /// Whether the ports must stay shut until there is a view: an enforced device was here, and the view that
    /// says so is lost.
    pub closed: bool,
    /// What was wrong, for the log. The agent goes on without it.
    pub problems: Vec<StateError>,
}

/// What an enrolled gateway holds.
#[derive(Debug)]
pub struct Enrolled {
    /// Whose gateway this is.
    pub enrolment: Enrolment,
    /// Its identity key.
    pub identity: IdentityKey,
    /// Identity keys that it offered in the place of that.
    pub nexts: Nexts,
    /// Its tunnel keys.
    pub ring: Ring,
    /// The authority chain, from the pinned document. None where it was lost.
    pub chain: Option<AuthorityChain>,
    /// The view to put in force.
    pub view: Option<Arc<View>>,
    /// On which devices two operators decide, with the view or from before it was lost.
    pub demands: Demands,
    /// What no newer view may be below.
    pub floor: Floor,
    /// The tunnel keys that were seen of peers.
    pub keys: KnownKeys,
}

impl Held {
    /// Reads and verifies everything. What is damaged is left out and named in [`Held::problems`]: a lost key of
    /// the tunnels is made anew, a lost chain or view is asked of the controller, a lost view of a gateway that
    /// ever had an enforced device leaves the ports closed.
    ///
    /// # Errors
    /// When a new tunnel key is needed and can't be written, or a file is of a newer agent: going on would
    /// overwrite what that one knows.
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        let mut problems = Vec::new();
        let learned = note(records::LEARNED.read(state.path()), &mut problems)?.flatten();
        let enrolled = Enrolled::load(state, &mut problems)?;
        let no_view = enrolled.as_ref().is_none_or(|enrolled| enrolled.view.is_none());
        let sealed = |problem: &StateError| matches!(problem, StateError::Sealed { .. });
        let locked = match &enrolled {
            None if problems.iter().any(sealed) => state.enrolment()?,
            _ => None,
        };
        Ok(Self {
            enrolled,
            locked,
            learned: learned.unwrap_or_default(),
            closed: no_view && state.ever_enforced(),
            problems,
        })
    }
}

/// What the ports are to do before any agent runs, by what is on disk: nothing there is changed. Closed where that
/// can't be told, and on a machine that was never a gateway.
#[must_use]
pub fn wiring_on_disk(config: &Config) -> Wiring {
    let closed = Wiring::closed(config);
    let Ok(Some(state)) = StateDir::find(&config.state) else { return closed };
    if !state.seals_nothing() {
        return sealed_wiring(config, &state).unwrap_or(closed);
    }
    let (enrolment, keys) = (state.enrolment(), state.tunnel_keys());
    if !matches!(enrolment, Ok(Some(_))) || !keys.is_ok_and(|keys| !keys.is_empty()) {
        return closed;
    }
    match Held::load(&state) {
        Ok(held) if !held.closed => {
            let view = held.enrolled.and_then(|enrolled| enrolled.view);
            let view = view.as_deref().map(|view| as_it_is(view, &state));
            Wiring::of(config, view.as_deref())
        }
        _ => closed,
    }
}

/// The same of a gateway whose keys are sealed: what opens them may not be there yet, and isn't needed for the view.
fn sealed_wiring(config: &Config, state: &StateDir) -> Option<Wiring> {
    let enrolment = state.enrolment().ok()??;
    let floor = records::FLOOR.read::<Floor>(state.path()).ok()?.unwrap_or_default();
    let demands = records::DEMANDS.read::<Demands>(state.path()).ok().flatten();
    let limits = (&floor, demands.as_ref());
    let (_, view) = signed(state, &enrolment, limits, &mut Vec::new()).ok()?;
    let now = view.as_ref().map(|view| as_it_is(view, state));
    (view.is_some() || !state.ever_enforced()).then(|| Wiring::of(config, now.as_deref()))
}

/// `view` with its devices in the modes that they are in: those whose trial is over have gone back.
fn as_it_is<'a>(view: &'a View, state: &StateDir) -> Cow<'a, View> {
    trial::as_it_is(view, state.trials().unwrap_or_default())
}

/// Whether `view` has a device in enforce.
#[must_use]
pub(crate) fn enforces(view: &View) -> bool {
    view.intent.devices.iter().any(|device| device.member.mode == Mode::Enforce)
}

fn note<T>(
    read: Result<T, StateError>,
    problems: &mut Vec<StateError>,
) -> Result<Option<T>, StateError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error @ StateError::Newer { .. }) => Err(error),
        Err(error) => {
            problems.push(error);
            Ok(None)
        }
    }
}

impl Enrolled {
    fn load(state: &StateDir, problems: &mut Vec<StateError>) -> Result<Option<Self>, StateError> {
        let Some(enrolment) = note(state.enrolment(), problems)?.flatten() else {
            return Ok(None);
        };
        let identity = state.identity();
        // The key is there: whoever says that it's lost has somebody make a new one.
        let sealed = matches!(identity, Err(StateError::Sealed { .. }));
        let Some(identity) = note(identity, problems)?.flatten() else {
            if sealed {
                return Ok(None);
            }
            let path = state.path().to_owned();
            problems.push(StateError::IdentityLost { path, gateway: enrolment.gateway });
            return Ok(None);
        };
        let keys = match state.tunnel_keys() {
            // They are there, and another one in their place would be the end of them.
            Err(error @ StateError::Sealed { .. }) => {
                problems.push(error);
                return Ok(None);
            }
            keys => note(keys, problems)?.unwrap_or_default(),
        };
        note(state.check_kem_keys(), problems)?;
        let floor = note(records::FLOOR.read::<Floor>(state.path()), problems)?.flatten();
        let floor = floor.unwrap_or_default();
        let known = note(state.known_keys(), problems)?.unwrap_or_default();
        let newest = match keys.first() {
            Some(key) => key.clone(),
            None => state.replace_lost_tunnel_keys(floor.time)?,
        };
        let ring = Ring::new(keys, newest);
        let nexts = note(state.next_identities(), problems)?.unwrap_or_default();
        let demands = note(records::DEMANDS.read::<Demands>(state.path()), problems)?.flatten();
        let (chain, view) = signed(state, &enrolment, (&floor, demands.as_ref()), problems)?;
        let demands = demands.unwrap_or_default();
        let mut held = Self {
            enrolment,
            identity,
            nexts,
            ring,
            chain,
            view: None,
            demands,
            floor,
            keys: known,
        };
        if let Some(mut view) = view {
            // Operators have signed another one, and the disk was too slow for it.
            let named = view.intent.identity.filter(|named| *named != held.identity.public());
            if let Some(wanted) = named {
                match held.nexts.find(wanted) {
                    Some(next) => held.identity = next.key.clone(),
                    None => problems.push(StateError::IdentityUnknown {
                        path: state.path().to_owned(),
                        wanted: wanted.fingerprint(),
                    }),
                }
            }
            held.floor = view.floor(&held.floor);
            held.demands.clone_from(&view.upheld.demands);
            held.keys.hold(&mut view);
            held.view = Some(Arc::new(view));
        }
        Ok(Some(held))
    }
}

/// What was signed for a gateway, as far as it holds.
fn signed(
    state: &StateDir,
    enrolment: &Enrolment,
    (floor, demands): (&Floor, Option<&Demands>),
    problems: &mut Vec<StateError>,
) -> Result<(Option<AuthorityChain>, Option<View>), StateError> {
    let chain = note(records::AUTHORITY.read::<Vec<_>>(state.path()), problems)?.flatten();
    let view = note(records::VIEW.read::<SignedView>(state.path()), problems)?.flatten();
    let Some(documents) = chain else { return Ok((None, None)) };
    let chain = match AuthorityChain::follow(enrolment.pin, &documents) {
        Ok(chain) if chain.newest().organisation == enrolment.organisation => Some(chain),
        Ok(_) => {
            problems.push(StateError::Damaged {
                path: state.file(&records::AUTHORITY),
                problem: "it is of another organisation than the enrolment".into(),
                consequence: records::AUTHORITY.loss,
            });
            None
        }
        Err(error) => {
            problems.push(StateError::Authority { path: state.file(&records::AUTHORITY), error });
            None
        }
    };
    let (Some(followed), Some(view)) = (&chain, view) else { return Ok((chain, None)) };
    match View::verify_held(&view, enrolment.gateway, followed, floor, demands) {
        Ok(view) => Ok((chain, Some(view))),
        Err(error) => {
            problems.push(StateError::View { path: state.file(&records::VIEW), error });
            Ok((chain, None))
        }
    }
}
