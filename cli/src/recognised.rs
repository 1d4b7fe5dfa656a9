//! What devices are taken for: the rules of this machine, what gateways saw, and the labels that operators confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anteroom_controller_core::classify::{
    Claims, Conversations, Field, KNOWN, MAX_RULES_LEN, Observation, Rulebook, SURE, oui,
};
use anteroom_controller_core::decide::Party;
use anteroom_controller_core::history::History;
use anteroom_controller_core::model::{Attachment, Device, Model};
use anteroom_proto::api::{HintsQuery, RecordedHint};
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::inventory::{Hint, HintKind};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;

pub use anteroom_controller_core::classify::shown::{FieldRow, Rows, rows, short};

use crate::change::ChangeError;
use crate::error::Error;
use crate::home::Home;
use crate::remote::Remote;

/// Where devices say what they are called.
const HOST_NAMES: [HintKind; 7] = [
    HintKind::DhcpHostname,
    HintKind::DhcpFqdn,
    HintKind::Dhcp6Fqdn,
    HintKind::LldpName,
    HintKind::NetbiosName,
    HintKind::SnmpName,
    HintKind::MdnsName,
];

/// Where Debian's package `ieee-data` has the IEEE's lists of Ethernet addresses.
const LISTS: &str = "/usr/share/ieee-data";
/// The lists that are read: prefixes of 24, 28 and 36 bits.
const LIST_NAMES: [&str; 3] = ["oui.txt", "mam.txt", "oui36.txt"];
/// The directory beside the operator's key in which own rules lie.
const OWN: &str = "rules";
/// Most files of own rules.
const MOST_FILES: usize = 64;
/// Hints of one page.
const PAGE: u32 = 10_000;
/// Most hints that are read, whatever a controller serves.
const MOST_HINTS: usize = 2_000_000;

/// What devices are recognised by, on this machine.
#[derive(Debug)]
pub struct Book {
    /// The rules.
    pub rules: Rulebook,
    /// The files that were read besides what is shipped.
    pub files: Vec<PathBuf>,
}

impl Book {
    /// The shipped rules, the IEEE's lists where they are installed, and the operator's own files, in the order of their names.
    ///
    /// # Errors
    /// When a file of own rules can't be read or has problems.
    pub fn load(home: &Home) -> Result<Self, Error> {
        let mut book = Self { rules: Rulebook::shipped(), files: Vec::new() };
        for name in LIST_NAMES {
            let path = Path::new(LISTS).join(name);
            // Whoever hasn't the package does with the addresses that the rules name.
            if let Ok(text) = read(&path, oui::MAX_LIST_LEN)
                && book.rules.add_list(&text).is_ok()
            {
                book.files.push(path);
            }
        }
        let own = home.path().join(OWN);
        for path in files(&own)? {
            book.add(&path)?;
        }
        Ok(book)
    }

    /// Adds a file of rules.
    ///
    /// # Errors
    /// When it can't be read or has problems.
    pub fn add(&mut self, path: &Path) -> Result<(), Error> {
        let text = read(path, MAX_RULES_LEN).map_err(|error| Error::file(path, error))?;
        self.rules.extend(&path.display().to_string(), &text).map_err(ChangeError::from)?;
        self.files.push(path.to_owned());
        Ok(())
    }
}

/// The text of a file of at most so many bytes.
fn read(path: &Path, most: usize) -> std::io::Result<String> {
    let len = std::fs::metadata(path)?.len();
    if len > most as u64 {
        return Err(std::io::Error::other(format!(
            "{len} bytes are more than the {most} that are read"
        )));
    }
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Files of rules in a directory, which need not be there, by name.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let listed = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Error::file(dir, error))?,
    };
    let mut files = Vec::new();
    for entry in listed {
        let path = entry.map_err(|error| Error::file(dir, error))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    if files.len() > MOST_FILES {
        return Err(Error::Other(format!(
            "{}: {} files of rules are more than the {MOST_FILES} that are read: put some together",
            dir.display(),
            files.len()
        )));
    }
    Ok(files)
}

/// What is known of devices, ready to be judged.
#[derive(Debug)]
pub struct Recognised {
    book: Book,
    talks: Conversations,
    /// Of confirmed devices: what was seen before they moved behind another gateway stays theirs.
    of_members: BTreeMap<MemberId, Vec<Hint>>,
    /// Of what nobody confirmed, by gateway, address and VLAN.
    of_strangers: BTreeMap<(GatewayId, MacAddr, Option<u16>), Vec<Hint>>,
}

impl Recognised {
    /// With this history of flows, where there is one, and no hints.
    #[must_use]
    pub fn new(book: Book, history: Option<&History>) -> Self {
        let talks = history.map(Conversations::of).unwrap_or_default();
        Self { book, talks, of_members: BTreeMap::new(), of_strangers: BTreeMap::new() }
    }

