//! The layers of the source tree: which parts each part may import.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each part and the parts that it may import. A part may always import itself.
const FLOORS: &[(&str, &[&str])] = &[
    // The ground floor: single files, and endpoints.
    ("afterwards", &[]),
    ("atomic", &[]),
    ("clock", &[]),
    ("error", &[]),
    ("guard", &[]),
    ("outcome", &[]),
    ("random", &[]),
    ("recycle", &[]),
    ("split_arc", &["thread_number"]),
    ("thread_number", &[]),
    ("timer", &["guard"]),
    ("undecided", &[]),
    ("endpoint", &[]),
    ("metric", &["clock"]),
    ("member", &["endpoint"]),
    ("tried", &["endpoint"]),
    ("upstream", &["endpoint", "guard"]),
    // Parts for tests alone.
    ("interleavings", &[]),
    ("whole", &["balance", "discover", "load", "policy"]),
    // Siblings, which do not import one another.
    ("discover", GROUND),
    ("load", GROUND),
    ("report", GROUND),
    ("policy", GROUND),
    ("health", GROUND),
    ("budget", GROUND),
    // It implements `policy`'s trait.
    ("hash", &["policy"]),
    ("limit", &["budget"]),
    // The parts that join the others.
    ("balance", &["policy", "discover"]),
    ("failover", &["balance", "budget"]),
    (
        "http",
        &[
            "balance", "budget", "discover", "failover", "hash", "health", "limit", "load",
            "policy", "report",
        ],
    ),
];

/// The parts that every part above the ground floor may import.
const GROUND: &[&str] = &[
    "afterwards",
    "atomic",
    "clock",
    "endpoint",
    "error",
    "guard",
    "interleavings",
    "member",
    "metric",
    "outcome",
    "random",
    "recycle",
    "split_arc",
    "thread_number",
    "timer",
    "tried",
    "undecided",
    "upstream",
];

#[test]
fn no_import_breaks_the_floors() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for file in sources(&src) {
        let relative = file.strip_prefix(&src).unwrap();
        let part = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let part = part.trim_end_matches(".rs");
        if part == "lib" {
            continue;
        }
        let Some((_, allowed)) = FLOORS.iter().find(|(name, _)| *name == part) else {
            panic!("{part} has no floor: say in FLOORS what it may import");
        };
        let source = fs::read_to_string(&file).unwrap();
        // `x.rs` and `x/mod.rs` are one step below the root, `x/y.rs` is two.
        let folders = relative.parent().unwrap().components().count();
        let depth = folders + usize::from(!relative.ends_with("mod.rs"));
        assert_eq!(
            beyond(&source, depth),
            None,
            "{}: what is outside of {part} is named from `crate` on",
            relative.display()
        );
        for import in imports(&source) {
            seen += 1;
            assert!(
                import == part
                    || allowed.contains(&import.as_str())
                    || (!GROUND.contains(&part) && GROUND.contains(&import.as_str())),
                "{}: {part} must not know {import}",
                relative.display()
            );
        }
    }
    assert!(
        seen > 20,
        "only {seen} imports were found: the search is broken"
    );
}

#[test]
fn the_search_finds_every_kind_of_import() {
    let source = "use crate::load::Load;\nuse crate::{\n    policy::{P2c, x::Y},\n    error::NoEndpoints,\n};\nlet x = crate::balance::Balance;\nuse crate::Root;\n/// [`Z`](crate::discover::Z)";
    assert_eq!(
        imports(source),
        ["load", "policy", "error", "balance", "Root"]
    );
}

#[test]
fn the_search_finds_paths_that_lead_out() {
    assert_eq!(beyond("use super::x;\nfn f() { super::y() }", 2), None);
    let within = "mod tests {\n    use super::super::x;\n}\n";
    assert_eq!(beyond(within, 2), None);
    for out in ["use super::super::x;", "fn f() { super::super::x() }"] {
        assert!(beyond(out, 2).is_some(), "{out}");
        assert!(beyond(&format!("{within}{out}"), 2).is_some(), "{out}");
    }
    assert!(beyond("use super::balance;", 1).is_some());
    assert!(beyond(within, 1).is_some());
    assert!(beyond("mod tests {\n    use super::{super::x};\n}", 1).is_some());
}

/// Returns the first line with a `super` path that leaves the part. The file is `depth` steps below
/// the root.
fn beyond(source: &str, depth: usize) -> Option<&str> {
    // The indents of the inline modules around the current line.
    let mut modules: Vec<usize> = Vec::new();
    source.lines().find(|line| {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if code == "}" && modules.last() == Some(&indent) {
            modules.pop();
        }
        let steps = code.matches("super::").count();
        let leads_out = steps > 0 && steps >= depth + modules.len() && !code.starts_with("//");
        let names_a_module = code.split("mod ").next().is_some_and(|before| {
            before.is_empty() || (before.starts_with("pub") && before.ends_with(' '))
        });
        if names_a_module && code.ends_with('{') && code.contains("mod ") {
            modules.push(indent);
        }
        leads_out
    })
}

/// Returns the parts that a source file imports, by `use` or by path. Comments are skipped.
fn imports(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.extend(first_name(rest));
            continue;
        };
        let mut depth = 0;
        for piece in group.split_inclusive(['{', '}', ',']) {
            if depth == 0 {
                found.extend(first_name(piece.trim_start()));
            }
            depth += i32::from(piece.ends_with('{')) - i32::from(piece.ends_with('}'));
            if depth < 0 {
                break;
            }
        }
    }
    found
}

/// Returns the first name of a path: a part, or an item of the crate's root, which no part may use.
fn first_name(path: &str) -> Option<String> {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    let name = &path[..end];
    (!name.is_empty()).then(|| name.to_owned())
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                sources(&path)
            } else {
                vec![path]
            }
        })
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .collect()
}
