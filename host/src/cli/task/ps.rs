//! `cofferdam task ps`: lists tasks.

use serde_json::Value as Json;

use crate::cli::client::Client;
use crate::cli::{Outcome, block_on, output};

/// Lists tasks
///
/// Examples:
///   cofferdam task ps
///   cofferdam task ps -a --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Arguments {
    /// Include tasks that have ended
    #[arg(long, short)]
    all: bool,
    /// Print JSON: an array of `Task` as in GET_TASKS (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let (mut tasks, ended) = block_on(async { Ok(super::tasks(client).await?) })?;
    if arguments.all {
        tasks.extend(ended);
    }
    if arguments.json {
        output::json(&tasks)?;
    } else {
        let rows: Vec<Vec<String>> = tasks.iter().map(row).collect();
        output::table(&["TASK", "FRAMEWORK", "EXECUTOR", "STATE", "NAME"], &rows)?;
    }
    Ok(0)
}

fn row(task: &Json) -> Vec<String> {
    let text = |value: &Json| output::escape_control(value.as_str().unwrap_or("-"));
    vec![
        text(&task["task_id"]["value"]),
        text(&task["framework_id"]["value"]),
        text(&task["executor_id"]["value"]),
        text(&task["state"]),
        text(&task["name"]),
    ]
}
