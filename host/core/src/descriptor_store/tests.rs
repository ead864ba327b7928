use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use cofferdam_linux::cgroup::{Cgroup, Cgroups};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::pipe;
use tokio::runtime::Handle;

use super::DescriptorStore;

/// The links of this process's descriptors.
fn links() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    entries
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        .collect()
}

fn link(descriptor: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

#[tokio::test]
async fn a_stored_descriptor_is_in_no_table_of_the_process_and_comes_back() {
    let store = DescriptorStore::new(Handle::current());
    let (reader, writer) = pipe().unwrap();
    let name = link(&reader);
    let stored = store.put(reader.as_fd()).unwrap();
    drop(reader);
    rustix::io::write(&writer, b"x").unwrap();
    assert!(stored.ready().await);
    drop(writer);
    assert!(!links().contains(&name), "{name}");

    let reader = stored.open().unwrap();
    assert_eq!(link(&reader), name);
    let mut buffer = [0; 2];
    assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 1);
    assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 0, "no copy of the other end is left");
}

#[tokio::test]
async fn a_descriptor_is_closed_when_it_is_dropped() {
    let store = DescriptorStore::new(Handle::current());
    let (reader, writer) = pipe().unwrap();
    let stored = store.put(reader.as_fd()).unwrap();
    drop(reader);
    drop(stored);
    // An error is reported when there is no reader any more.
    let closed = tokio::task::spawn_blocking(move || {
        poll(&mut [PollFd::new(&writer, PollFlags::empty())], None).unwrap()
    });
    assert_eq!(closed.await.unwrap(), 1);
}

#[tokio::test]
async fn a_full_table_is_joined_by_another() {
    let store = DescriptorStore { capacity: 2, ..DescriptorStore::new(Handle::current()) };
    let mut stored = Vec::new();
    for number in 0..5 {
        let (reader, writer) = pipe().unwrap();
        stored.push((number, store.put(reader.as_fd()).unwrap(), writer));
    }
    assert_eq!(store.tables.lock().len(), 3);
    for (number, stored, writer) in stored.iter().rev() {
        rustix::io::write(writer, &[*number]).unwrap();
        assert!(stored.ready().await);
        let mut buffer = [0];
        rustix::io::read(stored.open().unwrap(), &mut buffer).unwrap();
        assert_eq!(buffer, [*number]);
    }
    stored.truncate(1);
    let (reader, _writer) = pipe().unwrap();
    let _another = store.put(reader.as_fd()).unwrap();
    assert_eq!(store.tables.lock().len(), 3, "what was dropped left space");
}

impl DescriptorStore {
    /// Ends the threads, as an error in them would.
    pub(crate) fn end_threads(&self) {
        for table in &*self.tables.lock() {
            shutdown(&*table.requests.lock(), Shutdown::Write).unwrap();
        }
    }
}

#[tokio::test]
async fn descriptors_of_a_thread_that_has_ended_are_lost_and_others_are_not() {
    let store = DescriptorStore::new(Handle::current());
    let (reader, writer) = pipe().unwrap();
    let lost = store.put(reader.as_fd()).unwrap();
    store.end_threads();
    assert!(!lost.ready().await && lost.is_lost());
    assert!(lost.open().is_err());

    let stored = store.put(reader.as_fd()).unwrap();
    assert_eq!(store.tables.lock().len(), 1);
    rustix::io::write(&writer, b"x").unwrap();
    assert!(stored.ready().await);
    stored.open().unwrap();
}

#[tokio::test]
async fn a_file_of_a_cgroup_is_ready_when_it_has_changed() {
    let unified = Cgroups::detect().ok().and_then(|cgroups| cgroups.unified("cofferdam-test-store"));
    let Some(cgroup) = unified.filter(|cgroup| cgroup.create().is_ok()) else {
        eprintln!("SKIPPED: no cgroup can be created");
        return;
    };
    let _removed = Removed(cgroup.clone());
    let store = DescriptorStore::new(Handle::current());
    let events = cgroup.open("cgroup.events").unwrap();
    // Its content as of now is known.
    rustix::io::pread(&events, &mut [0; 64], 0).unwrap();
    let stored = store.put(events.as_fd()).unwrap();
    drop(events);
    let is_ready = tokio::time::timeout(std::time::Duration::ZERO, stored.ready()).await;
    assert!(is_ready.is_err(), "it is readable, but did not change");
    cgroup.freeze().unwrap();
    assert!(stored.ready().await);
}

struct Removed(Cgroup);

impl Drop for Removed {
    fn drop(&mut self) {
        drop(fs::remove_dir(self.0.path()));
    }
}
