//! `exec`: what a command in a running container has of that container, and when there is none.

use std::fs;
use std::path::Path;

use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::world::{World, id, object};
use cofferdam_tests::{assert_contains, is_root, wait_for_text};
use serde_json::json;

use crate::terminals::Site;

/// What a process has: user, groups, variables, working directory, privileges, filter, limits, cgroups, namespaces, and root.
const ATTRIBUTES: &str = "id; busybox env | busybox sort; pwd; \
                          busybox grep -E '^(Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; \
                          ulimit -S -n; ulimit -H -n; busybox cat /proc/self/cgroup; \
                          for namespace in /proc/self/ns/*; do busybox readlink $namespace; done; \
                          busybox stat -c %d:%i /; busybox cut -d ' ' -f 4,5 /proc/self/mountinfo";

/// Without the name of the cgroup of v2 that a command has below the container's, so that it can be killed alone.
fn without_own_cgroup(attributes: &str) -> String {
    let line = |line: &str| match line.strip_prefix("0::/exec-") {
        Some(name) if !name.contains("..") => "0::/\n".to_owned(),
        _ => line.to_owned(),
    };
    attributes.split_inclusive('\n').map(line).collect()
}

#[test]
fn a_command_has_what_the_command_of_the_container_has() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    fs::write(Path::new(&site.rootfs).join("etc/group"), "web:x:1234:\nextra:x:77:root,web\n").unwrap();
    let line = format!("{ATTRIBUTES}; echo complete; exec sleep 1000000");
    for (user, capabilities) in [("root", "CapEff:\t00000000a80425fb"), ("web", "CapEff:\t0000000000000000")]
    {
        let launch = ["run", "-d", "--name", user, "--rootfs", &site.rootfs, "--user", user];
        let options =
            ["--env", "VARIABLE=value", "--workdir", "/bin", "--ulimit", "nofile=123:456", "--memory", "64m"];
        let launched = site.piped(&[&launch[..], &options, &["--", "sh", "-c", &line]].concat(), b"");
        assert!(launched.status.success(), "{launched:?}");
        let log = site.work_dir().join(format!("containers/{user}/stdout"));
        wait_for_text(&log, "complete\n");
        let own = fs::read_to_string(log).unwrap().replace("complete\n", "");
        let expected = ["77(extra)", "VARIABLE=value\n", "\n/bin\n", capabilities, "\n123\n456\n", "pid:["];
        assert_contains(&own, &expected);

        let executed = site.piped(&["exec", user, "sh", "-c", ATTRIBUTES], b"");
        assert!(executed.status.success(), "{executed:?}");
        assert_eq!(without_own_cgroup(&String::from_utf8(executed.stdout).unwrap()), own);
        // Unless it is told otherwise.
        let options = ["exec", "-u", "1:2", "-e", "VARIABLE=other", "-w", "/etc"];
        let command = [user, "sh", "-c", "id -u; id -g; echo $VARIABLE; pwd"];
        let executed = site.piped(&[&options[..], &command].concat(), b"");
        assert_eq!(String::from_utf8_lossy(&executed.stdout), "1\n2\nother\n/etc\n", "{executed:?}");
        assert_contains(&own, &["MESOS_SANDBOX=/mnt/mesos/sandbox\n"]);
        assert!(site.piped(&["rm", "--force", user], b"").status.success());
    }
    site.finish();
}

#[test]
fn a_command_in_another_one_has_the_same_environment() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let options = ["--env", "VARIABLE=value", "--env", "OTHER=container", "--workdir", "/bin"];
    let launch = ["run", "-d", "--name", "web", "--rootfs", &site.rootfs];
    let launched = site.piped(&[&launch[..], &options, &["--", "sleep", "1000000"]].concat(), b"");
    assert!(launched.status.success(), "{launched:?}");
    let mut outer = site.at_terminal(&["exec", "-it", "-e", "OTHER=outer", "web", "sh"]);
    outer.wait_for("# ");
    let ids: Vec<String> =
        site.daemon().list().into_iter().map(|container| container.container_id.to_string()).collect();
    let outer_id = ids.iter().find(|id| id.starts_with("web.")).expect("a nested container");
    let line = "echo $VARIABLE $OTHER $MESOS_SANDBOX; pwd; test -d $MESOS_SANDBOX && echo there";
    let executed = site.piped(&["exec", outer_id, "sh", "-c", line], b"");
    let expected = "value outer /mnt/mesos/sandbox\n/bin\nthere\n";
    assert_eq!(String::from_utf8_lossy(&executed.stdout), expected, "{executed:?}");
    outer.type_keys("exit\r");
    assert!(outer.wait().unwrap().success());
    assert!(site.piped(&["rm", "--force", "web"], b"").status.success());
    site.finish();
}

