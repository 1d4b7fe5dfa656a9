//! Asset lists as CSV: what Excel, inventory systems and people write.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::values::{Field, put};
use super::{Asset, AssetList, ListError, MAX_ASSETS, MAX_LIST_LEN};
use crate::words::slug;

/// Most columns of a list.
const MAX_COLUMNS: usize = 500;
/// What may stand between two values.
const DELIMITERS: [u8; 4] = *b",;\t|";

/// Names of columns, letters and digits alone, by what they hold.
const COLUMNS: [(&str, &[&str]); 14] = [
    (
        "name",
        &[
            "name",
            "devicename",
            "assetname",
            "asset",
            "assettag",
            "assetid",
            "assetnumber",
            "inventorynumber",
            "inventarnummer",
            "gerätename",
            "bezeichnung",
            "equipmentid",
            "equipmentnumber",
            "tag",
        ],
    ),
    (
        "mac",
        &[
            "mac",
            "macaddress",
            "macaddr",
            "macadresse",
            "ethernetaddress",
            "hardwareaddress",
            "physicaladdress",
            "ethernet",
            "hwaddr",
            "lanmac",
            "wiredmac",
        ],
    ),
    (
        "address",
        &[
            "address",
            "addresses",
            "ip",
            "ipaddress",
            "ipaddr",
            "ipv4",
            "ipv4address",
            "ipadresse",
            "networkaddress",
        ],
    ),
    (
        "hostname",
        &["hostname", "host", "fqdn", "dnsname", "computername", "networkname", "rechnername"],
    ),
    ("serial", &["serial", "serialnumber", "serialno", "sn", "seriennummer", "sernr"]),
    ("vendor", &["vendor", "manufacturer", "make", "oem", "hersteller", "brand", "mfr"]),
    (
        "model",
        &[
            "model",
            "modelname",
            "modelnumber",
            "modell",
            "product",
            "devicemodel",
            "typenbezeichnung",
        ],
    ),
    (
        "class",
        &[
            "class",
            "deviceclass",
            "devicetype",
            "type",
            "category",
            "devicecategory",
            "modality",
            "assettype",
            "geräteart",
            "gerätetyp",
        ],
    ),
    (
        "owner",
        &[
            "owner",
            "ownedby",
            "responsible",
            "department",
            "costcenter",
            "costcentre",
            "abteilung",
            "verantwortlich",
            "kostenstelle",
            "contact",
        ],
    ),
    (
        "location",
        &["location", "room", "site", "place", "building", "ward", "standort", "raum", "station"],
    ),
    ("criticality", &["criticality", "kritikalität"]),
    ("sensitivity", &["sensitivity", "datasensitivity", "dataclassification", "phi", "ephi"]),
    (
        "software",
        &[
            "software",
            "softwareversion",
            "os",
            "operatingsystem",
            "firmware",
            "version",
            "firmwareversion",
        ],
    ),
    ("udi", &["udi", "udidi", "deviceidentifier"]),
];

/// The fields that a column can be said to hold, as `--column FIELD=HEADER` names them. Any other name is a label's.
fn field(word: &str) -> Option<Field> {
    Some(match word {
        "name" => Field::Name,
        "mac" => Field::Mac,
        "address" => Field::Address,
        "hostname" => Field::Hostname,
        "serial" => Field::Serial,
        label => Field::Label(label.parse().ok()?),
    })
}

