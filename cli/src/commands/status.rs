//! `status`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anteroom_controller_core::model::{Client, Model};
use anteroom_controller_core::names::Names;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::standing::{Because, Standing};
use anteroom_proto::api::GatewayStatus;
use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::v1::telemetry::TunnelState;
use serde::Serialize;

use super::cables::notices;
use super::device::{surfaces, unconfirmed};
use super::gateway::{GatewayRow, State, render as render_gateways, rows};
use super::relay::missed;
use super::rollout::{enforcing_words, trial_of, trial_words};
use crate::args::Status;
use crate::change;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::count;
use crate::output::time::{ago, now};
use crate::remote::Remote;

/// How often `--wait` looks.
const WAIT_PAUSE: Duration = Duration::from_millis(250);
/// How often `--watch` looks.
const WATCH_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
struct Problem {
    subject: String,
    problem: String,
}

#[derive(Debug, Default, Serialize)]
struct Devices {
    total: usize,
    observe: usize,
    protect: usize,
    enforce: usize,
    quarantined: usize,
    detached: usize,
    /// Those on which a life may hang, and those of them that are in enforce.
    life_support: usize,
    life_support_enforced: usize,
}

/// How everything is.
#[derive(Debug, Serialize)]
struct Picture {
    organisation: String,
    revision: u64,
    /// Whether nothing lags, is offline or has problems.
    well: bool,
    /// Whether nothing but alarms is wrong.
    #[serde(skip)]
    settled: bool,
    problems: Vec<Problem>,
    /// What waits for an operator.
    to_do: Vec<Problem>,
    /// What is as somebody set it, and worth knowing.
    notices: Vec<Problem>,
    devices: Devices,
    clients: Vec<ClientState>,
    gateways: Vec<GatewayRow>,
}

/// A client, as far as gateways have told.
#[derive(Debug, Serialize)]
struct ClientState {
    name: String,
    /// Gateways that have heard it lately.
    live_at: Vec<String>,
    /// Where the first of them hears it from.
    seen_at: Option<String>,
}

/// `anteroom status`.
pub(super) fn status(
    args: &Status,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    if args.watch {
        loop {
            let picture = look(remote)?;
            output.clear()?;
            output.stream(&picture, render)?;
            sleep(WATCH_PAUSE);
        }
    }
    let end = Instant::now() + Duration::from_secs(args.wait.unwrap_or(0).min(86_400));
    let picture = loop {
        let picture = look(remote)?;
        if picture.settled || Instant::now() >= end {
            break picture;
        }
        sleep(WAIT_PAUSE);
    };
    // An alarm stands for a while after its cause is gone: it is shown, and nobody waits for it.
    let done = picture.well || (args.wait.is_some() && picture.settled);
    let exit = if done { Exit::Ok } else { Exit::Lagging };
    output.data(&picture, render)?;
    Ok(exit)
}