    /// By the rules of this machine, with what the controller keeps of hints, and with this history of flows, where there is one.
    ///
    /// # Errors
    /// When own rules have problems or the controller can't be reached.
    pub fn load(remote: &mut Remote, history: Option<&History>) -> Result<Self, Error> {
        let mut recognised = Self::new(Book::load(remote.home())?, history);
        let mut query = HintsQuery { after: None, limit: Some(PAGE) };
        let mut room = MOST_HINTS;
        while let Some(page) = remote.hints_page(&query)? {
            room = room.saturating_sub(page.hints.len());
            page.hints.into_iter().for_each(|hint| recognised.add(hint));
            query.after = page.next;
            if query.after.is_none() || room == 0 {
                break;
            }
        }
        Ok(recognised)
    }

    /// Adds what a gateway read of a device.
    pub fn add(&mut self, recorded: RecordedHint) {
        let RecordedHint { gateway, mac, vlan, member, kind, value, first, last, .. } = recorded;
        let known = match member {
            Some(id) => self.of_members.entry(id).or_default(),
            None => self.of_strangers.entry((gateway, mac, vlan)).or_default(),
        };
        known.push(Hint { kind, value, first, last });
    }

    /// What gateways read of a confirmed device, or of whatever else is at a place.
    #[must_use]
    pub fn hints(&self, place: &Attachment, id: Option<MemberId>) -> &[Hint] {
        let known = match id {
            Some(id) => self.of_members.get(&id),
            None => self.of_strangers.get(&(place.gateway, place.mac, place.vlan)),
        };
        known.map(Vec::as_slice).unwrap_or_default()
    }

    /// Names by which whatever is at a place calls itself to others, each once.
    #[must_use]
    pub fn host_names(&self, place: &Attachment, id: Option<MemberId>) -> Vec<String> {
        self.told(place, id, &HOST_NAMES)
    }

    /// Where a device says that its maker's description of it is (RFC 8520), each once. It is the device's word and nobody else's.
    #[must_use]
    pub fn mud_urls(&self, place: &Attachment, id: Option<MemberId>) -> Vec<String> {
        self.told(place, id, &[HintKind::DhcpMudUrl, HintKind::LldpMudUrl])
    }

    fn told(&self, place: &Attachment, id: Option<MemberId>, kinds: &[HintKind]) -> Vec<String> {
        let hints = self.hints(place, id).iter().filter(|hint| kinds.contains(&hint.kind));
        let values: BTreeSet<&String> = hints.map(|hint| &hint.value).collect();
        values.into_iter().cloned().collect()
    }

    /// What was seen of whatever is at a place.
    #[must_use]
    pub fn observation(&self, place: &Attachment, id: Option<MemberId>) -> Observation {
        let mut observation = Observation::new(Some(place.mac), self.hints(place, id));
        if let Some(id) = id {
            self.talks.add_to(Party::Member(id), &mut observation);
        }
        observation
    }

    /// What a confirmed device is taken for; its labels win.
    #[must_use]
    pub fn device(&self, id: MemberId, device: &Device) -> Claims {
        let mut observation = self.observation(&device.attachment, Some(id));
        if Model::is_host(device) {
            observation.mac = None;
        }
        let mut claims = self.book.rules.classify(&observation);
        claims.confirm(&device.labels);
        claims
    }

    /// What something that nobody has confirmed is taken for.
    #[must_use]
    pub fn stranger(&self, place: &Attachment) -> Claims {
        self.book.rules.classify(&self.observation(place, None))
    }

    /// Classes that are sure enough to group devices by that have no label.
    #[must_use]
    pub fn sure_classes(&self, model: &Model) -> BTreeMap<MemberId, (String, u8)> {
        let class: Option<Name> = Field::Class.word().parse().ok();
        let unlabelled = model.devices.iter().filter(|(_, device)| {
            !class.as_ref().is_some_and(|key| device.labels.contains_key(key))
        });
        unlabelled
            .filter_map(|(id, device)| {
                let claims = self.device(*id, device);
                let claim = claims.known(Field::Class).filter(|claim| claim.confidence >= SURE)?;
                Some((*id, (claim.value.clone(), claim.confidence)))
            })
            .collect()
    }
}

/// Each field with its confidence and what speaks for it, for people.
#[must_use]
pub fn explained(rows: &Rows) -> String {
    let mut text = String::from("Taken for:\n");
    for field in Field::ALL {
        let Some(row) = rows.get(field.word()) else { continue };
        let sure = match row {
            FieldRow { confirmed: true, .. } => " (confirmed by an operator)".to_owned(),
            FieldRow { confidence: 0, .. } => String::new(),
            FieldRow { confidence, .. } => format!(" ({confidence} %)"),
        };
        text.push_str(&format!("  {:<9} {}{sure}\n", format!("{field}:"), row.value));
        for why in &row.why {
            text.push_str(&format!("              {why}\n"));
        }
        for other in &row.others {
            let also =
                if field == Field::Role && other.confidence >= KNOWN { "also" } else { "not" };
            text.push_str(&format!(
                "            {also} {} ({} %)\n",
                other.value, other.confidence
            ));
            for why in &other.why {
                text.push_str(&format!("              {why}\n"));
            }
        }
    }
    text
}

