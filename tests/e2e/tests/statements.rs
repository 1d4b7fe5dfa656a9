//! `docs/statements.md` names tests; each of them must be there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// All source files of the tree.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != ".git" && name != "corpus" {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// Names in back quotes that are paths of tests: `module::name`.
fn named(text: &str) -> BTreeSet<(String, String)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| word.rsplit_once("::"))
        .map(|(module, name)| {
            let module = module.rsplit("::").next().unwrap_or(module);
            (module.to_owned(), name.to_owned())
        })
        .collect()
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/statements.md")).unwrap();
    let named = named(&page);
    assert!(named.len() > 30, "{named:?}");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let missing: Vec<String> = named
        .iter()
        .filter(|(module, name)| {
            let function = format!("fn {name}(");
            !files.iter().any(|file| {
                // A module is a file of its name, or `tests.rs` or `mod.rs` in a directory of its name.
                let text = file.to_string_lossy();
                let fits = text.ends_with(&format!("/{module}.rs"))
                    || text.contains(&format!("/{module}/"));
                fits && std::fs::read_to_string(file).is_ok_and(|text| {
                    text.find(&function).is_some_and(|at| text[..at].contains("#[test]"))
                        || text.contains(&format!("async {function}"))
                })
            })
        })
        .map(|(module, name)| format!("{module}::{name}"))
        .collect();
    assert!(missing.is_empty(), "docs/statements.md names tests that aren't there: {missing:?}");
    for number in 1..=11 {
        assert!(
            page.contains(&format!("\n| {number} | ")),
            "statement {number} isn't in the table"
        );
    }
}
