//! The writer on real files, and the plugin in the harness with a real companion.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::log_companion::{Report, Status, pipes};
use cofferdam_plugin_api::model::{Container, ContainerClass, ContainerDetails, LogFiles, Recovered, Stream};
use cofferdam_plugin_api::testing::{PluginHarness, skip};
use flate2::read::GzDecoder;

use super::*;
use crate::options::{Limits, Options};
use crate::writer;

/// Options with small files.
fn options(max_size: u64, max_files: u32) -> Options {
    let limits = Limits { max_size, max_files };
    Options { streams: [limits, limits], compress: false, times: false }
}

/// What a writer needs, in a temporary directory.
struct Fixture {
    directory: tempfile::TempDir,
    job: Job,
}

impl Fixture {
    fn new(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sandbox")).unwrap();
        Self { directory, job: Job { owner: None, options } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("sandbox").join(name)
    }

    /// Runs a writer while `write` writes to standard output and standard error.
    fn run(&self, write: impl FnOnce(&mut File, &mut File)) -> Report {
        self.run_in(&self.directory.path().join("sandbox"), write)
    }

    fn run_in(&self, sandbox: &Path, write: impl FnOnce(&mut File, &mut File)) -> Report {
        let [mut out, mut err] = pipes::create(self.directory.path(), None).unwrap().map(File::from);
        let readers = pipes::open_readers(self.directory.path()).unwrap();
        let status = self.directory.path().join("status");
        let status = File::options().read(true).write(true).create(true).truncate(true).open(status);
        let status = Status::new(status.unwrap());
        let (job, sandbox) = (self.job.clone(), open_sandbox(sandbox).unwrap());
        let null = OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| writer::write(&job, &status, readers, sandbox, &null));
            write(&mut out, &mut err);
            drop((out, err));
            writer.join().unwrap().unwrap();
        });
        let report = status.read().unwrap();
        assert!(report.finished);
        report
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn unpacked(&self, name: &str) -> String {
        let mut text = String::new();
        GzDecoder::new(File::open(self.path(name)).unwrap()).read_to_string(&mut text).unwrap();
        text
    }

    /// The names in the sandbox, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join("sandbox")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Numbered lines of 100 bytes.
fn lines(range: std::ops::Range<usize>) -> String {
    range.map(|number| format!("{number:099}\n")).collect()
}

#[test]
fn output_is_rotated_between_lines_and_the_newest_files_are_kept() {
    let fixture = Fixture::new(options(4150, 2));
    let written = lines(0..1000);
    let report = fixture.run(|out, err| {
        out.write_all(written.as_bytes()).unwrap();
        err.write_all(b"problem\n").unwrap();
    });
    assert_eq!(report, Report { finished: true, ..Report::default() });
    assert_eq!(fixture.names(), ["stderr", "stdout", "stdout.1", "stdout.2"]);
    let kept = fixture.text("stdout.2") + &fixture.text("stdout.1") + &fixture.text("stdout");
    assert!(written.ends_with(&kept));
    assert_eq!([fixture.text("stdout.1").len(), fixture.text("stdout.2").len()], [4100, 4100]);
    assert_eq!(fixture.text("stderr"), "problem\n");
}

#[test]
fn another_writer_continues_with_the_files() {
    let fixture = Fixture::new(options(4096, 100));
    for part in [0..30, 30..31, 31..200] {
        fixture.run(|out, _| out.write_all(lines(part).as_bytes()).unwrap());
    }
    let rotated =
        (1..).map(|number| format!("stdout.{number}")).take_while(|name| fixture.path(name).exists());
    let mut texts: Vec<String> = rotated.map(|name| fixture.text(&name)).collect();
    texts.reverse();
    assert!(texts.iter().all(|text| text.len() == 4000), "{texts:?}");
    assert_eq!(texts.concat() + &fixture.text("stdout"), lines(0..200));
}

