//! The posix launcher: plain processes, for any user.

use cofferdam_core::config::LauncherKind;
use cofferdam_core::model::{Ended, Reason, Request};
use cofferdam_tests::wait_for_text;
use cofferdam_tests::world::{World, entry, id, remove, run};

fn posix() -> World {
    let mut world = World::new();
    world.config.launcher = LauncherKind::Posix;
    world.add("posix/cpu", serde_json::json!({}));
    world.add("posix/mem", serde_json::json!({}));
    world.config.logger = Some(entry("sandbox", serde_json::json!({})));
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_process_runs_in_its_sandbox() {
    let world = posix();
    let agent = world.start().await.unwrap();
    let out = run(&agent, Request::shell(id("plain"), "pwd; echo $MESOS_SANDBOX")).await;
    let sandbox = agent.inspect(&id("plain")).unwrap().sandbox.display().to_string();
    assert_eq!(out, format!("{sandbox}\n{sandbox}\n"));
    remove(&world, &agent, &["plain"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_process_starts_in_the_requested_directory_if_it_exists() {
    let world = posix();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(id("plain"), "pwd");
    request.command.working_directory = Some("/usr".into());
    assert_eq!(run(&agent, request).await, "/usr\n");

    // On the host it is not created.
    let mut request = Request::shell(id("lost"), "pwd");
    request.command.working_directory = Some("/no/such/place".into());
    let message = cofferdam_core::error_chain::describe(&agent.launch(request).await.unwrap_err());
    assert!(message.contains("/no/such/place") && message.contains("No such file"), "{message}");
    assert!(agent.inspect(&id("lost")).is_none());
    remove(&world, &agent, &["plain"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_do_not_outlive_their_container() {
    let world = posix();
    let agent = world.start().await.unwrap();
    let request =
        Request::shell(id("daemon"), "(setsid sh -c 'echo $$ > daemon.pid; exec sleep 1000' &) ; sleep 1000");
    agent.launch(request).await.unwrap();
    let sandbox = agent.inspect(&id("daemon")).unwrap().sandbox;
    let file = sandbox.join("daemon.pid");
    wait_for_text(&file, "\n");
    let pid: i32 = cofferdam_tests::text(&file).trim().parse().unwrap();
    let daemon = cofferdam_linux::process::Process::open_any(pid).unwrap();
    let termination = agent.destroy(&id("daemon")).await.unwrap();
    assert_eq!(termination.reason, Some(Reason::Killed));
    assert!(daemon.has_ended().unwrap(), "the daemon is still running");
    remove(&world, &agent, &["daemon"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_that_of_the_whole_tree() {
    let world = posix();
    let agent = world.start().await.unwrap();
    agent.launch(Request::shell(id("tree"), "sleep 1000 & sleep 1000")).await.unwrap();
    let usage = agent.usage(&id("tree")).await.unwrap();
    assert!(usage.number("mem_rss_bytes") > Some(0.0), "{usage:?}");
    assert!(usage.statistics.contains_key("cpus_user_time_secs"), "{usage:?}");
    assert_eq!(agent.destroy(&id("tree")).await.unwrap().ended(), Some(Ended::Signaled(9)));
    remove(&world, &agent, &["tree"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_more_than_a_process_is_refused() {
    let mut world = posix();
    // Its manifest does not say what it needs, as `filesystem/linux`, which it requires, does.
    world.add("namespaces/ipc", serde_json::json!({}));
    let agent = world.start().await.unwrap();
    let error = agent.launch(Request::shell(id("more"), "true")).await.unwrap_err();
    let message = cofferdam_core::error_chain::describe(&error);
    assert!(message.contains("`posix` launcher") && message.contains("namespaces (ipc)"), "{message}");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_needs_the_other_launcher_is_refused_at_the_start() {
    let mut world = posix();
    world.add("filesystem/linux", serde_json::json!({}));
    let error = world.start().await.err().unwrap();
    let message = cofferdam_core::error_chain::describe(&error);
    assert!(message.contains("needs the feature `launcher.linux`, which the launcher `posix`"), "{message}");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
