//! Asset lists and MDS2 forms on disk: which of them a file is shows in its first bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use anteroom_controller_core::assets::{
    AssetList, MAX_ASSETS, MAX_FHIR_LEN, MAX_LIST_LEN, Mds2, read_csv, read_fhir, read_mds2,
};
use calamine::{Data, DataRef, Reader as _, Xlsx};

use crate::archive::unpack;
use crate::error::Error;

/// Longest workbook that is read, unpacked, in bytes.
const MAX_WORKBOOK: usize = 64 * 1024 * 1024;
/// Most sheets of a workbook, and most rows, columns and cells of a sheet, that are kept.
const MAX_SHEETS: usize = 20;
const MAX_ROWS: usize = 5_000;
const MAX_COLUMNS: usize = 64;
const MAX_CELLS: usize = 100_000;
/// Longest text of a cell that is kept, in bytes: cells share texts, so that a small workbook can hold one long text many times.
const MAX_CELL: usize = 4_096;
/// Most bytes of text of a workbook's cells together.
const MAX_TEXT: usize = 32 * 1024 * 1024;
/// Most files that are read at once.
const MAX_FILES: usize = 1_000;

/// The rows of a workbook, by the names of its sheets.
type Sheets = Vec<(String, Vec<Vec<String>>)>;

/// What files held.
#[derive(Debug, Default)]
pub struct Lists {
    /// Everything that they list.
    pub list: AssetList,
    /// What manufacturers say of models.
    pub forms: Vec<Mds2>,
}

/// Reads the files at `paths`, each of which is CSV, FHIR or MDS2. `columns` says which headers of CSV hold what.
///
/// # Errors
/// When one can't be read, isn't one of these, or is too large.
pub fn read(paths: &[PathBuf], columns: &BTreeMap<String, String>) -> Result<Lists, Error> {
    if paths.len() > MAX_FILES {
        return Err(Error::Usage(format!(
            "more than {MAX_FILES} files at once: give them in parts"
        )));
    }
    let mut lists = Lists::default();
    for path in paths {
        let bytes = bounded(path, MAX_FHIR_LEN)?;
        // Places in a list are told by the file's name, not by where it lies.
        let file = path
            .file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let first = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(&bytes).trim_ascii_start();
        let refused =
            |error: anteroom_controller_core::assets::ListError| Error::Other(error.to_string());
        let is_fhir = first.starts_with(b"{") || first.starts_with(b"[");
        if bytes.len() > MAX_LIST_LEN && !is_fhir {
            return Err(too_long(path, MAX_LIST_LEN));
        }
        if bytes.starts_with(b"PK\x03\x04") {
            let sheets = workbook(path, bytes)?;
            lists.forms.push(read_mds2(&file, &sheets).map_err(refused)?);
        } else if bytes.starts_with(&[0xd0, 0xcf, 0x11, 0xe0]) {
            return Err(Error::file(
                path,
                "this is an old workbook (.xls), or an encrypted one: save it as .xlsx without a password",
            ));
        } else if is_fhir {
            lists.list.append(read_fhir(&file, &bytes).map_err(refused)?);
        } else {
            lists.list.append(read_csv(&file, &bytes, columns).map_err(refused)?);
        }
        if lists.list.assets.len() > MAX_ASSETS {
            return Err(Error::file(
                path,
                format!(
                    "with this file the lists name more than {MAX_ASSETS} things: give them in parts"
                ),
            ));
        }
    }
    Ok(lists)
}

/// The bytes of the file at `path`, if they are no more than `most`.
pub(crate) fn bounded(path: &Path, most: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::file(path, format!("can't read it: {error}")))?;
    if bytes.len() > most {
        return Err(too_long(path, most));
    }
    Ok(bytes)
}

fn too_long(path: &Path, most: usize) -> Error {
    Error::file(path, format!("it is longer than {most} bytes, the most that is read"))
}

