//! Mounts, files and devices that are created while another container exchanges what is on the way, in a root that both
//! have.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cofferdam_init::plan::{Attributes, Operation};
use cofferdam_init::report::Step;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::exchange::Exchange;
use crate::harness::{Answer, Fixture, own, prints, privileged, run, write};

/// Launches for each thing that is created.
const LAUNCHES: usize = 30;

/// All paths below a directory with their kinds, modes and lengths.
fn listing(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let metadata = entry.path().symlink_metadata().unwrap();
            let owner = (metadata.uid(), metadata.gid());
            found.insert(format!(
                "{} {:o} {owner:?} {}",
                entry.path().display(),
                metadata.mode(),
                metadata.len()
            ));
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found
}

/// A directory of the host, with the directory `inner` and the file `note`.
fn victim(fixture: &Fixture) -> PathBuf {
    let victim = fixture.path("victim");
    fs::create_dir_all(victim.join("inner")).unwrap();
    write(victim.join("note"), "host\n");
    victim
}

/// What a plan may create or mount at `/shared/dir`.
fn operations(fixture: &Fixture) -> Vec<(Step, Operation)> {
    let bind = |source: &str, target: &str| Operation::Bind {
        source: fixture.path(source),
        target: target.into(),
        attributes: Attributes::default(),
        recursive: false,
    };
    let directory =
        |path: &str| Operation::Directory { path: path.into(), mode: 0o777, uid: 1234, gid: 1234 };
    vec![
        (Step::Bind, bind("volume", "/shared/dir/inner")),
        (Step::Bind, bind("volume", "/shared/dir/new/inner")),
        (Step::Bind, bind("volume/file", "/shared/dir/note")),
        (Step::Bind, bind("volume/file", "/shared/dir/new/note")),
        (
            Step::Filesystem,
            Operation::Filesystem {
                kind: "tmpfs".into(),
                target: "/shared/dir/inner".into(),
                attributes: Attributes::default(),
                options: Vec::new(),
            },
        ),
        (Step::Directory, directory("/shared/dir/inner")),
        (Step::Directory, directory("/shared/dir/made/below")),
        (
            Step::WriteFile,
            Operation::WriteFile {
                path: "/shared/dir/note".into(),
                content: "container\n".into(),
                mode: 0o666,
                uid: 1234,
                gid: 1234,
            },
        ),
        (
            Step::Device,
            Operation::Device {
                path: "/shared/dir/null".into(),
                mode: 0o020_666,
                major: 1,
                minor: 3,
                uid: 1234,
                gid: 1234,
            },
        ),
        (Step::Symlink, Operation::Symlink { path: "/shared/dir/link".into(), target: "/".into() }),
        (Step::Mask, Operation::Mask { path: "/shared/dir/note".into() }),
        (Step::ReadOnly, Operation::ReadOnly { path: "/shared/dir/inner".into() }),
    ]
}

/// As in CVE-2021-30465, where the target of a mount became a link to the host, and CVE-2024-45310, where directories and
/// files were created there.
#[test]
fn nothing_is_created_or_mounted_through_a_directory_that_becomes_a_link_to_the_host() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path("volume")).unwrap();
    write(fixture.path("volume/file"), "volume\n");
    let victim = victim(&fixture);
    let shared = fixture.rootfs().join("shared");
    fs::create_dir_all(shared.join("dir/inner")).unwrap();
    write(shared.join("dir/note"), "image\n");
    let before = listing(&victim);
    for target in [victim.clone(), "../../victim".into()] {
        symlink(&target, shared.join("other")).unwrap();
        for (step, operation) in operations(&fixture) {
            let mut plan = fixture.script("true");
            plan.operations = vec![operation];
            let _exchange = Exchange::start(&shared, ["dir", "other"]);
            for _ in 0..LAUNCHES / 6 {
                // The link leads to a path in the root that does not exist.
                match run(own(), &plan).answer {
                    Answer::Runs => {}
                    Answer::Failed { step: failed, errno, .. } if failed == step => {
                        assert_ne!(errno, 0, "{plan:?}");
                    }
                    other => panic!("{other:?}: {plan:?}"),
                }
                assert_eq!(listing(&victim), before, "{}: {plan:?}", target.display());
            }
        }
        // Whichever of the two names it has now.
        for name in ["dir", "other"] {
            if shared.join(name).is_symlink() {
                fs::remove_file(shared.join(name)).unwrap();
            }
        }
        if !shared.join("dir").exists() {
            fs::rename(shared.join("other"), shared.join("dir")).unwrap();
        }
    }
    // Without an attack, each of them works.
    for (_, operation) in operations(&fixture) {
        let mut plan = fixture.script("true");
        plan.operations = vec![operation];
        assert_eq!(prints(&plan), "");
    }
}

/// As in CVE-2025-31133: a mask was a bind mount of the `/dev/null` of the image.
#[test]
fn a_mask_is_the_null_device_of_the_host_whatever_the_root_has_in_its_place() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let dev = fixture.rootfs().join("dev");
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, dev.join("null"), FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
    symlink("/etc/decoy", dev.join("other")).unwrap();
    write(fixture.rootfs().join("etc/decoy"), "decoy\n");
    let mut plan = fixture.script("busybox stat -c '%F %t:%T' /proc/keys /etc/masked");
    write(fixture.rootfs().join("etc/masked"), "secret\n");
    plan.operations = vec![
        Operation::Filesystem {
            kind: "proc".into(),
            target: "/proc".into(),
            attributes: Attributes::default(),
            options: Vec::new(),
        },
        Operation::Mask { path: "/proc/keys".into() },
        Operation::Mask { path: "/etc/masked".into() },
    ];
    let _exchange = Exchange::start(&dev, ["null", "other"]);
    for _ in 0..LAUNCHES {
        assert_eq!(prints(&plan), "character special file 1:3\ncharacter special file 1:3\n");
    }
}

/// Likewise for a device that is there already.
#[test]
fn no_device_is_created_outside_whatever_takes_its_place_meanwhile() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let victim = victim(&fixture);
    let before = listing(&victim);
    let dev = fixture.rootfs().join("dev");
    let mut plan = fixture.script("true");
    plan.operations = vec![Operation::Device {
        path: "/dev/null".into(),
        mode: 0o020_666,
        major: 1,
        minor: 3,
        uid: 1234,
        gid: 1234,
    }];
    for _ in 0..LAUNCHES {
        for name in ["null", "other"] {
            drop(fs::remove_file(dev.join(name)));
        }
        // With other permissions, so that it is replaced.
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, dev.join("null"), FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
        symlink("../../victim/note", dev.join("other")).unwrap();
        let exchange = Exchange::start(&dev, ["null", "other"]);
        let end = run(own(), &plan);
        drop(exchange);
        assert!(matches!(end.answer, Answer::Runs | Answer::Failed { step: Step::Device, .. }), "{end:?}");
        // What is in its own place is up to whoever exchanges it.
        assert_eq!(listing(&victim), before);
    }
}
