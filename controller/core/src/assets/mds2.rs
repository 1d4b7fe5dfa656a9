//! MDS2: what a manufacturer says of a model's security (Manufacturer Disclosure Statement for Medical Device Security, ANSI/NEMA HN 1-2013 and HN 1-2019).
//!
//! The form is a sheet with a question on each row: its id (`MPII-1`, or `1-1` in 2013), its text, the answer, and notes. Sheets differ in which columns these
//! stand in, so rows are read from left to right: an id, the next text is the question, the next the answer. Of the model itself the form of 2019 asks by
//! `DOC-1` and so on, that of 2013 by words with the value beside or below them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::values::clean;
use super::{ListError, Problem};

/// Most answers of one form.
const MAX_ANSWERS: usize = 1_000;
/// Longest text of a question, answer or note that is kept, in characters.
const MAX_TEXT: usize = 600;
/// Sections of questions that say what a network has to make up for: data on patients, log-off, audit, patches, malware, network, hardening, encryption at rest and on the
/// way, remote service, parts lists.
const TELLING: [&str; 12] = [
    "MPII", "ALOF", "AUDT", "CSUP", "MLDP", "CONN", "PAUT", "SAHD", "STCF", "TXCF", "RMOT", "SBOM",
];

/// A form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mds2 {
    /// The file that it came in.
    pub place: String,
    /// 2013 or 2019.
    pub edition: u16,
    /// Who makes it.
    pub manufacturer: String,
    /// What it is called.
    pub model: String,
    /// What it is.
    pub description: Option<String>,
    /// Software or document revision, where it is told.
    pub revision: Option<String>,
    /// When the form was issued, as it is written there.
    pub released: Option<String>,
    /// The answers, in the order of the form.
    pub answers: Vec<Answer>,
    /// What couldn't be read.
    pub problems: Vec<Problem>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The question's id.
    pub id: String,
    /// The section that it stands in, such as `TXCF`, where that is known.
    pub section: String,
    /// The question.
    pub question: String,
    /// The answer: `Yes`, `No`, `N/A`, `See Note`, or text.
    pub answer: String,
    /// What is noted beside it.
    pub note: Option<String>,
}

impl Mds2 {
    /// The answers that say what the network has to make up for: the first question of each telling section.
    pub fn telling(&self) -> impl Iterator<Item = &Answer> {
        TELLING
            .iter()
            .filter_map(|section| self.answers.iter().find(|answer| answer.section == *section))
    }

