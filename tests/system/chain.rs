//! Containers with the shipped chain: what they see, how they end, what is left.

use std::fs;

use cofferdam_core::model::{Ended, Reason, Request};
use cofferdam_tests::world::{World, id, remove, run};
use cofferdam_tests::{is_root, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_leaves_nothing() {
    if !is_root("the shipped chain") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(id("hello"), "echo hello; id -u >&2; exit 7");
    request.rootfs = Some(world.rootfs());
    agent.launch(request).await.unwrap();
    let termination = agent.wait(&id("hello")).await.unwrap();
    assert_eq!(termination.ended(), Some(Ended::Exited(7)), "{termination:?}");
    assert_eq!(termination.reason, None);
    let logs = agent.inspect(&id("hello")).unwrap().logs;
    assert_eq!(text(&logs.stdout.unwrap()), "hello\n");
    assert_eq!(text(&logs.stderr.unwrap()), "0\n");
    assert!(agent.remove(&id("hello")).await.unwrap());
    assert!(!agent.remove(&id("hello")).await.unwrap(), "a removed container can be removed again");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_its_own_root_and_the_directory_is_not_modified() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let rootfs = world.rootfs();
    let before = fs::read_dir(&rootfs).unwrap().count();
    let mut request = Request::shell(
        id("own"),
        "echo $$; ls /; touch /new && echo made; ls /proc | grep -c '^[0-9]*$'; echo x > /etc/passwd; \
         cat /proc/kcore | head -c 1 | wc -c; echo > /proc/sysrq-trigger || echo kept; pwd; echo $MESOS_SANDBOX; \
         ls -l /dev/null | cut -c1-10; ls /proc/self/fd | wc -l",
    );
    request.rootfs = Some(rootfs.clone());
    let out = run(&agent, request).await;
    let lines: Vec<&str> = out.lines().collect();
    // The shell is a child of the container's first process, which is number 1.
    assert_eq!(lines[0], "2", "{out}");
    assert!(out.contains("made") && out.contains("kept"), "{out}");
    assert!(out.contains("/mnt/mesos/sandbox\n/mnt/mesos/sandbox\n"), "{out}");
    assert!(out.contains("crw-rw-rw-"), "{out}");
    assert_eq!(fs::read_dir(&rootfs).unwrap().count(), before, "the directory is not modified");
    assert!(text(&rootfs.join("etc/passwd")).starts_with("root:"));
    remove(&world, &agent, &["own"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_environment_and_both_command_forms_are_kept() {
    if !is_root("changing the user") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(id("shell"), "id -u; id -g; echo \"$A:$B\"; umask");
    request.rootfs = Some(world.rootfs());
    request.command.user = Some("web".into());
    request.command.environment = [("A".into(), "1 2".into()), ("B".into(), "ü".into())].into();
    assert_eq!(run(&agent, request).await, "1234\n1234\n1 2:ü\n0022\n");

    let mut request = Request::shell(id("exec"), "");
    request.rootfs = Some(world.rootfs());
    request.command.shell = false;
    request.command.value = Some("/bin/echo".into());
    request.command.arguments = ["echo", "$A", "*", "a  b"].map(str::to_owned).into();
    assert_eq!(run(&agent, request).await, "$A * a  b\n");
    remove(&world, &agent, &["shell", "exec"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requested_working_directory_is_created_for_the_user() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(id("there"), "pwd; touch mine && echo made; echo $MESOS_SANDBOX");
    request.rootfs = Some(world.rootfs());
    request.command.user = Some("web".into());
    request.command.working_directory = Some("/srv/app/data".into());
    assert_eq!(run(&agent, request).await, "/srv/app/data\nmade\n/mnt/mesos/sandbox\n");
    let plan = agent.inspect(&id("there")).unwrap().plan;
    let owners: Vec<_> = plan
        .iter()
        .filter(|entry| entry.field == "working_directory")
        .map(|entry| (entry.value.as_str(), entry.owner.as_str()))
        .collect();
    assert_eq!(owners, [("/srv/app/data", "request")]);
    assert!(!world.rootfs().join("srv/app").exists(), "the directory is not modified");
    remove(&world, &agent, &["there"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_executed_is_a_failed_launch_that_leaves_nothing() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(id("nope"), "");
    request.rootfs = Some(world.rootfs());
    request.command.shell = false;
    request.command.value = Some("/bin/no-such-program".into());
    let error = agent.launch(request.clone()).await.unwrap_err();
    assert_eq!(error.exec_error().and_then(std::io::Error::raw_os_error), Some(nix::libc::ENOENT));
    let message = cofferdam_core::error_chain::describe(&error);
    assert!(message.contains("/bin/no-such-program") && message.contains("No such file"), "{message}");
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert!(agent.wait(&id("nope")).await.is_none(), "nothing of it is left");

    request.rootfs = Some("/no/such/directory".into());
    let message = cofferdam_core::error_chain::describe(&agent.launch(request).await.unwrap_err());
    assert!(message.contains("/no/such/directory"), "{message}");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_command_and_sigkill_ends_the_container() {
    if !is_root("the shipped chain") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(
        id("trap"),
        "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.01; done",
    );
    request.rootfs = Some(world.rootfs());
    agent.launch(request.clone()).await.unwrap();
    let out = agent.inspect(&id("trap")).unwrap().logs.stdout.unwrap();
    cofferdam_tests::wait_for_text(&out, "ready");
    assert!(agent.kill(&id("trap"), nix::libc::SIGUSR1).await.unwrap());
    assert_eq!(agent.wait(&id("trap")).await.unwrap().ended(), Some(Ended::Exited(5)));
    assert_eq!(text(&out), "ready\ncaught\n");

    request.id = id("kill");
    agent.launch(request).await.unwrap();
    assert!(agent.kill(&id("kill"), nix::libc::SIGKILL).await.unwrap());
    let termination = agent.wait(&id("kill")).await.unwrap();
    assert_eq!(termination.ended(), Some(Ended::Signaled(nix::libc::SIGKILL)));
    assert_eq!(termination.reason, Some(Reason::Killed));
    assert!(!agent.kill(&id("kill"), nix::libc::SIGTERM).await.unwrap(), "it has ended");
    assert!(!agent.kill(&id("unknown"), nix::libc::SIGTERM).await.unwrap(), "it is unknown");
    remove(&world, &agent, &["trap", "kill"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_in_use_until_its_container_is_removed() {
    if !is_root("the linux launcher") {
        return;
    }
    let world = World::new();
    let agent = world.start().await.unwrap();
    let request = Request::shell(id("one"), "exit 3");
    agent.launch(request.clone()).await.unwrap();
    assert!(agent.launch(request.clone()).await.unwrap_err().is_duplicate());
    agent.wait(&id("one")).await.unwrap();
    assert!(agent.launch(request.clone()).await.unwrap_err().is_duplicate());
    assert_eq!(
        agent.wait(&id("one")).await.unwrap().ended(),
        Some(Ended::Exited(3)),
        "kept for later waiters"
    );
    agent.remove(&id("one")).await.unwrap();
    agent.launch(request).await.unwrap();
    agent.destroy(&id("one")).await.unwrap();
    remove(&world, &agent, &["one"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_names_the_owner_of_each_entry() {
    if !is_root("the shipped chain") {
        return;
    }
    let mut world = World::shipped();
    world.add("example/greeting", serde_json::json!({ "greeting": "ahoy" })).path =
        Some("libgreeting.so".into());
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(id("who"), "echo $GREETING; sleep 1000");
    request.rootfs = Some(world.rootfs());
    agent.launch(request).await.unwrap();
    let inspection = agent.inspect(&id("who")).unwrap();
    let owner = |field: &str| {
        inspection.plan.iter().find(|entry| entry.field == field).map(|entry| entry.owner.as_str())
    };
    assert_eq!(owner("root"), Some("filesystem/linux"));
    assert_eq!(owner("environment.GREETING"), Some("example/greeting"));
    let pid = inspection.plan.iter().find(|entry| entry.field == "clone_namespaces" && entry.value == "pid");
    assert_eq!(pid.unwrap().owner, "namespaces/pid");
    cofferdam_tests::wait_for_text(&inspection.logs.stdout.unwrap(), "ahoy");
    agent.destroy(&id("who")).await.unwrap();
    remove(&world, &agent, &["who"]).await;
}
