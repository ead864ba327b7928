//! Who the agent is, and what its host has.

use cofferdam_core::agent::Agent;

use crate::api::operator::types as wire;

/// `AgentInfo`.
pub(crate) fn agent_info(agent: &Agent) -> wire::AgentInfo {
    let resources =
        host_resources(agent).into_iter().map(|(name, amount)| wire::Resource::scalar(name, amount));
    wire::AgentInfo {
        hostname: hostname(),
        resources: resources.collect(),
        id: Some(wire::AgentId { value: agent.executors().agent_id().to_owned() }),
    }
}

/// Name of the host.
pub(in crate::api::operator) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Resources of the host in Mesos units, as far as the kernel reports them.
#[expect(clippy::cast_precision_loss, reason = "rounded to MiB")]
pub(in crate::api::operator) fn host_resources(agent: &Agent) -> Vec<(&'static str, f64)> {
    const MIB: f64 = 1024.0 * 1024.0;
    let cpus = std::thread::available_parallelism().ok().map(|cpus| cpus.get() as f64);
    let memory = rustix::system::sysinfo();
    let mem = memory.totalram as f64 * f64::from(memory.mem_unit) / MIB;
    let disk = rustix::fs::statvfs(&agent.config().work_dir).ok();
    let disk = disk.map(|disk| (disk.f_blocks as f64 * disk.f_frsize as f64 / MIB).floor());
    let found = [("cpus", cpus), ("gpus", Some(0.0)), ("mem", Some(mem.floor())), ("disk", disk)];
    found.into_iter().filter_map(|(name, amount)| Some((name, amount?))).collect()
}
