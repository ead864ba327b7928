//! `cofferdam task`: tasks, and what their executors report.

mod kill;
mod logs;
mod ps;
mod run;

use super::Outcome;
use super::client::{Client, ClientError};
use crate::api::operator::types::{Call, Response};
use serde_json::Value as Json;

/// The framework of tasks that are launched here.
const FRAMEWORK: &str = "cofferdam";

/// Runs tasks: commands with an executor that reports their state
///
/// The state of a task is kept on disk until it is acknowledged, whatever ends: the task, its executor, the agent, or the
/// client.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(Box<run::Arguments>),
    #[command(visible_alias = "ls")]
    Ps(ps::Arguments),
    Kill(kill::Arguments),
    Logs(logs::Arguments),
}

pub(super) fn run(arguments: Arguments, client: &Client) -> Outcome {
    match arguments.command {
        Command::Run(arguments) => run::run(*arguments, client),
        Command::Ps(arguments) => ps::run(&arguments, client),
        Command::Kill(arguments) => kill::run(&arguments, client),
        Command::Logs(arguments) => logs::run(arguments, client),
    }
}

/// All tasks, as in GET_TASKS: those that are queued or launched, and those that have ended.
async fn tasks(client: &Client) -> Result<(Vec<Json>, Vec<Json>), ClientError> {
    let list = client
        .ask(&Call::GetTasks, |response| match response {
            Response::GetTasks(tasks) => Some(tasks),
            _ => None,
        })
        .await?;
    let live = list.pending_tasks.into_iter().chain(list.queued_tasks).chain(list.launched_tasks);
    let ended = list.terminated_tasks.into_iter().chain(list.completed_tasks);
    Ok((live.collect(), ended.collect()))
}

/// The container of the executor of a task.
async fn container(client: &Client, task: &str) -> Result<Option<String>, ClientError> {
    let (live, ended) = tasks(client).await?;
    let is_wanted = |found: &&Json| found["task_id"]["value"] == task;
    let Some(found) = live.iter().chain(&ended).find(is_wanted) else { return Ok(None) };
    // A task without an executor of its own has one of the same name.
    let executor = found["executor_id"]["value"].as_str().unwrap_or(task).to_owned();
    let framework = found["framework_id"]["value"].clone();
    let executors = client
        .ask(&Call::GetExecutors, |response| match response {
            Response::GetExecutors(executors) => Some(executors),
            _ => None,
        })
        .await?;
    let mut all = executors.executors.iter().chain(executors.completed_executors.iter().rev());
    let own = all.find(|found| {
        let info = &found["executor_info"];
        info["executor_id"]["value"] == executor.as_str() && info["framework_id"]["value"] == framework
    });
    Ok(own.and_then(|found| found["container_id"]["value"].as_str()).map(str::to_owned))
}
