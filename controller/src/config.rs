//! `controller.toml`: where the controller listens, and what it tells others of where it is.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anteroom_proto::address::is_host_port;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Most addresses of a kind that are advertised.
pub(crate) const MAX_ADVERTISED: usize = 16;

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For gateways.
    pub quic: Listener,
    /// For operators.
    pub https: Listener,
    /// What gateways report.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// How much is served at once.
    #[serde(default)]
    pub limits: ConnectionLimits,
}

/// A listening address, and how others name it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// What others are told: `host:port` for QUIC, `https://host:port` for HTTPS, best first.
    pub advertise: Vec<String>,
    /// Whether handshakes without a post-quantum key exchange are taken. Of HTTPS only: gateways have one.
    #[serde(default)]
    pub allow_classic: bool,
    /// Whether gateways whose networks pass no UDP are served over TCP, at the same address and port. Of QUIC only.
    #[serde(default = "yes")]
    pub tcp: bool,
}

/// For what is so unless the file says otherwise.
pub(crate) const fn yes() -> bool {
    true
}

impl Listener {
    /// A listener at `listen` that nobody has been told of.
    #[must_use]
    pub const fn new(listen: SocketAddr) -> Self {
        Self { listen, advertise: Vec::new(), allow_classic: false, tcp: true }
    }

    /// Whether what listens at `other` listens here too.
    #[must_use]
    pub fn is_at(&self, other: &Self) -> bool {
        let (this, other) = (self.listen, other.listen);
        let same = this.ip() == other.ip();
        let any = this.ip().is_unspecified() || other.ip().is_unspecified();
        this.port() != 0 && this.port() == other.port() && (same || any)
    }
}

/// What gateways report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// How often a gateway sends a report, in milliseconds: 200 to 600,000.
    pub report_every_ms: u32,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { report_every_ms: 2000 }
    }
}

/// How much is served at once. What is beyond is refused and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionLimits {
    /// Gateways' connections.
    pub gateways: usize,
    /// Gateways' connections from one address; many may share one behind a translator.
    pub gateways_per_address: usize,
    /// Connections that haven't said yet who they are.
    pub unknown: usize,
    /// Operators' connections.
    pub operators: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { gateways: 10_000, gateways_per_address: 1024, unknown: 256, operators: 512 }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: {problem}. Make one with `anteroom-controller init`", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        problem: std::io::Error,
    },
    /// It isn't TOML, or a key is missing, unknown or wrong.
    #[error("{}:{line}: {problem}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, with the key.
        problem: String,
    },
}

impl Config {
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
        for (key, listener) in [("quic.advertise", &self.quic), ("https.advertise", &self.https)] {
            if listener.advertise.is_empty() || listener.advertise.len() > MAX_ADVERTISED {
                return Some((key, format!("name 1 to {MAX_ADVERTISED} addresses")));
            }
        }
        if let Some(bad) = self.quic.advertise.iter().find(|address| !is_host_port(address)) {
            return Some(("quic.advertise", format!("{bad:?} isn't host:port")));
        }
        let https = |address: &&String| !address.strip_prefix("https://").is_some_and(is_host_port);
        if let Some(bad) = self.https.advertise.iter().find(https) {
            return Some(("https.advertise", format!("{bad:?} isn't https://host:port")));
        }
        if self.quic.allow_classic {
            let problem = "every gateway speaks X25519MLKEM768: take the line out";
            return Some(("quic.allow_classic", problem.into()));
        }
        if !self.https.tcp {
            return Some(("https.tcp", "HTTPS is TCP: take the line out".into()));
        }
        if !(200..=600_000).contains(&self.telemetry.report_every_ms) {
            return Some(("telemetry.report_every_ms", "choose 200 to 600000".into()));
        }
        let limits = &self.limits;
        for (key, limit) in [
            ("limits.gateways", limits.gateways),
            ("limits.gateways_per_address", limits.gateways_per_address),
            ("limits.unknown", limits.unknown),
            ("limits.operators", limits.operators),
        ] {
            if limit == 0 {
                return Some((key, "must be at least 1".into()));
            }
        }
        None
    }

    /// The text of a new configuration, with what can be set and isn't as comments.
    #[must_use]
    pub fn render(quic: &Listener, https: &Listener) -> String {
        let mut text = String::from("# The controller of Anteroom. Unknown keys are errors.\n");
        for (name, whom, listener) in [("quic", "gateways", quic), ("https", "operators", https)] {
            let advertise: Vec<String> =
                listener.advertise.iter().map(|address| format!("{address:?}")).collect();
            let _ = write!(
                text,
                "\n[{name}] # for {whom}\nlisten = \"{}\"\nadvertise = [{}]\n",
                listener.listen,
                advertise.join(", ")
            );
            if name == "quic" {
                let _ = writeln!(
                    text,
                    "{}tcp = {} # also over TCP, at the same address and port, for networks that pass no UDP",
                    if listener.tcp { "# " } else { "" },
                    listener.tcp
                );
            }
        }
        text.push_str(
            "# allow_classic = false # true: also programs without X25519MLKEM768, whose traffic may be read one day\n",
        );
        let telemetry = Telemetry::default();
        let limits = ConnectionLimits::default();
        let _ = write!(
            text,
            "\n[telemetry]\n# report_every_ms = {}\n\n[limits]\n# gateways = {}\n\
             # gateways_per_address = {}\n# unknown = {} # connections that haven't said who they are\n\
             # operators = {}\n",
            telemetry.report_every_ms,
            limits.gateways,
            limits.gateways_per_address,
            limits.unknown,
            limits.operators
        );
        text
    }
}

