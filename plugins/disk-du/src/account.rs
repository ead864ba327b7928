//! What each container uses and may use.
//!
//! The files of a nested container count for it and for all containers that it is nested in, also after it has ended. Those
//! of a volume count for nobody: it is measured by itself, under a name that no container has.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cofferdam_plugin_api::Event;
use cofferdam_plugin_api::prelude::*;

/// The containers by id, and their volumes by [`volume_name`].
pub struct Account {
    entries: BTreeMap<String, Entry>,
    enforces: bool,
}

/// A container, without those nested in it, or a volume.
pub struct Entry {
    /// Where it writes. Those on another file system than the first are in memory, and not measured.
    pub directories: Vec<PathBuf>,
    /// Whether it is a volume, which others may write to.
    pub is_volume: bool,
    /// When it is to be measured; `None` while it is being measured, and never again.
    pub due: Option<Instant>,
    /// Whether a limit seemed to be exceeded, which another measurement is to confirm.
    pub is_suspicious: bool,
    /// Whether its processes have ended, so that one measurement is enough.
    pub has_ended: bool,
    /// Whether they ended while it was being measured, so that what they wrote last may be missing.
    pub measure_again: bool,
    /// Whether a measurement that is not complete was logged.
    pub is_logged: bool,
    /// How often in succession directories were moved while it was measured, so that not all was counted.
    pub moved: u32,
    /// How many measurements in succession were not complete, for whatever reason.
    pub incomplete: u64,
    limit: Option<u64>,
    used: Option<u64>,
    event: Option<Event>,
    unmeasurable: Option<String>,
    has_exceeded: bool,
}

/// A limit that was exceeded.
#[derive(Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub used: u64,
    pub message: String,
}

/// The result of measuring a container.
#[derive(Debug, Default)]
pub struct Measured {
    pub bytes: u64,
    /// Whether that is all.
    pub is_complete: bool,
    /// Why it cannot be measured, for which the container is the reason.
    pub unmeasurable: Option<String>,
}

impl Entry {
    pub fn new(directories: Vec<PathBuf>, limit: Option<u64>) -> Self {
        Self {
            directories,
            is_volume: false,
            due: None,
            is_suspicious: false,
            has_ended: false,
            measure_again: false,
            is_logged: false,
            moved: 0,
            incomplete: 0,
            limit,
            used: None,
            event: None,
            unmeasurable: None,
            has_exceeded: false,
        }
    }

    /// A directory or file of the host.
    pub fn volume(path: PathBuf) -> Self {
        Self { is_volume: true, ..Self::new(vec![path], None) }
    }
}

impl Account {
    pub fn new(enforces: bool) -> Self {
        Self { entries: BTreeMap::new(), enforces }
    }

    pub fn entries(&mut self) -> &mut BTreeMap<String, Entry> {
        &mut self.entries
    }

    /// What the container and those nested in it use; `None` until it was measured.
    pub fn used(&self, id: &str) -> Option<u64> {
        let own = self.entries.get(id)?.used?;
        Some(self.nested(id).filter_map(|(_, entry)| entry.used).fold(own, u64::saturating_add))
    }

    pub fn limit(&self, id: &str) -> Option<u64> {
        self.entries.get(id)?.limit
    }

    /// The volumes of a container, and what each of them uses.
    pub fn volumes(&self, id: &str) -> impl Iterator<Item = (&Path, Option<u64>)> {
        let volumes = self.entries.range(volumes_of(id)).map(|(_, entry)| entry);
        volumes.filter_map(|entry| Some((entry.directories.first()?.as_path(), entry.used)))
    }

    /// How many measurements in succession were not complete.
    pub fn incomplete(&self, id: &str) -> u64 {
        self.entries.get(id).map_or(0, |entry| entry.incomplete)
    }

