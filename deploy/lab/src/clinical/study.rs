//! A CT study of a phantom: real files, and how to tell whether they arrived as they were sent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

/// Rows and columns of a slice.
const SIZE: u16 = 512;

/// UID of "CT Image Storage".
const CT_IMAGE_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.2";

/// UID of "Explicit VR Little Endian".
const EXPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";

/// A study on disk.
#[derive(Debug, Clone)]
pub struct Study {
    /// Its unique identifier.
    pub uid: String,
    /// The patient, as it stands in the files.
    pub patient: String,
    /// One file a slice.
    pub files: Vec<PathBuf>,
}

impl Study {
    /// Writes a study of `slices` slices into `directory`. `number` tells studies apart.
    ///
    /// # Errors
    /// If the directory can't be written.
    pub fn write(directory: &Path, number: u32, slices: u16) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        // 2.25 is the root for identifiers made from a number, which anyone may use.
        let uid = format!("2.25.4711{number:06}");
        let patient = format!("PHANTOM^ANTEROOM{number}");
        let mut files = Vec::new();
        for slice in 1..=slices {
            let file = directory.join(format!("slice-{slice:03}.dcm"));
            let instance = format!("{uid}.2.{slice}");
            let object = slice_object(&uid, &instance, &patient, slice)
                .with_meta(
                    FileMetaTableBuilder::new()
                        .transfer_syntax(EXPLICIT_LITTLE_ENDIAN)
                        .media_storage_sop_class_uid(CT_IMAGE_STORAGE)
                        .media_storage_sop_instance_uid(instance),
                )
                .context("the file's header")?;
            object.write_to_file(&file).with_context(|| format!("writing {}", file.display()))?;
            files.push(file);
        }
        Ok(Self { uid, patient, files })
    }

    /// Bytes of all data sets together.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn size(&self) -> Result<usize> {
        self.files.iter().map(|file| Ok(data_set(file)?.len())).sum()
    }

    /// How many of the study's slices lie in `directory` (or below it) with exactly the same data set.
    ///
    /// # Errors
    /// If the study's own files can't be read.
    pub fn arrived(&self, directory: &Path) -> Result<usize> {
        let mut there = BTreeSet::new();
        collect(directory, &mut there);
        let mut count = 0;
        for file in &self.files {
            if there.contains(&data_set(file)?) {
                count += 1;
            }
        }
        Ok(count)
    }

    /// What must not be readable on the campus: the patient, the identifiers, and a piece of each picture.
    ///
    /// # Errors
    /// If the study's own files can't be read.
    pub fn secrets(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut secrets = vec![
            ("the patient's name".to_owned(), self.patient.clone().into_bytes()),
            ("the study's UID".to_owned(), self.uid.clone().into_bytes()),
        ];
        for (index, file) in self.files.iter().enumerate() {
            let data = data_set(file)?;
            let middle = data.len() / 2;
            let piece = data.get(middle..middle + 24).context("a slice is longer than that")?;
            secrets.push((format!("pixels of slice {}", index + 1), piece.to_vec()));
        }
        Ok(secrets)
    }
}

/// All data sets of the DICOM files below a directory.
fn collect(directory: &Path, into: &mut BTreeSet<Vec<u8>>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, into);
        } else if let Ok(data) = data_set(&path) {
            into.insert(data);
        }
    }
}

/// The bytes of a file after its meta header, which every receiver writes anew.
///
/// # Errors
/// If it can't be read or isn't a DICOM file.
pub fn data_set(file: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    split_meta(&bytes)
        .map(<[u8]>::to_vec)
        .with_context(|| format!("{} is no DICOM file", file.display()))
}

/// A preamble of 128 bytes, `DICM`, then group 2, which begins with its own length.
fn split_meta(bytes: &[u8]) -> Option<&[u8]> {
    let group = bytes.get(128..)?.strip_prefix(b"DICM")?;
    let length_element = group.strip_prefix(&[0x02, 0x00, 0x00, 0x00, b'U', b'L', 0x04, 0x00])?;
    let (length, rest) = length_element.split_first_chunk::<4>()?;
    rest.get(usize::try_from(u32::from_le_bytes(*length)).ok()?..)
}

/// A circle with noise that differs from slice to slice and never repeats within one.
fn pixels(slice: u16) -> Vec<u16> {
    let mut state = 0x9e37_79b9_u32 ^ u32::from(slice).wrapping_mul(0x85eb_ca6b);
    let middle = i32::from(SIZE / 2);
    let radius = 150 + i32::from(slice) * 5;
    let mut out = Vec::with_capacity(usize::from(SIZE) * usize::from(SIZE));
    for y in 0..i32::from(SIZE) {
        for x in 0..i32::from(SIZE) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let inside = (x - middle).pow(2) + (y - middle).pow(2) < radius * radius;
            let noise = (state >> 24) & 0x7f;
            out.push(u16::try_from(noise + if inside { 1_000 } else { 0 }).unwrap_or(0));
        }
    }
    out
}