#[test]
fn a_rotation_that_was_cut_short_leaves_a_gap_that_the_next_one_fills() {
    let fixture = Fixture::new(options(4096, 5));
    for (name, text) in [("stdout", "4"), ("stdout.1", "3"), ("stdout.2", "2"), ("stdout.4", "1")] {
        fs::write(fixture.path(name), text.repeat(99) + "\n").unwrap();
    }
    fixture.run(|out, _| out.write_all(lines(0..40).as_bytes()).unwrap());
    let first = |name: &str| fixture.text(name).chars().next().unwrap();
    let rotated = ["stdout.4", "stdout.3", "stdout.2", "stdout.1"].map(first);
    assert_eq!(rotated, ['1', '2', '3', '4']);
    assert_eq!(fixture.text("stdout"), lines(39..40));
}

#[test]
fn only_a_line_that_is_longer_than_a_file_is_cut() {
    let fixture = Fixture::new(options(4096, 10));
    let long = "x".repeat(10_000);
    fixture.run(|out, _| out.write_all(format!("short\n{long}\nend\n").as_bytes()).unwrap());
    assert_eq!(fixture.text("stdout.3"), "short\n");
    assert_eq!([fixture.text("stdout.2").len(), fixture.text("stdout.1").len()], [4096, 4096]);
    assert_eq!(fixture.text("stdout"), format!("{}\nend\n", "x".repeat(10_000 - 2 * 4096)));
}

#[test]
fn rotated_files_are_compressed_and_name_the_file_that_they_were() {
    let fixture = Fixture::new(Options { compress: true, ..options(4096, 3) });
    fixture.run(|out, _| {
        for part in 0..20 {
            out.write_all(lines(part * 40..part * 40 + 40).as_bytes()).unwrap();
        }
    });
    let names = fixture.names();
    assert!(
        names.contains(&"stdout.2.gz".to_owned()) && names.contains(&"stdout.3.gz".to_owned()),
        "{names:?}"
    );
    assert!(names.iter().all(|name| !name.ends_with(".new")), "{names:?}");
    // Its compression may have been cut short by the end.
    let newest = if fixture.path("stdout.1").exists() {
        fixture.text("stdout.1")
    } else {
        fixture.unpacked("stdout.1.gz")
    };
    let kept = fixture.unpacked("stdout.3.gz")
        + &fixture.unpacked("stdout.2.gz")
        + &newest
        + &fixture.text("stdout");
    assert!(lines(0..800).ends_with(&kept), "{kept}");
    let decoder = GzDecoder::new(File::open(fixture.path("stdout.2.gz")).unwrap());
    let extra = decoder.header().unwrap().extra().unwrap();
    assert_eq!((&extra[..4], extra.len()), (&b"CF\x10\0"[..], 20));
    let device = u64::from_le_bytes(extra[4..12].try_into().unwrap());
    assert_eq!(device, fs::metadata(fixture.path("stdout")).unwrap().dev());
}

#[test]
fn compression_reads_what_was_written_and_not_what_the_container_has_made() {
    let fixture = Fixture::new(Options { compress: true, ..options(4096, 3) });
    // As if it had been rotated.
    File::create(fixture.path("stdout.1")).unwrap().set_len(1 << 40).unwrap();
    let written = lines(0..60);
    let report = fixture.run(|out, _| {
        out.write_all(&written.as_bytes()[..4000]).unwrap();
        // Until everything is read.
        while rustix::io::ioctl_fionread(&*out).unwrap() > 0 {
            std::thread::yield_now();
        }
        let mut stdout = File::options().append(true).open(fixture.path("stdout")).unwrap();
        stdout.write_all(b"end").unwrap();
        stdout.set_len(1 << 40).unwrap();
        out.write_all(&written.as_bytes()[4000..]).unwrap();
        while !fixture.path("stdout.1.gz").exists() || fixture.path("stdout.1").exists() {
            std::thread::yield_now();
        }
    });
    assert_eq!(report.lost, [0, 0]);
    assert_eq!((fixture.unpacked("stdout.1.gz"), fixture.text("stdout")), (lines(0..40), lines(40..60)));
    // It stays as it is.
    assert_eq!(fs::metadata(fixture.path("stdout.2")).unwrap().len(), 1 << 40);
    assert_eq!(fixture.names(), ["stderr", "stdout", "stdout.1.gz", "stdout.2"]);
}

