//! `cargo lab`: a day in a hospital on this machine, and some weeks in another.

mod interrupt;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use anteroom_lab::namespace::{self, exit_code};
use anteroom_lab::programs::{Profile, Programs, through_sudo};
use anteroom_lab::session::{Places, Session, run_in_lab};
use anteroom_lab::story::{Report, Story};
use anteroom_lab::weeks::Weeks;
use anteroom_lab::{figures, outages, soak, topology};
use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};

/// Raises a hospital in network namespaces, plays a day in it with the real programs, then weeks out of which a policy is
/// learnt, and shows what was expected and what was seen.
#[derive(Debug, Parser)]
#[command(
    name = "cargo lab",
    bin_name = "cargo lab",
    version,
    after_help = "Exit status: 0 if every check was as expected, 1 if not."
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Args)]
struct Options {
    /// End by itself instead of leaving the hospital up until Ctrl-C
    #[arg(long)]
    once: bool,
    /// Write every check and figure to this file
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    /// Show everything
    #[arg(long, short, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Open a shell on a host of the running lab, or run a command there
    Shell {
        /// Its name, such as ct-1
        host: String,
        /// What to run instead of a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Use the operator's command line in the running lab: cargo lab anteroom -- status
    Anteroom {
        /// What to pass on
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Play the second part alone: weeks of traffic watched, a policy proposed, proved and enforced, and a pump that falls
    Weeks {
        /// End by itself instead of leaving the hospital up until Ctrl-C
        #[arg(long)]
        once: bool,
    },
    /// Measure: apply to enforced, revocation to cut off, restart, loss, memory, sizes, added round trip
    Figures {
        /// How often to repeat what gives percentiles
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// How many pings to send while things change
        #[arg(long, default_value_t = 10_000)]
        pings: u64,
    },
    /// Measure how long traffic stops when an agent dies, hangs or is upgraded, the packet filter is flushed, …
    Outages {
        /// How often to repeat each
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
    },
    /// Change paths, keys, programs and policy at random for a long time, while all that is allowed must go on
    Soak {
        /// For how many minutes
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        minutes: u32,
        /// What happens, as an earlier run printed it; by chance if not given
        #[arg(long)]
        seed: Option<u64>,
    },
}

/// The programs are built as the lab itself was.
fn profile() -> Profile {
    if cfg!(debug_assertions) { Profile::Dev } else { Profile::Release }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cargo lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let places = Places::of_this_workspace();
    match &cli.action {
        Some(Action::Shell { host, command }) => {
            let status = run_in_lab(&places, host, |host| match command.split_first() {
                Some((program, arguments)) => {
                    let mut run = host.command(program);
                    run.args(arguments);
                    run
                }
                None => host.command(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())),
            })?;
            Ok(ExitCode::from(exit_code(status)))
        }
        Some(Action::Anteroom { arguments }) => {
            let home = places.work.join("operator/home");
            let cli = Programs::of(profile()).cli;
            let status = run_in_lab(&places, "operator", |host| {
                let mut run = host.command(cli);
                run.arg("--home").arg(home).args(arguments);
                run
            })?;
            Ok(ExitCode::from(exit_code(status)))
        }
        _ if namespace::inside() => inside(cli, &places),
        _ => outside(&places),
    }
}

/// Builds what is needed, then runs this program again in a private world.
fn outside(places: &Places) -> Result<ExitCode> {
    if let Some(session) = Session::running(places) {
        bail!("a lab is running already (process {}): end it with Ctrl-C first", session.keeper());
    }
    places.clean();
    let programs = Programs::of(profile());
    // Found before the build, which may replace the file.
    let this = std::env::current_exe()?;
    programs.install_tools(true)?;
    programs.build(profile(), true)?;
    if let Err(denied) = namespace::available() {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("sudo {} {}", this.display(), arguments.join(" "));
        if through_sudo() || nix::unistd::geteuid().is_root() {
            bail!("{denied}; not even to root: is this a container without CAP_SYS_ADMIN?");
        }
        bail!(
            "{denied}\nEverything is built. Run the lab itself, not cargo, as root:\n  {}",
            command.trim()
        );
    }
    std::fs::create_dir_all(&places.logs)?;
    let mut lab = Command::new(this);
    lab.args(std::env::args_os().skip(1)).stdin(Stdio::piped());
    let mut child = namespace::privately(&mut lab).spawn().context("starting the lab")?;
    let lifeline = child.stdin.take().context("the lab has a standard input")?;
    interrupt::cut_when_interrupted(lifeline)?;
    let recorded = Session::record(child.id(), places);
    let status = child.wait()?;
    places.clean();
    recorded?;
    if interrupt::was_interrupted() {
        println!("\nThe hospital is gone; nothing is left behind but {}", places.logs.display());
    }
    Ok(ExitCode::from(exit_code(status)))
}

/// The lab itself.
fn inside(cli: &Cli, places: &Places) -> Result<ExitCode> {
    interrupt::end_with_lifeline()?;
    let programs = Programs::of(profile());
    let report = Report::new(cli.options.verbose);
    std::fs::remove_dir_all(&places.logs).ok();
    if let Some(Action::Figures { rounds, pings }) = &cli.action {
        let report =
            figures::measure(programs, &places.work, &places.logs, report, *rounds, *pings)?;
        return Ok(if finish(&report, cli)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(Action::Outages { rounds }) = &cli.action {
        let report = outages::measure(programs, &places.work, &places.logs, report, *rounds)?;
        return Ok(if finish(&report, cli)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(Action::Soak { minutes, seed }) = &cli.action {
        let time = Duration::from_secs(u64::from(*minutes) * 60);
        let seed = seed.unwrap_or_else(by_chance);
        let course = soak::Course::Chance(time);
        let report = soak::measure(programs, &places.work, &places.logs, report, course, seed)?;
        return Ok(if finish(&report, cli)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let (report, weeks_alone) = match &cli.action {
        Some(Action::Weeks { once }) => (report, Some(*once)),
        _ => (a_day(&programs, places, report)?, None),
    };
    println!(
        "Raising a hospital: a controller, 3 gateways, 3 pumps, 3 monitors, 2 CT scanners, a PACS, a central station, and others without a gateway."
    );
    let act = report.checks.last().map_or(1, |check| check.act + 1);
    let mut weeks = Weeks::raise(programs, &places.work, &places.logs, report, act)?;
    weeks.play();
    let ok = finish(&weeks.report, cli)?;
    if !weeks_alone.unwrap_or(cli.options.once) {
        weeks.keep_alive()?;
        stay(ok, &weeks)?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first part, after which its hospital is gone.
fn a_day(programs: &Programs, places: &Places, report: Report) -> Result<Report> {
    println!(
        "Raising a hospital: a controller, 3 gateways, 6 devices, an archive, an infected air-handling controller, an intruder."
    );
    let mut story = Story::raise(programs.clone(), &places.work, &places.logs, report)?;
    story.play();
    let report = story.end();
    topology::clear()?;
    std::fs::remove_dir_all(&places.work).context("removing the first hospital's files")?;
    Ok(report)
}

/// A seed that nobody chose.
fn by_chance() -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    now.as_secs() ^ u64::from(now.subsec_nanos())
}

/// Shows and writes the report; whether every check was as expected.
fn finish(report: &Report, cli: &Cli) -> Result<bool> {
    println!("{}", report.table());
    for (name, value) in &report.figures {
        if cli.options.verbose || value.is_number() {
            println!("{name}: {value}");
        }
    }
    if let Some(file) = &cli.options.json {
        std::fs::write(file, report.json()?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    let bad = report.checks.iter().filter(|check| !check.ok).count();
    if report.ok() {
        println!("All {} checks were as expected.", report.checks.len());
    } else {
        println!("{bad} of {} checks were NOT as expected.", report.checks.len());
    }
    Ok(report.ok())
}

fn stay(ok: bool, weeks: &Weeks) -> Result<()> {
    let names: Vec<&str> = weeks.hospital.machines().map(|machine| machine.plan.name).collect();
    println!(
        "\nThe hospital stays up until Ctrl-C. In another terminal:\n  \
         cargo lab shell ct-1              ({})\n  \
         cargo lab anteroom -- status      (the operator's command line)",
        names.join(", ")
    );
    std::io::stdout().flush()?;
    interrupt::sleep_for_good(ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["lab", "shell", "ct-1", "--", "ip", "address"]);
        assert!(matches!(cli.action, Some(Action::Shell { command, .. }) if command.len() == 2));
    }
}