    pub fn set_limit(&mut self, id: &str, limit: Option<u64>) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.limit = limit;
            entry.has_exceeded = false;
        }
    }

    /// A descriptor that becomes readable when the container has exceeded its limit.
    pub fn watch(&mut self, id: &str) -> Result<Option<std::os::fd::OwnedFd>> {
        let Some(entry) = self.entries.get_mut(id) else { return Ok(None) };
        let event = match entry.event.take() {
            Some(event) => event,
            None => Event::new()?,
        };
        if entry.has_exceeded {
            event.signal()?;
        }
        let descriptor = event.descriptor()?;
        entry.event = Some(event);
        Ok(Some(descriptor))
    }

    /// The containers whose limit would be exceeded if this one used so much, without those nested in it.
    pub fn over(&self, id: &str, bytes: u64) -> Vec<String> {
        if self.entries.get(id).is_some_and(|entry| entry.is_volume) {
            return Vec::new();
        }
        let own = self.entries.get(id).and_then(|entry| entry.used).unwrap_or(0);
        let exceeds = |&id: &&str| {
            let Some(Entry { limit: Some(limit), used, .. }) = self.entries.get(id) else { return false };
            let used = self.used(id).unwrap_or_else(|| used.unwrap_or(0));
            self.enforces && used.saturating_sub(own).saturating_add(bytes) > *limit
        };
        self_and_above(id).filter(exceeds).map(str::to_owned).collect()
    }

    /// Adds a measurement. Returns whether another one has to confirm it: files that are moved meanwhile can count twice.
    pub fn measured(&mut self, id: &str, measured: Measured) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let Measured { bytes, is_complete, unmeasurable } = measured;
        entry.used = Some(if is_complete { bytes } else { bytes.max(entry.used.unwrap_or(0)) });
        if entry.is_volume {
            return false;
        }
        entry.unmeasurable = unmeasurable;
        let used = entry.used.unwrap_or(0);
        let is_unmeasurable = entry.unmeasurable.is_some() && self.enforces;
        let was_suspicious = std::mem::replace(&mut entry.is_suspicious, false);
        let over = if is_unmeasurable {
            self_and_above(id).filter(|id| self.limit(id).is_some()).map(str::to_owned).collect()
        } else {
            self.over(id, used)
        };
        if !over.is_empty() && !was_suspicious && !is_unmeasurable {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.is_suspicious = true;
            }
            return true;
        }
        for id in over {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.has_exceeded = true;
            if let Some(event) = &entry.event
                && let Err(error) = event.signal()
            {
                error!(container = id, "cannot report that the container exceeds its disk limit: {error}");
            }
        }
        false
    }

    /// The limit that the container has exceeded and still does.
    pub fn exceeded(&self, id: &str) -> Option<Exceeded> {
        let Entry { has_exceeded: true, limit: Some(limit), .. } = self.entries.get(id)? else { return None };
        let used = self.used(id).unwrap_or(0);
        let unmeasurable = self
            .nested(id)
            .chain(self.entries.get_key_value(id))
            .find_map(|(id, entry)| entry.unmeasurable.as_ref().map(|why| (id, why)));
        let message = match unmeasurable {
            Some((nested, why)) => format!(
                "what container `{nested}` has written cannot be measured, so it is taken to exceed the disk limit of \
                 {}: {why}",
                in_mebibytes(*limit)
            ),
            None if used <= *limit => return None,
            None => {
                format!("disk limit of {} exceeded: {} are in use", in_mebibytes(*limit), in_mebibytes(used))
            }
        };
        Some(Exceeded { used, message })
    }

    /// Forgets a container and those nested in it, with their volumes.
    pub fn remove(&mut self, id: &str) {
        for id in self.names(id) {
            self.entries.remove(&id);
        }
    }

    /// A container and those nested in it, and the names of their volumes.
    pub fn names(&self, id: &str) -> Vec<String> {
        let below = self.entries.range(nested_of(id)).chain(self.entries.range(volumes_of(id)));
        below.map(|(id, _)| id.clone()).chain([id.to_owned()]).collect()
    }

    /// Those of the volumes of a container alone.
    pub fn volume_names(&self, id: &str) -> Vec<String> {
        self.entries.range(volumes_of(id)).map(|(name, _)| name.clone()).collect()
    }

    fn nested(&self, id: &str) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.range(nested_of(id)).filter(|(_, entry)| !entry.is_volume)
    }
}

/// The name of a volume of a container.
pub fn volume_name(id: &str, index: usize) -> String {
    format!("{id}#{index:04}")
}

/// The container of a volume; `None` for the id of a container.
pub fn volume_of(name: &str) -> Option<&str> {
    name.split_once('#').map(|(id, _)| id)
}

/// All names of volumes of a container. `$` follows `#`, and both are in no id.
fn volumes_of(id: &str) -> Range<String> {
    format!("{id}#")..format!("{id}$")
}

/// All ids of containers nested in one, and names of their volumes. `/` follows `.`, and is in no id.
fn nested_of(id: &str) -> Range<String> {
    format!("{id}.")..format!("{id}/")
}

/// A container and those that it is nested in, from the inside.
pub fn self_and_above(id: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(id), |id| id.rsplit_once('.').map(|(above, _)| above))
}

