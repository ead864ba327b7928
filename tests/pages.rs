//! Pages in Markdown: the targets of their relative links and the files that they name must exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every page of the workspace with its text, except those of the build directory.
fn pages() -> Vec<(PathBuf, String)> {
    fn collect(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            let path = entry.path();
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            if path.is_dir() && !is_hidden && entry.file_name() != "target" {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).expect("a readable page");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    collect(&root(), &mut found);
    assert!(found.len() > 10, "only {} pages", found.len());
    found
}

fn name(page: &Path) -> String {
    page.strip_prefix(root()).expect("a page of the workspace").display().to_string()
}

/// A page without its code blocks.
fn without_blocks(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// The targets of a page's links, as in `[text](target)`.
fn links(page: &str) -> Vec<String> {
    let text: String = without_blocks(page).split('`').step_by(2).collect();
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// The code spans of a page.
fn code_spans(page: &str) -> Vec<String> {
    without_blocks(page).split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether a page has the heading that a link calls `anchor`: the name that GitHub derives from it.
fn has_heading(page: &str, anchor: &str) -> bool {
    let anchor_of = |heading: &str| {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect::<String>()
    };
    let text = without_blocks(page);
    let mut headings = text.lines().filter(|line| line.starts_with('#'));
    headings.any(|line| anchor_of(line.trim_start_matches('#')) == anchor)
}

/// Whether the file of a relative link exists and, if the link has an anchor, the heading.
fn has_target(page: &Path, target: &str) -> bool {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if file.is_empty() { page.to_owned() } else { page.with_file_name("").join(file) };
    file.exists()
        && (anchor.is_empty() || fs::read_to_string(&file).is_ok_and(|text| has_heading(&text, anchor)))
}

#[test]
fn relative_links_have_a_target() {
    let mut broken = Vec::new();
    let mut checked = 0;
    for (page, text) in pages() {
        for target in links(&text).into_iter().filter(|target| !target.contains("://")) {
            checked += 1;
            if !has_target(&page, &target) {
                broken.push(format!("{}: {target}", name(&page)));
            }
        }
    }
    assert!(broken.is_empty(), "links without a target: {broken:#?}");
    assert!(checked > 10, "only {checked} links were found");
}

/// A code span such as `docs/api.md` names a file; one with `*` names those of a directory.
#[test]
fn files_that_are_named_exist() {
    const DIRECTORIES: [&str; 6] = ["docs/", "examples/", "host/", "plugin-api/", "plugins/", "tests/"];
    let mut missing = Vec::new();
    for (page, text) in pages() {
        // The changelog also names files that were removed.
        if page.ends_with("CHANGELOG.md") {
            continue;
        }
        for span in code_spans(&text) {
            let is_path = DIRECTORIES.iter().any(|directory| span.starts_with(directory));
            let path = span.split([' ', '*', ':']).next().unwrap_or_default();
            if is_path && !root().join(path).exists() {
                missing.push(format!("{}: {span}", name(&page)));
            }
        }
    }
    assert!(missing.is_empty(), "files that are named and do not exist: {missing:#?}");
}

/// What the page of each plugin has to have, and how it begins there.
const SECTIONS: [(&str, &[&str]); 6] = [
    ("an example", &["```toml"]),
    ("its keys", &["| Key | Default |", "It has no configuration"]),
    ("its requirements", &["**Needs** "]),
    ("its statistics", &["## Statistics", "**Statistics**: "]),
    ("its limitations", &["## Limitations"]),
    ("its differences from Mesos", &["## Differences from Mesos"]),
];

/// The names of the keys in the tables of a page that list them.
fn keys(page: &str) -> BTreeSet<String> {
    let lines = page.lines().skip_while(|line| !line.starts_with("| Key | Default |"));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let names = rows.filter_map(|row| row.split('|').nth(1));
    names.flat_map(code_spans).collect()
}

/// The keys of a plugin's table, in its source: the fields of its type `Config`, and their aliases.
fn configured(plugin: &Path) -> BTreeSet<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(plugin.join("src"))
        .expect("a directory")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let texts = files.iter().map(|path| fs::read_to_string(path).expect("a source file"));
    let Some(text) = texts.into_iter().find(|text| text.contains("struct Config {")) else {
        return BTreeSet::new();
    };
    let body =
        text.split_once("struct Config {").and_then(|(_, rest)| rest.split_once("\n}")).expect("a struct").0;
    let mut found = BTreeSet::new();
    for line in body.lines().map(str::trim) {
        if let Some((_, alias)) = line.split_once("alias = \"") {
            found.extend(alias.split_once('"').map(|(alias, _)| alias.to_owned()));
        } else if !line.starts_with("//") && !line.starts_with("#[") {
            let field = line.split_once(": ").map(|(name, _)| name.rsplit(' ').next().unwrap_or_default());
            found.extend(field.map(str::to_owned));
        }
    }
    found
}

#[test]
fn the_page_of_each_plugin_has_all_sections_and_all_keys() {
    let mut wrong = Vec::new();
    let mut plugins: Vec<PathBuf> =
        fs::read_dir(root().join("plugins")).expect("plugins").flatten().map(|entry| entry.path()).collect();
    plugins.retain(|path| path.join("Cargo.toml").exists());
    assert!(plugins.len() > 30, "only {} plugins", plugins.len());
    for plugin in plugins {
        let page = plugin.join("README.md");
        let text = fs::read_to_string(&page).unwrap_or_default();
        let purpose = text.lines().skip(1).find(|line| !line.is_empty()).unwrap_or_default();
        if !text.starts_with("# ") || purpose.starts_with(['#', '`', '|']) {
            wrong.push(format!("{}: begins with its name and its purpose", name(&page)));
        }
        for (section, beginnings) in SECTIONS {
            let found =
                text.lines().any(|line| beginnings.iter().any(|beginning| line.starts_with(beginning)));
            if !found {
                wrong.push(format!("{}: has {section}: {beginnings:?}", name(&page)));
            }
        }
        let shown = keys(&text);
        let missing: Vec<String> =
            configured(&plugin).into_iter().filter(|key| !shown.contains(key)).collect();
        if !missing.is_empty() {
            wrong.push(format!("{}: lists all keys, also {missing:?}", name(&page)));
        }
    }
    assert!(wrong.is_empty(), "not true: {wrong:#?}");
}
