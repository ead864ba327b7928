//! The clock of the system is set, forward and back, under a running agent.

use cofferdam_core::model::{Request, Resources};
use cofferdam_tests::clock::Clock;
use cofferdam_tests::world::id;

use super::programs::{STARTED, command_task, run_task};
use super::*;

/// In years.
const JUMPS: [i64; 2] = [70, -20];

const YEAR: i64 = 365 * 24 * 3600;

/// When an agent says that a container was launched, in seconds since the Unix epoch.
fn launched(daemon: &Daemon, name: &str) -> i64 {
    let launched = daemon.inspect(&id(name)).expect("a container").launched;
    launched.expect("a time").nanoseconds / 1_000_000_000
}

#[test]
fn a_running_agent_does_what_it_does_whatever_the_clock_shows() {
    let world = world();
    let clock = Clock::new(world.directory());
    let (daemon, is_ready) = Daemon::try_start_by(&world, |mut command| {
        clock.show(&mut command);
        command.spawn()
    });
    assert!(is_ready, "{}", daemon.log());
    let mut lasting = Request::shell(id("lasting"), "while echo again; do sleep 0.01; done");
    lasting.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
    daemon.launch(&lasting).expect("a launch");
    run_task(&daemon, &command_task("lasting", "exec sleep 1000"), true);
    until_state(&daemon, "lasting", "TASK_RUNNING");
    let before = launched(&daemon, "lasting");
    for (round, years) in JUMPS.into_iter().enumerate() {
        clock.set(years * YEAR);
        let name = format!("at-{round}");
        daemon.launch(&Request::shell(id(&name), "exit 3")).expect("a launch");
        assert_eq!(daemon.wait(&id(&name)).expect("it ends").exit_status, Some(3 << 8));
        let shown = (launched(&daemon, &name) - before) / YEAR;
        assert!((years - 1..=years + 1).contains(&shown), "the agent does not see the clock: {shown}");
        daemon.remove(&id(&name)).expect("it has ended");

        daemon.update(&lasting.id, &[("cpus", 0.25), ("mem", 32.0)]).expect("an update");
        run_task(&daemon, &command_task(&name, "exit 0"), true);
        assert_eq!(until_ended(&daemon, &name).states(&name), [STARTED[0], STARTED[1], "TASK_FINISHED"]);
        let metrics = daemon.get("/metrics/snapshot");
        let uptime = metrics["slave/uptime_secs"].as_f64().expect("a number");
        assert!((0.0..3600.0).contains(&uptime), "{uptime}");
        assert_eq!(daemon.inspect(&lasting.id).expect("a container").state, "RUNNING");
    }
    kill(&daemon, "lasting").expect("a task");
    assert_eq!(until_ended(&daemon, "lasting").last("lasting")["state"], "TASK_KILLED");
    assert_eq!(daemon.destroy(&lasting.id).expect("a container").exit_status, Some(9));
    daemon.remove(&lasting.id).expect("it has ended");
    assert_nothing_left(&world, &daemon);
}
