//! Retired words: the vocabulary of earlier versions, which the glossary in CONTRIBUTING.md replaces by standard terms.

use std::path::Path;

use crate::workspace::{files, name, text};

/// A retired word or phrase, what to use instead, and where the word is legitimate: prefixes of paths.
struct Retired {
    words: &'static [&'static str],
    replacement: &'static str,
    allowed: &'static [&'static str],
}

const fn retired(words: &'static [&'static str], replacement: &'static str) -> Retired {
    Retired { words, replacement, allowed: &[] }
}

/// Words match as a whole, whatever their case, also within identifiers. Everyday words that were retired for one
/// meaning only, such as `case`, `round` or `late`, are not listed.
const RETIRED: &[Retired] = &[
    retired(&["amend", "amends"], "update, updates"),
    retired(&["anew"], "again, or `restarted`"),
    retired(&["ascent", "climb", "climbs", "climbed"], "launch, stage, step"),
    retired(&["birth", "births", "birthmark", "born", "newborn"], "spawn, created, process id"),
    retired(&["blame", "tame"], "attribute, escape"),
    retired(&["bring in", "brought in", "brings in"], "fetch"),
    retired(&["catalogue", "surroundings"], "plugin index, environment"),
    retired(&["errand", "errands"], "job"),
    retired(&["farewell", "kennel"], "drop task, shared state"),
    retired(&["fate"], "recovery action"),
    retired(&["folder", "folders"], "directory"),
    retired(&["get along", "gets along"], "is compatible"),
    retired(&["given up on", "gives up on", "gave up on"], "timed out, abandoned"),
    retired(&["goes round", "go round"], "calls all plugins"),
    retired(&["go back on", "told to go back"], "rolled back"),
    Retired {
        words: &["guest", "guests"],
        replacement: "plugin; or `virtual machine`, outside of tests/guest",
        allowed: &[
            "tests/bench/virtual_machine.rs",
            "tests/guest/",
            "tests/src/virtual_machine.rs",
            "tests/system/",
        ],
    },
    retired(&["heed", "heeds", "heeded", "unheeded"], "check for cancellation"),
    retired(&["house", "houses"], "agent, workspace"),
    retired(&["left out of the container", "made anew"], "excluded; restarted"),
    retired(&["midwife", "sister"], "helper process"),
    retired(&["nobody waits"], "cancelled"),
    retired(&["outlet", "outlets"], "target of a stream"),
    Retired { words: &["parties"], replacement: "participants", allowed: &["LICENSE"] },
    retired(&["patience", "impatience"], "timeout"),
    retired(&["premises", "shelf"], "plugin environment, plugin index"),
    retired(&["room", "rooms"], "module; or `space`, `capacity`"),
    retired(&["rude"], "faulty, misbehaving"),
    retired(&["somebody else's"], "of another process, user or container"),
    retired(&["stranger", "strangers"], "another process, another user"),
    retired(&["told of"], "informed of"),
    retired(&["unwell"], "unavailable"),
    retired(&["what became of"], "the result of"),
    retired(&["wish", "wishes", "wished"], "request, launch information; stop request"),
];

/// Files that are not checked: the glossary and these rules, which quote the words; generated files.
const EXEMPT: &[&str] = &["CONTRIBUTING.md", "Cargo.lock", "tests/tidy/words.rs"];

#[test]
fn retired_words_are_not_used() {
    let mut found = Vec::new();
    for path in files("") {
        let file = name(&path);
        if EXEMPT.contains(&file.as_str()) || !is_text(&path) {
            continue;
        }
        for Use { line, word, replacement } in uses(&file, &text(&path)) {
            found.push(format!("{file}:{line}: `{word}` is retired; use: {replacement}"));
        }
    }
    assert!(found.is_empty(), "see the glossary in CONTRIBUTING.md\n{}", found.join("\n"));
}

/// Whether a file is source, documentation, configuration or a script.
fn is_text(path: &Path) -> bool {
    let Some(extension) = path.extension() else { return true };
    ["c", "json", "md", "rs", "service", "toml", "txt"].iter().any(|known| extension == *known)
}

/// A use of a retired word.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    line: usize,
    word: &'static str,
    replacement: &'static str,
}

/// The retired words in a text, in order of the list.
fn uses(file: &str, text: &str) -> Vec<Use> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for retired in RETIRED {
        if retired.allowed.iter().any(|allowed| file.starts_with(allowed)) {
            continue;
        }
        for phrase in retired.words {
            let parts: Vec<&str> = phrase.split(' ').collect();
            let matches = tokens.windows(parts.len()).filter(|window| {
                window.iter().zip(&parts).all(|((_, token), part)| token.eq_ignore_ascii_case(part))
            });
            found.extend(matches.map(|window| Use {
                line: window[0].0,
                word: phrase,
                replacement: retired.replacement,
            }));
        }
    }
    found
}

/// The words of a text with their lines. Identifiers are split at underscores and capitals: `left_out` and `LeftOut`
/// are both `left out`. Phrases may continue on the next line.
fn tokens(text: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut start = None;
        let mut previous = ' ';
        for (at, c) in line.char_indices().chain([(line.len(), ' ')]) {
            let in_word = c.is_alphabetic() || (c == '\'' && previous.is_alphabetic());
            let splits = previous.is_lowercase() && c.is_uppercase();
            if let Some(begin) = start.filter(|_| !in_word || splits) {
                tokens.push((index + 1, line[begin..at].trim_end_matches('\'')));
                start = None;
            }
            if in_word && start.is_none() {
                start = Some(at);
            }
            previous = c;
        }
    }
    tokens
}

#[test]
fn retired_words_are_found_in_prose_identifiers_and_across_lines() {
    let found = |text: &str| {
        uses("file.rs", text).into_iter().map(|found| (found.line, found.word)).collect::<Vec<_>>()
    };
    assert_eq!(
        found("/// The folder.\nlet source_folder = TheFolder;"),
        [(1, "folder"), (2, "folder"), (2, "folder")]
    );
    assert_eq!(found("// A call was given\n// up on."), [(1, "given up on")]);
    assert_eq!(found("it is somebody else's file"), [(1, "somebody else's")]);
    assert_eq!(found("folderless, subfolder, wishful"), []);
    assert_eq!(uses("tests/guest/run", "the guest"), []);
}
