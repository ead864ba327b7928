//! What is in a cache, and its space.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::files::{self, Draft, Files, StoredEntry};
use super::{CacheError, MAX_ENTRIES};
use crate::fetcher::counters::{FetchCounters, count};
use crate::fetcher::{CachedFile, Known, Stored};
use crate::ledger::Lock;

/// The entries of a cache. Its methods block, and may be called at once.
#[derive(Debug)]
pub(super) struct Index {
    files: Files,
    entries: Mutex<Entries>,
    /// Held while an entry is written or removed, so that those on disk are those that are known.
    writing: Mutex<()>,
    space: Arc<Space>,
    counters: Arc<FetchCounters>,
    /// Released when the last job on the directory has ended.
    _lock: Lock,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<String, Entry>,
    /// The time of the last use.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    content: Arc<Content>,
    stored: StoredEntry,
    used: u64,
}

/// A file of the cache. Whoever has one keeps it from being removed.
#[derive(Debug)]
pub(crate) struct Content {
    path: PathBuf,
    mode: u32,
    /// Whether it is removed when nobody has it any more.
    is_discarded: AtomicBool,
    _space: Reservation,
}

/// What is reserved at a time if the size of a file is not announced.
const STEP: u64 = 16 << 20;

/// The bytes of a cache.
#[derive(Debug)]
struct Space {
    capacity: u64,
    used: Mutex<u64>,
    /// What was received of files whose size is not announced, and is not in `used` yet. At most `capacity`.
    ahead: Mutex<u64>,
}

/// Bytes of a cache that are in use.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
    /// What was received beyond these.
    ahead: u64,
}

impl Index {
    /// Reads the entries of earlier agents. Those that do not fit any more are removed.
    pub(super) fn open(
        files: Files,
        lock: Lock,
        capacity: u64,
        counters: Arc<FetchCounters>,
    ) -> Result<Self, CacheError> {
        let mut found = files.entries(MAX_ENTRIES)?;
        // The last used ones first, as there may be space for these only.
        found.sort_by_key(|found| std::cmp::Reverse(found.used));
        let index = Self {
            files,
            entries: Mutex::default(),
            writing: Mutex::default(),
            space: Arc::new(Space { capacity, used: Mutex::default(), ahead: Mutex::default() }),
            counters,
            _lock: lock,
        };
        for (age, found) in (0_u64..).zip(found) {
            let path = index.files.content(&found.entry.content);
            let Some(space) = index.space.take(found.entry.size) else {
                index.files.remove_entry(&found.key);
                files::remove(&path);
                continue;
            };
            let content = Content::new(path, found.entry.mode, space);
            let entry = Entry { content: Arc::new(content), stored: found.entry, used: u64::MAX / 2 - age };
            index.entries.lock().by_key.insert(found.key, entry);
        }
        index.entries.lock().clock = u64::MAX / 2;
        Ok(index)
    }

    /// What there is of a key. What somebody has removed or truncated is forgotten.
    pub(super) fn find(&self, key: &str) -> Option<(Arc<Content>, Known)> {
        let (content, known) = self.get(key)?;
        if files::size(&content.path).is_ok_and(|size| size == known.size) {
            return Some((content, known));
        }
        tracing::warn!("`{}` of the fetcher's cache was removed or changed", content.path.display());
        self.discard(key, &content);
        None
    }

    fn get(&self, key: &str) -> Option<(Arc<Content>, Known)> {
        let mut entries = self.entries.lock();
        entries.clock += 1;
        let clock = entries.clock;
        let entry = entries.by_key.get_mut(key)?;
        entry.used = clock;
        let known = Known { version: entry.stored.version.clone(), size: entry.stored.size };
        Some((Arc::clone(&entry.content), known))
    }

    /// Notes on disk that an entry was used.
    pub(super) fn touch(&self, key: &str) {
        self.files.touch(key);
    }

    pub(super) fn draft(&self) -> std::io::Result<Draft> {
        self.files.draft()
    }

    /// An empty reservation.
    pub(super) fn reserve(&self) -> Reservation {
        Reservation { space: Arc::clone(&self.space), bytes: 0, ahead: 0 }
    }