fn look(remote: &mut Remote) -> Result<Picture, Error> {
    let current = change::fetch(remote)?;
    let statuses = remote.gateways()?;
    let names = Names::of(&current.model);
    let gateways = rows(&current, &statuses, &names);
    let mut problems: Vec<Problem> = gateways.iter().flat_map(problems_of).collect();
    for relay in &remote.chain().newest().relays {
        let name = |status: &GatewayStatus| names.gateway(status.gateway);
        let problem = missed(relay, &statuses, name);
        let subject = format!("relay {}", relay.name);
        problems.extend(problem.map(|problem| Problem { subject, problem }));
    }
    let (over, on_trial) = trials(&current.model, &statuses);
    // What a person must decide on, as an alarm is: it is shown, and nobody waits for it.
    let alarms: usize =
        gateways.iter().map(|gateway| gateway.alarms.len()).sum::<usize>() + over.len();
    problems.extend(over);
    let mut to_do = Vec::new();
    let waiting = remote.pending()?.len();
    if waiting > 0 {
        to_do.push(Problem {
            subject: "gateways".into(),
            problem: format!("{waiting} waiting for approval: anteroom gateway pending"),
        });
    }
    let sighted = remote.sighted()?;
    let new = unconfirmed(&current.model, &sighted.records);
    let held = new.iter().filter(|record| record.sighting.held).count();
    if !new.is_empty() {
        let held =
            if held > 0 { format!(", {held} of them held without traffic") } else { String::new() };
        to_do.push(Problem {
            subject: "devices".into(),
            problem: format!(
                "{} seen and not confirmed{held}: anteroom device list --new",
                new.len()
            ),
        });
    }
    to_do.extend(on_trial);
    for problem in sighted.missing(|gateway| names.gateway(gateway), now()) {
        to_do.push(Problem { subject: "devices".into(), problem });
    }
    let mut devices = Devices::default();
    let resolved = Resolved::new(&current.model).ok();
    let surfaces = surfaces(&current.model, resolved.as_ref());
    for (id, device) in &Standing::of(&current.model, &statuses).apply(&current.model).devices {
        // It is among the clients that there were, and nothing is to be done for it.
        if current.model.is_revoked_host(device) {
            continue;
        }
        devices.total += 1;
        if surfaces.member(*id).is_life_support() {
            devices.life_support += 1;
            devices.life_support_enforced += usize::from(device.mode == Mode::Enforce);
        }
        match device.mode {
            Mode::Observe => devices.observe += 1,
            Mode::Protect => devices.protect += 1,
            Mode::Enforce => devices.enforce += 1,
            Mode::Unrecognised => {}
        }
        devices.quarantined += usize::from(device.quarantined);
        devices.detached +=
            usize::from(!current.model.gateways.contains_key(&device.attachment.gateway));
    }
    if devices.detached > 0 {
        to_do.push(Problem {
            subject: "devices".into(),
            problem: format!(
                "{} behind a revoked gateway: confirm them behind another one",
                devices.detached
            ),
        });
    }
    let notices = notices(&current.model, &statuses)
        .into_iter()
        .map(|(gateway, problem)| Problem { subject: format!("gateway {gateway}"), problem })
        .collect();
    Ok(Picture {
        organisation: current.model.organisation.to_string(),
        revision: current.base.number,
        well: problems.is_empty(),
        settled: problems.len() == alarms,
        problems,
        to_do,
        notices,
        devices,
        clients: clients(&current.model, &statuses),
        gateways,
    })
}

/// Devices that went back from their trial or are held back, and those that are on one, with what operators are to do about them.
fn trials(model: &Model, statuses: &[GatewayStatus]) -> (Vec<Problem>, Vec<Problem>) {
    let (mut over, mut running) = (Vec::new(), Vec::new());
    let standing = Standing::of(model, statuses);
    for (id, device) in &model.devices {
        let name = &device.name;
        if let Some(aside) = standing.get(*id).filter(|aside| aside.because == Because::HeldBack) {
            let words = enforcing_words(Some(aside), None, model).unwrap_or_default();
            let next = "--propose FILE, then another operator's anteroom approve FILE";
            let problem = format!("{words}; anteroom device mode {name} enforce {next}");
            over.push(Problem { subject: format!("device {name}"), problem });
            continue;
        }
        let Some(trial) = trial_of(*id, device, statuses) else { continue };
        let (list, next) = match trial.over {
            Some(_) => (
                &mut over,
                format!(
                    "anteroom device mode {name} protect, or enforce again once that is mended"
                ),
            ),
            None => (&mut running, format!("confirm with anteroom device keep {name}")),
        };
        let problem = format!("{}; {next}", trial_words(&trial, model));
        list.push(Problem { subject: format!("device {name}"), problem });
    }
    (over, running)
}

fn clients(model: &Model, statuses: &[GatewayStatus]) -> Vec<ClientState> {
    let state = |(id, client): (&MemberId, &Client)| {
        let tunnels = statuses.iter().filter(|status| status.online).flat_map(|status| {
            let of_client = |tunnel: &&TunnelState| tunnel.gateway == (*id).into() && tunnel.live;
            let gateway = model.gateways.get(&status.gateway);
            status.tunnels.iter().filter(of_client).filter_map(move |t| Some((gateway?, t)))
        });
        let tunnels: Vec<_> = tunnels.collect();
        ClientState {
            name: client.name.to_string(),
            live_at: tunnels.iter().map(|(gateway, _)| gateway.name.to_string()).collect(),
            seen_at: tunnels.first().and_then(|(_, t)| t.endpoint).map(|at| at.to_string()),
        }
    };
    let mut clients: Vec<ClientState> = model.clients.iter().map(state).collect();
    clients.sort_by(|a, b| a.name.cmp(&b.name));
    clients
}

