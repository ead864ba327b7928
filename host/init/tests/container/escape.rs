//! Root file systems that try to reach the host while the container is set up.

use std::fs;
use std::os::unix::fs::symlink;

use cofferdam_init::plan::{Attributes, Operation, Root, WorkingDirectory};
use cofferdam_init::report::Step;

use crate::harness::{Answer, Fixture, own, prints, privileged, run, write};

/// A fixture with a directory `victim` beside the root file system, as the host's files are.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("victim")).unwrap();
    write(fixture.path("victim/file"), "host\n");
    fixture
}

fn assert_victim_unchanged(fixture: &Fixture) {
    let mut names: Vec<_> =
        fs::read_dir(fixture.path("victim")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read_to_string(fixture.path("victim/file")).unwrap(), "host\n");
}

#[test]
fn a_proc_that_links_outside_is_mounted_inside() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let rootfs = fixture.rootfs();
    fs::remove_dir(rootfs.join("proc")).unwrap();
    // Resolved on the host, this leads to the victim.
    symlink("../victim", rootfs.join("proc")).unwrap();
    let mount = Operation::Filesystem {
        kind: "proc".into(),
        target: "/proc".into(),
        attributes: Attributes::default(),
        options: Vec::new(),
    };
    let mut plan = fixture.script("ls /");
    plan.operations = vec![mount];
    let end = run(own(), &plan);
    // A dangling link inside: there is nothing to mount on, and nothing is created through a link.
    assert!(matches!(end.answer, Answer::Failed { step: Step::Filesystem, errno: 2, .. }), "{end:?}");
    assert_victim_unchanged(&fixture);

    // With a directory of that name inside, the mount goes there.
    fs::create_dir(rootfs.join("victim")).unwrap();
    plan.arguments[2] = "test -e /victim/self && echo inside".into();
    assert_eq!(prints(&plan), "inside\n");
    assert_victim_unchanged(&fixture);
}

#[test]
fn operations_through_links_stay_in_the_root() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let rootfs = fixture.rootfs();
    let absolute = fixture.path("victim");
    fs::create_dir_all(rootfs.join("victim")).unwrap();
    fs::create_dir_all(rootfs.join(absolute.strip_prefix("/").unwrap())).unwrap();
    fs::remove_dir(rootfs.join("dev")).unwrap();
    symlink(&absolute, rootfs.join("dev")).unwrap();
    symlink("../../../../../../../../victim", rootfs.join("up")).unwrap();
    write(fixture.path("source"), "source\n");

    let mut plan = fixture.script("cat /up/bound; ls /dev; ls /up");
    plan.operations = vec![
        Operation::Device { path: "/dev/null".into(), mode: 0o020_666, major: 1, minor: 3, uid: 0, gid: 0 },
        Operation::Symlink { path: "/dev/link".into(), target: "/".into() },
        Operation::Directory { path: "/dev/made/below".into(), mode: 0o777, uid: 0, gid: 0 },
        Operation::Bind {
            source: fixture.path("source"),
            target: "/up/bound".into(),
            attributes: Attributes::default(),
            recursive: false,
        },
        Operation::Bind {
            source: fixture.path("source"),
            target: "/../../up/dots".into(),
            attributes: Attributes::default(),
            recursive: false,
        },
        Operation::Mask { path: "/up/file".into() },
    ];
    assert_eq!(prints(&plan), "source\nlink\nmade\nnull\nbound\ndots\n");
    assert_victim_unchanged(&fixture);
}

#[test]
fn a_device_is_not_created_through_a_link_at_its_path() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    symlink("/../victim/new", fixture.rootfs().join("dev/null")).unwrap();
    let mut plan = fixture.script("");
    plan.operations = vec![Operation::Device {
        path: "/dev/null".into(),
        mode: 0o020_666,
        major: 1,
        minor: 3,
        uid: 0,
        gid: 0,
    }];
    let detail = "/dev/null".to_owned();
    assert_eq!(run(own(), &plan).answer, Answer::Failed { step: Step::Device, errno: 17, detail });
    assert_victim_unchanged(&fixture);
}

/// CVE-2024-21626 escaped from the container with a working directory reached through an open descriptor.
#[test]
fn the_working_directory_cannot_be_reached_through_a_descriptor() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    for number in 3..12 {
        let mut plan = fixture.script("ls; pwd");
        plan.operations = vec![Operation::Filesystem {
            kind: "proc".into(),
            target: "/proc".into(),
            attributes: Attributes::default(),
            options: Vec::new(),
        }];
        let path = format!("/proc/self/fd/{number}");
        plan.working_directory = Some(WorkingDirectory { path: path.clone().into(), create: false });
        let end = run(own(), &plan);
        match end.answer {
            Answer::Failed { step: Step::WorkingDirectory, .. } => assert_eq!(end.output, ""),
            // A descriptor of the container's own root is equivalent to its path.
            Answer::Runs => assert!(end.output.ends_with("tmp\n/\n"), "{path}: {}", end.output),
            other => panic!("{path}: {other:?}"),
        }
    }
}

/// The layers of the root are still open when the working directory is created.
#[test]
fn a_working_directory_is_not_created_outside_the_root() {
    if !privileged() {
        return;
    }
    for number in 3..16 {
        for beyond in ["", "/../victim"] {
            let fixture = fixture();
            symlink(format!("/proc/self/fd/{number}{beyond}"), fixture.rootfs().join("app")).unwrap();
            for layer in ["upper", "work"] {
                fs::create_dir(fixture.path(layer)).unwrap();
            }
            let mut plan = fixture.script("true");
            plan.root = Root::Overlay {
                lowers: vec![fixture.rootfs()],
                upper: Some(fixture.path("upper")),
                work: Some(fixture.path("work")),
                volatile: true,
            };
            plan.operations = vec![Operation::Filesystem {
                kind: "proc".into(),
                target: "/proc".into(),
                attributes: Attributes::default(),
                options: Vec::new(),
            }];
            plan.working_directory = Some(WorkingDirectory { path: "/app/data".into(), create: true });
            let end = run(own(), &plan);
            assert!(
                matches!(end.answer, Answer::Failed { step: Step::WorkingDirectory, .. }),
                "{number}: {end:?}"
            );
            assert_victim_unchanged(&fixture);
            for place in ["", "rootfs", "upper", "work"] {
                assert!(!fixture.path(place).join("data").exists(), "{number}{beyond}: created in `{place}`");
            }
        }
    }
}

#[test]
fn the_image_cannot_be_overwritten_from_inside() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let mut plan = fixture.script("cat /proc/1/comm; echo x 2>&1 > /proc/1/exe || echo refused");
    plan.operations = vec![Operation::Filesystem {
        kind: "proc".into(),
        target: "/proc".into(),
        attributes: Attributes::default(),
        options: Vec::new(),
    }];
    let output = run(own(), &plan).output;
    assert!(output.starts_with("cofferdam-init\n"), "{output}");
    assert!(
        output.contains("refused") || output.contains("not permitted") || output.contains("busy"),
        "{output}"
    );
}