    /// Makes a reservation larger, and removes for that what was not used for the longest time and nobody has. Returns whether
    /// there is enough space; if not, nothing is removed.
    pub(super) fn grow(&self, reservation: &mut Reservation, bytes: u64) -> bool {
        let missing = bytes.saturating_sub(reservation.bytes);
        loop {
            if reservation.extend(missing) {
                return true;
            }
            // Again, if others have taken what has become free.
            if !self.evict(0, || self.space.lacking(missing)) {
                return false;
            }
        }
    }

    /// Makes a reservation larger for a file whose size is not announced, of which so many bytes were received. Nothing is
    /// removed before it is complete, as it may turn out not to fit: what is not free is in addition to the space of the cache
    /// meanwhile. Returns false if it would not fit with all removed that nobody has, or if all such files take as much again as
    /// the cache.
    pub(super) fn follow(&self, reservation: &mut Reservation, received: u64) -> bool {
        let missing = received.saturating_sub(reservation.bytes);
        let has_extended = reservation.extend(missing.saturating_add(STEP)) || reservation.extend(missing);
        has_extended || (self.may_free(missing) && reservation.run_ahead(missing))
    }

    /// Whether so many bytes would be free with all removed that nobody has.
    fn may_free(&self, bytes: u64) -> bool {
        let entries = self.entries.lock();
        let unused = entries.by_key.values().filter(|entry| Arc::strong_count(&entry.content) == 1);
        let evictable: u64 = unused.map(|entry| entry.stored.size).fold(0, u64::saturating_add);
        self.space.lacking(bytes) <= evictable
    }

    /// Adds what was received. If it cannot be validated later, or there are too many entries, it is for those that wait for
    /// it only.
    pub(super) fn add(
        &self,
        key: &str,
        draft: Draft,
        mut reservation: Reservation,
        stored: Stored,
    ) -> std::io::Result<Arc<Content>> {
        let size = draft.file.metadata()?.len();
        if !self.grow(&mut reservation, size) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        reservation.shrink(size);
        let Stored { version, mode } = stored;
        let name = self.files.keep(draft, key)?;
        let content = Arc::new(Content::new(self.files.content(&name), mode, reservation));
        let Some(version) = version.filter(|_| self.has_place(key)) else {
            content.discard();
            return Ok(content);
        };
        let stored = StoredEntry { content: name, size, mode, version };
        let _writing = self.writing.lock();
        if let Err(error) = self.files.write(key, &stored) {
            content.discard();
            return Err(error);
        }
        let mut entries = self.entries.lock();
        entries.clock += 1;
        let entry = Entry { content: Arc::clone(&content), stored, used: entries.clock };
        let replaced = entries.by_key.insert(key.to_owned(), entry);
        drop(entries);
        if let Some(replaced) = replaced {
            replaced.content.discard();
        }
        Ok(content)
    }

    /// Forgets content that is damaged.
    pub(super) fn discard(&self, key: &str, content: &Arc<Content>) {
        let _writing = self.writing.lock();
        let mut entries = self.entries.lock();
        let is_known = entries.by_key.get(key).is_some_and(|entry| Arc::ptr_eq(&entry.content, content));
        let removed = if is_known { entries.by_key.remove(key) } else { None };
        drop(entries);
        if removed.is_some() {
            self.files.remove_entry(key);
        }
        content.discard();
    }

    /// Capacity, and what is in use, in bytes, and the number of entries.
    pub(super) fn usage(&self) -> (u64, u64, u64) {
        let files = self.entries.lock().by_key.len() as u64;
        (self.space.capacity, *self.space.used.lock(), files)
    }

    /// Whether there is a place for an entry, for which another one is removed if necessary.
    fn has_place(&self, key: &str) -> bool {
        loop {
            let entries = self.entries.lock();
            if entries.by_key.len() < MAX_ENTRIES || entries.by_key.contains_key(key) {
                return true;
            }
            drop(entries);
            if !self.evict(1, || 0) {
                return false;
            }
        }
    }

