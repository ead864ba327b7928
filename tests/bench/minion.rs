//! An agent in a process of its own, to be weighed and killed: this program once more, with orders on its input.
//!
//! ```text
//! orders                    answers
//!                           ready            it serves
//! launch FROM COUNT         ok               so many sleep, besides those before
//! pids                      ok PID PID …     their first processes
//! sweep                     ok MICROSECONDS  usage of all was asked for
//! end                       ok               all are gone
//! (end of input)                             ends all, and itself
//! ```

use std::io::{BufRead, BufReader, Lines, StdinLock, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_core::agent::Agent;
use cofferdam_tests::world::World;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::ours::request;
use crate::scene::Scene;

/// The argument by which this program is the agent.
pub const ARGUMENT: &str = "--minion";

/// How many containers are launched at a time.
const AT_ONCE: usize = 8;

/// An agent in a process of its own.
pub struct Minion<'a> {
    scene: &'a Scene,
    process: Process,
    launched: usize,
    ended: bool,
}

struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl<'a> Minion<'a> {
    pub fn start(scene: &'a Scene) -> Outcome<Self> {
        let mut process = Process::start(scene)?;
        process.answer()?;
        Ok(Self { scene, process, launched: 0, ended: false })
    }

    pub fn pid(&self) -> i32 {
        self.process.child.id().cast_signed()
    }

    /// Launches more containers that sleep.
    pub fn launch(&mut self, count: usize) -> Outcome<()> {
        let order = format!("launch {} {count}", self.launched);
        self.process.order(&order)?;
        self.launched += count;
        Ok(())
    }

    /// The first processes of all containers that run.
    pub fn pids(&mut self) -> Outcome<Vec<i32>> {
        self.process.order("pids")?.split_whitespace().map(|pid| Ok(pid.parse()?)).collect()
    }

    /// Asks for the usage of all, and answers how many milliseconds that took.
    pub fn sweep(&mut self) -> Outcome<f64> {
        Ok(self.process.order("sweep")?.parse::<f64>()? / 1e3)
    }

    /// Kills the agent; its containers run on.
    pub fn kill(&mut self) -> Outcome<()> {
        self.process.child.kill()?;
        self.process.child.wait()?;
        Ok(())
    }

    /// Starts the next agent, and waits until it serves.
    pub fn restart(&mut self) -> Outcome<()> {
        self.process = Process::start(self.scene)?;
        self.process.answer().map(drop)
    }

    /// Ends all containers, and the agent.
    pub fn end(&mut self) -> Outcome<()> {
        self.process.order("end")?;
        self.ended = true;
        drop(self.process.input.take());
        self.process.child.wait()?;
        Ok(())
    }
}

impl Drop for Minion<'_> {
    fn drop(&mut self) {
        if self.ended || self.end().is_ok() {
            return;
        }
        // It is gone, or does not answer: the next one ends what it left.
        let ended = self.kill().and_then(|()| self.restart()).and_then(|()| self.end());
        if let Err(error) = ended {
            eprintln!("bench: containers may be left: {error}");
        }
    }
}

impl Process {
    fn start(scene: &Scene) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .arg(scene.state().join("minion"))
            .arg(scene.directory().join("minion"))
            .arg(scene.rootfs())
            // What it makes for itself goes with ours, even if it is killed.
            .env("TMPDIR", scene.directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the agent has no pipes".into());
        };
        Ok(Self { child, input: Some(input), output: BufReader::new(output) })
    }

    fn order(&mut self, order: &str) -> Outcome<String> {
        if let Some(input) = &mut self.input {
            writeln!(input, "{order}")?;
        }
        self.answer()
    }

    fn answer(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("ok" | "ready", rest) => Ok(rest.to_owned()),
            _ => Err("the agent gave up; its words are above".into()),
        }
    }
}

/// Is the agent. Its containers end with its input.
pub fn serve(runtime_dir: PathBuf, work_dir: PathBuf, rootfs: PathBuf) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut world = World::shipped();
    world.config.runtime_dir = runtime_dir;
    world.config.work_dir = work_dir;
    let agent = runtime.block_on(world.start())?;
    println!("ready");
    let outcome = obey(&runtime, &agent, &rootfs, std::io::stdin().lock().lines());
    let left = runtime.block_on(agent.destroy_all());
    if left.is_empty() { outcome } else { Err(format!("{} containers are left", left.len()).into()) }
}

fn obey(
    runtime: &tokio::runtime::Runtime,
    agent: &Agent,
    rootfs: &Path,
    orders: Lines<StdinLock<'_>>,
) -> Outcome<()> {
    for order in orders {
        let order = order?;
        let words: Vec<&str> = order.split_whitespace().collect();
        match words.as_slice() {
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
            ["sweep"] => println!("ok {}", runtime.block_on(sweep(agent))?.as_micros()),
            ["end"] => {
                let left = runtime.block_on(agent.destroy_all());
                if !left.is_empty() {
                    return Err(format!("{} containers do not end", left.len()).into());
                }
                println!("ok");
            }
            _ => return Err(format!("no such order: `{order}`").into()),
        }
    }
    Ok(())
}

async fn launch(agent: &Agent, rootfs: &Path, numbers: std::ops::Range<u64>) -> Outcome<()> {
    let mut running = JoinSet::new();
    for number in numbers {
        if running.len() == AT_ONCE
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
    let mut asked = JoinSet::new();
    for id in ids {
        let agent = agent.clone();
        asked.spawn(async move { agent.usage(&id).await.is_some_and(|usage| usage.failed.is_empty()) });
    }
    while let Some(answered) = asked.join_next().await {
        if !answered? {
            return Err("a container's usage is not known".into());
        }
    }
    Ok(started.elapsed())
}
