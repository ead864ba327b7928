//! The root filesystem, and every operation on the container's view of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use cofferdam_tests::{is_root, text};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::{Value as Json, json};

use super::Fixture;

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_the_root_and_is_changed() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start_with(Vec::new(), Vec::new()).await;
    let request = fixture.request_with_root(&json!({}), "echo changed > /new; cat /new");
    assert_eq!(fixture.run(request).await, "changed\n");
    assert_eq!(text(&fixture.world.rootfs().join("new")), "changed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_is_the_root_and_only_its_upper_layer_is_changed() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start_with(Vec::new(), Vec::new()).await;
    let layer = |name: &str| {
        let path = fixture.world.directory().join(format!("layer-{name}"));
        fs::create_dir(&path).unwrap();
        path
    };
    let (top, middle, upper, work) = (layer("top"), layer("middle"), layer("upper"), layer("work"));
    for (path, content) in [(&top, "top"), (&middle, "middle")] {
        fs::write(path.join("file"), content).unwrap();
    }
    fs::write(middle.join("below"), "middle").unwrap();
    let root = json!({ "type": "overlay", "lower": [top, middle, fixture.world.rootfs()], "upper": upper, "work": work });
    let launch = json!({ "root": root, "clone_namespaces": ["mount"] });
    let line = "cat /file; echo; cat /below; echo; echo new > /file; cat /file";
    assert_eq!(fixture.output(launch, line).await, "top\nmiddle\nnew\n");
    assert_eq!(text(&top.join("file")), "top");
    assert_eq!(text(&upper.join("file")), "new\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_directories_of_the_host_are_bind_mounted() {
    if !is_root("mounts") {
        return;
    }
    let fixture = Fixture::start().await;
    let source = fixture.world.directory().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "of the host\n").unwrap();
    let bind = |source: Json, target: &str, recursive: bool, flags: &[&str]| json!({ "type": "bind", "source": source, "target": target, "recursive": recursive, "flags": flags });
    let operations = json!([
        bind(json!(source.join("file")), "/mnt/one/file", false, &["ro"]),
        bind(json!(source), "/mnt/all", false, &["nosuid", "nodev", "noexec"]),
        // Hierarchies of cgroups are mounted below it.
        bind(json!("/sys/fs"), "/mnt/flat", false, &[]),
        bind(json!("/sys/fs"), "/mnt/deep", true, &[]),
    ]);
    let line = "cat /mnt/one/file; touch /mnt/one/file 2>&1; echo from inside > /mnt/all/new; \
                grep ' /mnt/all ' /proc/mounts | cut -d ' ' -f 4; \
                ls /mnt/flat/cgroup | wc -l; test $(ls /mnt/deep/cgroup | wc -l) -gt 0 && echo more";
    let output = fixture.output(json!({ "operations": operations }), line).await;
    let lines: Vec<&str> = output.lines().collect();
    let [content, read_only, options, flat, more] = lines[..] else { panic!("{output}") };
    assert_eq!((content, flat, more), ("of the host", "0", "more"));
    assert_eq!(read_only, "touch: /mnt/one/file: Read-only file system");
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|found| found == option), "{option} of {options}");
    }
    assert_eq!(text(&source.join("new")), "from inside\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_descriptor_refers_to_is_bind_mounted() {
    if !is_root("mounts") {
        return;
    }
    let fixture = Fixture::start().await;
    let directory = fixture.world.directory().join("directory");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("inside"), "in a directory\n").unwrap();
    let file = fixture.world.directory().join("file");
    fs::write(&file, "a file\n").unwrap();
    let table = json!({ "bind": [
        { "source": file, "target": "/mnt/file" },
        { "source": directory, "target": "/mnt/directory", "flags": ["ro"] },
        { "source": directory, "target": "/mnt/detached", "detached": true },
    ] });
    let line = "cat /mnt/file /mnt/directory/inside; touch /mnt/directory/x 2>&1; \
                echo more >> /mnt/file; touch /mnt/detached/new";
    assert_eq!(
        fixture.run(fixture.request(&table, line)).await,
        "a file\nin a directory\ntouch: /mnt/directory/x: Read-only file system\n"
    );
    assert_eq!(text(&file), "a file\nmore\n");
    assert!(directory.join("new").exists());
}