    /// Removes what was not used for the longest time and nobody has, at least so many entries and bytes. Returns whether it
    /// was as much; otherwise nothing is removed.
    fn evict(&self, count_wanted: usize, bytes_wanted: impl FnOnce() -> u64) -> bool {
        let _writing = self.writing.lock();
        let mut entries = self.entries.lock();
        let bytes_wanted = bytes_wanted();
        let unused = entries.by_key.iter().filter(|(_, entry)| Arc::strong_count(&entry.content) == 1);
        let mut unused: Vec<_> =
            unused.map(|(key, entry)| (entry.used, entry.stored.size, key.clone())).collect();
        unused.sort_unstable();
        let mut free: u64 = 0;
        let mut evicted = Vec::new();
        for (_, size, key) in unused {
            if free >= bytes_wanted && evicted.len() >= count_wanted {
                break;
            }
            free = free.saturating_add(size);
            evicted.push(key);
        }
        if free < bytes_wanted || evicted.len() < count_wanted {
            return false;
        }
        let evicted: Vec<_> =
            evicted.into_iter().filter_map(|key| entries.by_key.remove_entry(&key)).collect();
        drop(entries);
        for (key, entry) in evicted {
            self.files.remove_entry(&key);
            entry.content.discard();
            count(&self.counters.evictions);
        }
        true
    }
}

impl Content {
    fn new(path: PathBuf, mode: u32, space: Reservation) -> Self {
        Self { path, mode, is_discarded: AtomicBool::new(false), _space: space }
    }

    /// The file, as a fetcher process needs it.
    pub(crate) fn file(&self) -> CachedFile {
        CachedFile { path: self.path.clone(), mode: self.mode }
    }

    /// Removes the file once nobody has it any more.
    fn discard(&self) {
        self.is_discarded.store(true, Ordering::Relaxed);
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if *self.is_discarded.get_mut() {
            files::remove(&self.path);
        }
    }
}

impl Space {
    fn take(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut used = self.used.lock();
        *used = used.checked_add(bytes).filter(|used| *used <= self.capacity)?;
        Some(Reservation { space: Arc::clone(self), bytes, ahead: 0 })
    }

    /// How many bytes have to become free before so many can be taken.
    fn lacking(&self, bytes: u64) -> u64 {
        self.used.lock().saturating_add(bytes).saturating_sub(self.capacity)
    }
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it larger, if that is free. Returns whether it is.
    fn extend(&mut self, bytes: u64) -> bool {
        let Some(mut more) = self.space.take(bytes) else { return false };
        self.bytes += std::mem::take(&mut more.bytes);
        self.catch_up();
        true
    }

    /// Notes that so much was received beyond what is reserved. Returns false if there is too much of that.
    fn run_ahead(&mut self, bytes: u64) -> bool {
        let mut all = self.space.ahead.lock();
        let others = all.saturating_sub(self.ahead);
        if others.saturating_add(bytes) > self.space.capacity {
            return false;
        }
        *all = others + bytes;
        self.ahead = bytes;
        true
    }

    /// All that was received is reserved.
    fn catch_up(&mut self) {
        *self.space.ahead.lock() -= std::mem::take(&mut self.ahead);
    }

    fn shrink(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        *self.space.used.lock() -= surplus;
        self.bytes -= surplus;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.catch_up();
        *self.space.used.lock() -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::fetcher::Version;

    struct Fixture {
        _directory: tempfile::TempDir,
        index: Index,
    }

    impl Fixture {
        fn new(capacity: u64) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().join("cache");
            Files::create(&root).unwrap();
            let lock = Lock::take(&root).unwrap();
            let index = Index::open(Files::open(&root).unwrap(), lock, capacity, Arc::default()).unwrap();
            Self { _directory: directory, index }
        }

        fn add(&self, name: &str, size: usize) -> Option<Arc<Content>> {
            let mut draft = self.index.draft().unwrap();
            draft.file.write_all(&vec![b'x'; size]).unwrap();
            let version = Version::Http { etag: Some(name.to_owned()), last_modified: None };
            let stored = Stored { version: Some(version), mode: 0o644 };
            self.index.add(&key(name), draft, self.index.reserve(), stored).ok()
        }
    }

    fn key(name: &str) -> String {
        name.repeat(64)
    }

