//! What the figures were taken on.

use serde::Serialize;

/// A machine, as far as it decides figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's own name for itself.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's version, without what a distributor put behind it.
    pub kernel: String,
    /// TCP's congestion control.
    pub congestion_control: String,
    /// What the machine had to do besides, when the benchmark began: the load average of a minute.
    pub load: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: cpu.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: version(&read("/proc/sys/kernel/osrelease")).to_owned(),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// The numbers that a release begins with.
fn version(release: &str) -> &str {
    let end = release.find(|c: char| !c.is_ascii_digit() && c != '.');
    release[..end.unwrap_or(release.len())].trim_end_matches('.')
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, cores, kernel, congestion_control, load } = self;
        write!(f, "{cpu}, {cores} cores, Linux {kernel}, TCP {congestion_control}, load {load}")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_version_is_the_numbers_of_a_release() {
        for (release, version) in [
            ("6.12.48+deb13-amd64\n", "6.12.48"),
            ("6.18.1\n", "6.18.1"),
            ("6.19.0-rc3", "6.19.0"),
            ("6.x", "6"),
            ("", ""),
        ] {
            assert_eq!(super::version(release), version, "{release:?}");
        }
    }

    #[test]
    fn this_machine_has_cores_and_a_kernel() {
        let machine = super::Machine::this();
        assert!(machine.cores > 0 && !machine.kernel.is_empty(), "{machine:?}");
        assert!(machine.to_string().contains("Linux"), "{machine}");
    }
}
