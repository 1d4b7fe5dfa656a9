//! Prints the table: `anteroom-traffic [DEVICES] [SEED] [ROAMING]`. With `SUGGESTION=FILE` and `EXPORT=DIRECTORY` in the environment it
//! keeps the suggestion, and what an auditor would get.

use std::time::Instant;

use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::suggest::{Doubt, Options, RecognisedClasses, suggest};
use anteroom_proto::time::UnixMillis;
use anteroom_traffic::{World, measure};

mod views;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse::<u64>().ok());
    let devices = numbers.next().unwrap_or(500);
    let seed = numbers.next().unwrap_or(1);
    let mut world = World::new(seed, usize::try_from(devices).unwrap_or(500));
    world.roaming = numbers.next().unwrap_or(1) as f64;
    let began = Instant::now();
    let history = measure::history(&world, 4_000_000);
    println!("{} devices, {} edges, played in {:.1?}", world.len(), history.len(), began.elapsed());
    let resolved = match Resolved::new(&world.model) {
        Ok(resolved) => resolved,
        Err(problems) => return eprintln!("{problems}"),
    };
    let (began, before) = (Instant::now(), peak());
    let suggestion =
        match suggest(&resolved, &history, &RecognisedClasses::new(), &Options::default()) {
            Ok(suggestion) => suggestion,
            Err(problems) => return eprintln!("{problems}"),
        };
    println!(
        "suggested in {:.1?}: {} rules, {} essential, {} bytes, {} questions, {} of them of scanners; peak memory {before} MiB before, {} MiB after",
        began.elapsed(),
        suggestion.rules.len(),
        suggestion.rules.iter().filter(|rule| rule.essential).count(),
        suggestion.text.len(),
        suggestion.questions.len(),
        suggestion.questions.iter().filter(|question| question.doubt == Doubt::Scanner).count(),
        peak()
    );
    if let Some(path) = std::env::var_os("SUGGESTION")
        && let Err(error) = std::fs::write(path, &suggestion.text)
    {
        eprintln!("{error}");
    }
    let suggested = match Resolved::from_text(&world.model, "suggested", &suggestion.text) {
        Ok(suggested) => suggested,
        Err(problems) => return eprintln!("{problems}"),
    };
    let now = history.span().map_or(UnixMillis(0), |(_, last)| last);
    views::time(&resolved, &suggested, &history, now);
    let (wanted, flat) = (measure::wanted_pairs(&world), measure::flat_pairs(&world));
    println!("true policy: {wanted} pairs; flat network: {flat}\n{}", measure::HEADING);
    let began = Instant::now();
    let covered = measure::Covered::of(&suggested, &history);
    println!(
        "{} devices watched too little, found in {:.1?}",
        covered.uncovered.len(),
        began.elapsed()
    );
    for (what, count) in covered.worst() {
        println!("  of {count}: {what}");
    }
    let rows = [
        measure::policy(&world, "suggestion", &suggested, &covered),
        measure::exact(&world, &history, &covered),
        measure::subnets(&world, &history, &covered),
    ];
    for row in &rows {
        println!(
            "{row}  {:.2} of true, {:.2} % below flat",
            row.pairs as f64 / wanted as f64,
            100.0 - 100.0 * row.pairs as f64 / flat as f64
        );
    }
    let odd = rows[0].blocked_edges.iter().filter(|edge| edge.is_often() || !edge.told);
    for edge in odd.take(40) {
        let (protocol, port) = edge.service;
        println!(
            "  {}{protocol:?}/{port} on {} days: {} > {}",
            if edge.told { "" } else { "untold: " },
            edge.days,
            world.describe(edge.from),
            world.describe(edge.to)
        );
    }
    for (what, flows) in rows[0].worst.iter().take(12) {
        println!("  blocked: {what}: {flows}");
    }
}

/// Most memory that the process had, in MiB, where the kernel tells.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|kib| kib.parse().ok());
    kib.unwrap_or(0_u64) / 1024
}
