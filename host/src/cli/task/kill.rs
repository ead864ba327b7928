//! `cofferdam task kill`: asks for the end of tasks.

use std::time::Duration;

use serde_json::json;

use crate::api::operator::types::{Call, FrameworkId, KillTask, TaskId};
use crate::cli::client::Client;
use crate::cli::{Outcome, block_on, output};

/// Asks for the end of tasks
///
/// The executor ends a task; its state says when it has. `cofferdam kill` ends the container of an executor at once.
///
/// Examples:
///   cofferdam task kill web
///   cofferdam task kill --grace 10s web db
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Arguments {
    /// The tasks
    #[arg(required = true)]
    tasks: Vec<String>,
    /// Their framework; needed if several frameworks have such a task
    #[arg(long, value_name = "ID")]
    framework: Option<String>,
    /// How long they may take to end before they are killed [default: their kill policy]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
    /// Print JSON: an array of the tasks
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let nanoseconds = |grace: Duration| u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
    let policy = arguments.grace.map(|grace| json!({"grace_period": {"nanoseconds": nanoseconds(grace)}}));
    block_on(async {
        for task in &arguments.tasks {
            let call = KillTask {
                framework_id: arguments.framework.clone().map(|value| FrameworkId { value }),
                task_id: TaskId { value: task.clone() },
                kill_policy: policy.clone(),
            };
            client.tell(&Call::KillTask(Box::new(call))).await?;
        }
        if arguments.json {
            output::json(&arguments.tasks)?;
        }
        Ok(0)
    })
}
