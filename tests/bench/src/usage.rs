//! What a subject's processes have used: processor time, memory, instructions.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{SysconfVar, sysconf};

/// What an agent calls the thread of its sensor.
const SENSOR: &str = "sensor";

/// Whether `/proc` tells of this process's own namespace, in which it knows the processes that it started: elsewhere their
/// numbers belong to nobody, or to somebody else.
///
/// # Errors
/// If it doesn't.
pub fn proc_is_ours() -> Result<()> {
    let this = std::process::id();
    let shown = std::fs::read_link("/proc/self").context("reading /proc/self")?;
    ensure!(
        shown.as_os_str() == this.to_string().as_str(),
        "/proc shows other processes than ours (it calls this one {}, which is {this}), so what they use can't be read: \
         this system denies a /proc of one's own, as containers do that hide parts of it; run where it may be mounted",
        shown.display()
    );
    Ok(())
}

/// Processor time that processes had used at one moment.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Nanoseconds of each thread, as the scheduler counts them.
    threads: BTreeMap<u32, u64>,
    /// Those that read what devices let be seen, beside the data plane.
    sensors: BTreeSet<u32>,
    /// Seconds of whole processes, ended threads included, in steps of a tick.
    processes: f64,
}

impl Cpu {
    /// User and system time of these processes until now.
    ///
    /// # Errors
    /// If one of them is gone, or `/proc` doesn't tell.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut cpu = Self::default();
        for pid in pids {
            cpu.processes += process_seconds(*pid)?;
            for thread in threads(*pid).with_context(|| format!("the threads of process {pid}"))? {
                let path = format!("/proc/{pid}/task/{thread}/schedstat");
                // None for a thread that ended just now, and on kernels without it: the process's time has both.
                let text = std::fs::read_to_string(path).unwrap_or_default();
                if let Some(time) = text.split(' ').next().and_then(|field| field.parse().ok()) {
                    cpu.threads.insert(thread, time);
                }
                let name = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
                if name.is_ok_and(|name| name.trim_end() == SENSOR) {
                    cpu.sensors.insert(thread);
                }
            }
        }
        Ok(cpu)
    }

    /// Seconds that were used since an earlier moment.
    #[must_use]
    pub fn since(&self, before: &Self) -> f64 {
        let mut sum = 0;
        for (thread, time) in &before.threads {
            match self.threads.get(thread) {
                Some(now) => sum += now.saturating_sub(*time),
                // What the thread did before it ended is in the process's time only.
                None => return self.processes - before.processes,
            }
        }
        let new = self.threads.iter().filter(|(thread, _)| !before.threads.contains_key(thread));
        sum += new.map(|(_, time)| time).sum::<u64>();
        if sum == 0 { self.processes - before.processes } else { sum as f64 / 1e9 }
    }
}

impl Cpu {
    /// Seconds that sensors' threads used since an earlier moment. None where there are none.
    #[must_use]
    pub fn sensors_since(&self, before: &Self) -> Option<f64> {
        let at = |cpu: &Self, thread| cpu.threads.get(thread).copied().unwrap_or(0);
        let used = self.sensors.iter().map(|one| at(self, one).saturating_sub(at(before, one)));
        (!self.sensors.is_empty()).then(|| used.sum::<u64>() as f64 / 1e9)
    }

    /// Seconds that the thread used which used most since an earlier moment. None where single threads aren't counted.
    /// However many cores there are, nothing goes faster than this thread does its part.
    #[must_use]
    pub fn busiest_since(&self, before: &Self) -> Option<f64> {
        let earlier = |thread| before.threads.get(thread).copied().unwrap_or(0);
        let used = self.threads.iter().map(|(thread, now)| now.saturating_sub(earlier(thread)));
        used.max().filter(|most| *most > 0).map(|most| most as f64 / 1e9)
    }
}

/// How often threads had gone to sleep at one moment, by thread, each with its name. As often they were woken.
#[derive(Debug, Clone, Default)]
pub struct Wakes(BTreeMap<u32, (String, u64)>);