fn slice_object(study: &str, instance: &str, patient: &str, slice: u16) -> InMemDicomObject {
    let text = |group, element, vr, value: &str| {
        DataElement::new(Tag(group, element), vr, PrimitiveValue::from(value))
    };
    let number = |group, element, value: u16| {
        DataElement::new(Tag(group, element), VR::US, PrimitiveValue::from(value))
    };
    InMemDicomObject::from_element_iter([
        text(0x0008, 0x0008, VR::CS, "ORIGINAL\\PRIMARY\\AXIAL"),
        text(0x0008, 0x0016, VR::UI, CT_IMAGE_STORAGE),
        text(0x0008, 0x0018, VR::UI, instance),
        text(0x0008, 0x0020, VR::DA, "20261102"),
        text(0x0008, 0x0030, VR::TM, "081500"),
        text(0x0008, 0x0050, VR::SH, "A4711"),
        text(0x0008, 0x0060, VR::CS, "CT"),
        text(0x0008, 0x0070, VR::LO, "Anteroom lab"),
        text(0x0008, 0x0090, VR::PN, ""),
        text(0x0010, 0x0010, VR::PN, patient),
        text(0x0010, 0x0020, VR::LO, "4711"),
        text(0x0010, 0x0030, VR::DA, "19700101"),
        text(0x0010, 0x0040, VR::CS, "O"),
        text(0x0018, 0x0050, VR::DS, "1.25"),
        text(0x0018, 0x0060, VR::DS, "120"),
        text(0x0020, 0x000d, VR::UI, study),
        text(0x0020, 0x000e, VR::UI, &format!("{study}.1")),
        text(0x0020, 0x0010, VR::SH, "1"),
        text(0x0020, 0x0011, VR::IS, "1"),
        text(0x0020, 0x0013, VR::IS, &slice.to_string()),
        text(0x0020, 0x0032, VR::DS, &format!("-125\\-125\\{}", f64::from(slice) * 1.25)),
        text(0x0020, 0x0037, VR::DS, "1\\0\\0\\0\\1\\0"),
        text(0x0020, 0x0052, VR::UI, &format!("{study}.9")),
        text(0x0020, 0x1040, VR::LO, ""),
        number(0x0028, 0x0002, 1),
        text(0x0028, 0x0004, VR::CS, "MONOCHROME2"),
        number(0x0028, 0x0010, SIZE),
        number(0x0028, 0x0011, SIZE),
        text(0x0028, 0x0030, VR::DS, "0.488281\\0.488281"),
        number(0x0028, 0x0100, 16),
        number(0x0028, 0x0101, 16),
        number(0x0028, 0x0102, 15),
        number(0x0028, 0x0103, 0),
        text(0x0028, 0x1052, VR::DS, "-1024"),
        text(0x0028, 0x1053, VR::DS, "1"),
        DataElement::new(Tag(0x7fe0, 0x0010), VR::OW, PrimitiveValue::U16(pixels(slice).into())),
    ])
}

/// Reads a file back with dicom-rs, to be sure that it is one.
///
/// # Errors
/// If it isn't.
pub fn check_file(file: &Path) -> Result<()> {
    let object = dicom_object::open_file(file)
        .with_context(|| format!("{} isn't a DICOM file", file.display()))?;
    if object.meta().media_storage_sop_class_uid() != CT_IMAGE_STORAGE {
        bail!("{} isn't a CT image", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_study_is_found_where_its_data_sets_are_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let sent = directory.path().join("sent");
        let study = Study::write(&sent, 1, 2).unwrap();
        check_file(&study.files[0]).unwrap();
        assert!(study.size().unwrap() > 2 * 512 * 512 * 2);
        assert_eq!(study.arrived(&sent).unwrap(), 2);
        let received = directory.path().join("received/deeper");
        std::fs::create_dir_all(&received).unwrap();
        assert_eq!(study.arrived(&received).unwrap(), 0);
        // Another meta header, the same data set.
        let data = data_set(&study.files[1]).unwrap();
        let mut other = vec![0_u8; 128];
        other.extend_from_slice(b"DICM\x02\x00\x00\x00UL\x04\x00\x04\x00\x00\x00meta");
        other.extend_from_slice(&data);
        std::fs::write(received.join("1"), &other).unwrap();
        assert_eq!(study.arrived(&directory.path().join("received")).unwrap(), 1);
        // One bit less.
        let end = other.len() - 1;
        other[end] ^= 1;
        std::fs::write(received.join("1"), &other).unwrap();
        assert_eq!(study.arrived(&directory.path().join("received")).unwrap(), 0);
    }

    #[test]
    fn a_file_that_is_no_dicom_file_is_refused() {
        assert!(split_meta(b"").is_none());
        assert!(split_meta(&[0; 200]).is_none());
        let mut lying = vec![0_u8; 128];
        lying.extend_from_slice(b"DICM\x02\x00\x00\x00UL\x04\x00\xff\xff\xff\xff");
        assert!(split_meta(&lying).is_none());
    }

    #[test]
    fn the_secrets_stand_in_the_files_and_differ_between_studies() {
        let directory = tempfile::tempdir().unwrap();
        let one = Study::write(&directory.path().join("1"), 1, 1).unwrap();
        let two = Study::write(&directory.path().join("2"), 2, 1).unwrap();
        let bytes = std::fs::read(&one.files[0]).unwrap();
        for (what, secret) in one.secrets().unwrap() {
            assert!(memchr::memmem::find(&bytes, &secret).is_some(), "{what}");
        }
        assert_ne!(one.uid, two.uid);
    }
}
