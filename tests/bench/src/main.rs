//! `cargo compare`: Anteroom beside other tunnels, on this machine.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anteroom_bench::compare::{self, Plan};
use anteroom_bench::idle;
use anteroom_bench::instructions::Counter;
use anteroom_bench::machine::Machine;
use anteroom_bench::plot;
use anteroom_bench::report::{self, Record, Row};
use anteroom_bench::scale::{self, Sweep};
use anteroom_bench::spread;
use anteroom_bench::subject::Kind;
use anteroom_bench::tools::{self, Tools};
use anteroom_bench::trial::Test;
use anteroom_bench::usage;
use anteroom_bench::world::Card;
use anteroom_lab::namespace;
use anteroom_lab::programs::{self, Profile};
use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

/// Measures Anteroom beside other tunnels on this machine, in network namespaces: rate, cost, delay, memory.
///
/// Every subject is measured in turn, round by round, so that what else the machine does falls on all alike. Compare
/// figures of one run only. Cost is user and system time of both gateways' processes together.
#[derive(Debug, Parser)]
#[command(
    name = "cargo compare",
    bin_name = "cargo compare",
    version,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Measure what a packet, a flow and a peer cost where there are many of them
    Scale(Scale),
    /// Measure what one gateway's threads make of traffic with several others at once
    Peers(Peers),
    /// Measure what gateways in use take with nothing under way: a live controller, devices in enforce, relays
    Idle(Idle),
}

#[derive(Debug, Args)]
struct Idle {
    /// With how many relays of their own beside the controller, which relays as well; one after the other
    #[arg(long, value_delimiter = ',', value_name = "NUMBER,…", default_value = "0,1",
        value_parser = clap::value_parser!(u8).range(0..=i64::from(idle::MOST)))]
    relays: Vec<u8>,
    /// Another build of anteroom-agent
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// How often to measure
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement takes
    #[arg(long, default_value_t = 20.0, value_parser = seconds)]
    seconds: f64,
    /// Write every figure to this file as soon as it is known: one JSON object a line, {subject, test, value, unit, round}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Peers {
    /// Whom to measure: anteroom, lanes-N for so many lane threads, NAME=PATH for another build of anteroom-agent
    #[arg(long, value_delimiter = ',', default_value = "anteroom,lanes-0,lanes-1,lanes-2,lanes-4")]
    subjects: Vec<Kind>,
    /// With how many others at once
    #[arg(long, value_delimiter = ',', value_name = "NUMBER,…", default_value = "4,16",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(spread::MOST)))]
    far: Vec<u8>,
    /// How often to measure everything
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement takes, about
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Write every figure to this file as soon as it is known: one JSON object a line, {subject, test, value, unit, round}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Scale {
    /// What is to grow
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Sweep::Peers, Sweep::Rules, Sweep::Flows])]
    sweeps: Vec<Sweep>,
    /// The smallest size
    #[arg(long, default_value_t = 0)]
    least: u32,
    /// The largest size
    #[arg(long, default_value_t = u32::MAX)]
    most: u32,
    /// Another build of anteroom-agent
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// How often to measure everything
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement takes, about
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Write every figure to this file as soon as it is known: one JSON object a line, {subject, test, value, unit, round}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the figures into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure nothing: show and draw what earlier runs wrote with --json on this machine
    #[arg(long, value_name = "FILE,…", value_delimiter = ',')]
    rows: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct Options {
    /// Whom to measure, in this order; NAME=PATH is another build of anteroom-agent
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,…",
        default_value = "anteroom,boringtun-1,boringtun,wireguard-go,nebula,routing,aead"
    )]
    subjects: Vec<Kind>,
    /// What to measure
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Test::ALL)]
    tests: Vec<Test>,
    /// How often to measure everything
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement takes, about
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Network cards: as virtual cables are, or without segmentation offload
    #[arg(long, value_delimiter = ',', default_value = "virtual")]
    card: Vec<Card>,
    /// Write every figure to this file as soon as it is known: one JSON object a line, {subject, test, value, unit, round}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the figures into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure nothing: show and draw what an earlier run wrote with --json on this machine
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    rows: Option<PathBuf>,
    /// Fetch what can be fetched by cargo (into target/)
    #[arg(long)]
    install: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cargo compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The agent is built as this program was.
