//! An agent of ours as a daemon, for measurements beside engines.

use std::path::PathBuf;
use std::process::Command;

use cofferdam_core::model::{ContainerId, Request};
use cofferdam_linux::process::{Stat, children_of};
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::paths;
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::world::World;

use crate::Outcome;

/// Name of the process that passes on the streams of a container that clients can attach to.
const SWITCHBOARD: &str = "cofferdam-io";

/// A daemon, and its directories. Its containers are destroyed on drop.
pub struct Ours {
    daemon: Daemon,
    // Dropped after the daemon, which uses its directories.
    world: World,
}

impl Ours {
    pub fn start(world: World) -> Self {
        Self { daemon: Daemon::start(&world), world }
    }

    /// The program, which calls this daemon.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(paths::program());
        command.args(arguments).env("COFFERDAM_SOCKET", self.world.socket());
        command
    }

    /// Runs the program at a terminal.
    pub fn at_terminal(&self, arguments: &[&str]) -> Terminal {
        Terminal::run(&paths::program(), arguments, &[("COFFERDAM_SOCKET", &self.world.socket())])
    }

    /// Launches a container. Returns its first process.
    pub fn launch(&self, request: &Request) -> Outcome<i32> {
        self.daemon.launch(request).map_err(|error| format!("a launch: {error:?}"))?;
        let name = request.id.to_string();
        let is_it = |container: &_| container_name(container) == name;
        let found = self.daemon.list().into_iter().find(is_it);
        let pid = found.and_then(|container| container.container_status?.executor_pid);
        Ok(i32::try_from(pid.ok_or_else(|| format!("container `{name}` does not run"))?)?)
    }

    /// Ends and removes a container.
    pub fn remove(&self, id: &ContainerId) -> Outcome<()> {
        let ended = self.daemon.destroy(id).and_then(|_| self.daemon.remove(id));
        ended.map_err(|error| format!("the end of `{id}`: {error:?}").into())
    }

    /// The processes that serve all containers: the agent and its keeper.
    pub fn daemons(&self) -> Vec<i32> {
        vec![self.daemon.pid(), self.daemon.keeper().pid()]
    }

    /// The processes of loggers.
    pub fn companions(&self) -> Vec<i32> {
        self.daemon.children()
    }

    /// The processes that pass on the streams of containers that clients can attach to.
    pub fn switchboards(&self) -> Outcome<Vec<i32>> {
        let mut children = children_of(self.daemon.keeper().pid())?;
        children.retain(|pid| Stat::read(*pid).is_ok_and(|stat| stat.name == SWITCHBOARD));
        Ok(children)
    }

    /// The sandbox of a container.
    pub fn sandbox(&self, id: &ContainerId) -> PathBuf {
        self.world.config.work_dir.join("containers").join(id.to_string())
    }
}

fn container_name(container: &cofferdam::api::operator::types::Container) -> String {
    container.container_id.to_string()
}

impl Drop for Ours {
    fn drop(&mut self) {
        for container in self.daemon.list() {
            let id = container_name(&container);
            let removed = ContainerId::parse(&id).map_err(Into::into).and_then(|id| self.remove(&id));
            if let Err(error) = removed {
                eprintln!("bench: container `{id}` may be left: {error}");
            }
        }
    }
}
