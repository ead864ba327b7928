//! The writer with real pipes and files in the place of two loggers.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;

use cofferdam_plugin_api::log_companion::{self, Report, Status, pipes};
use cofferdam_plugin_api::model::{LogPlace, LogTarget, Stream};
use cofferdam_plugin_api::testing::{PluginHarness, skip};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::*;
use crate::job::lost_of;
use crate::writer;

/// What a writer needs, in a temporary directory: the first logger has files, the second pipes.
struct Fixture {
    directory: tempfile::TempDir,
    job: Job,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["pipe-out", "pipe-err"] {
            mknodat(CWD, path(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        let file = |name| Place::create(Some(LogPlace { path: path(name), pipe: false }), None).unwrap();
        let pipe = |name| Place::create(Some(LogPlace { path: path(name), pipe: true }), None).unwrap();
        let targets = [
            Target { logger: "files".into(), streams: [file("file-out"), file("file-err")] },
            Target { logger: "pipes".into(), streams: [pipe("pipe-out"), pipe("pipe-err")] },
        ];
        let job = Job { owner: None, max_buffer: 64 << 10, stall_millis: 3_600_000, targets };
        Self { directory, job }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The reader of a logger's pipe.
    fn reader(&self, name: &str) -> File {
        // Open for writing as well, so that it does not end before the test does.
        File::from(rustix::fs::open(self.path(name), OFlags::RDWR, Mode::empty()).unwrap())
    }

    /// Runs a writer while `act` writes to standard output and standard error. Returns what it has reported, and lost
    /// of standard output for each logger.
    fn run(&self, act: impl FnOnce(&mut File, &mut File)) -> (Report, [u64; 2]) {
        let directory = self.directory.path();
        let [mut out, mut err] = pipes::create(directory, None).unwrap().map(File::from);
        let readers = pipes::open_readers(directory).unwrap();
        let status = self.status();
        let descriptors = log_companion::Job::descriptors(&self.job, directory).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| writer::write(&self.job, &status, readers, descriptors));
            act(&mut out, &mut err);
            drop((out, err));
            writer.join().unwrap().unwrap();
        });
        let report = status.read().unwrap();
        assert!(report.finished);
        let numbers = status.numbers().unwrap();
        (report, [0, 1].map(|target| numbers[lost_of(target, 0)]))
    }

    fn status(&self) -> Status {
        let path = self.path("status");
        Status::new(File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap())
    }
}

fn read(from: &mut File, length: usize) -> String {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn both_loggers_receive_everything() {
    let fixture = Fixture::new();
    let (mut out, mut err) = (fixture.reader("pipe-out"), fixture.reader("pipe-err"));
    let written: String = (0..20_000).map(|number| format!("{number:09}\n")).collect();
    let (report, lost) = fixture.run(|stdout, stderr| {
        stderr.write_all(b"problem\n").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| stdout.write_all(written.as_bytes()).unwrap());
            // More than is kept.
            assert!(read(&mut out, written.len()) == written);
        });
    });
    assert_eq!((report.lost, lost), ([0, 0], [0, 0]));
    assert_eq!(fs::read_to_string(fixture.path("file-out")).unwrap(), written);
    assert_eq!(fs::read_to_string(fixture.path("file-err")).unwrap(), "problem\n");
    assert_eq!(read(&mut err, 8), "problem\n");
}

#[test]
fn a_logger_that_does_not_read_loses_what_is_not_kept_and_the_other_one_loses_nothing() {
    let mut fixture = Fixture::new();
    fixture.job.stall_millis = 1;
    let mut pipe = fixture.reader("pipe-out");
    let written: String = (0..100_000).map(|number| format!("{number:09}\n")).collect();
    let mut received = String::new();
    let (report, lost) = fixture.run(|stdout, _| {
        // Nobody reads the pipe.
        stdout.write_all(written.as_bytes()).unwrap();
        while rustix::io::ioctl_fionread(&*stdout).unwrap() > 0 {
            std::thread::yield_now();
        }
        stdout.write_all(b"end\n").unwrap();
        while !received.ends_with("end\n") {
            received.push_str(&read(&mut pipe, 1));
        }
    });
    let complete = written.clone() + "end\n";
    assert!(fs::read_to_string(fixture.path("file-out")).unwrap() == complete);
    assert_eq!(lost[0], 0);
    assert!(lost[1] > 0);
    assert_eq!(report.lost, [lost[1], 0]);
    // Each gap is where it says.
    let mut parts = received.split("\n[cofferdam: ");
    let mut rest = complete.strip_prefix(parts.next().unwrap()).unwrap();
    let mut told = 0;
    for part in parts {
        let (bytes, after) =
            part.split_once(" bytes of output could not be passed on to this logger: ").unwrap();
        let (reason, after) = after.split_once("]\n").unwrap();
        assert_eq!(reason, "the logger did not read");
        let bytes: usize = bytes.parse().unwrap();
        told += bytes as u64;
        rest = rest[bytes..].strip_prefix(after).unwrap();
    }
    assert_eq!((rest, told), ("", lost[1]));
}