#[test]
fn a_rotation_does_not_wait_for_a_compression() {
    let fixture = Fixture::new(Options { compress: true, ..options(1 << 20, 5) });
    // The oldest is compressed first, and gets another number meanwhile.
    for number in 1..=3 {
        fs::write(fixture.path(&format!("stdout.{number}")), format!("{number}").repeat(1 << 20)).unwrap();
    }
    fs::write(fixture.path("stdout"), "0".repeat((1 << 20) - 1) + "\n").unwrap();
    fixture.run(|out, _| {
        out.write_all(b"new\n").unwrap();
        let is_compressed = |number| fixture.path(&format!("stdout.{number}.gz")).exists();
        while !(1..=4).all(is_compressed) || fixture.path("stdout.1").exists() {
            std::thread::yield_now();
        }
    });
    assert_eq!(
        fixture.names(),
        ["stderr", "stdout", "stdout.1.gz", "stdout.2.gz", "stdout.3.gz", "stdout.4.gz"]
    );
    for number in 2..=4 {
        let text = fixture.unpacked(&format!("stdout.{number}.gz"));
        assert!(text == format!("{}", number - 1).repeat(1 << 20), "{number}: {} bytes", text.len());
    }
    assert!(fixture.unpacked("stdout.1.gz").starts_with("000") && fixture.text("stdout") == "new\n");
}

#[test]
fn a_rotation_that_the_system_refuses_removes_nothing() {
    if !geteuid().is_root() {
        return skip("only root makes a file immutable");
    }
    let fixture = Fixture::new(options(4096, 3));
    for (name, text) in [("stdout", "current\n"), ("stdout.1", "kept\n")] {
        fs::write(fixture.path(name), text).unwrap();
    }
    let immutable = |on: &str| {
        let chattr = std::process::Command::new("chattr").arg(on).arg(fixture.path("stdout.1")).status();
        chattr.unwrap().success()
    };
    if !immutable("+i") {
        return skip("this file system has no immutable files");
    }
    let written = lines(0..60);
    let report = fixture.run(|out, _| out.write_all(written.as_bytes()).unwrap());
    assert!(immutable("-i"));
    assert_eq!(fixture.text("stdout.1"), "kept\n");
    let current = fixture.text("stdout");
    assert!(current.starts_with("current\n"), "{current}");
    let kept = current.split("\n[cofferdam: ").next().unwrap().len() - "current\n".len();
    assert_eq!(report.lost, [(written.len() - kept) as u64, 0]);
    assert!(report.lost[0] > 0);
}

#[test]
fn a_file_that_cannot_be_opened_is_counted_and_does_not_stop_the_other_stream() {
    let fixture = Fixture::new(options(4096, 3));
    fs::create_dir_all(fixture.path("stdout/full")).unwrap();
    let report = fixture.run(|out, err| {
        out.write_all(b"discarded\n").unwrap();
        // Until it is read.
        while rustix::io::ioctl_fionread(&*out).unwrap() > 0 {
            std::thread::yield_now();
        }
        err.write_all(b"problem\n").unwrap();
        fs::remove_dir_all(fixture.path("stdout")).unwrap();
        out.write_all(b"kept\n").unwrap();
    });
    assert_eq!(report.lost, [10, 0]);
    let text = fixture.text("stdout");
    assert!(text.starts_with("\n[cofferdam: 10 bytes") && text.ends_with("]\nkept\n"), "{text}");
    assert_eq!(fixture.text("stderr"), "problem\n");
}