/// Whether a device's field has this value; `unknown` is one too.
#[must_use]
pub fn is(rows: &Rows, (field, wanted): &(Name, Option<String>)) -> bool {
    let wanted = wanted.as_deref().unwrap_or("unknown").to_lowercase();
    let Some(row) = rows.get(field.as_str()) else { return false };
    let others = row
        .others
        .iter()
        .filter(|other| field.as_str() == Field::Role.word() && other.confidence >= KNOWN);
    std::iter::once(&row.value)
        .chain(others.map(|other| &other.value))
        .any(|value| value.to_lowercase() == wanted)
}

#[cfg(test)]
mod tests {
    use anteroom_proto::inventory::HintKind;
    use anteroom_proto::time::UnixMillis;

    use super::*;

    fn home(own: &[(&str, &str)]) -> (tempfile::TempDir, Result<Book, Error>) {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join(OWN);
        std::fs::create_dir(&rules).unwrap();
        for (name, text) in own {
            std::fs::write(rules.join(name), text).unwrap();
        }
        let book = Book::load(&Home::locate(Some(dir.path())).unwrap());
        (dir, book)
    }

    fn camera(book: &Rulebook) -> Rows {
        let mut seen = Observation::default();
        seen.add(HintKind::DhcpHostname, "DCS-935L");
        rows(&book.classify(&seen))
    }

    #[test]
    fn own_files_are_read_in_the_order_of_their_names() {
        let rule = |class: &str| {
            format!(
                "format = 1\n[rule.dlink-camera]\nall = [{{ hint = \"dhcp.hostname\" }}]\nclass = \"{class}\"\n"
            )
        };
        let (first, second) = (rule("door-bell"), rule("baby-monitor"));
        let (_dir, book) = home(&[("b.toml", &second), ("a.toml", &first), ("c.txt", "no rules")]);
        let book = book.unwrap();
        let own = book.files.iter().filter(|path| !path.starts_with(LISTS)).count();
        assert_eq!(own, 2, "{:?}", book.files);
        assert_eq!(camera(&book.rules)["class"].value, "baby-monitor");
    }

    #[test]
    fn a_mistake_in_an_own_file_is_named_with_its_place() {
        let (_dir, book) = home(&[("a.toml", "format = 1\n[rule.x]\nclas = \"ct\"\n")]);
        let error = book.unwrap_err().to_string();
        assert!(error.contains("a.toml:3") && error.contains("did you mean \"class\"?"), "{error}");
    }

    #[test]
    fn people_read_what_a_device_is_taken_for_and_why() {
        let rows = camera(&Rulebook::shipped());
        assert_eq!(short(&rows), "camera, D-Link DCS-935L (88 %)");
        let text = explained(&rows);
        for words in [
            "class:    camera (88 %)",
            "dhcp.hostname = \"DCS-935L\"; rule dlink-camera",
            "os:       unknown",
        ] {
            assert!(text.contains(words), "{words:?} in {text}");
        }
        let asked = |text: &str| {
            let (key, value) = text.split_once('=').unwrap();
            is(&rows, &(key.parse().unwrap(), Some(value.to_owned())))
        };
        assert!(asked("class=Camera") && asked("os=unknown") && asked("make=d-link"));
        assert!(!asked("class=unknown") && !asked("class=ct"));
        let none = super::rows(&Claims::default());
        assert_eq!(short(&none), "unknown");
    }

    #[test]
    fn hints_of_a_confirmed_device_stay_with_it_at_another_gateway() {
        let mac: MacAddr = "02:00:00:00:01:0a".parse().unwrap();
        let (here, there, id) = (
            GatewayId::from_bytes([1; GatewayId::LEN]),
            GatewayId::from_bytes([2; GatewayId::LEN]),
            MemberId::from_bytes([3; MemberId::LEN]),
        );
        let said = |gateway, member, value: &str| RecordedHint {
            gateway,
            port: "lan".parse().unwrap(),
            mac,
            vlan: None,
            member,
            kind: HintKind::DhcpHostname,
            value: value.into(),
            first: UnixMillis(1),
            last: UnixMillis(2),
        };
        let book = Book { rules: Rulebook::shipped(), files: Vec::new() };
        let mut recognised = Recognised::new(book, None);
        recognised.add(said(here, Some(id), "DCS-935L"));
        recognised.add(said(there, None, "WS-30"));
        let place = Attachment { gateway: there, port: "lan".parse().unwrap(), vlan: None, mac };
        let values = |id| -> Vec<&str> {
            recognised.hints(&place, id).iter().map(|hint| hint.value.as_str()).collect()
        };
        assert_eq!(values(Some(id)), ["DCS-935L"]);
        assert_eq!(values(None), ["WS-30"]);
        let classes = recognised.observation(&place, Some(id));
        assert_eq!(recognised.book.rules.classify(&classes).value(Field::Class), "camera");
    }
}
