//! An agent in its own process, whose memory is measured and which is killed: this program, with commands on its input.
//!
//! ```text
//! command                   response
//!                           ready            it is ready
//! launch FROM COUNT         ok               COUNT more containers are running
//! pids                      ok PID PID …     their first processes
//! sweep                     ok MICROSECONDS MICROSECONDS
//!                                            the usage of all was read: elapsed time, CPU time
//! end                       ok               all are destroyed
//! (end of input)                             destroys all, and exits
//! ```

use std::io::{BufRead, BufReader, Lines, StdinLock, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_core::agent::Agent;
use cofferdam_core::model::view::{Report, WantedReports};
use tokio::task::JoinSet;

use crate::Outcome;
use crate::chain::Chain;
use crate::embedded::request;
use crate::environment::Environment;
use crate::sweep_floor::cpu_time;

/// The argument with which this program is the agent.
pub const ARGUMENT: &str = "--agent-process";

/// How many containers are launched at a time.
const PARALLEL: usize = 8;

/// An agent in its own process.
pub struct AgentProcess<'a> {
    environment: &'a Environment,
    chain: Chain,
    process: Process,
    launched: usize,
    ended: bool,
}

struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl<'a> AgentProcess<'a> {
    pub fn start(environment: &'a Environment, chain: Chain) -> Outcome<Self> {
        let mut process = Process::start(environment, chain)?;
        process.answer()?;
        Ok(Self { environment, chain, process, launched: 0, ended: false })
    }

    pub fn pid(&self) -> i32 {
        self.process.child.id().cast_signed()
    }

    /// Launches further sleeping containers.
    pub fn launch(&mut self, count: usize) -> Outcome<()> {
        let command = format!("launch {} {count}", self.launched);
        self.process.command(&command)?;
        self.launched += count;
        Ok(())
    }

    /// The first processes of all running containers.
    pub fn pids(&mut self) -> Outcome<Vec<i32>> {
        self.process.command("pids")?.split_whitespace().map(|pid| Ok(pid.parse()?)).collect()
    }

    /// Reads the usage of all containers. Returns elapsed time and CPU time of the agent, in milliseconds.
    pub fn sweep(&mut self) -> Outcome<(f64, f64)> {
        let times = self.process.command("sweep")?;
        let (elapsed, spent) = times.split_once(' ').ok_or("two times are missing")?;
        Ok((elapsed.parse::<f64>()? / 1e3, spent.parse::<f64>()? / 1e3))
    }

    /// Kills the agent; its containers keep running.
    pub fn kill(&mut self) -> Outcome<()> {
        self.process.child.kill()?;
        self.process.child.wait()?;
        Ok(())
    }

    /// Starts the next agent, and waits until it is ready.
    pub fn restart(&mut self) -> Outcome<()> {
        self.process = Process::start(self.environment, self.chain)?;
        self.process.answer().map(drop)
    }

    /// Destroys all containers, and ends the agent.
    pub fn end(&mut self) -> Outcome<()> {
        self.process.command("end")?;
        self.ended = true;
        drop(self.process.input.take());
        self.process.child.wait()?;
        Ok(())
    }
}

impl Drop for AgentProcess<'_> {
    fn drop(&mut self) {
        if self.ended || self.end().is_ok() {
            return;
        }
        // It has ended or does not respond: the next one destroys its containers.
        let ended = self.kill().and_then(|()| self.restart()).and_then(|()| self.end());
        if let Err(error) = ended {
            eprintln!("bench: containers may be left: {error}");
        }
    }
}

impl Process {
    fn start(environment: &Environment, chain: Chain) -> Outcome<Self> {
        let name = format!("agent_process-{}", chain.argument());
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .arg(chain.argument())
            .arg(environment.state().join(&name))
            .arg(environment.directory().join(&name))
            .arg(environment.rootfs())
            // So that its files are removed with those of this process, even if it is killed.
            .env("TMPDIR", environment.directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the agent has no pipes".into());
        };
        Ok(Self { child, input: Some(input), output: BufReader::new(output) })
    }

    fn command(&mut self, command: &str) -> Outcome<String> {
        if let Some(input) = &mut self.input {
            writeln!(input, "{command}")?;
        }
        self.answer()
    }

    fn answer(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("ok" | "ready", rest) => Ok(rest.to_owned()),
            _ => Err("the agent failed; see its messages above".into()),
        }
    }
}

/// Runs the agent until the end of its input.
pub fn serve(chain: &Path, runtime_dir: PathBuf, work_dir: PathBuf, rootfs: &Path) -> Outcome<()> {
    let chain = chain.to_str().and_then(Chain::parse).ok_or("no such chain")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut world = chain.world()?;
    world.config.runtime_dir = runtime_dir;
    world.config.work_dir = work_dir;
    let agent = runtime.block_on(world.start())?;
    println!("ready");
    let outcome = execute(&runtime, &agent, rootfs, std::io::stdin().lock().lines());
    let left = runtime.block_on(agent.destroy_all());
    if left.is_empty() { outcome } else { Err(format!("{} containers are left", left.len()).into()) }
}

fn execute(
    runtime: &tokio::runtime::Runtime,
    agent: &Agent,
    rootfs: &Path,
    commands: Lines<StdinLock<'_>>,
) -> Outcome<()> {
    for command in commands {
        let command = command?;
        let fields: Vec<&str> = command.split_whitespace().collect();
        match fields.as_slice() {
            ["launch", from, count] => {
                let from: u64 = from.parse()?;
                let numbers = from..from + count.parse::<u64>()?;
                runtime.block_on(launch(agent, rootfs, numbers))?;
                println!("ok");
            }
            ["pids"] => {
                let pids = agent.containers().into_iter().filter_map(|container| container.pid);
                println!("ok {}", pids.map(|pid| pid.to_string()).collect::<Vec<_>>().join(" "));
            }
            ["sweep"] => {
                let before = cpu_time("/proc/self/task")?;
                let elapsed = runtime.block_on(sweep(agent))?;
                let spent = cpu_time("/proc/self/task")?.saturating_sub(before);
                println!("ok {} {}", elapsed.as_micros(), spent.as_micros());
            }
            ["end"] => {
                let left = runtime.block_on(agent.destroy_all());
                if !left.is_empty() {
                    return Err(format!("{} containers do not end", left.len()).into());
                }
                println!("ok");
            }
            _ => return Err(format!("unknown command `{command}`").into()),
        }
    }
    Ok(())
}

async fn launch(agent: &Agent, rootfs: &Path, numbers: std::ops::Range<u64>) -> Outcome<()> {
    let mut running = JoinSet::new();
    for number in numbers {
        if running.len() == PARALLEL
            && let Some(launched) = running.join_next().await
        {
            launched??;
        }
        let request = request(Some(rootfs.to_owned()), number, &["sleep", "1000000"])?;
        let agent = agent.clone();
        running.spawn(async move { agent.launch(request).await.map(drop) });
    }
    while let Some(launched) = running.join_next().await {
        launched??;
    }
    Ok(())
}

async fn sweep(agent: &Agent) -> Outcome<Duration> {
    let ids: Vec<_> = agent.containers().into_iter().map(|container| container.id).collect();
    let started = Instant::now();
    let reports = agent.reports(&ids, WantedReports::USAGE).await;
    let is_complete = |report: &Report| report.usage.as_ref().is_some_and(|usage| usage.failed.is_empty());
    if !reports.iter().all(is_complete) {
        return Err("the usage of a container could not be read".into());
    }
    Ok(started.elapsed())
}
