//! Reports the memory of a container's processes. Needs no privileges, and limits nothing.

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::process::Process;

struct Mem;

#[cofferdam_plugin_api::isolator]
impl Isolator for Mem {
    const NAME: &'static str = "posix/mem";
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        Ok(sum(&container.processes()?))
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn sum(processes: &[Process]) -> Usage {
    let resident: u64 = processes.iter().map(|process| process.resident).sum();
    Usage::default().with("mem_rss_bytes", resident as f64)
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::testing::{PluginHarness, Shell};

    use super::*;

    #[test]
    fn memory_of_children_counts() {
        let harness = PluginHarness::<Mem>::isolator(json!({})).unwrap();
        harness.prepare("web").unwrap();
        // The child holds 50 MB, its parent next to nothing.
        let hold = "x=$(head -c 50000000 /dev/zero | tr '\\0' x); echo ready; read end";
        let shell = Shell::spawn(&format!("({hold}); true"));
        harness.started("web", shell.pid());
        let used = harness.usage("web").unwrap().number("mem_rss_bytes").unwrap();
        assert!((5e7..2e8).contains(&used), "{used}");
        assert!(Process::read(shell.pid()).unwrap().resident < 20_000_000);
        shell.end();
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<Mem>::isolator(json!({})).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }
}