impl Wakes {
    /// Of these processes' threads until now.
    ///
    /// # Errors
    /// If one of the processes is gone.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut wakes = Self::default();
        for pid in pids {
            for thread in threads(*pid).with_context(|| format!("the threads of process {pid}"))? {
                // None for a thread that ended just now.
                let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
                wakes.0.extend(text.ok().as_deref().and_then(sleeps_of).map(|told| (thread, told)));
            }
        }
        Ok(wakes)
    }

    /// How often they were woken since an earlier moment, by name: what threads of one name have together.
    #[must_use]
    pub fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let mut by_name = BTreeMap::new();
        for (thread, (name, count)) in &self.0 {
            let earlier = before.0.get(thread).map_or(0, |(_, count)| *count);
            *by_name.entry(name.clone()).or_default() += count.saturating_sub(earlier);
        }
        by_name
    }
}

/// A thread's name and how often it went to sleep by itself, from the text of `/proc/PID/task/THREAD/status`.
fn sleeps_of(status: &str) -> Option<(String, u64)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("Name:")?.to_owned(), field("voluntary_ctxt_switches:")?.parse().ok()?))
}

/// The numbers of a process's threads.
pub(crate) fn threads(pid: u32) -> io::Result<Vec<u32>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        threads.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(threads)
}

fn process_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel doesn't tell its ticks")?;
    let ticks = ticks_of(&stat).with_context(|| format!("no times in {path}: {stat:?}"))?;
    Ok(ticks as f64 / per_second as f64)
}

/// User and system time in ticks, from the text of `/proc/PID/stat`.
fn ticks_of(stat: &str) -> Option<u64> {
    // The name may hold anything, spaces and parentheses included; it ends at the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory that these processes hold in mebibytes (resident set, shared pages included).
///
/// # Errors
/// If one of them is gone.
pub fn resident(pids: &[u32]) -> Result<f64> {
    let of = |pid: &u32| {
        let path = format!("/proc/{pid}/status");
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
            .with_context(|| format!("no VmRSS in {path}: process {pid} has ended"))
    };
    Ok(pids.iter().map(of).sum::<Result<f64>>()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_are_counted_by_name() {
        let status = |count| {
            format!(
                "Name:\ta b\nState:\tS\nvoluntary_ctxt_switches:\t{count}\nnonvoluntary_ctxt_switches:\t9\n"
            )
        };
        let told = |counts: &[u64]| {
            Wakes(
                (0..).zip(counts.iter().map(|count| sleeps_of(&status(*count)).unwrap())).collect(),
            )
        };
        let since = told(&[7, 20, 5]).since(&told(&[3, 20]));
        assert_eq!(since, BTreeMap::from([("a b".into(), 9)]));
        assert_eq!(sleeps_of("Name:\tx\n"), None);
    }

    #[test]
    fn the_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 5 0 100 0 0";
        assert_eq!(ticks_of(stat), Some(300));
        assert_eq!(ticks_of("7 (a"), None);
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }

    #[test]
    fn work_costs_time_and_memory() {
        let this = [std::process::id()];
        let before = Cpu::of(&this).unwrap();
        let mut sum = 0_u64;
        let used = loop {
            sum = std::hint::black_box((0..10_000_000).fold(sum, |a, b| a ^ b));
            let used = Cpu::of(&this).unwrap().since(&before);
            if used > 0.02 {
                break used;
            }
        };
        assert!(used < 60.0, "{used} s");
        assert!(resident(&this).unwrap() > 0.5);
        assert!(resident(&[]).unwrap() == 0.0);
    }

    #[test]
    fn a_process_that_isnt_there_is_an_error_and_not_nothing() {
        proc_is_ours().unwrap();
        // Above the largest number that any kernel gives.
        let nobody = [u32::MAX];
        let error = format!("{:#}", Cpu::of(&nobody).unwrap_err());
        assert!(error.contains("/proc/4294967295/stat"), "{error}");
        let error = format!("{:#}", resident(&nobody).unwrap_err());
        assert!(error.contains("/proc/4294967295/status"), "{error}");
    }

    #[test]
    fn threads_that_ended_count_by_their_process() {
        let before = Cpu { threads: [(1, 500)].into(), processes: 1.0, ..Cpu::default() };
        let after = Cpu { threads: [(2, 900)].into(), processes: 1.5, ..Cpu::default() };
        assert!((after.since(&before) - 0.5).abs() < 1e-9);
        let on = Cpu {
            threads: [(1, 1_000_000_500), (2, 1_000_000_000)].into(),
            sensors: [2].into(),
            processes: 9.0,
        };
        assert!((on.since(&before) - 2.0).abs() < 1e-9);
        assert_eq!((on.sensors_since(&before), after.sensors_since(&before)), (Some(1.0), None));
    }
}
