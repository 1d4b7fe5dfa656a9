//! `relay.toml`: where a stand-alone relay listens, whose it is, and how much it takes upon itself.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anteroom_controller_core::relay::{Limits, Rate};
use anteroom_proto::address::is_host_port;
use anteroom_proto::key::Hash;
use serde::Deserialize;

use crate::config::{ConfigError, ConnectionLimits, MAX_ADVERTISED, read_checked, yes};

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayConfig {
    /// Where it listens, and how gateways name it.
    pub relay: Place,
    /// How much it takes upon itself.
    #[serde(default)]
    pub limits: RelayLimits,
}

/// Where a relay is, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Address and port to listen on (UDP, and TCP unless `tcp` says otherwise).
    pub listen: SocketAddr,
    /// Whether it listens over TCP too, for gateways whose networks pass no UDP.
    #[serde(default = "yes")]
    pub tcp: bool,
    /// How gateways reach it, as `host:port`, best first: for the authority document.
    pub advertise: Vec<String>,
    /// Hash of the organisation's first authority document, as `anteroom whoami` shows it.
    pub authority: Hash,
}

/// How much a relay takes upon itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelayLimits {
    /// Gateways at once.
    pub gateways: usize,
    /// Connections that haven't said yet who they are.
    pub unknown: usize,
    /// Megabits a second that each gateway may send; 0 for as many as the others leave.
    pub megabits: u32,
    /// Mebibytes of packets that may wait in all.
    pub waiting_mib: usize,
    /// Milliseconds that a packet may wait before it is thrown away.
    pub patience_ms: u32,
}

impl Default for RelayLimits {
    fn default() -> Self {
        let core = Limits::default();
        Self {
            gateways: core.gateways,
            unknown: ConnectionLimits::default().unknown,
            megabits: 0,
            waiting_mib: core.waiting / (1024 * 1024),
            patience_ms: u32::try_from(core.patience.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

impl RelayLimits {
    /// As the core takes them.
    #[must_use]
    pub fn core(&self) -> Limits {
        let bytes_per_second = u64::from(self.megabits) * 125_000;
        // A tenth of a second at once, and never less than a few packets.
        let burst = (bytes_per_second / 10).max(16 * 1024);
        Limits {
            gateways: self.gateways,
            waiting: self.waiting_mib.saturating_mul(1024 * 1024),
            patience: Duration::from_millis(self.patience_ms.into()),
            rate: (self.megabits > 0).then_some(Rate { bytes_per_second, burst }),
            ..Limits::default()
        }
    }

    /// As those who take connections in take them.
    #[must_use]
    pub fn connections(&self) -> ConnectionLimits {
        // Each gateway's, and the one before it, which takes a moment to end.
        let gateways = self.gateways.saturating_mul(2);
        ConnectionLimits { gateways, unknown: self.unknown, ..ConnectionLimits::default() }
    }
}

impl RelayConfig {
    /// Reads `file`.
    ///
    /// # Errors
    /// [`ConfigError`], with file, line and key.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|problem| ConfigError::Unreadable { file: file.into(), problem })?;
        Self::parse(file, &text)
    }

    /// Reads `text`, which came from `file`.
    ///
    /// # Errors
    /// [`ConfigError::Wrong`], with file, line and key.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        read_checked(file, text, Self::fault)
    }

    fn fault(&self) -> Option<(&'static str, String)> {
        let advertise = &self.relay.advertise;
        if advertise.is_empty() || advertise.len() > MAX_ADVERTISED {
            return Some(("relay.advertise", format!("name 1 to {MAX_ADVERTISED} addresses")));
        }
        if let Some(bad) = advertise.iter().find(|address| !is_host_port(address)) {
            return Some(("relay.advertise", format!("{bad:?} isn't host:port")));
        }
        let RelayLimits { gateways, unknown, waiting_mib, patience_ms, .. } = self.limits;
        for (key, limit) in [
            ("limits.gateways", gateways),
            ("limits.unknown", unknown),
            ("limits.waiting_mib", waiting_mib),
            ("limits.patience_ms", patience_ms as usize),
        ] {
            if limit == 0 {
                return Some((key, "must be at least 1".into()));
            }
        }
        None
    }

    /// The text of a new configuration, with what can be set and isn't as comments.
    #[must_use]
    pub fn render(place: &Place) -> String {
        let advertise: Vec<String> =
            place.advertise.iter().map(|address| format!("{address:?}")).collect();
        let mut text = String::from("# A relay of Anteroom. Unknown keys are errors.\n");
        let limits = RelayLimits::default();
        let _ = write!(
            text,
            "\n[relay]\nlisten = \"{}\" # UDP, and TCP for gateways whose networks pass no UDP\n{}advertise = [{}]\nauthority = \"{}\"\n\n[limits]\n\
             # gateways = {}\n# unknown = {} # connections that haven't said who they are\n\
             # megabits = {} # a second that each gateway may send; 0: what the others leave\n\
             # waiting_mib = {} # packets that may wait, in all\n\
             # patience_ms = {} # that a packet may wait\n",
            place.listen,
            if place.tcp { "# tcp = true\n" } else { "tcp = false\n" },
            advertise.join(", "),
            place.authority,
            limits.gateways,
            limits.unknown,
            limits.megabits,
            limits.waiting_mib,
            limits.patience_ms
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            listen: "0.0.0.0:4433".parse().unwrap(),
            tcp: true,
            advertise: vec!["10.20.0.11:4433".into(), "relay.example:443".into()],
            authority: Hash::of("anteroom test", &[b"first"]),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = RelayConfig::render(&place());
        let config = RelayConfig::parse(Path::new("relay.toml"), &text).unwrap();
        assert_eq!(config, RelayConfig { relay: place(), limits: RelayLimits::default() });
        assert_eq!(config.limits.core(), Limits::default());
        let text = text.replace("# megabits = 0", "megabits = 8");
        let limits = RelayConfig::parse(Path::new("relay.toml"), &text).unwrap().limits;
        let rate = Rate { bytes_per_second: 1_000_000, burst: 100_000 };
        assert_eq!(limits.core().rate, Some(rate));
    }

    #[test]
    fn mistakes_are_named_with_file_line_and_key() {
        let good = RelayConfig::render(&place());
        for (from, to, line, words) in [
            ("listen = \"0.0.0.0:4433\"", "lisen = \"0.0.0.0:4433\"", 4, "lisen"),
            ("\"10.20.0.11:4433\"", "\"10.20.0.11\"", 6, "relay.advertise"),
            ("authority = \"", "authority = \"zz", 7, ""),
            ("# unknown = 256", "unknown = 0", 11, "limits.unknown"),
            ("# waiting_mib = 256", "waiting_mib = 0", 13, "limits.waiting_mib"),
            ("# patience_ms = 250", "patience_ms = 0", 14, "limits.patience_ms"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from} isn't in the text");
            let error = RelayConfig::parse(Path::new("x.toml"), &text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("x.toml:{line}: ")), "{from}: {error}");
            assert!(error.contains(words), "{from}: {error}");
        }
    }
}
