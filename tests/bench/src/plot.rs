//! Figures as pictures, for docs.

mod bars;
mod size;

pub use bars::svg as of_subjects;
pub use size::svg as against_size;

/// Text as SVG takes it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
