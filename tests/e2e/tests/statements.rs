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

/// What stands behind a test's name where it doesn't run with the others.
const ON_DEMAND: &str = " (on demand)";

/// A test by its name in back quotes, `module::name`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    module: String,
    name: String,
    /// Whether the page says that it runs on demand only.
    on_demand: bool,
}

fn named(text: &str) -> BTreeSet<Named> {
    let pieces: Vec<&str> = text.split('`').collect();
    let quoted = pieces[1..].chunks(2);
    quoted
        .filter_map(|pair| {
            let (module, name) = pair[0].rsplit_once("::")?;
            let module = module.rsplit("::").next().unwrap_or(module);
            Some(Named {
                module: module.to_owned(),
                name: name.to_owned(),
                on_demand: pair.get(1).is_some_and(|after| after.starts_with(ON_DEMAND)),
            })
        })
        .collect()
}

/// How a function of a source file runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    /// With all tests.
    Always,
    /// With `--ignored` only.
    OnDemand,
}

/// How the test `name` of a source file runs, by the attributes directly above it. None where it is no test.
fn runs(source: &str, name: &str) -> Option<Runs> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let is_it = |line: &str| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ")
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('('))
    };
    let of = |at: usize| {
        // Back to where something else ends or begins: an attribute may take several lines.
        let above = lines[..at]
            .iter()
            .rev()
            .take_while(|line| !line.is_empty() && !line.ends_with(['{', '}', ';']));
        let above: Vec<&str> = above.copied().collect();
        let has = |attribute: &str| above.iter().any(|line| line.starts_with(attribute));
        let is_test = has("#[test]") || has("#[tokio::test]") || has("#[tokio::test(");
        let runs = if has("#[ignore") { Runs::OnDemand } else { Runs::Always };
        is_test.then_some(runs)
    };
    lines.iter().enumerate().filter(|(_, line)| is_it(line)).find_map(|(at, _)| of(at))
}

/// Whether what a name's module may be is this file: a file of its name, or any in a directory of its name.
fn fits(file: &Path, module: &str) -> bool {
    let text = file.to_string_lossy();
    text.ends_with(&format!("/{module}.rs")) || text.contains(&format!("/{module}/"))
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/statements.md")).unwrap();
    let named = named(&page);
    assert!(named.len() > 30, "{named:?}");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut problems = Vec::new();
    for test in &named {
        let found = files
            .iter()
            .filter(|file| fits(file, &test.module))
            .find_map(|file| runs(&std::fs::read_to_string(file).unwrap_or_default(), &test.name));
        let problem = match (found, test.on_demand) {
            (None, _) => "is no test",
            (Some(Runs::OnDemand), false) => {
                "is ignored, and the page doesn't say that it runs on demand"
            }
            (Some(Runs::Always), true) => "always runs, and the page says on demand",
            (Some(_), _) => continue,
        };
        problems.push(format!("{}::{} {problem}", test.module, test.name));
    }
    assert!(problems.is_empty(), "docs/statements.md names tests wrongly: {problems:#?}");
    for number in 1..=11 {
        assert!(
            page.contains(&format!("\n| {number} | ")),
            "statement {number} isn't in the table"
        );
    }
}

#[test]
fn helpers_and_ignored_tests_are_told_from_tests() {
    let source = r#"
        #[test]
        fn first() {}

        fn helper() {}

        async fn waiting() {}

        #[test]
        // It is slow.
        #[ignore = "takes a minute"]
        fn slow() {}
        #[tokio::test(
            flavor = "multi_thread",
        )]
        async fn awaited() {
            first();
        }
    "#;
    let found = ["first", "helper", "waiting", "slow", "awaited", "absent", "fir"]
        .map(|name| runs(source, name));
    let always = Some(Runs::Always);
    assert_eq!(found, [always, None, None, Some(Runs::OnDemand), always, None, None]);
    let test = |name: &str, on_demand| Named { module: "b".into(), name: name.into(), on_demand };
    let page = "`a::b::one`, `b::two` (on demand); `word`, `b::three`";
    let expected = BTreeSet::from([test("one", false), test("two", true), test("three", false)]);
    assert_eq!(named(page), expected);
}
