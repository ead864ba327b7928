//! The store: imports that are killed or concurrent, and what is removed and what stays.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::images::{Layer, Layout, busybox};
use cofferdam_tests::injector::{Fault, Injector};
use cofferdam_tests::world::{id, with_agent};
use cofferdam_tests::{assert_contains, is_root};
use serde_json::json;

use super::{Fixture, own, request};

/// More steps than an import of a small image has.
const MAX_STEPS: usize = 2000;

/// Two layers with a file each.
fn layers() -> [Layer; 2] {
    [Layer::new().directory("d").file("d/one", b"1"), Layer::new().file("d/two", b"2").symlink("link", "d")]
}

#[test]
fn an_import_that_is_killed_anywhere_leaves_a_store_that_works() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let layout = Layout::create(&fixture.path("layout"), "web:1", &layers(), json!({}));
    let kept = Layout::create(&fixture.path("kept"), "kept:1", &[Layer::new().file("kept", b"")], json!({}));
    fixture.images.run(&["import", kept.path.to_str().unwrap()]);
    let mut hits = 0;
    for step in 1..MAX_STEPS {
        let mut command = fixture.images.command(&["import", layout.path.to_str().unwrap()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (mut child, injector) = Injector::spawn(command).unwrap();
        injector.arm(Fault::Kill, &[step]);
        let status = child.wait().unwrap();
        let seen = injector.disarm();
        let hit = seen.hit.first().map(ToString::to_string);
        if hit.is_none() {
            assert!(status.success());
            break;
        }
        hits += 1;
        // What was complete is there, and whatever is listed can be used.
        let listed = fixture.images.run(&["ls"]);
        assert!(listed.contains("kept:1"), "after {hit:?}: {listed}");
        for line in listed.lines().skip(1) {
            fixture.images.inspect(line.split_whitespace().next().unwrap());
        }
        // The next import completes it and removes what is left.
        fixture.images.run(&["import", layout.path.to_str().unwrap()]);
        assert_eq!(fixture.images.entries("staging"), Vec::<String>::new(), "after {hit:?}");
        let two = fixture.images.layer("web:1", 1).join("d/two");
        assert_eq!(fs::read_to_string(two).unwrap(), "2", "after {hit:?}");
        fixture.images.run(&["rm", "web:1"]);
        assert_eq!(fixture.images.entries("layers/sha256").len(), 1, "after {hit:?}");
    }
    assert!(hits > 10, "only {hits} steps");
}

#[test]
fn concurrent_imports_and_removals_do_not_disturb_each_other() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let shared = busybox();
    let sources: Vec<_> = (0..4)
        .map(|number| {
            let own = Layer::new().file("own", number.to_string().as_bytes());
            let name = format!("web:{number}");
            Layout::create(&fixture.path(&name.replace(':', "-")), &name, &[shared.clone(), own], json!({}))
        })
        .collect();
    let images = &fixture.images;
    thread::scope(|scope| {
        for source in &sources {
            for _ in 0..2 {
                scope.spawn(move || images.run(&["import", "-q", source.path.to_str().unwrap()]));
            }
        }
        scope.spawn(|| (0..4).for_each(|_| drop(images.run(&["prune"]))));
    });
    for number in 0..4 {
        let own = fixture.images.layer(&format!("web:{number}"), 1).join("own");
        assert_eq!(fs::read_to_string(own).unwrap(), number.to_string());
    }
    assert_eq!(fixture.images.entries("layers/sha256").len(), 5);
    fixture.images.run(&["prune"]);
    assert_eq!(fixture.images.entries("staging"), Vec::<String>::new());
}

#[test]
fn removed_images_leave_what_others_use() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let [shared, own] = layers();
    fixture.image("base:1", std::slice::from_ref(&shared), json!({}));
    fixture.image("web:1", &[shared, own], json!({}));
    let base = fixture.images.layer("base:1", 0);
    assert_eq!(fixture.images.run(&["rm", "web:1"]), "web:1\n");
    assert!(base.join("d/one").exists());
    assert_eq!(fixture.images.entries("layers/sha256").len(), 1);
    assert_contains(&fixture.images.error(&["rm", "web:1"]), &["`web:1`"]);
    // A name can move to another image; then nothing names the old one.
    fixture.image("base:1", &[Layer::new().file("new", b"")], json!({}));
    assert_eq!(fixture.images.entries("layers/sha256").len(), 2);
    assert_contains(&fixture.images.run(&["prune"]), &["in 1 layers"]);
    assert!(!base.exists());
    fixture.image("kept:1", &[Layer::new().file("kept", b"")], json!({}));
    let pruned = fixture.images.run(&["prune", "--all", "--keep", "kept:1"]);
    assert_contains(&pruned, &["base:1\n", "in 1 layers"]);
    assert_eq!(fixture.images.run(&["ls", "-q"]).lines().count(), 1);
    fixture.images.run(&["prune", "--all"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
}

#[test]
fn a_store_that_others_can_enter_or_that_is_damaged_is_not_used() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("web:1", &layers(), json!({}));
    let set_mode =
        |mode| fs::set_permissions(&fixture.images.store, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o755);
    assert_contains(&fixture.images.error(&["ls"]), &["mode 0700", "set-user-ID"]);
    set_mode(0o700);
    let id = fixture.images.inspect("web:1")["id"].as_str().unwrap().to_owned();
    let blob = fixture.images.store.join("blobs/sha256").join(&id[7..]);
    fs::File::options().append(true).open(&blob).unwrap().write_all(b" ").unwrap();
    assert_contains(
        &fixture.images.error(&["inspect", "web:1"]),
        &["is damaged", "import or pull the image again"],
    );
    // Importing it again mends it.
    let layout = fixture.path("layout-web-1");
    fixture.images.run(&["import", layout.to_str().unwrap()]);
    fixture.images.inspect("web:1");
    fs::remove_file(fixture.images.layer("web:1", 0).with_file_name("size")).unwrap();
    assert_contains(&fixture.images.error(&["inspect", "web:1"]), &["is missing"]);
}