/// For messages: `31.5 MiB`.
fn in_mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", crate::mebibytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(limits: &[(&str, Option<u64>)]) -> Account {
        let mut account = Account::new(true);
        for (id, limit) in limits {
            account.entries().insert((*id).to_owned(), Entry::new(Vec::new(), *limit));
        }
        account
    }

    fn complete(bytes: u64) -> Measured {
        Measured { bytes, is_complete: true, unmeasurable: None }
    }

    #[test]
    fn nested_containers_count_for_those_above_them() {
        let mut account = account(&[("pod", Some(100)), ("pod.a", None), ("pod.a.b", None), ("pod2", None)]);
        assert_eq!(account.used("pod"), None, "not measured");
        for (id, bytes) in [("pod", 10), ("pod.a", 20), ("pod.a.b", 30), ("pod2", 1000)] {
            assert!(!account.measured(id, complete(bytes)), "{id}");
        }
        let used = ["pod", "pod.a", "pod.a.b", "pod2"].map(|id| account.used(id).unwrap());
        assert_eq!(used, [60, 50, 30, 1000]);
        assert!(account.measured("pod.a.b", complete(80)), "to be confirmed");
        assert_eq!(account.exceeded("pod"), None);
        assert!(!account.measured("pod.a.b", complete(80)));
        let exceeded = account.exceeded("pod").unwrap();
        assert_eq!(exceeded.used, 110);
        assert_eq!(account.exceeded("pod.a.b"), None, "it has no limit");
        account.remove("pod.a");
        assert_eq!((account.used("pod"), account.exceeded("pod")), (Some(10), None));
    }

    #[test]
    fn volumes_count_for_nobody_and_go_with_their_container() {
        let mut account = account(&[("pod", Some(100)), ("pod.a", Some(100)), ("pod2", None)]);
        for (id, count) in [("pod", 2), ("pod.a", 1), ("pod2", 1)] {
            for index in 0..count {
                let path = format!("/{id}/{index}").into();
                account.entries().insert(volume_name(id, index), Entry::volume(path));
            }
        }
        for id in ["pod", "pod.a", "pod2"] {
            account.measured(id, complete(10));
        }
        for name in ["pod#0000", "pod#0001", "pod.a#0000", "pod2#0000"] {
            for _ in 0..2 {
                assert!(!account.measured(name, complete(1000)), "{name}");
            }
            assert_eq!(account.over(name, 5000), Vec::<String>::new(), "{name}");
        }
        assert_eq!(["pod", "pod.a"].map(|id| account.used(id)), [Some(20), Some(10)]);
        assert_eq!(["pod", "pod.a"].map(|id| account.exceeded(id)), [None, None]);
        let volumes: Vec<_> = account.volumes("pod").collect();
        assert_eq!(volumes, [(Path::new("/pod/0"), Some(1000)), (Path::new("/pod/1"), Some(1000))]);
        account.remove("pod");
        let left: Vec<&String> = account.entries().keys().collect();
        assert_eq!(left, ["pod2", "pod2#0000"]);
    }

    #[test]
    fn one_measurement_alone_ends_no_container() {
        let mut account = account(&[("web", Some(100))]);
        assert!(account.measured("web", complete(101)));
        assert!(!account.measured("web", complete(100)));
        assert!(account.measured("web", complete(101)));
        assert_eq!(account.exceeded("web"), None);
        assert!(!account.measured("web", complete(101)));
        assert!(account.exceeded("web").is_some());
        account.set_limit("web", Some(101));
        for _ in 0..2 {
            assert!(!account.measured("web", complete(101)), "exactly the limit is permitted");
        }
        assert_eq!(account.exceeded("web"), None);
    }

    #[test]
    fn a_tree_that_cannot_be_measured_exceeds_every_limit() {
        let mut account = account(&[("pod", Some(1 << 40)), ("pod.a", None)]);
        let measured = Measured { unmeasurable: Some("too deep".into()), ..Measured::default() };
        assert!(!account.measured("pod.a", measured));
        let message = account.exceeded("pod").unwrap().message;
        assert!(message.contains("`pod.a`") && message.contains("too deep"), "{message}");
    }

    #[test]
    fn nothing_is_exceeded_without_enforcement_or_limit() {
        let mut accounting = Account::new(false);
        accounting.entries().insert("web".to_owned(), Entry::new(Vec::new(), Some(1)));
        let mut unlimited = account(&[("web", None)]);
        for account in [&mut accounting, &mut unlimited] {
            for _ in 0..3 {
                assert!(!account.measured("web", complete(1000)));
            }
            assert_eq!((account.exceeded("web"), account.used("web")), (None, Some(1000)));
        }
    }

    #[test]
    fn an_incomplete_measurement_never_lowers_what_is_used() {
        let mut account = account(&[("web", None)]);
        account.measured("web", complete(1000));
        account.measured("web", Measured { bytes: 10, ..Measured::default() });
        assert_eq!(account.used("web"), Some(1000));
    }
}
