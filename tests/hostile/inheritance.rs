//! What a container starts with does not depend on the process of the agent.
//!
//! `inheritance.c` gives every attribute that the kernel passes on an odd value and executes an agent, and is the command
//! of a container that reports what it has. The table is in `docs/security.md`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cofferdam_core::model::{Request, Uri};
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::program::compiled;
use cofferdam_tests::world::{World, id, object};
use cofferdam_tests::{is_root, paths, watch};
use serde_json::json;

/// Mounts the test's directories and executes the rest of the command line.
const WITH_DIRECTORIES: &str =
    r#"mount --bind "$1" /run && mount --bind "$2" /var/lib && shift 2 && exec "$@""#;

/// Runs the reporting program in a container of an agent of its own. `before` is put before the agent's command line.
fn report(world: &World, rootfs: Option<&Path>, before: &[&str]) -> String {
    let directories = ["host-run", "host-lib"].map(|name| world.directory().join(name));
    for directory in &directories {
        fs::create_dir_all(directory).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", WITH_DIRECTORIES, "sh"]).args(&directories).args(before);
    command.arg(paths::program()).args(["run", "--config"]).arg(world.write_config());
    match rootfs {
        Some(rootfs) => command.arg("--rootfs").arg(rootfs).args(["--", "/bin/inheritance", "report"]),
        None => command.arg("--").arg(program()).arg("report"),
    };
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    eprintln!("{stderr}");
    // The directory of the container is named at random.
    let stdout = String::from_utf8(output.stdout).unwrap();
    stdout.lines().filter(|line| !line.starts_with("directory /")).map(|line| format!("{line}\n")).collect()
}

fn program() -> &'static Path {
    compiled("inheritance", include_str!("inheritance.c"))
}

#[test]
fn a_container_does_not_inherit_attributes_of_the_agent() {
    if !is_root("a container of root") {
        return;
    }
    // The filter of the shipped chain refuses get_mempolicy(2).
    let worlds =
        [(World::privileged(), &["Seccomp: 0", "mempolicy 0"][..]), (World::shipped(), &["Seccomp: 2"])];
    for (world, expected) in worlds {
        let rootfs = world.rootfs();
        fs::copy(program(), rootfs.join("bin/inheritance")).unwrap();
        starts_with(&world, &[Some(&rootfs), None], expected);
    }
    starts_with(&World::posix(), &[None], &["Seccomp: 0", "mempolicy 0"]);
}

fn starts_with(world: &World, roots: &[Option<&Path>], expected: &[&str]) {
    let odd = [program().to_str().unwrap(), "set"];
    for &rootfs in roots {
        let usual = report(world, rootfs, &[]);
        assert_eq!(report(world, rootfs, &odd), usual);
        let always = [
            "nice 0",
            "policy 0",
            "timerslack 50000",
            "thp_disable 0",
            "mce 2",
            "subreaper 0",
            "no_new_privs 0",
            "securebits 0",
            "personality 0",
            "coredump_filter 00000033",
            "oom_score_adj 0",
            "umask 0022",
            "SigBlk: 0000000000000000",
            "SigIgn: 0000000000000000",
            "CapInh: 0000000000000000",
            "CapAmb: 0000000000000000",
            "secret hidden",
            "environment clean",
            "leader 1",
            "terminal 0",
            "limit.CORE 0 -1",
        ];
        for line in always.iter().chain(expected) {
            assert!(usual.lines().any(|found| found == *line), "`{line}` is missing in:\n{usual}");
        }
        let descriptors: Vec<_> = usual.lines().filter(|line| line.starts_with("descriptor")).collect();
        assert_eq!(descriptors, ["descriptor 0", "descriptor 1", "descriptor 2"]);
    }
}

/// What an agent creates for the users of its containers, they can read, whatever the umask of who started the agent.
#[test]
fn users_reach_their_sandboxes_also_if_the_agent_was_started_with_a_strict_umask() {
    if !is_root("a container of another user") {
        return;
    }
    let world = World::shipped();
    let file = world.directory().join("word");
    fs::write(&file, "fetched").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(world.directory(), Permissions::from_mode(0o711)).unwrap();
    let strict = "umask 077; exec \"$@\"";
    let mut run = Command::new("sh");
    run.args(["-c", strict, "sh"]).arg(paths::program()).args(["run", "--config"]).arg(world.write_config());
    run.args(["--user", "1234", "--uri"]).arg(&file);
    let output =
        run.args(["--", "sh", "-c", "cat \"$MESOS_SANDBOX/word\""]).stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (text_of(&output.stdout), text_of(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stdout, "fetched", "{stderr}");
}

/// Likewise what it creates for nested containers, and what the companion of a logger does.
#[test]
fn users_reach_what_an_agent_with_a_strict_umask_has_created() {
    if !is_root("a container of another user") {
        return;
    }
    let mut world = World::shipped();
    let table = json!({ "max_stdout_size": "4 KiB", "max_stdout_files": 3 });
    world.config.logger = Some(object("logrotate", "libcofferdam_logger_logrotate.so", table));
    let file = world.directory().join("word");
    fs::write(&file, "fetched").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(world.directory(), Permissions::from_mode(0o711)).unwrap();
    let daemon = Daemon::start_after(&world, "umask 077");
    let log =
        "while ! cat stdout.1 >read; do echo a line that fills the log, again and again; sleep 0.01; done";
    let mut web = Request::shell(
        id("web"),
        format!("{log}; grep -q 'fills the log' read && cat word >word-read; sleep 1000"),
    );
    web.command.user = Some("1234".into());
    web.uris = vec![Uri {
        value: file.display().to_string(),
        executable: false,
        extract: false,
        cache: false,
        output_file: None,
        sha256: None,
    }];
    let mut nested =
        Request::shell(id("web.nested"), format!("{log}; echo own >own && cat own >own-read; sleep 1000"));
    nested.command.user = Some("1234".into());
    for (request, name, content) in [(&web, "word-read", "fetched"), (&nested, "own-read", "own\n")] {
        daemon.launch(request).unwrap();
        let sandbox = daemon.inspect(&request.id).unwrap().sandbox;
        let read = watch::content(&Path::new(&sandbox).join(name), TIMEOUT, |found| found == content);
        assert_eq!(read, content);
    }
    daemon.destroy(&web.id).unwrap();
    daemon.remove(&web.id).unwrap();
    super::assert_nothing_left(&world);
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