    /// Whether the form is about a device of this maker and model, as a label or list names them. The maker may be told more or less fully; the model
    /// must be in the form's in whole words.
    #[must_use]
    pub fn is_about(&self, vendor: Option<&str>, model: &str) -> bool {
        let words = |text: &str| -> Vec<String> {
            let text = text.to_lowercase();
            text.split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let (own, wanted) = (words(&self.model), words(model));
        let holds = |all: &[String], some: &[String]| {
            !some.is_empty() && all.windows(some.len()).any(|window| window == some)
        };
        let vendor = vendor.is_none_or(|vendor| {
            let (a, b) = (words(&self.manufacturer), words(vendor));
            a.first().is_some_and(|first| b.contains(first))
                || b.first().is_some_and(|first| a.contains(first))
        });
        vendor && (holds(&own, &wanted) || holds(&wanted, &own))
    }
}

/// Reads a form out of its sheets' `rows`; `file` is what problems call it.
///
/// # Errors
/// When the rows hold no questions of the form, or it names no manufacturer and model.
pub fn read_mds2(file: &str, sheets: &[(String, Vec<Vec<String>>)]) -> Result<Mds2, ListError> {
    let mut words: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut found = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut problems = Vec::new();
    for (sheet, rows) in sheets {
        let mut section = String::new();
        for (at, row) in rows.iter().enumerate() {
            let cells: Vec<(usize, String)> = row
                .iter()
                .enumerate()
                .filter_map(|(column, cell)| Some((column, text(cell)?)))
                .collect();
            let labels = cells.iter().filter(|(_, cell)| word(cell).is_some()).count();
            for (place, (column, cell)) in cells.iter().enumerate() {
                let Some(word) = word(cell) else { continue };
                let beside = cells.get(place + 1).map(|(_, value)| value.clone());
                let below =
                    rows.get(at + 1).and_then(|row| row.get(*column)).and_then(|cell| text(cell));
                // A row of labels has its values under it.
                let value = if labels > 1 { below } else { beside.or(below) };
                if let Some(value) = value.filter(|value| self::word(value).is_none()) {
                    words.entry(word).or_insert(value);
                }
            }
            if let Some(code) = cells.iter().find_map(|(_, cell)| heading(cell)) {
                section = code;
            }
            let Some(start) = cells.iter().take(3).position(|(_, cell)| is_id(cell)) else {
                continue;
            };
            let (id_column, id) = &cells[start];
            let mut rest = cells[start + 1..].iter();
            let Some((question_column, question)) = rest.next() else { continue };
            let answer = rest.next();
            let note = rest.next().map(|(_, note)| note.clone());
            let own = id
                .split('-')
                .next()
                .filter(|word| word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase()));
            let section = own.map_or_else(|| section.clone(), str::to_owned);
            if !seen.insert(id.clone()) {
                problems.push(Problem {
                    place: format!("{file}: {sheet}, row {}", at + 1),
                    problem: format!(
                        "question {id} stands there a second time, and is passed over"
                    ),
                });
                continue;
            }
            if found.len() >= MAX_ANSWERS {
                return Err(ListError::new(
                    format!("{file}: {sheet}, row {}", at + 1),
                    format!("more than {MAX_ANSWERS} questions: this is no MDS2 form"),
                ));
            }
            debug_assert!(id_column < question_column);
            let answer = answer.map(|(_, answer)| answer.clone()).unwrap_or_default();
            found.push(Answer {
                id: id.clone(),
                section,
                question: question.clone(),
                answer,
                note,
            });
        }
    }
    if found.len() < 5 {
        return Err(ListError::new(
            file,
            "it holds no questions of an MDS2 form (HN 1-2013 or HN 1-2019): its first sheet should have ids such as MPII-1 or 1-1 before them",
        ));
    }
    let newer =
        found.iter().any(|answer| answer.id.starts_with("DOC-") || answer.id.starts_with("MPII-"));
    let document = |id: &str| {
        let answer = found.iter().find(|answer| answer.id == id)?;
        clean(&answer.answer)
    };
    let get = |id: &str, word: &str| document(id).or_else(|| words.get(word).cloned());
    let (manufacturer, model) = (get("DOC-1", "manufacturer"), get("DOC-3", "model"));
    let (Some(manufacturer), Some(model)) = (manufacturer, model) else {
        return Err(ListError::new(
            file,
            "it names no manufacturer and model (DOC-1 and DOC-3 of HN 1-2019; \"Manufacturer\" and \"Device Model\" of HN 1-2013)",
        ));
    };
    Ok(Mds2 {
        place: file.to_owned(),
        edition: if newer { 2019 } else { 2013 },
        manufacturer,
        model,
        description: get("DOC-2", "description"),
        revision: words.get("revision").cloned().or_else(|| document("DOC-4")),
        released: get("DOC-7", "released"),
        answers: found.into_iter().filter(|answer| !answer.id.starts_with("DOC-")).collect(),
        problems,
    })
}

/// A cell's text on one line, cut; none where it is empty.
fn text(cell: &str) -> Option<String> {
    let words: Vec<&str> = cell
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    let text = words.join(" ");
    (!text.is_empty()).then(|| text.chars().take(MAX_TEXT).collect())
}

/// Whether a cell is the id of a question: `MPII-1`, `AUDT-2.13`, `1`, `10-1.2`, `A`.
fn is_id(cell: &str) -> bool {
    let number = |text: &str| {
        !text.is_empty()
            && text.len() <= 8
            && text.chars().all(|c| c.is_ascii_digit() || c == '.')
            && text.starts_with(|c: char| c.is_ascii_digit())
    };
    match cell.split_once('-') {
        Some((section, rest)) => {
            let word =
                (3..=5).contains(&section.len()) && section.chars().all(|c| c.is_ascii_uppercase());
            (word || (section.len() <= 2 && number(section))) && number(rest)
        }
        None => {
            let lettered = cell.strip_prefix(|c: char| c.is_ascii_uppercase());
            lettered
                .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('.').is_some_and(number))
                || (cell.len() <= 4 && cell.contains('.') && number(cell))
        }
    }
}

/// The code at the end of a section's heading: `TRANSMISSION CONFIDENTIALITY (TXCF)`.
fn heading(cell: &str) -> Option<String> {
    let code = cell.trim_end().strip_suffix(')')?.rsplit_once('(')?.1;
    let fits = (3..=5).contains(&code.len()) && code.chars().all(|c| c.is_ascii_uppercase());
    fits.then(|| code.to_owned())
}