fn profile() -> Profile {
    if cfg!(debug_assertions) { Profile::Dev } else { Profile::Release }
}

/// A length of time that says something and comes to an end.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().map_err(|error| format!("{error}"))?;
    if (0.1..=600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("from 0.1 to 600 seconds can be measured".into())
    }
}

/// Refuses what is asked for twice: its figures would be taken for rounds of one.
fn check(cli: &Cli) -> Result<()> {
    match &cli.action {
        Some(Action::Scale(scale)) => {
            once("--sweeps", scale.sweeps.iter().map(|sweep| sweep.name()))?;
            once("--rows", scale.rows.iter().map(|file| file.display().to_string()))
        }
        Some(Action::Peers(peers)) => {
            once("--subjects", peers.subjects.iter().map(Kind::name))?;
            once("--far", peers.far.iter())
        }
        Some(Action::Idle(idle)) => once("--relays", idle.relays.iter()),
        None => {
            let Options { subjects, tests, card, .. } = &cli.options;
            once("--subjects", subjects.iter().map(Kind::name))?;
            once("--tests", tests.iter().map(|test| test.name()))?;
            once("--card", card.iter().map(|card| format!("{card:?}").to_lowercase()))
        }
    }
}

fn once<T: Ord + std::fmt::Display>(option: &str, names: impl Iterator<Item = T>) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        anyhow::ensure!(!seen.contains(&name), "{option} names {name} twice: name it once");
        seen.insert(name);
    }
    Ok(())
}

fn run(cli: &Cli) -> Result<ExitCode> {
    check(cli)?;
    if namespace::inside() { inside(cli) } else { outside(cli) }
}

/// Gets the programs, then runs this one again in a private world.
fn outside(cli: &Cli) -> Result<ExitCode> {
    let json = match &cli.action {
        Some(Action::Scale(scale)) => &scale.json,
        Some(Action::Peers(peers)) => &peers.json,
        Some(Action::Idle(idle)) => &idle.json,
        None => &cli.options.json,
    };
    if let Some(file) = json {
        // Before anything takes time; what is in it stays until there is something to write.
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    let tools = Tools::of(profile());
    let builds = match &cli.action {
        Some(Action::Scale(scale)) => scale.agent.is_none() && scale.rows.is_empty(),
        Some(Action::Peers(peers)) => {
            peers.subjects.iter().any(|kind| matches!(kind, Kind::Anteroom | Kind::Lanes(..)))
        }
        Some(Action::Idle(_)) => {
            programs::Programs::of(profile()).build(profile(), true)?;
            false
        }
        None => {
            let Options { install, subjects, rows, .. } = &cli.options;
            if *install {
                subjects.iter().try_for_each(|kind| tools.install(kind))?;
            }
            let ours = |kind: &Kind| {
                matches!(kind, Kind::Anteroom | Kind::NoSensor | Kind::Relay | Kind::Lanes(..))
            };
            rows.is_none() && subjects.iter().any(ours)
        }
    };
    if builds {
        let relay = cli.action.is_none() && cli.options.subjects.contains(&Kind::Relay);
        tools.build(profile(), relay)?;
    }
    let mut again = Command::new(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1)).stdin(Stdio::null());
    let root = nix::unistd::geteuid().is_root();
    let child = if root {
        namespace::privately_as_root(&mut again).spawn()
    } else {
        eprintln!(
            "Not as root: socket buffers stay as small as the kernel's defaults, which costs some subjects more than others."
        );
        namespace::privately(&mut again).spawn()
    };
    let status = child.context("starting in a network of our own")?.wait()?;
    Ok(ExitCode::from(namespace::exit_code(status)))
}

