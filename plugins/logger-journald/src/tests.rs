//! The writer with a socket that this test reads, and the plugin in the harness with a real companion. A real journal is in
//! the tests of the system.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_plugin_api::log_companion::{self, Report, Status, pipes};
use cofferdam_plugin_api::model::{Container, Stream};
use cofferdam_plugin_api::testing::{PluginHarness, skip};
use rustix::process::geteuid;

use super::*;
use crate::job::{Priority, WhenFull};
use crate::writer;

/// Longer than anything here takes; it ends a test that would wait for ever.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a writer needs, in a temporary directory, and the socket that it sends to.
struct Fixture {
    directory: tempfile::TempDir,
    job: Job,
}

type Entry = BTreeMap<String, Vec<u8>>;

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let job = Job {
            socket: directory.path().join("socket"),
            owner: None,
            fields: vec![("CONTAINER_ID".into(), "web".into()), ("LABEL_A".into(), "1\n2".into())],
            priorities: [Priority::Info, Priority::Err],
            max_line: 4096,
            max_buffer: 64 << 10,
            when_full: WhenFull::Wait,
        };
        Self { directory, job }
    }

    fn socket(&self) -> UnixDatagram {
        let socket = UnixDatagram::bind(&self.job.socket).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket
    }

    /// Runs a writer while `act` writes to standard output and standard error. Returns what the writer has reported.
    fn run(&self, act: impl FnOnce(&mut File, &mut File)) -> Report {
        let directory = self.directory.path();
        let [mut out, mut err] = pipes::create(directory, None).unwrap().map(File::from);
        let readers = pipes::open_readers(directory).unwrap();
        let status = self.status();
        let descriptors = log_companion::Job::descriptors(&self.job, directory).unwrap();
        let [stdout, stderr, null] = <[OwnedFd; 3]>::try_from(descriptors).unwrap();
        std::thread::scope(|scope| {
            let spools = [stdout, stderr].map(File::from);
            let writer = scope.spawn(|| writer::write(&self.job, &status, readers, spools, &null));
            act(&mut out, &mut err);
            drop((out, err));
            writer.join().unwrap().unwrap();
        });
        let report = status.read().unwrap();
        assert!(report.finished);
        report
    }

    fn status(&self) -> Status {
        let path = self.directory.path().join("status");
        Status::new(File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap())
    }
}

/// Receives an entry.
fn receive(socket: &UnixDatagram) -> Entry {
    let mut bytes = vec![0; 256 << 10];
    let length = socket.recv(&mut bytes).unwrap();
    let mut rest = &bytes[..length];
    let mut entry = Entry::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'=' || *byte == b'\n').unwrap();
        let name = String::from_utf8(rest[..end].to_vec()).unwrap();
        let (value, after) = if rest[end] == b'=' {
            let end_of_value = end + rest[end..].iter().position(|byte| *byte == b'\n').unwrap();
            (&rest[end + 1..end_of_value], end_of_value + 1)
        } else {
            let length = u64::from_le_bytes(rest[end + 1..end + 9].try_into().unwrap());
            let end_of_value = end + 9 + usize::try_from(length).unwrap();
            (&rest[end + 9..end_of_value], end_of_value + 1)
        };
        assert_eq!(entry.insert(name, value.to_vec()), None);
        rest = &rest[after..];
    }
    entry
}

fn text<'e>(entry: &'e Entry, name: &str) -> &'e str {
    entry.get(name).map_or("", |value| str::from_utf8(value).unwrap())
}

