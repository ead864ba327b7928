//! Roots that want to reach the host while it builds a container around them.

use std::fs;
use std::os::unix::fs::symlink;

use cofferdam_init::plan::{Attributes, Operation, Root, Workplace};
use cofferdam_init::report::Step;

use crate::bench::{Answer, World, own, prints, privileged, run, write};

/// A world in which `victim` lies beside the rootfs, as the host's files do.
fn world() -> World {
    let world = World::new();
    fs::create_dir(world.path("victim")).unwrap();
    write(world.path("victim/file"), "host\n");
    world
}

fn untouched(world: &World) {
    let mut names: Vec<_> =
        fs::read_dir(world.path("victim")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read_to_string(world.path("victim/file")).unwrap(), "host\n");
}

#[test]
fn a_proc_that_links_outside_is_mounted_inside() {
    if !privileged() {
        return;
    }
    let world = world();
    let rootfs = world.rootfs();
    fs::remove_dir(rootfs.join("proc")).unwrap();
    // Seen from the host, these lead to the victim.
    symlink("../victim", rootfs.join("proc")).unwrap();
    let mount = Operation::Filesystem {
        kind: "proc".into(),
        target: "/proc".into(),
        attributes: Attributes::default(),
        options: Vec::new(),
    };
    let mut plan = world.script("ls /");
    plan.operations = vec![mount];
    let end = run(own(), &plan);
    // A dangling link inside: there is nothing to mount on, and nothing is made through a link.
    assert!(matches!(end.answer, Answer::Failed { step: Step::Filesystem, errno: 2, .. }), "{end:?}");
    untouched(&world);

    // With a place of that name inside, that is where it goes.
    fs::create_dir(rootfs.join("victim")).unwrap();
    plan.arguments[2] = "test -e /victim/self && echo inside".into();
    assert_eq!(prints(&plan), "inside\n");
    untouched(&world);
}

#[test]
fn operations_through_links_stay_in_the_root() {
    if !privileged() {
        return;
    }
    let world = world();
    let rootfs = world.rootfs();
    let absolute = world.path("victim");
    fs::create_dir_all(rootfs.join("victim")).unwrap();
    fs::create_dir_all(rootfs.join(absolute.strip_prefix("/").unwrap())).unwrap();
    fs::remove_dir(rootfs.join("dev")).unwrap();
    symlink(&absolute, rootfs.join("dev")).unwrap();
    symlink("../../../../../../../../victim", rootfs.join("up")).unwrap();
    write(world.path("source"), "source\n");

    let mut plan = world.script("cat /up/bound; ls /dev; ls /up");
    plan.operations = vec![
        Operation::Device { path: "/dev/null".into(), mode: 0o020_666, major: 1, minor: 3 },
        Operation::Symlink { path: "/dev/link".into(), target: "/".into() },
        Operation::Directory { path: "/dev/made/below".into(), mode: 0o777, uid: 0, gid: 0 },
        Operation::Bind {
            source: world.path("source"),
            target: "/up/bound".into(),
            attributes: Attributes::default(),
            recursive: false,
        },
        Operation::Bind {
            source: world.path("source"),
            target: "/../../up/../victim/dots".into(),
            attributes: Attributes::default(),
            recursive: false,
        },
        Operation::Mask { path: "/up/file".into() },
    ];
    assert_eq!(prints(&plan), "source\nlink\nmade\nnull\nbound\ndots\n");
    untouched(&world);
}

#[test]
fn a_device_is_not_made_through_a_link_in_its_place() {
    if !privileged() {
        return;
    }
    let world = world();
    symlink("/../victim/new", world.rootfs().join("dev/null")).unwrap();
    let mut plan = world.script("");
    plan.operations =
        vec![Operation::Device { path: "/dev/null".into(), mode: 0o020_666, major: 1, minor: 3 }];
    let detail = "/dev/null".to_owned();
    assert_eq!(run(own(), &plan).answer, Answer::Failed { step: Step::Device, errno: 17, detail });
    untouched(&world);
}

/// A working directory through a descriptor that somebody forgot to close is how CVE-2024-21626 left the container.
#[test]
fn the_workplace_cannot_be_reached_through_a_descriptor() {
    if !privileged() {
        return;
    }
    let world = world();
    for number in 3..12 {
        let mut plan = world.script("ls; pwd");
        plan.operations = vec![Operation::Filesystem {
            kind: "proc".into(),
            target: "/proc".into(),
            attributes: Attributes::default(),
            options: Vec::new(),
        }];
        let path = format!("/proc/self/fd/{number}");
        plan.workplace = Some(Workplace { path: path.clone().into(), create: false });
        let end = run(own(), &plan);
        match end.answer {
            Answer::Failed { step: Step::Workplace, .. } => assert_eq!(end.output, ""),
            // A descriptor on the container's own root is as good as its path.
            Answer::Runs => assert!(end.output.ends_with("tmp\n/\n"), "{path}: {}", end.output),
            other => panic!("{path}: {other:?}"),
        }
    }
}

/// The layers of the root are still open when the working directory is made.
#[test]
fn a_workplace_is_not_made_outside() {
    if !privileged() {
        return;
    }
    for number in 3..16 {
        for beyond in ["", "/../victim"] {
            let world = world();
            symlink(format!("/proc/self/fd/{number}{beyond}"), world.rootfs().join("app")).unwrap();
            for layer in ["upper", "work"] {
                fs::create_dir(world.path(layer)).unwrap();
            }
            let mut plan = world.script("true");
            plan.root = Root::Overlay {
                lowers: vec![world.rootfs()],
                upper: Some(world.path("upper")),
                work: Some(world.path("work")),
                volatile: true,
            };
            plan.operations = vec![Operation::Filesystem {
                kind: "proc".into(),
                target: "/proc".into(),
                attributes: Attributes::default(),
                options: Vec::new(),
            }];
            plan.workplace = Some(Workplace { path: "/app/data".into(), create: true });
            let end = run(own(), &plan);
            assert!(matches!(end.answer, Answer::Failed { step: Step::Workplace, .. }), "{number}: {end:?}");
            untouched(&world);
            for place in ["", "rootfs", "upper", "work"] {
                assert!(!world.path(place).join("data").exists(), "{number}{beyond}: made in `{place}`");
            }
        }
    }
}

#[test]
fn the_image_cannot_be_overwritten_from_inside() {
    if !privileged() {
        return;
    }
    let world = world();
    let mut plan = world.script("cat /proc/1/comm; echo x 2>&1 > /proc/1/exe || echo refused");
    plan.operations = vec![Operation::Filesystem {
        kind: "proc".into(),
        target: "/proc".into(),
        attributes: Attributes::default(),
        options: Vec::new(),
    }];
    let said = run(own(), &plan).output;
    assert!(said.starts_with("cofferdam-init\n"), "{said}");
    assert!(said.contains("refused") || said.contains("not permitted") || said.contains("busy"), "{said}");
}
