//! What a hospital's equipment says: imaging studies over DICOM, vital signs over HL7.

pub mod association;
pub mod dicom;
pub mod hl7;
pub mod study;
