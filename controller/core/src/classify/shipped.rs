//! The rules that come with Anteroom.

/// Each file's name and text.
pub(super) const FILES: [(&str, &str); 7] = [
    ("makers.toml", include_str!("rules/makers.toml")),
    ("makers-it.toml", include_str!("rules/makers-it.toml")),
    ("names.toml", include_str!("rules/names.toml")),
    ("medical.toml", include_str!("rules/medical.toml")),
    ("building.toml", include_str!("rules/building.toml")),
    ("office.toml", include_str!("rules/office.toml")),
    ("things.toml", include_str!("rules/things.toml")),
];