#[test]
fn a_compression_that_was_cut_short_is_begun_again() {
    let fixture = Fixture::new(Options { compress: true, ..options(4096, 3) });
    fs::write(fixture.path("stdout.1"), lines(0..3)).unwrap();
    fs::write(fixture.path("stdout.gz.new"), "half").unwrap();
    fixture.run(|out, _| {
        // The end would cut it short again.
        while !fixture.path("stdout.1.gz").exists() || fixture.path("stdout.1").exists() {
            out.write_all(b".").unwrap();
            // Each wakes the writer up, and there are too few of them for a rotation.
            while rustix::io::ioctl_fionread(&*out).unwrap() > 0 {
                std::thread::yield_now();
            }
        }
    });
    assert_eq!(fixture.unpacked("stdout.1.gz"), lines(0..3));
    assert!(!fixture.path("stdout.gz.new").exists());
}

#[test]
fn what_the_container_puts_in_the_way_is_neither_followed_nor_written_to() {
    let fixture = Fixture::new(options(4096, 2));
    let secret = fixture.directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    symlink(&secret, fixture.path("stdout")).unwrap();
    fs::hard_link(&secret, fixture.path("stderr")).unwrap();
    symlink(&secret, fixture.path("stdout.1")).unwrap();
    symlink(&secret, fixture.path("stdout.new")).unwrap();
    fs::create_dir_all(fixture.path("stdout.2/full")).unwrap();
    let report = fixture.run(|out, err| {
        out.write_all(lines(0..41).as_bytes()).unwrap();
        err.write_all(b"problem\n").unwrap();
    });
    assert_eq!(report.lost, [0, 0]);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    assert_eq!((fixture.text("stdout.1"), fixture.text("stdout")), (lines(0..40), lines(40..41)));
    assert_eq!(fixture.text("stderr"), "problem\n");
}

#[test]
fn a_file_that_cannot_be_renamed_is_counted_and_the_limits_hold() {
    let fixture = Fixture::new(options(4096, 1));
    fs::create_dir_all(fixture.path("stdout.1/full")).unwrap();
    let written = lines(0..100);
    let report = fixture.run(|out, _| out.write_all(written.as_bytes()).unwrap());
    let text = fixture.text("stdout");
    let (note, kept) = text.split_once("]\n").unwrap();
    assert!(text.len() <= 4096 && !kept.is_empty() && written.ends_with(kept), "{text}");
    // And the note in the file before.
    let note_length = note.len() as u64 + 2;
    assert_eq!(report.lost, [(written.len() - kept.len()) as u64 + note_length, 0]);
    let in_file_before = 4000 + note_length - 100;
    assert!(
        note.contains(&format!("[cofferdam: {in_file_before} bytes of output could not be written")),
        "{text}"
    );
    assert!(text.contains("the container was in the way of a rotation"), "{text}");
}

#[test]
fn what_does_not_fit_on_a_disk_is_counted_to_the_byte() {
    if !geteuid().is_root() {
        return skip("only root mounts file systems");
    }
    let fixture = Fixture::new(Options { times: true, ..options(1 << 20, 5) });
    let disk = fixture.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "none"])
        .arg(&disk)
        .status();
    assert!(mounted.unwrap().success());
    let filler = disk.join("filler");
    let written = lines(0..3000);
    let report = fixture.run_in(&disk, |out, _| {
        fs::write(&filler, vec![0; 20 << 10]).unwrap();
        out.write_all(written.as_bytes()).unwrap();
        // Until everything is read.
        while rustix::io::ioctl_fionread(&*out).unwrap() > 0 {
            std::thread::yield_now();
        }
        fs::remove_file(&filler).unwrap();
        out.write_all(b"after\n").unwrap();
    });
    let text = fs::read_to_string(disk.join("stdout")).unwrap();
    let unmounted = std::process::Command::new("umount").arg(&disk).status();
    assert!(unmounted.unwrap().success());
    let (before, after) = text.split_once("\n[cofferdam: ").unwrap();
    let (bytes, rest) = after.split_once(" bytes of output could not be written to this log: ").unwrap();
    assert_eq!(bytes.parse(), Ok(report.lost[0]));
    assert!(rest.contains("No space left on device") && rest.ends_with("]\nafter\n"), "{rest}");
    assert!(written.starts_with(before));
    assert_eq!(before.len() as u64 + report.lost[0], written.len() as u64);
}