/// Reads a list out of `bytes`; `file` is what problems call it. Columns are known by their names in the first line, in any order; `columns` says of
/// some header which field it is (`mac`, `owner` …, or the name of a label). A column `label.x` is the label `x`.
///
/// UTF-8 with and without a byte order mark, UTF-16 with one, and Windows-1252 are read; values may stand between commas, semicolons, tabs or bars.
///
/// # Errors
/// When it is too long, has no column that tells devices apart, or its quotes don't end.
pub fn read_csv(
    file: &str,
    bytes: &[u8],
    columns: &BTreeMap<String, String>,
) -> Result<AssetList, ListError> {
    if bytes.len() > MAX_LIST_LEN {
        return Err(ListError::new(
            file,
            format!("{} bytes are more than the {MAX_LIST_LEN} that a list may have", bytes.len()),
        ));
    }
    // The reader counts lines by their ends, and takes two characters for two.
    let text = decode(bytes).replace("\r\n", "\n");
    if text.contains('\0') {
        return Err(ListError::new(
            file,
            "this is no text: save the list as CSV, or give a FHIR or MDS2 file by its own ending (.json, .ndjson, .xlsx)",
        ));
    }
    let (text, told) = separator_line(&text);
    let delimiter = told.unwrap_or_else(|| guess(text));
    let skipped = usize::from(told.is_some());
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .has_headers(false)
        .from_reader(text.as_bytes());
    let mut records = reader.records();
    let broken = |error: &::csv::Error| {
        let line = error.position().map_or(0, ::csv::Position::line);
        ListError::new(format!("{file}:{line}"), format!("this line can't be read: {error}"))
    };
    let mut headers = loop {
        match records.next() {
            None => {
                return Err(ListError::new(
                    file,
                    "the list is empty: its first line names its columns",
                ));
            }
            Some(Err(error)) => return Err(broken(&error)),
            // Titles above the table, as reports have them.
            Some(Ok(record))
                if record.iter().filter(|cell| !cell.trim().is_empty()).count() < 2
                    && record.len() > 1 => {}
            Some(Ok(record)) => break record,
        }
    };
    headers.trim();
    let (fields, unused) = places(file, &headers, columns)?;
    let mut list = AssetList { unused, ..AssetList::default() };
    let mut last = 0;
    for record in records {
        let record = record.map_err(|error| broken(&error))?;
        let line = record.position().map_or(0, ::csv::Position::line) as usize + skipped;
        last = line;
        if record.iter().all(|cell| cell.trim().is_empty()) {
            continue;
        }
        if list.assets.len() >= MAX_ASSETS {
            return Err(ListError::new(
                format!("{file}:{line}"),
                format!("a list has at most {MAX_ASSETS} rows: split it"),
            ));
        }
        let mut asset = Asset { place: format!("{file}:{line}"), ..Asset::default() };
        for (at, (header, field)) in &fields {
            let place = || format!("{file}:{line}: column {header:?}");
            put(&mut asset, field, record.get(*at).unwrap_or_default(), &place, &mut list);
        }
        let known = !asset.macs.is_empty() || !asset.addresses.is_empty();
        if !known && asset.serial.is_none() && asset.hostname.is_none() && asset.name.is_none() {
            list.problem(
                asset.place.clone(),
                "nothing in this row tells which device it is".into(),
            );
        } else {
            list.assets.push(asset);
        }
    }
    // A quote that nobody closed swallows all lines behind it.
    let odd = text.bytes().filter(|byte| *byte == b'"').count() % 2 == 1;
    if odd && last > 0 && text.trim_end().lines().count() + skipped > last {
        return Err(ListError::new(
            format!("{file}:{last}"),
            "a quote that begins here isn't closed",
        ));
    }
    Ok(list)
}

fn decode(bytes: &[u8]) -> Cow<'_, str> {
    if let Some((encoding, len)) = encoding_rs::Encoding::for_bom(bytes) {
        return encoding.decode_without_bom_handling(&bytes[len..]).0;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => encoding_rs::WINDOWS_1252.decode_without_bom_handling(bytes).0,
    }
}

/// Excel's own first line, `sep=;`.
fn separator_line(text: &str) -> (&str, Option<u8>) {
    let Some((first, rest)) = text.split_once('\n') else { return (text, None) };
    match first.trim_end().to_ascii_lowercase().strip_prefix("sep=").map(str::as_bytes) {
        Some([one]) => (rest, Some(*one)),
        _ => (text, None),
    }
}

/// What stands between the values of the first lines.
fn guess(text: &str) -> u8 {
    let mut counts = [0_usize; DELIMITERS.len()];
    for line in text.lines().take(5) {
        let mut quoted = false;
        for byte in line.bytes() {
            if byte == b'"' {
                quoted = !quoted;
            } else if let Some(at) = DELIMITERS.iter().position(|one| *one == byte && !quoted) {
                counts[at] += 1;
            }
        }
    }
    let best = counts.iter().enumerate().max_by_key(|(at, count)| (**count, usize::MAX - at));
    DELIMITERS[best.map_or(0, |(at, _)| at)]
}

