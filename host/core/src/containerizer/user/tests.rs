use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::image::Files;
use super::*;

fn rootfs() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    write(&root, "passwd", "root:x:0:0::/:/bin/sh\nweb:x:1234:55::/:/bin/sh\n");
    write(&root, "group", "root:x:0:\nlog:x:77:web\nall:x:78:db,web,root\nweb:x:55:web\nlog2:x:77:web\n");
    root
}

fn write(root: &tempfile::TempDir, file: &str, text: &str) {
    fs::write(root.path().join("etc").join(file), text).unwrap();
}

fn find(root: &tempfile::TempDir, user: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
    look_up(user, &Files::new(root.path())).map(|user| (user.uid, user.gid, user.groups))
}

#[test]
fn names_and_groups_are_looked_up_inside_the_root_file_system() {
    let root = rootfs();
    assert_eq!(find(&root, "web").unwrap(), (1234, 55, vec![77, 78]));
    assert_eq!(find(&root, "1234").unwrap(), (1234, 55, vec![77, 78]));
    assert_eq!(find(&root, "web:log").unwrap(), (1234, 77, vec![]));
    assert_eq!(find(&root, "999").unwrap(), (999, 999, vec![]));
    assert_eq!(find(&root, "999:1").unwrap(), (999, 1, vec![]));
    let error = find(&root, "nobody").unwrap_err();
    assert!(error.to_string().contains("no user `nobody`"), "{error}");
    let error = find(&root, "web:nobody").unwrap_err();
    assert!(error.to_string().contains("no group `nobody`"), "{error}");
}

#[test]
fn a_number_is_one_only_without_sign_and_leading_zeros_and_below_the_largest() {
    let root = rootfs();
    // Names that look like these do not make them valid.
    write(&root, "passwd", "+0:x:0:0\n-1:x:0:0\n00:x:0:0\n4294967295:x:0:0\n:x:0:0\n1 :x:7:7\n");
    for text in [
        "4294967295",
        "4294967296",
        "99999999999999999999",
        "+0",
        "-0",
        "-1",
        "+",
        "00",
        "007",
        "a,b",
        "a\n",
        "a\0",
    ] {
        for user in [text.to_owned(), format!("1:{text}"), format!("{text}:1")] {
            let error = find(&root, &user).unwrap_err();
            assert!(matches!(error, UserError::Invalid { .. }), "{user:?}: {error}");
        }
    }
    for user in [":", ":1", "1:", "1:2:3"] {
        assert!(matches!(find(&root, user), Err(UserError::Invalid { .. })), "{user:?}");
    }
    assert_eq!(find(&root, "4294967294").unwrap(), (4_294_967_294, 4_294_967_294, vec![]));
    assert_eq!(find(&root, "0").unwrap(), (0, 0, vec![]));
}

#[test]
fn a_malformed_entry_is_an_error_and_never_root() {
    let root = rootfs();
    for ids in ["4294967295:0", "0:4294967295", "+0:0", "0:+0", "-1:0", ":", "x:0", "0:", "0", "", "0 :0"] {
        write(&root, "passwd", &format!("web:x:{ids}\nweb:x:0:0\n"));
        let error = find(&root, "web").unwrap_err();
        assert!(matches!(error, UserError::Malformed { kind: Kind::User, .. }), "{ids:?}: {error}");
    }
    write(&root, "group", "log:x:4294967295:web\nlog:x:0:\n");
    let error = find(&root, "1:log").unwrap_err();
    assert!(matches!(error, UserError::Malformed { kind: Kind::Group, .. }), "{error}");
    // A group without a number has no members.
    write(&root, "passwd", "web:x:1234:55\n");
    assert_eq!(find(&root, "web").unwrap(), (1234, 55, vec![]));
}

#[test]
fn hostile_files_are_refused() {
    let root = rootfs();
    let (passwd, group) = (root.path().join("etc/passwd"), root.path().join("etc/group"));
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("passwd"), "evil:x:0:0::/:/bin/sh\n").unwrap();
    fs::remove_file(&passwd).unwrap();
    symlink(outside.path().join("passwd"), &passwd).unwrap();
    assert!(matches!(find(&root, "evil"), Err(UserError::Unknown { .. })));
    fs::remove_file(&passwd).unwrap();
    // Opening it would wait for a writer.
    mknodat(CWD, &passwd, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(matches!(find(&root, "web"), Err(UserError::Read { .. })));
    fs::remove_file(&passwd).unwrap();
    fs::create_dir(&passwd).unwrap();
    assert!(matches!(find(&root, "web"), Err(UserError::Read { .. })));
    fs::remove_dir(&passwd).unwrap();
    fs::File::create(&passwd).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(find(&root, "web"), Err(UserError::TooLong { .. })));
    fs::write(&passwd, b"\xff\xff:x:1:1\nweb:x:1234:55\n\xff").unwrap();
    assert_eq!(find(&root, "web").unwrap().0, 1234);

    let many: String = (1..=2000).map(|gid| format!("g{gid}:x:{gid}:web\n")).collect();
    fs::write(&group, many).unwrap();
    assert!(matches!(find(&root, "web"), Err(UserError::Groups { .. })));
}

#[test]
fn a_container_without_a_user_gets_that_of_its_parent_and_otherwise_the_agents() {
    let own = resolve(None, None, None).unwrap();
    assert_eq!(own, User { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups: Vec::new() });
    let parent = User { uid: 7, gid: 8, groups: vec![9] };
    for requested in [None, Some("")] {
        assert_eq!(resolve(requested, None, Some(parent.clone())).unwrap(), parent);
    }
}

#[test]
fn users_of_the_host_have_the_groups_of_the_c_library() {
    let root = look_up("root", &host::Databases).unwrap();
    assert_eq!((root.uid, root.gid), (0, 0));
    assert_eq!(look_up("0", &host::Databases).unwrap(), root);
    let error = look_up("no-such-user", &host::Databases).unwrap_err();
    assert!(error.to_string().contains("the host's user database"), "{error}");
    // Every member of a group that the text file names is in it for the C library as well.
    let group = fs::read_to_string("/etc/group").unwrap();
    for line in group.lines() {
        let [_, _, gid, members] = line.split(':').collect::<Vec<_>>()[..] else { continue };
        for member in members.split(',').filter(|member| !member.is_empty()) {
            let Ok(user) = look_up(member, &host::Databases) else { continue };
            assert!([&user.groups[..], &[user.gid]].concat().contains(&gid.parse().unwrap()), "{line}");
        }
    }
}