/// A clone of a shared mount is shared with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_mounts_in_a_mount_by_descriptor_does_not_reach_the_host() {
    if !is_root("mounts") {
        return;
    }
    let fixture = Fixture::start().await;
    let shared = fixture.world.directory().join("shared");
    fs::create_dir(&shared).unwrap();
    mount("none", &shared, "tmpfs", MountFlags::empty(), None).unwrap();
    mount_change(&shared, MountPropagationFlags::SHARED).unwrap();
    fs::create_dir(shared.join("inner")).unwrap();
    let table = json!({ "bind": [
        { "source": shared, "target": "/mnt/open" },
        { "source": shared, "target": "/mnt/detached", "detached": true },
    ] });
    let line = "for at in open detached; do busybox mount -t tmpfs none /mnt/$at/inner && touch /mnt/$at/inner/x; done; \
                ls /mnt/open/inner /mnt/detached/inner; grep -c ' shared:' /proc/self/mountinfo";
    let request = fixture.request(&table, line);
    let output = cofferdam_tests::world::run(&fixture.agent, request).await;
    let on_host = fs::read_dir(shared.join("inner")).unwrap().count();
    unmount(&shared, UnmountFlags::DETACH).unwrap();
    assert_eq!(output, "/mnt/detached/inner:\nx\n\n/mnt/open/inner:\nx\n0\n");
    assert_eq!(on_host, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_is_mounted_with_its_flags_and_options() {
    if !is_root("mounts") {
        return;
    }
    let tmpfs = json!([{
        "type": "mount", "fstype": "tmpfs", "target": "/on/the/way",
        "flags": ["noexec", "nosuid", "nodev", "strictatime"], "options": ["size=64k", "mode=1750"],
    }]);
    let line = "busybox stat -c %a /on/the/way; grep ' /on/the/way ' /proc/mounts; \
                dd if=/dev/zero of=/on/the/way/large bs=1k count=65 2>&1 | grep -o 'No space left on device'";
    let fixture = Fixture::start().await;
    let output = fixture.output(json!({ "operations": tmpfs }), line).await;
    let lines: Vec<&str> = output.lines().collect();
    let [mode, mount, full] = lines[..] else { panic!("{output}") };
    assert_eq!((mode, full), ("1750", "No space left on device"));
    let fields: Vec<&str> = mount.split(' ').collect();
    assert_eq!(fields[2], "tmpfs");
    for option in ["noexec", "nosuid", "nodev", "size=64k", "mode=1750"] {
        assert!(fields[3].split(',').any(|found| found == option), "{option} of {mount}");
    }
    assert!(!mount.contains("relatime"), "{mount}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_moved_and_have_their_propagation() {
    if !is_root("mounts") {
        return;
    }
    let mount = |target: &str| json!({ "type": "mount", "fstype": "tmpfs", "target": target });
    let set = |path: &str, propagation: &str, recursive: bool| json!({ "type": "propagation", "path": path, "propagation": propagation, "recursive": recursive });
    let operations = json!([
        mount("/first"),
        { "type": "write_file", "path": "/first/file", "content": "moved\n", "mode": 0o644 },
        { "type": "move", "source": "/first", "target": "/moved" },
        set("/moved", "shared", false),
        mount("/outer"), mount("/outer/inner"), set("/outer", "shared", true),
        mount("/top"), mount("/top/inner"), set("/top", "shared", false),
        // Without another mount in its peer group, one that was shared becomes private.
        mount("/slave"), set("/slave", "shared", false), set("/slave", "slave", false),
        mount("/private"), set("/private", "shared", false), set("/private", "private", false),
        mount("/unbindable"), set("/unbindable", "unbindable", false),
    ]);
    let line = "cat /moved/file; ls /first; cat /proc/self/mountinfo";
    let output = Fixture::start().await.output(json!({ "operations": operations }), line).await;
    assert!(output.starts_with("moved\n"), "{output}");
    // The optional fields are those between the options and a hyphen.
    let propagation = |target: &str| {
        let mount = output.lines().find(|line| line.split(' ').nth(4) == Some(target));
        let fields = mount.unwrap_or_else(|| panic!("no mount at {target}: {output}")).split(' ').skip(6);
        let optional: Vec<&str> = fields.take_while(|field| *field != "-").collect();
        optional.iter().map(|field| field.split(':').next().unwrap()).collect::<Vec<_>>().join(" ")
    };
    for (target, expected) in [
        ("/moved", "shared"),
        ("/outer", "shared"),
        ("/outer/inner", "shared"),
        ("/top", "shared"),
        ("/top/inner", ""),
        ("/slave", ""),
        ("/private", ""),
        ("/unbindable", "unbindable"),
    ] {
        assert_eq!(propagation(target), expected, "{target}");
    }
    assert!(!output.contains(" /first "), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_directories_links_and_files_are_created() {
    if !is_root("device nodes") {
        return;
    }
    let owner = json!({ "uid": 12, "gid": 34 });
    let operations = json!([
        { "type": "device", "path": "/new/null", "kind": "char", "major": 1, "minor": 3, "mode": 0o640, "owner": owner },
        { "type": "device", "path": "/new/disk", "kind": "block", "major": 7, "minor": 200, "mode": 0o600 },
        { "type": "device", "path": "/new/pipe", "kind": "fifo", "mode": 0o622, "owner": owner },
        { "type": "mkdir", "path": "/var/lib/app", "mode": 0o2711, "owner": owner },
        { "type": "symlink", "path": "/new/link", "target": "/var/lib/app" },
        // It exists already.
        { "type": "symlink", "path": "/bin/sh", "target": "busybox" },
        { "type": "write_file", "path": "/srv/new/file", "content": "content\n", "mode": 0o4750, "owner": owner },
        { "type": "write_file", "path": "/etc/old", "content": "short\n", "mode": 0o600 },
    ]);
    let fixture = Fixture::start().await;
    fs::write(fixture.world.rootfs().join("etc/old"), "content that is longer than the new one\n").unwrap();
    let line = "busybox stat -c '%n %F %t:%T %a %u %g' /new/null /new/disk /new/pipe; \
                busybox stat -c '%n %F %a %u %g' /var/lib /var/lib/app /srv/new/file /etc/old; \
                busybox readlink /new/link; busybox readlink /bin/sh; cat /srv/new/file /etc/old; \
                echo x > /new/null && cat /new/null";
    let output = fixture.output(json!({ "operations": operations }), line).await;
    let expected = [
        "/new/null character special file 1:3 640 12 34",
        "/new/disk block special file 7:c8 600 0 0",
        "/new/pipe fifo 0:0 622 12 34",
        "/var/lib directory 755 0 0",
        "/var/lib/app directory 2711 12 34",
        "/srv/new/file regular file 4750 12 34",
        "/etc/old regular file 600 0 0",
        "/var/lib/app",
        "busybox",
        "content",
        "short",
    ];
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);
    let old = text(&fixture.world.rootfs().join("etc/old"));
    assert!(old.starts_with("content"), "the layer below is not modified: {old}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_hidden_and_made_read_only() {
    if !is_root("mounts") {
        return;
    }
    let operations = json!([
        { "type": "mask", "path": "/etc/secret" },
        { "type": "mask", "path": "/private" },
        { "type": "mask", "path": "/no/such/thing" },
        { "type": "read_only", "path": "/etc" },
        { "type": "read_only", "path": "/no/such/thing" },
    ]);
    let fixture = Fixture::start().await;
    let rootfs = fixture.world.rootfs();
    fs::write(rootfs.join("etc/secret"), "secret\n").unwrap();
    fs::create_dir(rootfs.join("private")).unwrap();
    fs::write(rootfs.join("private/key"), "key\n").unwrap();
    let line = "cat /etc/secret; ls -A /private; touch /etc/x 2>&1; touch /etc/passwd 2>&1; touch /free && echo free";
    assert_eq!(
        fixture.output(json!({ "operations": operations }), line).await,
        "touch: /etc/x: Read-only file system\ntouch: /etc/passwd: Read-only file system\nfree\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_resolved_within_the_root() {
    if !is_root("mounts") {
        return;
    }
    let fixture = Fixture::start().await;
    let outside = fixture.world.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    let rootfs = fixture.world.rootfs();
    symlink(&outside, rootfs.join("absolute")).unwrap();
    symlink("../../../../../../../../outside", rootfs.join("relative")).unwrap();
    fs::create_dir_all(rootfs.join(outside.strip_prefix("/").unwrap())).unwrap();
    fs::create_dir(rootfs.join("outside")).unwrap();
    let write = |path: &str| json!({ "type": "write_file", "path": path, "content": "x", "mode": 0o644 });
    let operations = json!([write("/absolute/a"), write("/relative/b"), write("/../../c")]);
    let line = format!("ls {} /outside /c", outside.display());
    let output = fixture.output(json!({ "operations": operations }), &line).await;
    assert_eq!(
        output.split_whitespace().filter(|word| ["a", "b", "/c"].contains(word)).count(),
        3,
        "{output}"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::metadata(&outside).unwrap().uid(), 0);
}