#[test]
fn times_are_pairs_that_only_grow() {
    let fixture = Fixture::new(Options { times: true, ..options(4096, 3) });
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    fixture.run(|out, _| out.write_all(lines(0..60).as_bytes()).unwrap());
    fixture.run(|out, _| out.write_all(b"more\n").unwrap());
    assert_eq!(
        fixture.names(),
        ["stderr", "stderr.times", "stdout", "stdout.1", "stdout.1.times", "stdout.times"]
    );
    let mut last = (u64::MAX, u64::try_from(before.as_nanos()).unwrap());
    for name in ["stdout.1.times", "stdout.times"] {
        let bytes = fs::read(fixture.path(name)).unwrap();
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(16), "{}", bytes.len());
        for (index, pair) in bytes.chunks(16).enumerate() {
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            let (offset, time) = (number(&pair[..8]), number(&pair[8..]));
            assert!(time >= last.1 && (index == 0 || offset > last.0), "{last:?} {offset} {time}");
            assert!(index > 0 || offset == 0);
            last = (offset, time);
        }
    }
}

// ── the plugin ─────────────────────────────────────────────────────────────────────────────────────────────────────

fn harness(config: Json) -> PluginHarness<Logrotate> {
    PluginHarness::logger(config).unwrap()
}

/// A container with this variable in its environment.
fn container_with(harness: &PluginHarness<Logrotate>, name: &str, value: &str) -> Container {
    let mut container = harness.container("web");
    let own = (geteuid().as_raw(), rustix::process::getegid().as_raw());
    (container.uid, container.gid) = own;
    container.command.environment.insert(name.to_owned(), value.to_owned());
    container
}

/// Whether the library is there of which companions are started.
fn has_library(harness: &PluginHarness<Logrotate>) -> bool {
    match harness.open(&harness.container("probe")).map(drop) {
        Ok(()) => {
            harness.cleanup("probe").unwrap();
            true
        }
        Err(refused) if refused.message.contains("does not support companions") => {
            skip("libcofferdam_logger_logrotate.so is not there: run `cargo build --workspace` first");
            false
        }
        Err(refused) => panic!("{refused}"),
    }
}

#[test]
fn a_wrong_option_fails_the_launch_and_leaves_nothing() {
    let harness = harness(json!({}));
    let container = container_with(&harness, "CONTAINER_LOGGER_MAX_STDOUT_SIZE", "large");
    let refused = harness.open(&container).unwrap_err();
    assert!(refused.message.contains("`CONTAINER_LOGGER_MAX_STDOUT_SIZE` is `large`"), "{refused}");
    harness.cleanup("web").unwrap();
    assert_eq!(fs::read_dir(container.sandbox).unwrap().count(), 0);
    assert!(!harness.directory().join("runtime").exists());
}

#[test]
fn a_debug_container_writes_to_files() {
    let harness = harness(json!({}));
    let mut container = harness.container("web");
    container.class = ContainerClass::Debug;
    let (reply, descriptors) = harness.open(&container).unwrap();
    assert_eq!(reply.stdout, Stream::Path { path: container.sandbox.join("stdout") });
    assert_eq!(reply.stderr, Stream::Path { path: container.sandbox.join("stderr") });
    assert!(descriptors.is_empty() && reply.state.is_none() && reply.files.is_none());
    harness.cleanup("web").unwrap();
}