fn problems_of(row: &GatewayRow) -> Vec<Problem> {
    let now = now();
    let problem = |problem: String| Problem { subject: format!("gateway {}", row.name), problem };
    let mut found = Vec::new();
    if let Some(until) = row.bypassed_until {
        found.push(problem(format!(
            "BYPASSED until {until}: what rules open to its devices goes in the clear. When it is back or replaced: anteroom gateway bypass {} --end",
            row.name
        )));
    }
    for (bypassed, until) in &row.bypasses_by_file {
        found.push(problem(format!(
            "follows a file that bypasses gateway {bypassed} until {until}. End it with: anteroom gateway bypass {bypassed} --end"
        )));
    }
    match row.state {
        State::Ok => {}
        State::Offline => found.push(problem(match row.last_seen {
            Some(at) => format!(
                "offline; last seen {}. Its devices go on under the revision it has",
                ago(at.0, now)
            ),
            None => "offline; never seen since it was approved".into(),
        })),
        State::Refused => found.push(problem(format!(
            "refused the newest revision: {}",
            row.refused.as_deref().unwrap_or("it doesn't say why")
        ))),
        State::Lagging => found.push(problem(format!(
            "has revision {}, wanted is {}{}",
            row.revision.map_or_else(|| "none".into(), |n| n.to_string()),
            row.wanted.unwrap_or_default(),
            row.behind_since.map(|at| format!(", since {}", ago(at.0, now))).unwrap_or_default()
        ))),
    }
    found.extend(row.problems.iter().cloned().map(problem));
    found.extend(row.alarms.iter().map(|alarm| problem(alarm.text.clone())));
    if row.online {
        let down: Vec<&str> =
            row.tunnels.iter().filter(|t| !t.live).map(|t| t.peer.as_str()).collect();
        if !down.is_empty() {
            found.push(problem(format!("no live tunnel to {}", down.join(", "))));
        }
    }
    found
}

fn render(picture: &Picture) -> String {
    let mut text = String::new();
    let mut list = |title: &str, problems: &[Problem]| {
        if !problems.is_empty() {
            let lines: Vec<String> =
                problems.iter().map(|p| format!("  {}: {}\n", p.subject, p.problem)).collect();
            text.push_str(&format!("{title}:\n{}\n", lines.concat()));
        }
    };
    list("Problems", &picture.problems);
    list("To do", &picture.to_do);
    list("To know", &picture.notices);
    let devices = &picture.devices;
    let head = if picture.well { "All is well" } else { "Not all is well" };
    text.push_str(&format!(
        "{head}. Revision {}, {}, {}: {} observe, {} protect, {} enforce{}\n",
        picture.revision,
        count(picture.gateways.len(), "gateway", "gateways"),
        count(devices.total, "device", "devices"),
        devices.observe,
        devices.protect,
        devices.enforce,
        if devices.quarantined > 0 {
            format!(", {} quarantined", devices.quarantined)
        } else {
            String::new()
        },
    ));
    if devices.life_support > 0 {
        text.push_str(&format!(
            "{}, {} of them in enforce\n",
            count(devices.life_support, "life-support device", "life-support devices"),
            devices.life_support_enforced
        ));
    }
    if !picture.clients.is_empty() {
        let live = picture.clients.iter().filter(|client| !client.live_at.is_empty());
        text.push_str(&format!(
            "{}, {} live\n",
            count(picture.clients.len(), "client", "clients"),
            live.count()
        ));
    }
    if !picture.gateways.is_empty() {
        text.push('\n');
        text.push_str(&render_gateways(&picture.gateways));
    }
    text
}
