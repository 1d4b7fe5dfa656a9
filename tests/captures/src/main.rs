//! Prints how well devices are recognised: `anteroom-captures DIR [--seed N] [--train DIR] [--show DEVICE]`.
//!
//! DIR has a folder for each device. With `--train` what is learnt comes from there alone, and all of DIR is judged.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anteroom_captures::measure::{self, Table, Tally};
use anteroom_captures::{Session, load};
use anteroom_controller_core::classify::{Field, KNOWN, Rulebook, SURE};

const USAGE: &str = "usage: anteroom-captures DIR [--seed N] [--train DIR] [--show DEVICE]";

#[derive(Default)]
struct Args {
    folder: Option<PathBuf>,
    seed: u64,
    train: Option<PathBuf>,
    show: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn args() -> Option<Args> {
    let mut read = Args { seed: 1, ..Args::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => read.seed = words.next()?.parse().ok()?,
            "--train" => read.train = Some(words.next()?.into()),
            "--show" => read.show = Some(words.next()?),
            _ if read.folder.is_none() && !word.starts_with('-') => read.folder = Some(word.into()),
            _ => return None,
        }
    }
    Some(read)
}

fn run() -> Result<(), String> {
    let args = args().ok_or(USAGE)?;
    let folder = args.folder.as_deref().ok_or(USAGE)?;
    let read =
        |folder: &Path| load(folder).map_err(|error| format!("{}: {error}", folder.display()));
    let sessions = read(folder)?;
    if sessions.is_empty() {
        return Err(format!(
            "{}: no folder in it has device-mac.txt and captures",
            folder.display()
        ));
    }
    let mut rules = Rulebook::shipped();
    for list in ["oui.txt", "mam.txt", "oui36.txt"] {
        let path = Path::new("/usr/share/ieee-data").join(list);
        if let Ok(bytes) = std::fs::read(path) {
            let _ = rules.add_list(&String::from_utf8_lossy(&bytes));
        }
    }
    let other = args.train.as_deref().map(read).transpose()?;
    let (train, test) = match &other {
        Some(other) => (other.iter().collect(), sessions.iter().collect()),
        None => measure::split(&sessions, args.seed),
    };
    if let Some(device) = &args.show {
        show(&sessions, device, &measure::learnt(&train, &rules));
        return Ok(());
    }
    let learnt = measure::learnt(&train, &rules);
    let columns = [
        ("class, learnt", class(&learnt, &test)),
        ("model, learnt", shown(&learnt, &test)),
        ("model, never seen", measure::strangers(&sessions, &rules, shown)),
        ("model, another device", measure::twins(&sessions, &rules)),
        ("class, by rules", class(&rules, &test)),
        ("class, never seen", measure::strangers(&sessions, &rules, class)),
        ("model, learnt, proposed", proposed(&learnt, &test)),
        ("model, never seen, proposed", measure::strangers(&sessions, &rules, proposed)),
        ("make, by rules", measure::field(&rules, &test, Field::Make)),
        ("model, by rules", shown(&rules, &test)),
    ];
    print(&columns);
    Ok(())
}

fn class(book: &Rulebook, test: &[&Session]) -> Table {
    measure::field(book, test, Field::Class)
}

/// Models as they are shown.
fn shown(book: &Rulebook, test: &[&Session]) -> Table {
    measure::models(book, test, KNOWN)
}

/// Models as they are proposed for labels.
fn proposed(book: &Rulebook, test: &[&Session]) -> Table {
    measure::models(book, test, SURE)
}

fn print(columns: &[(&str, Table)]) {
    let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
    println!("| kind | {} |", heads.join(" | "));
    println!("|---|{}", "---|".repeat(heads.len()));
    let kinds: std::collections::BTreeSet<&String> =
        columns.iter().flat_map(|(_, table)| table.keys()).collect();
    let cell = |tally: Option<&Tally>| {
        tally.map_or_else(String::new, |t| format!("{} / {} / {}", t.right, t.wrong, t.unknown))
    };
    for kind in kinds {
        let cells: Vec<String> = columns.iter().map(|(_, table)| cell(table.get(kind))).collect();
        println!("| {kind} | {} |", cells.join(" | "));
    }
    let sums: Vec<String> =
        columns.iter().map(|(_, table)| cell(Some(&measure::sum(table)))).collect();
    println!("| **all** | {} |", sums.join(" | "));
}

fn show(sessions: &[Session], device: &str, book: &Rulebook) {
    for session in sessions.iter().filter(|session| session.device == device) {
        println!("{device} {}", session.capture);
        for (kind, value) in &session.observation.hints {
            println!("  {kind} = {value:?}");
        }
        println!(
            "  offers {:?}\n  uses {:?}",
            session.observation.offers, session.observation.uses
        );
        for claim in &book.classify(&session.observation).list {
            println!("  -> {} {} {} %", claim.field, claim.value, claim.confidence);
            for evidence in &claim.evidence {
                println!("       {} {evidence}", evidence.weight);
            }
        }
    }
}
