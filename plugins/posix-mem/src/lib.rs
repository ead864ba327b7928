//! Accounts for a container's memory by looking at its processes. Needs no privileges, and limits nothing.

use std::io::ErrorKind;

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::process::{self, Process};

struct Mem;

#[cofferdam_plugin_api::isolator]
impl Isolator for Mem {
    const NAME: &'static str = "posix/mem";
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

#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn sum(processes: &[Process]) -> Usage {
    let resident: u64 = processes.iter().map(|process| process.resident).sum();
    Usage::default().with("mem_rss_bytes", resident as f64)
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
    fn memory_of_children_counts() {
        let bench = PluginHarness::<Mem>::isolator(json!({})).unwrap();
        bench.prepare("web").unwrap();
        // The child holds 50 MB, its parent next to nothing.
        let hold = "x=$(head -c 50000000 /dev/zero | tr '\\0' x); echo ready; read end";
        let (child, pid) = spawn(&format!("({hold}); true"));
        bench.started("web", pid);
        let used = bench.usage("web").unwrap().number("mem_rss_bytes").unwrap();
        assert!((5e7..2e8).contains(&used), "{used}");
        assert!(process::tree(pid).unwrap()[0].resident < 20_000_000);
        end(child);
    }

    #[test]
    fn a_container_without_a_process_uses_nothing() {
        let bench = PluginHarness::<Mem>::isolator(json!({})).unwrap();
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
        let bench = PluginHarness::<Mem>::isolator(json!({})).unwrap();
        bench.cleanup("unknown").unwrap();
        bench.cleanup("unknown").unwrap();
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PluginHarness::<Mem>::isolator(json!({ "interval": "1s" })).err().unwrap();
        assert!(refused.message.contains("nothing to configure, but its table has `interval`"), "{refused}");
    }
}