#[test]
fn nothing_is_executed_in_a_container_that_is_unknown_or_has_ended() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let run = ["run", "-d", "--name", "ended", "--rootfs", &site.rootfs, "--", "sh", "-c", "exit 3"];
    assert!(site.piped(&run, b"").status.success());
    assert_eq!(site.daemon().wait(&id("ended")).unwrap().exit_status, Some(3 << 8));
    let refusals = [
        ("unknown", &["there is no container `unknown`", "hint: "][..]),
        ("ended", &["container `ended` has ended: exited with 3", "cofferdam logs ended"]),
    ];
    for (name, expected) in refusals {
        for options in [&["exec"][..], &["exec", "-i"]] {
            let refused = site.piped(&[options, &[name, "cat"]].concat(), b"");
            let error = String::from_utf8_lossy(&refused.stderr);
            assert_eq!((refused.status.code(), refused.stdout.len()), (Some(125), 0), "{error}");
            assert_contains(&error, expected);
        }
        let mut terminal = site.at_terminal(&["exec", "-it", name, "sh"]);
        terminal.wait_for(expected[0]);
        assert_eq!(terminal.wait().unwrap().code(), Some(125));
        assert!(!terminal.is_raw());
    }
    assert!(site.piped(&["rm", "ended"], b"").status.success());
    site.finish();
}

#[test]
fn nothing_is_executed_in_a_container_that_is_ending() {
    if !is_root("a root file system") {
        return;
    }
    let mut world = World::shipped();
    let stays = world.directory().join("stays");
    fs::write(&stays, "").unwrap();
    // Its cleanup fails until the file is gone.
    let faults =
        json!({ "faults": [{ "method": "cleanup", "container": "web", "act": "error", "when": stays }] });
    world.config.isolators.push(object("test/fault", "libtest_fault.so", faults));
    let daemon = Daemon::start(&world);
    let site = Site::with(world, daemon);
    let launch = ["run", "-d", "-i", "--name", "web", "--rootfs", &site.rootfs, "--", "sleep", "1000000"];
    assert!(site.piped(&launch, b"").status.success());
    assert_eq!(site.piped(&["exec", "web", "echo", "up"], b"").stdout, b"up\n");
    assert!(site.piped(&["kill", "web"], b"").status.success());
    while site.daemon().inspect(&id("web")).unwrap().state != "DESTROYING" {
        std::thread::yield_now();
    }
    for command in [&["exec", "web", "true"][..], &["exec", "-i", "web", "cat"], &["attach", "web"]] {
        let refused = site.piped(command, b"");
        let error = String::from_utf8_lossy(&refused.stderr);
        let status = if command[0] == "exec" { 125 } else { 1 };
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(status), 0), "{error}");
        assert_contains(&error, &["container `web` is ending"]);
    }
    let mut terminal = site.at_terminal(&["exec", "-it", "web", "sh"]);
    terminal.wait_for("container `web` is ending");
    assert_eq!(terminal.wait().unwrap().code(), Some(125));
    assert!(!terminal.is_raw());
    // As clients of Mesos see it.
    let session = json!({
        "type": "LAUNCH_NESTED_CONTAINER_SESSION",
        "launch_nested_container_session": {
            "container_id": { "value": "session", "parent": { "value": "web" } },
            "command": { "value": "true" },
        },
    });
    let Err(CallError::Status(400, error)) = site.daemon().call(&session) else { panic!("it is launched") };
    assert_contains(&error, &["`web` is DESTROYING, not RUNNING"]);

    fs::remove_file(&stays).unwrap();
    assert_eq!(site.daemon().wait(&id("web")).unwrap().exit_status, Some(9));
    assert!(site.piped(&["rm", "web"], b"").status.success());
    site.finish();
}
