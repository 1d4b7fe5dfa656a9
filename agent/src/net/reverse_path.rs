//! The kernel's check of where packets come in (`rp_filter`). A strict one drops, unseen, what comes in by an interface that routes don't
//! lead back to: with two underlays that is what the one brings that isn't used.

use std::path::Path;

/// Where the kernel keeps its settings for IPv4, interface by interface.
pub(crate) const SETTINGS: &str = "/proc/sys/net/ipv4/conf";

/// What is wrong with an interface that is to be heard on whatever routes say: a sentence with the line to type.
pub(crate) fn problem(settings: &Path, interface: &str) -> Option<String> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(settings.join(name).join("rp_filter")).ok()?;
        text.trim().parse::<u8>().ok()
    };
    // The larger one counts, and 2 is the loose check.
    let value = read("all").max(read(interface))?;
    (value == 1).then(|| {
        format!(
            "rp_filter is 1 on {interface}: the kernel drops what comes in there while routes lead to the other underlay. `sudo sysctl -w net/ipv4/conf/{interface}/rp_filter=2` mends it until the machine starts anew; docs/paths.md says how it stays so"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use anteroom_lab::namespace::in_private_network;

    use super::*;

    #[test]
    fn a_strict_check_is_told_with_the_line_that_mends_it() {
        let directory = tempfile::tempdir().unwrap();
        let set = |name: &str, value: &str| {
            fs::create_dir_all(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("rp_filter"), format!("{value}\n")).unwrap();
        };
        let is_strict = || problem(directory.path(), "eth2.7").is_some();
        assert!(!is_strict(), "nothing can be read");
        for (all, own, strict) in [
            ("0", "0", false),
            ("0", "1", true),
            ("1", "0", true),
            ("0", "2", false),
            ("1", "2", false),
            ("2", "1", false),
        ] {
            set("all", all);
            set("eth2.7", own);
            assert_eq!(is_strict(), strict, "all {all}, eth2.7 {own}");
        }
        set("all", "0");
        set("eth2.7", "1");
        let said = problem(directory.path(), "eth2.7").unwrap();
        assert!(said.contains("sysctl -w net/ipv4/conf/eth2.7/rp_filter=2"), "{said}");
    }

    #[test]
    fn the_kernels_own_settings_are_read() {
        if !in_private_network("net::reverse_path::tests::the_kernels_own_settings_are_read") {
            return;
        }
        let settings = Path::new(SETTINGS);
        for (value, strict) in [("0", false), ("1", true), ("2", false)] {
            fs::write(settings.join("all/rp_filter"), "0").unwrap();
            fs::write(settings.join("lo/rp_filter"), value).unwrap();
            assert_eq!(problem(settings, "lo").is_some(), strict, "{value}");
        }
    }
}