fn letters(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

type Places = BTreeMap<usize, (String, Field)>;

/// Which column holds what; the columns that nothing is taken from.
fn places(
    file: &str,
    headers: &::csv::StringRecord,
    told: &BTreeMap<String, String>,
) -> Result<(Places, Vec<String>), ListError> {
    let line = format!("{file}:{}", headers.position().map_or(1, ::csv::Position::line));
    if headers.len() > MAX_COLUMNS {
        return Err(ListError::new(
            line,
            format!("{} columns are more than {MAX_COLUMNS}", headers.len()),
        ));
    }
    let mut wanted: BTreeMap<String, Field> = BTreeMap::new();
    for (word, header) in told {
        let field = field(word).ok_or_else(|| {
            ListError::new(file, format!("{word:?} can't be a field: use name, mac, address, hostname, serial, owner, location, criticality, class, vendor, model, or the name of a label"))
        })?;
        if !headers.iter().any(|known| letters(known) == letters(header)) {
            let known: Vec<&str> = headers.iter().take(30).collect();
            return Err(ListError::new(
                line,
                format!("there is no column {header:?}: the list has {}", known.join(", ")),
            ));
        }
        wanted.insert(letters(header), field);
    }
    let (mut places, mut unused) = (Places::new(), Vec::new());
    for (at, header) in headers.iter().enumerate() {
        let called: String = header.chars().take(80).collect();
        let own = wanted.get(&letters(header)).cloned();
        let found = own.or_else(|| {
            let label = header.to_lowercase();
            let label = label
                .strip_prefix("label.")
                .or_else(|| label.strip_prefix("label:"))
                .and_then(slug);
            label.map(Field::Label)
        });
        let found = found.or_else(|| {
            let (word, _) =
                COLUMNS.iter().find(|(_, names)| names.contains(&letters(header).as_str()))?;
            // What was said by hand isn't said a second time by a name.
            field(word).filter(|field| !wanted.values().any(|own| own == field))
        });
        match found {
            Some(field) => drop(places.insert(at, (called, field))),
            None if !called.is_empty() => unused.push(called),
            None => {}
        }
    }
    let tells = |(_, field): &(String, Field)| !matches!(field, Field::Label(_));
    if !places.values().any(tells) {
        let known: Vec<&str> = headers.iter().take(30).collect();
        return Err(ListError::new(
            line,
            format!(
                "no column tells devices apart (MAC, serial number, host name, IP address or name): the first line has {:?}. Name one by hand: --column mac=HEADER",
                known.join(", ")
            ),
        ));
    }
    Ok((places, unused))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> AssetList {
        read_csv("a.csv", text.as_bytes(), &BTreeMap::new()).unwrap()
    }

    fn told(words: &[(&str, &str)]) -> BTreeMap<String, String> {
        words.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    const LIST: &str = "Asset Tag;MAC-Address;IP Address;Serial No.;Manufacturer;Model;Department;Room;Criticality;Price\r\n\
        \"CT; Raum 1\";00-1B-21-00-00-01;10.20.1.10;S1;Siemens;go.Up;Radiologie;B2;life support;1,5\r\n\
        ;;;;;;;;;\r\n\
        PUMP 7;bad;999.1.1.1;;;;;;A1;\r\n\
        ;;;;;Alaris;;;;\r\n";

    fn label<'a>(asset: &'a Asset, name: &str) -> Option<&'a str> {
        asset.attributes.get(name).map(String::as_str)
    }

    #[test]
    fn what_excel_writes_is_read() {
        let list = read(LIST);
        assert_eq!(list.unused, ["Price"]);
        let [ct, pump] = list.assets.as_slice() else { panic!("{list:?}") };
        assert_eq!((ct.place.as_str(), ct.name.as_deref()), ("a.csv:2", Some("CT; Raum 1")));
        assert_eq!((ct.macs.len(), ct.addresses.len(), ct.serial.as_deref()), (1, 1, Some("S1")));
        let found =
            ["vendor", "model", "owner", "location", "criticality"].map(|name| label(ct, name));
        assert_eq!(found, ["Siemens", "go.Up", "Radiologie", "B2", "life-support"].map(Some));
        assert_eq!((pump.place.as_str(), pump.macs.len()), ("a.csv:4", 0));
        let problems: Vec<String> = list.problems.iter().map(ToString::to_string).collect();
        assert!(
            problems[0].starts_with("a.csv:4: column \"MAC-Address\": \"bad\" is no device's"),
            "{problems:?}"
        );
        assert!(
            problems[1].contains("IP Address") && problems[2].contains("Criticality"),
            "{problems:?}"
        );
        assert!(problems[3].starts_with("a.csv:5: nothing in this row"), "{problems:?}");
    }

    #[test]
    fn encodings_and_separators_are_found_out() {
        let utf16: Vec<u8> = [0xff, 0xfe]
            .into_iter()
            .chain(
                LIST.replace(';', "\t")
                    .replace("CT\t", "CT;")
                    .encode_utf16()
                    .flat_map(u16::to_le_bytes),
            )
            .collect();
        let latin: Vec<u8> =
            LIST.replace("Radiologie", "S\u{fc}d").chars().map(|c| c as u8).collect();
        let marked = [&[0xef, 0xbb, 0xbf], LIST.as_bytes()].concat();
        let excel = format!("sep=;\r\n{LIST}").into_bytes();
        for (bytes, owner) in [
            (utf16, "Radiologie"),
            (latin, "S\u{fc}d"),
            (marked, "Radiologie"),
            (excel, "Radiologie"),
        ] {
            let list = read_csv("a.csv", &bytes, &BTreeMap::new()).unwrap();
            assert_eq!(label(&list.assets[0], "owner"), Some(owner), "{list:?}");
            assert_eq!(list.assets.len(), 2);
        }
        assert_eq!(read("name,mac\nx,00:1b:21:00:00:01\n").assets[0].macs.len(), 1);
        assert_eq!(
            read_csv("a.csv", format!("sep=;\r\n{LIST}").as_bytes(), &BTreeMap::new())
                .unwrap()
                .assets[0]
                .place,
            "a.csv:3"
        );
    }

    #[test]
    fn columns_can_be_named_by_hand_and_labels_by_their_own_names() {
        let text = "Nr,Netz,Halter,label.zone,Owner\n7,001b21000001,Ana,Z 1,Ben\n";
        let list = read_csv(
            "a.csv",
            text.as_bytes(),
            &told(&[("mac", "netz"), ("owner", "Halter"), ("ward-number", "Nr")]),
        )
        .unwrap();
        let asset = &list.assets[0];
        assert_eq!(
            (
                asset.macs.len(),
                label(asset, "owner"),
                label(asset, "zone"),
                label(asset, "ward-number")
            ),
            (1, Some("Ana"), Some("Z 1"), Some("7"))
        );
        assert_eq!(list.unused, ["Owner"]);
        let error =
            read_csv("a.csv", text.as_bytes(), &told(&[("mac", "MAC")])).unwrap_err().to_string();
        assert!(
            error.contains("a.csv:1: no column \"MAC\"")
                || error.contains("there is no column \"MAC\""),
            "{error}"
        );
        let error = read_csv("a.csv", text.as_bytes(), &told(&[("No Label", "Nr")]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("can't be a field"), "{error}");
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_place() {
        let fails =
            |bytes: &[u8]| read_csv("a.csv", bytes, &BTreeMap::new()).unwrap_err().to_string();
        assert!(fails(b"").contains("a.csv: the list is empty"));
        assert!(fails(b"Price,Colour\n1,2\n").contains("a.csv:1: no column tells devices apart"));
        let open = "name,mac\na,\nb,\"c\nd,\ne,\n";
        assert!(fails(open.as_bytes()).contains("a.csv:3: a quote that begins here"));
        assert_eq!(read("name,model\nmonitor,19\"\nb,c\n").assets.len(), 2);
        assert!(fails(b"PK\x03\x04\0\0").contains("this is no text"));
        assert!(fails(&vec![b'x'; MAX_LIST_LEN + 1]).contains("bytes are more than"));
        let many = "name\n".to_owned() + &"x\n".repeat(MAX_ASSETS + 1);
        assert!(fails(many.as_bytes()).contains("at most 100000 rows"), "bounded");
        let wide = "name,".repeat(600);
        assert!(fails(wide.as_bytes()).contains("columns are more than"));
        let many_bad = "name,mac\n".to_owned() + &"x,bad\n".repeat(500);
        let list = read(&many_bad);
        assert_eq!((list.problems.len(), list.more_problems), (super::super::MAX_PROBLEMS, 300));
    }

    proptest! {
        #[test]
        fn anything_at_all_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_csv("a.csv", &bytes, &BTreeMap::new());
            let with_header = [b"mac;ip;name\n".as_slice(), &bytes].concat();
            let _ = read_csv("a.csv", &with_header, &BTreeMap::new());
        }
    }
}