fn inside(cli: &Cli) -> Result<ExitCode> {
    usage::proc_is_ours()?;
    let tools = Tools::of(profile());
    println!("{}", Machine::this());
    if profile() == Profile::Dev {
        println!("A development build: the figures say nothing about what is shipped.");
    }
    let logs = programs::target_directory().join("bench-logs");
    std::fs::remove_dir_all(&logs).ok();
    let record = match &cli.action {
        Some(Action::Scale(scale)) => grow(scale, &tools, &logs)?,
        Some(Action::Peers(peers)) => share(peers, &tools, &logs)?,
        Some(Action::Idle(idle)) => rest(idle, &logs)?,
        None => compare(&cli.options, &tools, &logs)?,
    };
    match record {
        Record { failed: 0, rows, .. } if !rows.is_empty() => Ok(ExitCode::SUCCESS),
        Record { failed: 0, .. } => anyhow::bail!("nothing was measured"),
        Record { failed, .. } => {
            anyhow::bail!("{failed} measurements failed; what they said is above")
        }
    }
}

fn grow(scale: &Scale, tools: &Tools, logs: &Path) -> Result<Record> {
    let agent = scale.agent.as_ref().unwrap_or(&tools.agent);
    let plan = scale::Plan {
        sweeps: scale.sweeps.clone(),
        least: scale.least,
        most: scale.most,
        rounds: scale.rounds,
        time: duration(scale.seconds)?,
    };
    // Read before anything is written: both may be the same file.
    let earlier = scale.rows.iter().map(|file| read_json(file)).collect::<Result<Vec<_>>>()?;
    let mut record = Record::open(scale.json.as_deref())?;
    let rounds = if earlier.is_empty() {
        scale::run(&plan, agent, logs, &mut record)?;
        scale.rounds as usize
    } else {
        let rounds = earlier.iter().map(|rows| rounds_of(rows)).sum();
        earlier.into_iter().flatten().try_for_each(|row| record.push(row))?;
        rounds
    };
    let rows = &record.rows;
    println!("{}", report::table(rows, rounds));
    if let Some(file) = &scale.svg {
        std::fs::write(file, plot::against_size(rows, &Machine::this().to_string()))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(record)
}

fn share(peers: &Peers, tools: &Tools, logs: &Path) -> Result<Record> {
    let plan = spread::Plan {
        subjects: peers.subjects.clone(),
        far: peers.far.clone(),
        rounds: peers.rounds,
        time: duration(peers.seconds)?,
    };
    let mut record = Record::open(peers.json.as_deref())?;
    spread::run(&plan, tools, logs, &mut record)?;
    let rounds = peers.rounds as usize;
    println!(
        "\nMedian [smallest..largest] of {rounds} rounds, or of n\n{}",
        report::table(&record.rows, rounds)
    );
    Ok(record)
}

fn rest(idle: &Idle, logs: &Path) -> Result<Record> {
    let mut programs = programs::Programs::of(profile());
    programs.agent = idle.agent.clone().unwrap_or(programs.agent);
    let plan = idle::Plan {
        relays: idle.relays.clone(),
        rounds: idle.rounds,
        time: duration(idle.seconds)?,
    };
    let mut record = Record::open(idle.json.as_deref())?;
    idle::run(&plan, programs, logs, &mut record)?;
    let rounds = idle.rounds as usize;
    println!(
        "\nTwo gateways together. Median [smallest..largest] of {rounds} rounds, or of n\n{}",
        report::table(&record.rows, rounds)
    );
    Ok(record)
}

/// The last round that rows tell of.
fn rounds_of(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.round as usize).max().unwrap_or(0)
}