/// The rows of a workbook's sheets. Cells are read one by one, since a single cell in the last row and column would make a table of sixteen thousand million.
fn workbook(path: &Path, bytes: Vec<u8>) -> Result<Sheets, Error> {
    unpack(&bytes, MAX_WORKBOOK).map_err(|error| Error::file(path, error))?;
    let broken = |error: &dyn std::fmt::Display| {
        Error::file(path, format!("it is no workbook that can be read: {error}"))
    };
    let mut workbook = Xlsx::new(Cursor::new(bytes)).map_err(|error| broken(&error))?;
    let names: Vec<String> = workbook.sheet_names().into_iter().take(MAX_SHEETS).collect();
    let mut sheets = Vec::new();
    let mut left = MAX_TEXT;
    for name in names {
        // A diagram has a sheet of its own, without cells.
        let Ok(mut cells) = workbook.worksheet_cells_reader(&name) else { continue };
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut count = 0;
        while let Some(cell) = cells.next_cell().map_err(|error| broken(&error))? {
            let (row, column) = cell.get_position();
            let (row, column) = (row as usize, column as usize);
            if column >= MAX_COLUMNS || matches!(cell.get_value(), DataRef::Empty) {
                continue;
            }
            count += 1;
            if row >= MAX_ROWS || count > MAX_CELLS {
                break;
            }
            let value = match cell.get_value() {
                DataRef::SharedString(text) => cut(text).to_owned(),
                DataRef::String(text) => cut(text).to_owned(),
                other => Data::from(other.clone()).to_string(),
            };
            left = left
                .checked_sub(value.len())
                .ok_or_else(|| Error::file(path, "its cells hold more text than any MDS2 form"))?;
            if rows.len() <= row {
                rows.resize_with(row + 1, Vec::new);
            }
            if let Some(line) = rows.get_mut(row) {
                if line.len() <= column {
                    line.resize_with(column + 1, String::new);
                }
                line[column] = value;
            }
        }
        sheets.push((name, rows));
    }
    Ok(sheets)
}

