//! The processes of a container of the engine, by their cgroups.

use std::{fs, io};

use cofferdam_linux::process::{Process, ProcessError};

/// A shorter id could be part of the names of other cgroups.
const MIN_ENGINE_ID: usize = 32;

/// The processes in the cgroups of a container. It is an error if there may be others.
pub(super) fn of(engine_id: &str) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        match Process::open_any(pid) {
            // One that has ended is in its cgroups until it is reaped.
            Ok(process) => {
                if is_of(&process, engine_id) && !process.has_ended()? {
                    found.push(process);
                }
            }
            // It is there still: the agent may not signal it.
            Err(_) if is_in_cgroup_of(pid, engine_id) => {
                let message = format!("process {pid} cannot be opened, or is of another user");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
            Err(_) => {}
        }
    }
    Ok(found)
}

/// Whether a process is in a cgroup of a container of the engine. An engine in another pid namespace reports pids that are
/// those of other processes here.
pub(super) fn is_of(process: &Process, engine_id: &str) -> bool {
    // Read of this process, if it has not been reaped. One that the agent may not signal has not been either.
    is_in_cgroup_of(process.pid(), engine_id) && !matches!(process.signal(0), Err(ProcessError::Gone { .. }))
}

/// Whether the process that currently has a pid is in a cgroup of a container.
fn is_in_cgroup_of(pid: i32, engine_id: &str) -> bool {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
    cgroups.is_ok_and(|cgroups| has_cgroup_of(&cgroups, engine_id))
}

/// Whether a cgroup is that of a container. It is named after its id, with a prefix and a suffix if systemd manages it.
fn has_cgroup_of(cgroups: &str, engine_id: &str) -> bool {
    engine_id.len() >= MIN_ENGINE_ID && cgroups.split(['/', '\n']).any(|name| name.contains(engine_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_recognized_by_its_cgroups() {
        let (own, other) = ("0f".repeat(32), "1e".repeat(32));
        for cgroups in [
            format!("0::/system.slice/docker-{own}.scope\n"),
            format!("0::/../../docker/{own}\n"),
            format!("12:pids:/docker/{own}\n1:cpu:/docker/{own}/init\n0::/\n"),
        ] {
            assert!(has_cgroup_of(&cgroups, &own));
            assert!(!has_cgroup_of(&cgroups, &other));
            assert!(!has_cgroup_of(&cgroups, "") && !has_cgroup_of(&cgroups, "0f"));
        }
    }

    #[test]
    fn a_process_of_the_host_is_of_no_container() {
        let own = Process::open_any(std::process::id().try_into().unwrap()).unwrap();
        assert!(!is_of(&own, &"0f".repeat(32)));
        assert!(of(&"0f".repeat(32)).unwrap().is_empty());
    }
}