fn compare(options: &Options, tools: &Tools, logs: &Path) -> Result<Record> {
    let mut record = Record::open(options.json.as_deref())?;
    let rounds = match &options.rows {
        Some(file) => {
            record.rows = read_json(file)?;
            rounds_of(&record.rows)
        }
        None => {
            compare::run(&plan(options, tools)?, tools, logs, &mut record)?;
            options.rounds as usize
        }
    };
    let rows = &record.rows;
    println!(
        "\nMedian [smallest..largest] of {rounds} rounds, or of n\n{}",
        report::table(rows, rounds)
    );
    let ratios = report::ratios(rows, rounds);
    if !ratios.is_empty() {
        println!("For each 1 of anteroom's, round by round\n{ratios}");
    }
    if let Some(file) = &options.svg {
        std::fs::write(file, plot::of_subjects(rows, &Machine::this().to_string()))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(record)
}

/// What is asked for, without the subjects that this machine lacks.
fn plan(options: &Options, tools: &Tools) -> Result<Plan> {
    if let Err(error) = Counter::start(&[std::process::id()]) {
        println!("Instructions are not counted: {error}");
    }
    let mut subjects = Vec::new();
    for kind in &options.subjects {
        match tools.have(kind) {
            Ok(()) => {
                if let Some(version) = tools::version(kind, tools) {
                    println!("{}: {version}", kind.name());
                }
                subjects.push(kind.clone());
            }
            Err(missing) => println!("{}: left out: {missing:#}", kind.name()),
        }
    }
    Ok(Plan {
        subjects,
        tests: options.tests.clone(),
        cards: options.card.clone(),
        rounds: options.rounds,
        time: duration(options.seconds)?,
    })
}

fn duration(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds).context("--seconds")
}

fn read_json(file: &Path) -> Result<Vec<Row>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let row = |(line, text): (usize, &str)| {
        serde_json::from_str(text).with_context(|| format!("{}:{}", file.display(), line + 1))
    };
    text.lines().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_a_bad_line_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rows.json");
        let row = |round| Row {
            subject: "anteroom".into(),
            test: "peers 1: hit".into(),
            value: 1.5,
            unit: "us/packet".into(),
            round,
        };
        let mut record = Record::open(Some(&file)).unwrap();
        for round in 1..=2 {
            record.push(row(round)).unwrap();
        }
        assert_eq!(read_json(&file).unwrap(), [row(1), row(2)]);
        std::fs::write(&file, "{}\n").unwrap();
        let error = format!("{:#}", read_json(&file).unwrap_err());
        assert!(error.contains("rows.json:1") && error.contains("subject"), "{error}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["compare", "--subjects", "anteroom,aead", "--tests", "tcp-1"]);
        assert_eq!(cli.options.subjects, [Kind::Anteroom, Kind::Aead]);
        let cli = Cli::parse_from(["compare", "scale", "--sweeps", "peers", "--most", "10"]);
        assert!(matches!(cli.action, Some(Action::Scale(scale)) if scale.most == 10));
        for (option, value) in
            [("--seconds", "0"), ("--seconds", "nan"), ("--seconds", "1e9"), ("--rounds", "101")]
        {
            let told = Cli::try_parse_from(["compare", option, value]).unwrap_err().to_string();
            assert!(told.contains(option), "{told}");
        }
        for (option, value) in [
            ("--subjects", "x=/a,aead,x=/b"),
            ("--tests", "ping,ping"),
            ("--card", "plain,virtual,plain"),
        ] {
            let cli = Cli::parse_from(["compare", option, value]);
            let told = check(&cli).unwrap_err().to_string();
            assert!(told.contains(option) && told.contains("twice"), "{told}");
        }
        check(&Cli::parse_from(["compare"])).unwrap();
        let told = Cli::try_parse_from(["compare", "--tests", "tcp-9"]).unwrap_err().to_string();
        assert!(told.contains("tcp-1"), "{told}");
    }
}