    #[test]
    fn what_is_in_use_is_not_removed() {
        let fixture = Fixture::new(100);
        let index = &fixture.index;
        let in_use = fixture.add("a", 50).unwrap();
        drop(fixture.add("b", 40).unwrap());
        // `b` was used later, and has to go nevertheless.
        drop(fixture.add("c", 50).unwrap());
        assert!(index.find(&key("b")).is_none() && index.find(&key("a")).is_some());
        assert_eq!(index.usage(), (100, 100, 2));
        assert!(fixture.add("d", 51).is_none(), "there is no space for it beside `a`");
        assert!(fixture.add("e", 101).is_none());
        assert!(in_use.file().path.exists());
        assert!(index.find(&key("c")).is_some(), "nothing was removed in vain");
        drop(in_use);
        drop(fixture.add("f", 80).unwrap());
        assert_eq!(index.usage(), (100, 80, 1));
        // Those without content do not take space, but places.
        drop(fixture.add("0", 0).unwrap());
        assert!(index.evict(2, || 0) && !index.evict(1, || 0));
        assert_eq!(index.usage(), (100, 0, 0));
    }

    #[test]
    fn nothing_is_removed_for_a_file_of_unknown_size_before_it_is_known_to_fit() {
        let fixture = Fixture::new(100);
        let index = &fixture.index;
        drop(fixture.add("a", 40).unwrap());
        let in_use = fixture.add("b", 30).unwrap();
        let mut large = index.reserve();
        for received in [1, 30, 31, 70] {
            assert!(index.follow(&mut large, received), "{received}");
        }
        assert!(!index.follow(&mut large, 71), "`b` is in use");
        assert!(index.find(&key("a")).is_some());
        drop(large);
        assert_eq!((index.usage(), *index.space.ahead.lock()), ((100, 70, 2), 0));
        // One that fits takes the place of others when it is complete.
        let mut fits = index.reserve();
        assert!(index.follow(&mut fits, 60) && index.find(&key("a")).is_some());
        assert!(index.grow(&mut fits, 60));
        assert!(index.find(&key("a")).is_none() && index.find(&key("b")).is_some());
        assert_eq!((index.usage(), *index.space.ahead.lock()), ((100, 90, 1), 0));
        drop((fits, in_use));
        // All of them together take as much again as the cache at most.
        drop(fixture.add("c", 70).unwrap());
        let (mut one, mut other) = (index.reserve(), index.reserve());
        assert!(index.follow(&mut one, 100) && !index.follow(&mut other, 1));
        drop(one);
        assert!(index.follow(&mut other, 1));
    }

    #[test]
    fn content_that_was_removed_or_truncated_is_forgotten() {
        let fixture = Fixture::new(100);
        let index = &fixture.index;
        drop(fixture.add("a", 30).unwrap());
        let truncated = fixture.add("b", 30).unwrap();
        std::fs::remove_file(&index.find(&key("a")).unwrap().0.path).unwrap();
        std::fs::write(&truncated.path, "x").unwrap();
        assert!(index.find(&key("a")).is_none() && index.find(&key("b")).is_none());
        assert_eq!(index.usage(), (100, 30, 0), "a container still has one of them");
        drop(truncated);
        assert_eq!(index.usage(), (100, 0, 0));
        assert!(index.files.entries(MAX_ENTRIES).unwrap().is_empty());
        assert!(fixture.add("a", 30).is_some() && index.find(&key("a")).is_some());
    }

    #[test]
    fn content_that_was_replaced_stays_while_it_is_in_use() {
        let fixture = Fixture::new(100);
        let old = fixture.add("a", 30).unwrap();
        let new = fixture.add("a", 20).unwrap();
        assert_eq!(fixture.index.usage(), (100, 50, 1));
        let (old_path, new_path) = (old.file().path, new.file().path);
        assert!(old_path.exists() && new_path.exists());
        drop(old);
        assert!(!old_path.exists() && new_path.exists());
        assert_eq!(fixture.index.usage(), (100, 20, 1));
        // Damaged content goes at once from the entries, and from the disk with its last user.
        fixture.index.discard(&key("a"), &new);
        assert!(fixture.index.find(&key("a")).is_none() && new_path.exists());
        drop(new);
        assert!(!new_path.exists());
        assert_eq!(fixture.index.usage(), (100, 0, 0));
    }
}
