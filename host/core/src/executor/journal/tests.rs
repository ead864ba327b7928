use std::os::unix::fs::symlink;

use cofferdam_plugin_model::{ContainerId, Resources};
use serde_json::Value as Json;

use super::*;
use crate::executor::state::{ExecutorDescription, ExecutorKind, Framework, Task};
use crate::executor::update::{TaskState, Verdict};
use crate::executor::{ExecutorId, FrameworkId, TaskId, Token};

fn state() -> ExecutorState {
    let framework = Framework {
        id: FrameworkId::new("f").unwrap(),
        info: serde_json::json!({"name": "f\nf"}),
        checkpoint: true,
        partition_aware: false,
    };
    let executor = ExecutorDescription {
        id: ExecutorId::new("e").unwrap(),
        kind: ExecutorKind::Custom,
        info: Json::Null,
        resources: Resources::default(),
        shutdown_grace_ms: 0,
    };
    ExecutorState::new(framework, executor, ContainerId::parse("c").unwrap(), Token::presented("t").hash(), 7)
}

fn tasks(name: &str) -> Entry {
    let task = Task::new(TaskId::new(name).unwrap(), name.to_owned(), Json::Null, Resources::default());
    Entry::Tasks { tasks: vec![task], group: false }
}

fn number_of_tasks(path: &Path) -> usize {
    Journal::open(path).unwrap().1.tasks.len()
}

#[test]
fn what_was_written_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c");
    let mut expected = state();
    let mut journal = Journal::create(&path, &expected).unwrap();
    for entries in [vec![tasks("a"), tasks("b")], vec![Entry::Subscribed]] {
        journal.append(&entries).unwrap();
        entries.into_iter().for_each(|entry| expected.apply(entry));
    }
    let (mut journal, read) = Journal::open(&path).unwrap();
    assert_eq!(read, expected);
    journal.append(&[tasks("c")]).unwrap();
    assert_eq!(number_of_tasks(&path), 3);
    assert_eq!(list(directory.path()).unwrap(), [path]);
}

#[test]
fn entries_that_are_written_at_once_are_read_together_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c");
    let mut journal = Journal::create(&path, &state()).unwrap();
    let before = fs::metadata(&path).unwrap().len() as usize;
    journal.append(&[tasks("a"), tasks("b")]).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in before..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let (mut journal, read) = Journal::open(&path).unwrap();
        assert_eq!(read.tasks.len(), if length == whole.len() { 2 } else { 0 }, "{length}");
        // What follows is not mixed up with what was cut off.
        journal.append(&[tasks("c")]).unwrap();
        assert_eq!(number_of_tasks(&path), read.tasks.len() + 1);
    }
    for length in 0..before {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Empty { .. })), "{length}");
    }
}

#[test]
fn damage_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c");
    let mut journal = Journal::create(&path, &state()).unwrap();
    journal.append(&[tasks("a")]).unwrap();
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap();
    for index in 0..last {
        let mut damaged = whole.clone();
        damaged[index] ^= 4;
        fs::write(&path, &damaged).unwrap();
        assert!(Journal::open(&path).is_err(), "byte {index}");
    }
    fs::write(&path, "cofferdam-executor 2\n").unwrap();
    assert!(matches!(Journal::open(&path), Err(JournalError::Version { .. })));
    let link = directory.path().join("link");
    fs::write(&path, &whole).unwrap();
    symlink(&path, &link).unwrap();
    assert!(matches!(Journal::open(&link), Err(JournalError::System { .. })));
    assert!(Journal::open(directory.path()).is_err());
}

#[test]
fn a_long_journal_is_replaced_by_its_state() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c");
    let mut state = state();
    let mut journal = Journal::create(&path, &state).unwrap();
    let stop = Entry::Stop(Verdict::new(TaskState::TaskKilled, "REASON", "x".repeat(10_000)));
    let mut longest = 0;
    for _ in 0..100 {
        journal.append(std::slice::from_ref(&stop)).unwrap();
        state.apply(stop.clone());
        longest = longest.max(fs::metadata(&path).unwrap().len());
        journal.shorten(&state).unwrap();
    }
    assert!(longest < MIN_REPLACED + 20_000, "{longest}");
    journal.append(&[tasks("a")]).unwrap();
    assert_eq!(number_of_tasks(&path), 1);
    fs::write(directory.path().join("d."), "left by an agent that died").unwrap();
    assert_eq!(list(directory.path()).unwrap(), [path]);
}

#[test]
fn a_journal_does_not_become_longer_than_what_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c");
    let mut journal = Journal::create(&path, &state()).unwrap();
    let before = journal.length;
    let end = Entry::Terminated { at_unix_ms: 0 };
    journal.length = MAX_GROWN;
    assert!(matches!(journal.append(&[tasks("a")]), Err(JournalError::Full { limit: MAX_GROWN, .. })));
    journal.length = MAX_LENGTH;
    assert!(matches!(journal.append(std::slice::from_ref(&end)), Err(JournalError::Full { .. })));
    journal.length = before;
    journal.append(&[tasks("a"), end]).unwrap();
    assert_eq!(number_of_tasks(&path), 1);
    // There is space for what ends tasks until it is replaced.
    for length in [0, MIN_REPLACED, MAX_REPLACED, MAX_GROWN] {
        assert!((length + 1..=MAX_LENGTH - MAX_REPLACED).contains(&replaced_at(length)), "{length}");
    }
}

#[test]
fn what_cannot_be_written_has_not_happened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c");
    let mut journal = Journal::create(&path, &state()).unwrap();
    let writable = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
    journal.append(&[tasks("a")]).unwrap_err();
    journal.append(&[tasks("a")]).unwrap_err();
    journal.file = writable;
    journal.append(&[tasks("b")]).unwrap();
    assert_eq!(number_of_tasks(&path), 1);
}
