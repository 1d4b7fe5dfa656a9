//! Numbers in words, as people read them, and names out of words.

use anteroom_proto::name::Name;

/// So many of something: `1 flow`, `3 flows`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The words of a text, in small letters and joined by dashes, as a name may be. None where nothing of it can be.
#[must_use]
pub fn slug(text: &str) -> Option<Name> {
    let mut name = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        let plain = match c {
            'a'..='z' | '0'..='9' | '.' | '_' => c.to_string(),
            'ä' => "ae".into(),
            'ö' => "oe".into(),
            'ü' => "ue".into(),
            'ß' => "ss".into(),
            _ => "-".into(),
        };
        let double = plain == "-" && name.ends_with('-');
        if !double && name.len() + plain.len() <= Name::MAX_LEN {
            name.push_str(&plain);
        }
    }
    name.trim_matches(['-', '.', '_']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{counted, slug};

    #[test]
    fn one_is_not_several() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "day")), ["0 days", "1 day", "2 days"]);
    }

    #[test]
    fn names_are_made_of_what_people_write() {
        let name = |text| slug(text).map(|name| name.to_string());
        assert_eq!(name("CT  Raum 2 (Süd)"), Some("ct-raum-2-sued".into()));
        assert_eq!(name("-=-"), None);
        assert_eq!(name(&"x".repeat(100)).map(|name| name.len()), Some(63));
    }
}