#[test]
fn a_companion_writes_what_comes_through_the_pipes_until_they_are_closed() {
    let harness = harness(json!({ "max_stdout_files": 3 }));
    if !has_library(&harness) {
        return;
    }
    let container = container_with(&harness, "CONTAINER_LOGGER_MAX_STDOUT_SIZE", "4096");
    let (reply, descriptors) = harness.open(&container).unwrap();
    let at = |name: &str| container.sandbox.join(name);
    let files = LogFiles { stdout: Some(at("stdout")), stderr: Some(at("stderr")), times: true };
    assert_eq!(reply.files, Some(files));
    let mut descriptors = descriptors.into_iter().map(File::from);
    let (mut out, mut err) = (descriptors.next().unwrap(), descriptors.next().unwrap());
    assert!(out.metadata().unwrap().file_type().is_fifo());
    out.write_all(lines(0..100).as_bytes()).unwrap();
    err.write_all(b"problem\n").unwrap();
    drop((out, err));
    harness.cleanup("web").unwrap();
    let text = |name| fs::read_to_string(at(name)).unwrap();
    assert_eq!(text("stdout.2") + &text("stdout.1") + &text("stdout"), lines(0..100));
    assert_eq!(text("stderr"), "problem\n");
    harness.cleanup("web").unwrap();
    assert_eq!(fs::read_dir(harness.directory().join("runtime")).unwrap().count(), 0);
}

#[test]
fn a_killed_companion_is_replaced_and_nothing_is_lost() {
    let harness = harness(json!({}));
    if !has_library(&harness) {
        return;
    }
    let mut container = container_with(&harness, "CONTAINER_LOGGER_MAX_STDOUT_SIZE", "4096");
    container.command.environment.insert("CONTAINER_LOGGER_MAX_STDOUT_FILES".into(), "100".into());
    let (_, descriptors) = harness.open(&container).unwrap();
    let mut out = descriptors.into_iter().map(File::from).next().unwrap();
    let status = Status::new(File::open(harness.directory().join("runtime/web/status")).unwrap());
    let companion = || match status.read().unwrap().pid {
        0 => None,
        pid => cofferdam_plugin_api::companion::Companion::open(pid).unwrap(),
    };
    for part in 0..4 {
        out.write_all(lines(part * 1000..part * 1000 + 1000).as_bytes()).unwrap();
        if let Some(companion) = companion() {
            companion.kill().unwrap();
        }
    }
    drop(out);
    harness.cleanup("web").unwrap();
    let rotated = (1..=100).rev().map(|number| format!("stdout.{number}"));
    let texts = rotated.chain(["stdout".into()]).map(|name| fs::read_to_string(container.sandbox.join(name)));
    let text: String = texts.flatten().collect();
    assert!(text == lines(0..4000), "{} bytes", text.len());
}

#[test]
fn the_next_instance_takes_over_and_removes_what_belongs_to_nobody() {
    let first = harness(json!({}));
    if !has_library(&first) {
        return;
    }
    let container = container_with(&first, "A", "b");
    let (_, descriptors) = first.open(&container).unwrap();
    let mut out = descriptors.into_iter().map(File::from).next().unwrap();
    let stale = first.directory().join("runtime/gone");
    fs::create_dir(&stale).unwrap();
    let recovered = || {
        let details = ContainerDetails {
            sandbox: container.sandbox.clone(),
            state: first.state("web"),
            ..ContainerDetails::default()
        };
        let written_by = Some(env!("CARGO_PKG_VERSION").parse().unwrap());
        vec![Recovered { id: "web".parse().unwrap(), details, written_by }]
    };
    out.write_all(b"one\n").unwrap();
    let reply = first.recover(recovered(), Vec::new()).unwrap();
    assert!(reply.verdicts.is_empty() && !stale.exists());
    out.write_all(b"two\n").unwrap();
    drop(out);
    first.cleanup("web").unwrap();
    assert_eq!(fs::read_to_string(container.sandbox.join("stdout")).unwrap(), "one\ntwo\n");
}
