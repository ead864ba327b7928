//! Accounts for a container's processor time by looking at its processes. Needs no privileges, and limits nothing.

use std::io::ErrorKind;

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::process::{self, Process};

struct Cpu;

#[cofferdam_plugin_api::isolator]
impl Isolator for Cpu {
    const NAME: &'static str = "posix/cpu";
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        // Not started yet, or over: nothing is used.
        let Some(pid) = container.details()?.pid else { return Ok(Usage::default()) };
        match process::tree(pid) {
            Ok(processes) => Ok(sum(&processes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Usage::default()),
            Err(error) => Err(error).context(format!("cannot look at process {pid} and its children")),
        }
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
    use std::io::Read;
    use std::process::{Child, Command, Stdio};

    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    /// A shell whose script says `ready`, and then waits for its input to end.
    fn spawn(script: &str) -> (Child, i32) {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"ready\n");
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn time_of_children_counts_while_they_run_and_after_they_ended() {
        let bench = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
        bench.prepare("web").unwrap();
        // One child that has ended, and one that has not: both have worked.
        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let (child, pid) = spawn(&format!("({work}); ({work}; echo ready; read end); true"));
        bench.started("web", pid);
        let usage = bench.usage("web").unwrap();
        let seconds = |name| usage.number(name).unwrap();
        let total = seconds("cpus_user_time_secs") + seconds("cpus_system_time_secs");
        let one = process::tree(pid).unwrap()[0];
        assert!(one.user + one.system > std::time::Duration::ZERO, "the first child was waited for");
        assert!(total > (one.user + one.system).as_secs_f64(), "the second one runs: {usage:?}");
        end(child);
    }

    #[test]
    fn a_container_without_a_process_uses_nothing() {
        let bench = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
        bench.prepare("web").unwrap();
        assert_eq!(bench.usage("web").unwrap(), Usage::default());
        let (child, pid) = spawn("echo ready; read end");
        bench.started("web", pid);
        assert_ne!(bench.usage("web").unwrap(), Usage::default());
        end(child);
        // The agent may not have noticed yet.
        assert_eq!(bench.usage("web").unwrap(), Usage::default());
        bench.ended("web");
        assert_eq!(bench.usage("web").unwrap(), Usage::default());
    }

    #[test]
    fn cleaning_up_what_was_never_seen_succeeds_twice() {
        let bench = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
        bench.cleanup("unknown").unwrap();
        bench.cleanup("unknown").unwrap();
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PluginHarness::<Cpu>::isolator(json!({ "interval": "1s" })).err().unwrap();
        assert!(refused.message.contains("nothing to configure, but its table has `interval`"), "{refused}");
    }
}