#[test]
fn what_a_container_uses_stays_until_it_has_ended() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("web:1", &[busybox(), Layer::new().file("motd", b"hello\n")], json!({}));
    let world = fixture.world();
    let daemon = Daemon::start(&world);
    drop(daemon);
    with_agent(&world, async |agent| {
        agent.launch(request("web", "web:1", "cat /motd; sleep 1000")).await.unwrap();
        fixture.images.run(&["rm", "web:1"]);
        fixture.images.run(&["prune", "--all"]);
        assert_eq!(fixture.images.entries("layers/sha256").len(), 2, "they are in use");
        // A container that has not begun yet finds it no more.
        let error = cofferdam_tests::world::launch_error(&agent, request("late", "web:1", "true")).await;
        assert_contains(&error, &["`late`", "`web:1`", "import"]);
    });
    // The next agent takes the container over, and releases the image at its end.
    with_agent(&world, async |agent| {
        assert_eq!(fixture.images.run(&["prune"]), "freed 0 B in 0 layers\n");
        agent.destroy(&id("web")).await.unwrap();
        agent.remove(&id("web")).await.unwrap();
        assert_contains(&fixture.images.run(&["prune"]), &["in 2 layers"]);
    });
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn a_use_that_a_power_failure_has_cut_off_keeps_nothing() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("web:1", &layers(), json!({}));
    let uses = fixture.images.store.join("uses/0123456789abcdef");
    fs::create_dir_all(&uses).unwrap();
    fs::write(uses.join("web"), "").unwrap();
    assert_contains(&fixture.images.run(&["prune", "--all"]), &["in 2 layers"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
}

#[test]
fn an_import_holds_no_lock_while_it_reads_standard_input() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("web:1", &layers(), json!({}));
    let mut command = fixture.images.command(&["import", "--name", "late:1", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let archive = Layer::new().file("large", &[b'x'; 1 << 20]).bytes();
    // More than a pipe holds, so it has begun to read when this is written.
    input.write_all(&archive[..512 << 10]).unwrap();
    fixture.images.run(&["rm", "web:1"]);
    input.write_all(&archive[512 << 10..]).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    fixture.images.inspect("late:1");
}

#[test]
fn no_archive_takes_over_ids_or_names_with_a_digest() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("web:1", &layers(), json!({}));
    let shown = fixture.images.inspect("web:1");
    let id = shown["id"].as_str().unwrap();
    let hostile = [Layer::new().file("hostile", b"")];
    let digits = id.strip_prefix("sha256:").unwrap();
    for name in [id.to_owned(), digits.to_owned(), format!("docker.io/library/{id}"), format!("web@{id}")] {
        let path = fixture.path("hostile");
        drop(fs::remove_dir_all(&path));
        let source = Layout::create(&path, "x", &hostile, json!({}));
        let path = source.path.to_str().unwrap();
        let error = fixture.images.error(&["import", "--name", &name, path]);
        assert!(error.contains("taken for one") || error.contains("is not a name of"), "{name}: {error}");
        Layout::create(&source.path, &name, &hostile, json!({}));
        fixture.images.error(&["import", path]);
        for found in [id, digits, &digits[..12]] {
            assert_eq!(fixture.images.inspect(found)["id"], id, "{name}");
        }
        fixture.images.run(&["prune"]);
    }
    assert_eq!(fixture.images.entries("layers/sha256").len(), 2);
}

#[test]
fn an_agent_releases_what_containers_used_that_are_gone() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("web:1", &[busybox()], json!({}));
    let world = fixture.world();
    with_agent(&world, async |agent| {
        agent.launch(request("web", "web:1", "sleep 1000")).await.unwrap();
        let uses = fixture.images.entries("uses");
        let [own] = &uses[..] else { panic!("{uses:?}") };
        // As an agent leaves it that dies before the container has a record.
        let directory = fixture.images.store.join("uses").join(own);
        fs::copy(directory.join("web"), directory.join("gone")).unwrap();
    });
    with_agent(&world, async |agent| {
        let own = fixture.images.entries("uses").pop().unwrap();
        assert_eq!(fixture.images.entries(&format!("uses/{own}")), ["web"]);
        agent.destroy(&id("web")).await.unwrap();
        assert_eq!(fixture.images.entries("uses"), Vec::<String>::new());
    });
}

#[test]
fn a_launch_from_an_image_that_fails_anywhere_leaves_nothing_behind() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let config = json!({ "Cmd": ["sleep", "1000"], "User": "web" });
    fixture.image("web:1", &[busybox(), Layer::new().file("more", b"")], config);
    let world = fixture.world();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    let web = own("web", "web:1");
    for step in 1..MAX_STEPS {
        injector.arm(Fault::Fail, &[step]);
        let outcome = daemon.launch(&web);
        let hit = injector.disarm().hit.first().map(ToString::to_string);
        if outcome.is_ok() {
            daemon.destroy(&web.id).unwrap();
            daemon.remove(&web.id).unwrap();
        }
        assert_eq!(world.leftovers(), Vec::<String>::new(), "after {hit:?}: {outcome:?}\n{}", daemon.log());
        for agent in fixture.images.entries("uses") {
            let uses = fixture.images.entries(&format!("uses/{agent}"));
            assert_eq!(uses, Vec::<String>::new(), "after {hit:?}");
        }
        if hit.is_none() {
            return outcome.unwrap();
        }
    }
    panic!("a launch has more than {MAX_STEPS} steps");
}