/// What a label of the form's head asks for.
fn word(cell: &str) -> Option<&'static str> {
    let letters: String =
        cell.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
    Some(match letters.as_str() {
        "manufacturer" | "manufacturername" => "manufacturer",
        "devicemodel" | "model" | "modelname" => "model",
        "devicecategory" | "devicedescription" => "description",
        "softwarerevision" | "softwareversion" => "revision",
        "documentid" => "document",
        "documentreleasedate" | "releasedate" => "released",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(rows: &[&[&str]]) -> Vec<(String, Vec<Vec<String>>)> {
        vec![(
            "MDS2".into(),
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect(),
        )]
    }

    #[test]
    fn the_form_of_2019_is_read() {
        let form = sheet(&[
            &["Question ID", "Question", "", "See note", "IEC TR 80001-2-2:2012"],
            &["DOC-1", "Manufacturer Name", "Siemens Healthineers AG", "__"],
            &["DOC-2", "Device Description", "Computed tomography", "__"],
            &["DOC-3", "Device Model", "SOMATOM go.Up", "__"],
            &["DOC-7", "Document Release Date", "2024-05-01", ""],
            &["", "MANAGEMENT OF PERSONALLY IDENTIFIABLE INFORMATION"],
            &[
                "MPII-1",
                "Can this device display, transmit, store, or modify personally identifiable information (e.g. ePHI)?",
                "Yes",
                "__",
                "AR-2",
            ],
            &["MPII-2", "Does the device maintain it?", "Yes", "Note 1"],
            &["TXCF-1", "Can it be transmitted only via\na dedicated cable?", "No", "=1+1"],
            &["TXCF-1", "again", "Yes"],
            &["SBOM-1", "Is the SBoM available?", "See Notes"],
        ]);
        let found = read_mds2("ct.xlsx", &form).unwrap();
        assert_eq!(
            (found.edition, found.manufacturer.as_str(), found.model.as_str()),
            (2019, "Siemens Healthineers AG", "SOMATOM go.Up")
        );
        assert_eq!(
            (found.description.as_deref(), found.released.as_deref()),
            (Some("Computed tomography"), Some("2024-05-01"))
        );
        let telling: Vec<(&str, &str)> =
            found.telling().map(|a| (a.id.as_str(), a.answer.as_str())).collect();
        assert_eq!(telling, [("MPII-1", "Yes"), ("TXCF-1", "No"), ("SBOM-1", "See Notes")]);
        assert_eq!(found.answers[2].question, "Can it be transmitted only via a dedicated cable?");
        assert!(
            found.problems[0].to_string().contains("MDS2, row 10: question TXCF-1"),
            "{:?}",
            found.problems
        );
        assert!(
            found.is_about(Some("Siemens"), "SOMATOM go.Up")
                && found.is_about(None, "go.Up")
                && found.is_about(Some("SIEMENS HEALTHINEERS"), "Somatom GO.UP VA30")
        );
        assert!(
            !found.is_about(Some("Philips"), "go.Up")
                && !found.is_about(None, "go.Top")
                && !found.is_about(None, "")
                && !found.is_about(None, "SO")
        );
    }

    #[test]
    fn the_form_of_2013_is_read() {
        let form = sheet(&[
            &["Manufacturer Disclosure Statement for Medical Device Security – MDS2"],
            &["Device Category", "Manufacturer", "Document ID", "Document Release Date"],
            &["Infusion pump", "BD Alaris", "D-1", "2016-03"],
            &["Device Model", "Software Revision"],
            &["GH Plus", "3.2"],
            &["A", "Can this device display, transmit, or maintain private data?", "Yes", "1"],
            &["B", "Types of private data"],
            &["B.1", "Demographic?", "Yes"],
            &["1", "AUTOMATIC LOGOFF (ALOF)"],
            &["1-1", "Can the device be configured to force reauthorization?", "No", ""],
            &["15", "TRANSMISSION CONFIDENTIALITY (TXCF)"],
            &[
                "15-1",
                "Can private data be transmitted only via a point-to-point dedicated cable?",
                "No",
            ],
        ]);
        let found = read_mds2("pump.xlsx", &form).unwrap();
        assert_eq!(
            (found.edition, found.manufacturer.as_str(), found.model.as_str()),
            (2013, "BD Alaris", "GH Plus")
        );
        assert_eq!(
            (found.revision.as_deref(), found.released.as_deref()),
            (Some("3.2"), Some("2016-03"))
        );
        let telling: Vec<&str> = found.telling().map(|answer| answer.id.as_str()).collect();
        assert_eq!(telling, ["1-1", "15-1"]);
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let fails = |rows: &[&[&str]]| read_mds2("x.xlsx", &sheet(rows)).unwrap_err().to_string();
        assert!(
            fails(&[&["Name", "MAC"], &["ct-1", "00:1b:21:00:00:01"]])
                .contains("x.xlsx: it holds no questions")
        );
        let nameless: Vec<Vec<String>> =
            (1..9).map(|n| vec![format!("MPII-{n}"), "q".into(), "Yes".into()]).collect();
        let error = read_mds2("x.xlsx", &[("a".into(), nameless)]).unwrap_err();
        assert!(error.to_string().contains("names no manufacturer and model"), "{error}");
        let many: Vec<Vec<String>> =
            (0..2000).map(|n| vec![format!("MPII-{n}"), "q".into()]).collect();
        let error = read_mds2("x.xlsx", &[("a".into(), many)]).unwrap_err();
        assert!(error.to_string().contains("row 1001: more than 1000 questions"), "{error}");
    }
}
