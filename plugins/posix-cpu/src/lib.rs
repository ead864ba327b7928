//! Reports the CPU time of a container's processes. Needs no privileges, and limits nothing.

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::process::Process;

struct Cpu;

#[cofferdam_plugin_api::isolator]
impl Isolator for Cpu {
    const NAME: &'static str = "posix/cpu";
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        Ok(sum(&container.processes()?))
    }
}

fn sum(processes: &[Process]) -> Usage {
    let seconds = |time: fn(&Process) -> std::time::Duration| {
        processes.iter().map(time).sum::<std::time::Duration>().as_secs_f64()
    };
    Usage::default()
        .with("cpus_user_time_secs", seconds(|process| process.user))
        .with("cpus_system_time_secs", seconds(|process| process.system))
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::testing::{PluginHarness, Shell};

    use super::*;

    #[test]
    fn time_of_children_counts_while_they_run_and_after_they_ended() {
        let harness = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
        harness.prepare("web").unwrap();
        // One child that has ended, and one that has not; both have used CPU time.
        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let shell = Shell::spawn(&format!("({work}); ({work}; echo ready; read end); true"));
        harness.started("web", shell.pid());
        let usage = harness.usage("web").unwrap();
        let seconds = |name| usage.number(name).unwrap();
        let total = seconds("cpus_user_time_secs") + seconds("cpus_system_time_secs");
        let first = Process::read(shell.pid()).unwrap();
        let first = (first.user + first.system).as_secs_f64();
        assert!(first > 0.0, "the first child was waited for");
        assert!(total > first, "the second one is running: {usage:?}");
        shell.end();
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }
}