/// Waits until a pipe is empty.
fn wait_until_taken(pipe: &File) {
    while rustix::io::ioctl_fionread(pipe).unwrap() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn every_line_is_an_entry_with_all_fields() {
    let fixture = Fixture::new();
    let socket = fixture.socket();
    let report = fixture.run(|out, err| {
        out.write_all(b"one\n\xff\0=\n").unwrap();
        for (message, offset) in [(&b"one"[..], "0"), (b"\xff\0=", "4")] {
            let entry = receive(&socket);
            assert_eq!(entry["MESSAGE"], message);
            assert_eq!((text(&entry, "CONTAINER_ID"), text(&entry, "LABEL_A")), ("web", "1\n2"));
            assert_eq!((text(&entry, "STREAM"), text(&entry, "PRIORITY")), ("STDOUT", "6"));
            assert_eq!(text(&entry, "COFFERDAM_OFFSET"), offset);
            assert!(!entry.contains_key("CONTAINER_PARTIAL_MESSAGE"));
        }
        err.write_all(b"problem").unwrap();
    });
    assert_eq!(report.lost, [0, 0]);
    let last = receive(&socket);
    assert_eq!((text(&last, "MESSAGE"), text(&last, "STREAM")), ("problem", "STDERR"));
    assert_eq!(text(&last, "PRIORITY"), "3");
}

#[test]
fn a_long_line_is_divided_and_its_parts_say_so() {
    let fixture = Fixture::new();
    let socket = fixture.socket();
    fixture.run(|out, _| out.write_all(&[&[b'x'; 9000][..], b"\n"].concat()).unwrap());
    let parts: Vec<Entry> = (0..3).map(|_| receive(&socket)).collect();
    let described = parts.iter().map(|part| (part["MESSAGE"].len(), text(part, "CONTAINER_PARTIAL_MESSAGE")));
    assert_eq!(described.collect::<Vec<_>>(), [(4096, "true"), (4096, "true"), (808, "")]);
}

#[test]
fn an_entry_that_is_too_large_for_a_datagram_is_sent_as_a_file() {
    use std::mem::MaybeUninit;

    use rustix::fs::{SealFlags, fcntl_get_seals};
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    let mut fixture = Fixture::new();
    (fixture.job.max_line, fixture.job.max_buffer) = (1 << 20, 4 << 20);
    let socket = fixture.socket();
    let line = "y".repeat(1 << 20);
    fixture.run(|out, _| writeln!(out, "{line}").unwrap());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&socket, &mut [], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(received.bytes, 0);
    let descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let [file] = <[OwnedFd; 1]>::try_from(descriptors.collect::<Vec<_>>()).unwrap();
    let seals = fcntl_get_seals(&file).unwrap();
    assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
    let mut file = File::from(file);
    std::io::Seek::rewind(&mut file).unwrap();
    let mut entry = Vec::new();
    file.read_to_end(&mut entry).unwrap();
    assert!(entry.ends_with(format!("{line}\n").as_bytes()));
}

#[test]
fn output_is_kept_until_there_is_a_journal() {
    let fixture = Fixture::new();
    let mut socket = None;
    fixture.run(|out, _| {
        out.write_all(b"before\n").unwrap();
        wait_until_taken(out);
        let found = socket.insert(fixture.socket());
        assert_eq!(text(&receive(found), "MESSAGE"), "before");
        // It restarts, with another socket.
        socket = None;
        fs::remove_file(&fixture.job.socket).unwrap();
        out.write_all(b"meanwhile\n").unwrap();
        wait_until_taken(out);
        let found = socket.insert(fixture.socket());
        let entry = receive(found);
        assert_eq!((text(&entry, "MESSAGE"), text(&entry, "COFFERDAM_OFFSET")), ("meanwhile", "7"));
    });
}

#[test]
fn a_container_waits_when_nothing_more_is_kept() {
    let fixture = Fixture::new();
    let written: String = (0..4000).map(|number| format!("{number:0199}\n")).collect();
    let report = fixture.run(|out, _| {
        // As much as the buffer and the pipe hold together, and more.
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| out.write_all(written.as_bytes()).unwrap());
            let spool = fixture.directory.path().join("stdout.spool");
            while fs::metadata(&spool).map_or(0, |metadata| metadata.len()) < fixture.job.max_buffer {
                std::thread::yield_now();
            }
            assert!(!writer.is_finished());
            let socket = fixture.socket();
            for number in 0..4000 {
                assert_eq!(text(&receive(&socket), "MESSAGE"), format!("{number:0199}"));
            }
        });
    });
    assert_eq!(report.lost, [0, 0]);
}