/// The first [`MAX_CELL`] bytes of a text, at the end of a character.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_CELL)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::pack;

    /// A workbook of one sheet with these cells, as `A1`-like places and texts.
    fn sheet(cells: &[(&str, &str)]) -> Vec<u8> {
        let cells: String = cells
            .iter()
            .map(|(at, text)| {
                let row: String = at.chars().filter(char::is_ascii_digit).collect();
                format!("<row r=\"{row}\"><c r=\"{at}\" t=\"inlineStr\"><is><t>{text}</t></is></c></row>")
            })
            .collect();
        workbook_of(&cells, "")
    }

    /// A workbook of one sheet with these cells, as XML, and one text that they may share.
    fn workbook_of(cells: &str, shared: &str) -> Vec<u8> {
        let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";
        let main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main";
        let office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
        let package = "http://schemas.openxmlformats.org/package/2006";
        let files = [
            (
                "[Content_Types].xml",
                format!(
                    "{head}<Types xmlns=\"{package}/content-types\"><Default Extension=\"xml\" ContentType=\"application/xml\"/></Types>"
                ),
            ),
            (
                "_rels/.rels",
                format!(
                    "{head}<Relationships xmlns=\"{package}/relationships\"><Relationship Id=\"r1\" Type=\"{office}/officeDocument\" Target=\"xl/workbook.xml\"/></Relationships>"
                ),
            ),
            (
                "xl/workbook.xml",
                format!(
                    "{head}<workbook xmlns=\"{main}\" xmlns:r=\"{office}\"><sheets><sheet name=\"MDS2\" sheetId=\"1\" r:id=\"r1\"/></sheets></workbook>"
                ),
            ),
            (
                "xl/_rels/workbook.xml.rels",
                format!(
                    "{head}<Relationships xmlns=\"{package}/relationships\"><Relationship Id=\"r1\" Type=\"{office}/worksheet\" Target=\"worksheets/sheet1.xml\"/><Relationship Id=\"r2\" Type=\"{office}/sharedStrings\" Target=\"sharedStrings.xml\"/></Relationships>"
                ),
            ),
            (
                "xl/sharedStrings.xml",
                format!("{head}<sst xmlns=\"{main}\"><si><t>{shared}</t></si></sst>"),
            ),
            (
                "xl/worksheets/sheet1.xml",
                format!(
                    "{head}<worksheet xmlns=\"{main}\"><sheetData>{cells}</sheetData></worksheet>"
                ),
            ),
        ];
        pack(files.iter().map(|(name, text)| (*name, text.as_bytes()))).unwrap()
    }

    fn read_one(name: &str, bytes: &[u8]) -> Result<Lists, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read(&[path], &BTreeMap::new())
    }

    #[test]
    fn a_form_in_a_workbook_is_read() {
        let lists = read_one(
            "ct.xlsx",
            &sheet(&[
                ("A2", "DOC-1"),
                ("B2", "Manufacturer Name"),
                ("C2", "Siemens"),
                ("A3", "DOC-3"),
                ("B3", "Device Model"),
                ("C3", "go.Up"),
                ("A5", "MPII-1"),
                ("B5", "Personal data?"),
                ("C5", "Yes"),
                ("A6", "MPII-2"),
                ("B6", "Stored?"),
                ("C6", "Yes"),
                ("D6", "Note 1"),
                ("A7", "TXCF-1"),
                ("B7", "Dedicated cable?"),
                ("C7", "No"),
                // A table of everything up to here would take all memory.
                ("XFD1048576", "far away"),
            ]),
        )
        .unwrap();
        let form = &lists.forms[0];
        assert_eq!(
            (form.place.as_str(), form.manufacturer.as_str(), form.model.as_str()),
            ("ct.xlsx", "Siemens", "go.Up")
        );
        assert_eq!(form.answers.len(), 3);
        assert_eq!(form.answers[1].note.as_deref(), Some("Note 1"));
    }

    #[test]
    fn files_are_told_apart_by_what_is_in_them() {
        let csv = read_one("a.txt", b"\xef\xbb\xbfname;mac\nct-1;00:1b:21:00:00:01\n").unwrap();
        assert_eq!((csv.list.assets.len(), csv.list.assets[0].place.as_str()), (1, "a.txt:2"));
        let fhir =
            read_one("a.txt", b"\n {\"resourceType\":\"Device\",\"serialNumber\":\"S1\"}").unwrap();
        assert_eq!(fhir.list.assets[0].serial.as_deref(), Some("S1"));
        let fails = |bytes: &[u8]| read_one("x", bytes).unwrap_err().to_string();
        assert!(fails(&[0xd0, 0xcf, 0x11, 0xe0, 1]).contains("save it as .xlsx"));
        assert!(fails(b"PK\x03\x04rubbish").contains("no zip archive"));
        assert!(fails(&pack([("a", &b"b"[..])]).unwrap()).contains("no workbook"));
        assert!(fails(&sheet(&[("A1", "Name")])).contains("no questions of an MDS2 form"));
        let zeros = vec![b' '; MAX_WORKBOOK + 1];
        let bomb = pack([("xl/workbook.xml", zeros.as_slice())]).unwrap();
        assert!(fails(&bomb).contains("unpacks to more than 67 MB"), "{} bytes", bomb.len());
        // One long text that many cells show: tens of GB, if each had its own.
        let cells: String = (1..=40_000)
            .map(|row| format!("<row r=\"{row}\"><c r=\"A{row}\" t=\"s\"><v>0</v></c><c r=\"B{row}\" t=\"s\"><v>0</v></c></row>"))
            .collect();
        let long = "x".repeat(1_000_000);
        let error = fails(&workbook_of(&cells, &long));
        assert!(error.contains("more text than any MDS2 form"), "{error}");
        let missing = read(&["nowhere.csv".into()], &BTreeMap::new()).unwrap_err().to_string();
        assert!(missing.contains("nowhere.csv: can't read it"), "{missing}");
    }
}