/// Reads `text`, which came from `file`, and looks whether its values make sense: `fault` names the key of one that doesn't, and
/// says why.
pub(crate) fn read_checked<T: DeserializeOwned>(
    file: &Path,
    text: &str,
    fault: impl FnOnce(&T) -> Option<(&'static str, String)>,
) -> Result<T, ConfigError> {
    let config: T = read_toml(file, text)?;
    match fault(&config) {
        None => Ok(config),
        Some((key, problem)) => Err(ConfigError::Wrong {
            file: file.into(),
            line: line_of_key(text, key),
            problem: format!("{key}: {problem}"),
        }),
    }
}

/// Reads TOML; what is wrong is named with its line.
fn read_toml<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        ConfigError::Wrong {
            file: file.into(),
            line: line_of(text, at),
            problem: error.message().trim_end().replace('\n', "; "),
        }
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

/// The line on which the key's table, and in it the key, is set; 1 where it isn't.
fn line_of_key(text: &str, key: &str) -> usize {
    let (table, name) = key.split_once('.').unwrap_or(("", key));
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if let Some(header) = line.strip_prefix('[') {
            inside = header.split(']').next().is_some_and(|header| header.trim() == table);
        } else if inside && line.split('=').next().is_some_and(|before| before.trim() == name) {
            return index + 1;
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::relay::config::RelayConfig;

    fn listeners() -> (Listener, Listener) {
        (
            Listener {
                listen: "0.0.0.0:4433".parse().unwrap(),
                advertise: vec!["10.20.0.10:4433".into(), "controller.example:4433".into()],
                allow_classic: false,
                tcp: true,
            },
            Listener {
                listen: "[::]:8443".parse().unwrap(),
                advertise: vec!["https://10.20.0.10:8443".into(), "https://[fd00::1]:8443".into()],
                allow_classic: false,
                tcp: true,
            },
        )
    }

    #[test]
    fn what_init_writes_is_read_back() {
        let (quic, https) = listeners();
        let text = Config::render(&quic, &https);
        let config = Config::parse(Path::new("controller.toml"), &text).unwrap();
        assert_eq!((config.quic, config.https), (quic, https));
        assert_eq!(config.telemetry, Telemetry::default());
        assert_eq!(config.limits, ConnectionLimits::default());
    }

    #[test]
    fn mistakes_are_named_with_file_line_and_key() {
        let (quic, https) = listeners();
        let good = Config::render(&quic, &https);
        for (from, to, line, words) in [
            ("listen = \"0.0.0.0:4433\"", "lisen = \"0.0.0.0:4433\"", 4, "lisen"),
            ("0.0.0.0:4433", "0.0.0.0", 4, "address"),
            ("\"10.20.0.10:4433\"", "\"10.20.0.10\"", 5, "quic.advertise"),
            ("[https]", "allow_classic = true\n[https]", 8, "quic.allow_classic"),
            ("https://10.20.0.10:8443", "http://10.20.0.10:8443", 10, "https.advertise"),
            ("# report_every_ms = 2000", "report_every_ms = 1", 14, "telemetry.report_every_ms"),
            ("# operators = 512", "operators = 0", 20, "limits.operators"),
            ("[telemetry]", "tcp = false\n[telemetry]", 13, "https.tcp"),
            ("[limits]", "[limit]", 16, "limit"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from} isn't in the text");
            let error = Config::parse(Path::new("x.toml"), &text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("x.toml:{line}: ")), "{from}: {error}");
            assert!(error.contains(words), "{from}: {error}");
        }
    }

    /// The keys that a page of settings has in a table's part: those in back quotes at the beginning of a row.
    fn described(page: &str, file: &str, table: &str) -> BTreeSet<String> {
        let file = page.split("\n## `").find(|part| part.starts_with(file)).unwrap();
        let part =
            file.split("\n### ").find_map(|part| part.strip_prefix(table)).unwrap_or_default();
        let row = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
        part.lines().filter_map(row).collect()
    }

    /// The keys that an error about an unknown one names.
    fn known(error: &ConfigError) -> BTreeSet<String> {
        let error = error.to_string();
        let (_, expected) = error.split_once("expected ").expect(&error);
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_page_of_all_settings_has_every_key_and_no_other() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
        let page = std::fs::read_to_string(page).unwrap();
        let unknown = |table: &str| format!("{table}\nno_such_key = 1\n");
        let controller =
            |table: &str| known(&Config::parse(Path::new("x"), &unknown(table)).unwrap_err());
        let relay =
            |table: &str| known(&RelayConfig::parse(Path::new("x"), &unknown(table)).unwrap_err());
        let (quic, https) = (
            described(&page, "controller.toml", "`[quic]`"),
            described(&page, "controller.toml", "`[https]`"),
        );
        assert_eq!(&quic | &https, controller("[quic]"));
        for table in ["telemetry", "limits"] {
            let there = described(&page, "controller.toml", &format!("`[{table}]`"));
            assert_eq!(there, controller(&format!("[{table}]")), "controller.toml, [{table}]");
        }
        assert_eq!(described(&page, "controller.toml", "At the top"), controller(""));
        for table in ["relay", "limits"] {
            let there = described(&page, "relay.toml", &format!("`[{table}]`"));
            assert_eq!(there, relay(&format!("[{table}]")), "relay.toml, [{table}]");
        }
        assert_eq!(described(&page, "relay.toml", "At the top"), relay(""));
    }
}