#[test]
fn what_exceeds_the_buffer_is_counted_to_the_byte_if_the_container_is_not_to_wait() {
    let mut fixture = Fixture::new();
    fixture.job.when_full = WhenFull::Drop;
    let written: String = (0..4000).map(|number| format!("{number:0199}\n")).collect();
    let mut received = Vec::new();
    let report = fixture.run(|out, _| {
        out.write_all(written.as_bytes()).unwrap();
        wait_until_taken(out);
        let socket = fixture.socket();
        loop {
            let entry = receive(&socket);
            if entry.contains_key("COFFERDAM_LOST_BYTES") {
                received.push(entry);
                break;
            }
            received.push(entry);
        }
        out.write_all(b"after\n").unwrap();
        received.push(receive(&socket));
    });
    let after = received.pop().unwrap();
    assert_eq!(text(&after, "MESSAGE"), "after");
    let told = received.pop().unwrap();
    assert_eq!(text(&told, "COFFERDAM_LOST_BYTES").parse(), Ok(report.lost[0]));
    assert_eq!(text(&told, "PRIORITY"), "4");
    let kept: Vec<&str> = received.iter().map(|entry| text(entry, "MESSAGE")).collect();
    let kept = kept.join("\n");
    assert!(written.starts_with(&kept));
    let line_feed = usize::from(written.as_bytes()[kept.len()] == b'\n' && !kept.len().is_multiple_of(200));
    let sum = (kept.len() + line_feed) as u64 + report.lost[0];
    assert!(sum == written.len() as u64 || sum + 1 == written.len() as u64, "{sum} of {}", written.len());
}

#[test]
fn another_writer_continues_with_what_was_not_sent() {
    let fixture = Fixture::new();
    fs::write(fixture.directory.path().join("stdout.spool"), "sent\nnot sent\n").unwrap();
    fixture.status().set_numbers(0, &[100, 5]).unwrap();
    let socket = fixture.socket();
    fixture.run(|_, _| {});
    let entry = receive(&socket);
    assert_eq!((text(&entry, "MESSAGE"), text(&entry, "COFFERDAM_OFFSET")), ("not sent", "105"));
}

// ── the plugin ─────────────────────────────────────────────────────────────────────────────────────────────────────

fn container(harness: &PluginHarness<Journald>) -> Container {
    let mut container = harness.container("web");
    (container.uid, container.gid) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
    container
}

#[test]
fn a_debug_container_writes_to_files() {
    let harness = PluginHarness::<Journald>::logger(json!({})).unwrap();
    let mut container = harness.container("web");
    container.class = ContainerClass::Debug;
    let (reply, descriptors) = harness.open(&container).unwrap();
    assert_eq!(reply.stdout, Stream::Path { path: container.sandbox.join("stdout") });
    assert!(descriptors.is_empty() && reply.state.is_none() && reply.files.is_none());
    harness.cleanup("web").unwrap();
}

#[test]
fn a_companion_sends_what_comes_through_the_pipes_and_losses_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let harness = PluginHarness::<Journald>::logger(json!({ "socket": path })).unwrap();
    let descriptors = match harness.open(&container(&harness)) {
        Ok((_, descriptors)) => descriptors,
        Err(refused) if refused.message.contains("does not support companions") => {
            return skip("libcofferdam_logger_journald.so is not there: run `cargo build --workspace` first");
        }
        Err(refused) => panic!("{refused}"),
    };
    let mut out = descriptors.into_iter().map(File::from).next().unwrap();
    assert!(out.metadata().unwrap().file_type().is_fifo());
    out.write_all(b"hello\n").unwrap();
    let entry = receive(&socket);
    assert_eq!((text(&entry, "MESSAGE"), text(&entry, "SYSLOG_IDENTIFIER")), ("hello", "web"));
    // The journal has gone.
    drop(socket);
    fs::remove_file(&path).unwrap();
    out.write_all(b"lost\n").unwrap();
    drop(out);
    harness.cleanup("web").unwrap();
    assert_eq!(harness.lost_output(), [("stdout".to_owned(), 5)].into());
    assert_eq!(fs::read_dir(harness.directory().join("runtime")).unwrap().count(), 0);
}
