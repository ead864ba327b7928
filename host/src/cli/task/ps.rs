//! `cofferdam task ps`: lists tasks.

use serde_json::Value as Json;

use crate::cli::client::Client;
use crate::cli::output::{Cell, Column, Table};
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
        let mut table = Table::new(vec![
            Column::new("TASK").elastic(),
            Column::new("FRAMEWORK").elastic().optional(2),
            Column::new("EXECUTOR").elastic().optional(3),
            Column::new("STATE"),
            Column::new("NAME").elastic().optional(1),
        ]);
        tasks.iter().for_each(|task| table.push(row(task)));
        table.print()?;
    }
    Ok(0)
}

fn row(task: &Json) -> Vec<Cell> {
    let text = |value: &Json| Cell::from(output::escape_control(value.as_str().unwrap_or("-")));
    vec![
        text(&task["task_id"]["value"]),
        text(&task["framework_id"]["value"]),
        text(&task["executor_id"]["value"]),
        text(&task["state"]),
        text(&task["name"]),
    ]
}
