//! Commands that run during a launch.

use std::fs;

use cofferdam_core::model::Resources;
use cofferdam_linux::cgroup::{Cgroups, Version};
use cofferdam_plugin_model::{BpfInstruction, Seccomp};
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::world::{id, shipped};
use cofferdam_tests::{is_root, watch};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value as Json, json};

use super::Fixture;

/// A hook that runs a shell line. Busybox has the same path on the host and in the container.
fn hook(stage: &str, line: &str) -> Json {
    json!({
        "stage": stage, "program": "/bin/busybox", "arguments": ["sh", "-c", line],
        "environment": { "OF_HOOK": stage }, "timeout_millis": 120_000,
    })
}

/// A request for hooks, and for a UTS namespace with a host name.
fn launch(hooks: Json) -> Json {
    json!({ "clone_namespaces": ["uts"], "hostname": "inside", "hooks": hooks })
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_at_their_stages_in_order() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start().await;
    // Only the host has this directory.
    let outside = fixture.world.directory().display().to_string();
    let line = |name: &str| {
        format!(
            "test -e {outside} && place=host || place=container; \
             echo {name} $OF_HOOK $place $(busybox id -u) $(busybox hostname) $(busybox grep -c '' /own)"
        )
    };
    let hooks = json!([
        hook("before_exec", &line("5")),
        hook("after_root", &format!("echo created > /own; {}", line("3"))),
        hook("before_root", &line("1")),
        hook("before_exec", &line("6")),
        hook("after_root", &line("4")),
        hook("before_root", &line("2")),
    ]);
    let line = "echo command ${OF_HOOK-none} $(id -u) $(cat /own)";
    let mut request = fixture.request(&json!({ "launch": launch(hooks) }), line);
    request.command.user = Some("web".into());
    let output = fixture.run(request).await;
    let expected = [
        "1 before_root host 0 inside",
        "2 before_root host 0 inside",
        "3 after_root container 0 inside 1",
        "4 after_root container 0 inside 1",
        "5 before_exec container 1234 inside 1",
        "6 before_exec container 1234 inside 1",
        "command none 1234 created",
    ];
    assert_eq!(output.lines().map(str::trim_end).collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_before_exec_has_the_privileges_of_the_command_but_no_seccomp_filter() {
    if !is_root("a root filesystem") {
        return;
    }
    let show = "busybox grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ulimit -n";
    let allow_all = Seccomp { program: vec![BpfInstruction(6, 0, 0, 0x7fff_0000)], ..Seccomp::default() };
    let launch = json!({
        "capabilities": { "effective": ["CHOWN"] },
        "no_new_privileges": true,
        "rlimits": { "NOFILE": { "soft": 77, "hard": 77 } },
        "seccomp": allow_all,
        "hooks": [hook("before_exec", show)],
    });
    let fixture = Fixture::start().await;
    let mut request = fixture.request(&json!({ "launch": launch }), show);
    request.command.user = Some("web".into());
    let output = fixture.run(request).await;
    let expected = |seccomp: &str| {
        let chown = "0000000000000001";
        format!("CapEff:\t{chown}\nCapBnd:\t{chown}\nNoNewPrivs:\t1\nSeccomp:\t{seccomp}\n77\n")
    };
    assert_eq!(output, [expected("0"), expected("2")].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_fails_the_launch_and_is_named() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start().await;
    for stage in ["before_root", "after_root", "before_exec"] {
        let missing = json!({ "stage": stage, "program": "/no/such/hook" });
        let endless = json!({
            "stage": stage, "program": "/bin/busybox", "arguments": ["sleep", "1000"], "timeout_millis": 50,
        });
        for (hook, parts) in [
            (hook(stage, "exit 3"), ["/bin/busybox", "hook"]),
            (missing, ["/no/such/hook", "No such file"]),
            (endless, ["/bin/busybox", "timed out"]),
        ] {
            let message = fixture.error(launch(json!([hook]))).await;
            cofferdam_tests::assert_contains(&message, &parts);
        }
    }
}

/// The paths of a process in cgroups, by hierarchy: controllers, and nothing for v2.
fn cgroups_of(pid: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let columns = text.lines().map(|line| line.splitn(3, ':').skip(1).map(str::to_owned));
    columns.map(|mut columns| (columns.next().unwrap(), columns.next().unwrap())).collect()
}

/// The work is not limited by the container's quota, and what the kernel keeps of it for others, such as blocks of a file
/// system, does not keep the container's memory cgroup.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_set_up_outside_of_its_cgroups() {
    if !is_root("cgroups") {
        return;
    }
    let chain = ["filesystem/linux", "namespaces/pid", "cgroups/cpu", "cgroups/mem", "namespaces/cgroup"];
    let fixture = Fixture::start_with(chain.map(shipped).to_vec(), Vec::new()).await;
    let directory = fixture.world.directory();
    mkfifo(&directory.join("go"), Mode::S_IRWXU).unwrap();
    // When everything is mounted.
    let line = format!(
        "cd {}; echo $$ $PPID > pids.new; busybox mv pids.new pids; read word < go",
        directory.display()
    );
    let launch = json!({ "hooks": [hook("before_root", &line)] });
    let mut request = fixture.request(
        &json!({ "launch": launch }),
        "busybox readlink /proc/self/ns/cgroup /proc/1/ns/cgroup; busybox cat /proc/self/cgroup /proc/1/cgroup; \
         busybox ls /sys/fs/cgroup; echo complete; exec busybox sleep 1000",
    );
    request.resources = Resources::default().with("cpus", 0.1).with("mem", 64.0);
    let agent = &fixture.agent;
    let launched = async { agent.launch(request).await.unwrap() };
    let while_waiting = async {
        let waits = || directory.join("pids").exists();
        assert!(tokio::task::block_in_place(|| watch::until(directory, TIMEOUT, waits)));
        let pids = fs::read_to_string(directory.join("pids")).unwrap();
        let [of_hook, of_setup] = pids.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{pids}") };
        let setup = cgroups_of(of_setup);
        let mut inside: Vec<_> = setup.iter().filter(|(_, path)| path.contains("web.container")).collect();
        // What is killed with a cgroup has to be in it.
        let of_hook = cgroups_of(of_hook);
        let own = of_hook.iter().find(|(_, path)| path.ends_with("/web.container")).unwrap();
        inside.retain(|(controllers, _)| controllers != "freezer");
        assert!(inside.is_empty(), "{setup:?}");
        let cgroups = Cgroups::detect().unwrap();
        let relative = own.1.trim_start_matches('/');
        for (controller, knob) in [("memory", "memory.usage_in_bytes"), ("cpuacct", "cpuacct.usage")] {
            let cgroup = cgroups.cgroup(controller, relative).filter(|it| it.version() == Version::V1);
            if let Some(cgroup) = cgroup {
                assert_eq!(cgroup.read(knob).unwrap(), "0", "{controller}");
            }
        }
        tokio::task::block_in_place(|| fs::write(directory.join("go"), "\n")).unwrap();
        own.1.clone()
    };
    let (pid, own) = tokio::join!(launched, while_waiting);
    let found = cgroups_of(&pid.to_string());
    for controller in ["cpu", "memory"] {
        let v1 = found.iter().find(|(names, _)| names.split(',').any(|name| name == controller));
        let v2 = found.iter().find(|(names, _)| names.is_empty());
        assert!(
            v1.or(v2).is_some_and(|(_, path)| path.ends_with(&own)),
            "{controller}: {found:?}, not {own}"
        );
    }
    let log = agent.inspect(&id("web")).unwrap().logs.stdout.unwrap();
    let output = watch::content(&log, TIMEOUT, |output| output.contains("complete"));
    assert!(output.contains("cpu"), "{output}");
    let host = fs::read_link("/proc/self/ns/cgroup").unwrap();
    assert!(!output.contains(host.to_str().unwrap()), "{output}");
    assert!(!output.contains("/.."), "process 1 or the command is not in the container's cgroups: {output}");
    agent.destroy(&id("web")).await.unwrap();
    assert!(agent.remove(&id("web")).await.unwrap());
}