#[test]
fn a_logger_whose_output_cannot_be_written_is_alone_with_that() {
    let fixture = Fixture::new();
    // The container has put another file there.
    fs::rename(fixture.path("file-out"), fixture.path("moved")).unwrap();
    fs::write(fixture.path("file-out"), "").unwrap();
    let mut pipe = fixture.reader("pipe-out");
    let (report, lost) = fixture.run(|stdout, _| {
        stdout.write_all(b"hello\n").unwrap();
        assert_eq!(read(&mut pipe, 6), "hello\n");
    });
    assert_eq!((report.lost, lost), ([6, 0], [6, 0]));
    assert_eq!(fs::read_to_string(fixture.path("file-out")).unwrap(), "");
}

#[test]
fn another_writer_continues_for_each_logger_where_it_was() {
    let fixture = Fixture::new();
    fs::write(fixture.path("stdout.spool"), "abcdef").unwrap();
    fixture.status().set_numbers(0, &[0, 6, 2]).unwrap();
    let mut pipe = fixture.reader("pipe-out");
    fixture.run(|_, _| {});
    assert_eq!(read(&mut pipe, 4), "cdef");
    assert_eq!(fs::read_to_string(fixture.path("file-out")).unwrap(), "");
}

// ── the plugin ─────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn it_needs_two_loggers() {
    let harness = PluginHarness::<Tee>::logger(json!({})).unwrap();
    let refused = harness.open(&harness.container("web")).unwrap_err();
    assert!(refused.message.contains("has 0 loggers"), "{refused}");
    for (config, expected) in [
        (json!({ "max_buffer_size": "1 KiB" }), "expected 64 KiB to 1 GiB"),
        (json!({ "stall_timeout": "0s" }), "expected more than 0"),
    ] {
        let refused = PluginHarness::<Tee>::logger(config).err().unwrap();
        assert!(refused.message.contains(expected), "{refused}");
    }
}

#[test]
fn a_companion_passes_output_on_to_files() {
    let harness = PluginHarness::<Tee>::logger(json!({})).unwrap();
    let mut container = harness.container("web");
    (container.uid, container.gid) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
    let target = |name: &str| {
        let place =
            |stream| Some(LogPlace { path: container.sandbox.join(format!("{name}-{stream}")), pipe: false });
        LogTarget { logger: name.into(), stdout: place("out"), stderr: place("err") }
    };
    container.log_targets = vec![target("one"), target("two")];
    let descriptors = match harness.open(&container) {
        Ok((reply, descriptors)) => {
            assert!(matches!(reply.stdout, Stream::Descriptor { .. }));
            descriptors
        }
        Err(refused) if refused.message.contains("does not support companions") => {
            return skip("libcofferdam_logger_tee.so is not there: run `cargo build --workspace` first");
        }
        Err(refused) => panic!("{refused}"),
    };
    let mut descriptors = descriptors.into_iter().map(File::from);
    let (mut out, err) = (descriptors.next().unwrap(), descriptors.next().unwrap());
    out.write_all(b"hello\n").unwrap();
    drop((out, err));
    harness.cleanup("web").unwrap();
    for name in ["one-out", "two-out"] {
        assert_eq!(fs::read_to_string(container.sandbox.join(name)).unwrap(), "hello\n");
    }
    assert!(harness.lost_output().is_empty());
    assert_eq!(fs::read_dir(harness.directory().join("runtime")).unwrap().count(), 0);
}
