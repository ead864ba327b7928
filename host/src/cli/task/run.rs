//! `cofferdam task run`: runs a command as a task, and reports its states.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::FRAMEWORK;
use crate::api::operator::types::{
    AcknowledgeStatusUpdate, Bytes, Call, FrameworkId, LaunchTask, StatusUpdate, SubscribeStatusUpdates,
    TaskId,
};
use crate::api::operator::{encode_launch, encode_limits, encode_resources};
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::process_flags::{ProcessFlags, executed, random_name};
use crate::cli::resources::ResourceFlags;
use crate::cli::{Outcome, block_on, output};
use cofferdam_core::model::{Command, ContainerId, DockerOptions, DockerParameter, Request, Resources};

/// Exit status for a task of which it is not known how its command ended.
const UNKNOWN: u8 = 125;

/// Runs a command as a task
///
/// Waits until the task has ended, and shows its states. The exit status is that of its command: 128 plus the number of the
/// signal if it was killed by one, 125 if that is not known. With `--detach`, the states are kept until somebody acknowledges
/// them. A task goes on when this command is interrupted.
///
/// Examples:
///   cofferdam task run --name web --cpus 0.5 --memory 64m -- httpd -f
///   cofferdam task run --image busybox --shell 'echo hello' --json
///   cofferdam task run --docker nginx:1 --docker-option publish=8080:80
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Arguments {
    /// Id of the task [default: random]
    #[arg(long, value_name = "ID")]
    name: Option<String>,
    /// Return when the task is accepted
    #[arg(long, short)]
    detach: bool,
    /// Print JSON: a `StatusUpdate` per line as in SUBSCRIBE_STATUS_UPDATES (docs/api.md)
    #[arg(long, conflicts_with = "detach")]
    json: bool,
    /// Directory with its root file system, which is not modified
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Image of its root file system, by name or id
    #[arg(long, value_name = "IMAGE", conflicts_with = "rootfs")]
    image: Option<String>,
    /// Run it in a container of the container engine, of this image; without CMD, the command is that of the image
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["rootfs", "image"])]
    docker: Option<String>,
    /// Option of `docker run` for the container of --docker, such as `network=bridge`
    #[arg(long, value_name = "OPTION=VALUE", requires = "docker", value_parser = parameter)]
    docker_option: Vec<DockerParameter>,
    #[command(flatten)]
    process: ProcessFlags,
    #[command(flatten)]
    resources: ResourceFlags,
    /// Shell command for `/bin/sh -c`, instead of CMD
    #[arg(long, value_name = "LINE", conflicts_with = "command")]
    shell: Option<String>,
    /// The command and its arguments
    #[arg(last = true, value_name = "CMD", required_unless_present_any = ["shell", "docker"])]
    command: Vec<String>,
}

pub(super) fn run(arguments: Arguments, client: &Client) -> Outcome {
    let Arguments {
        name,
        detach,
        json,
        rootfs,
        image,
        docker,
        docker_option,
        process,
        resources,
        shell,
        command,
    } = arguments;
    let id = name.unwrap_or_else(|| random_name("task"));
    let command = match shell {
        Some(line) => Command { shell: true, value: Some(line), ..Command::default() },
        // Arguments for the entry point of the image.
        None if docker.is_some() => Command { shell: false, arguments: command, ..Command::default() },
        None => executed(command),
    };
    let parameters = docker_option;
    let docker = docker.map(|image| DockerOptions { image, parameters, ..DockerOptions::default() });
    let resources = resources.apply(Resources::default())?;
    // Its id is that of the task, which is not restricted as much.
    let container = ContainerId::parse("task").map_err(Failure::of)?;
    let request = Request { rootfs, image, docker, ..Request::new(container, process.apply(command)) };
    let call = launch(&id, request, &resources);
    block_on(async {
        // Before the task is launched, so that nothing is missed.
        let framework_id = Some(FrameworkId { value: FRAMEWORK.to_owned() });
        let mut updates = match detach {
            true => None,
            false => Some(client.updates(SubscribeStatusUpdates { framework_id }).await?),
        };
        client.tell(&Call::LaunchTask(Box::new(call))).await?;
        let Some(updates) = &mut updates else {
            output::line(&id)?;
            return Ok(0);
        };
        loop {
            let update = updates.next().await?;
            let status = &update.status;
            if status["task_id"]["value"] != id.as_str() {
                continue;
            }
            if json {
                output::line(&serde_json::to_string(&update).map_err(Failure::of)?)?;
            } else {
                output::line(&describe(&update))?;
            }
            acknowledge(client, &update).await?;
            if is_terminal(&status["state"]) {
                return Ok(exit_status(status));
            }
        }
    })
}

fn launch(id: &str, request: Request, resources: &Resources) -> LaunchTask {
    let encoded = encode_launch(&request);
    let mut task = json!({
        "name": id,
        "task_id": {"value": id},
        "agent_id": {"value": ""},
        "resources": encode_resources(resources),
        "limits": encode_limits(resources),
        "command": encoded.command,
    });
    if request.rootfs.is_some() || request.image.is_some() || request.docker.is_some() {
        task["container"] = json!(encoded.container);
    }
    LaunchTask {
        framework_info: json!({
            "id": {"value": FRAMEWORK}, "name": FRAMEWORK, "user": "", "checkpoint": true,
            "capabilities": [{"type": "PARTITION_AWARE"}],
        }),
        task_info: task,
        executor_info: None,
    }
}

fn parameter(text: &str) -> Result<DockerParameter, String> {
    // An option without a value is a flag.
    let (key, value) = text.split_once('=').unwrap_or((text, "true"));
    match key.trim_start_matches('-') {
        "" => Err("the name of the option is missing".to_owned()),
        key => Ok(DockerParameter { key: key.to_owned(), value: value.to_owned() }),
    }
}

async fn acknowledge(client: &Client, update: &StatusUpdate) -> Result<(), Failure> {
    let uuid = update.status["uuid"].as_str().unwrap_or_default();
    let uuid = data_encoding::BASE64.decode(uuid.as_bytes()).map_err(Failure::of)?;
    let call = AcknowledgeStatusUpdate {
        framework_id: update.framework_id.clone(),
        task_id: TaskId { value: update.status["task_id"]["value"].as_str().unwrap_or_default().to_owned() },
        uuid: Bytes(uuid),
    };
    Ok(client.tell(&Call::AcknowledgeStatusUpdate(call)).await?)
}

fn describe(update: &StatusUpdate) -> String {
    let status = &update.status;
    let text = |value: &Json| output::escape_control(value.as_str().unwrap_or_default());
    let mut line = format!("{} {}", text(&status["task_id"]["value"]), text(&status["state"]));
    for detail in ["reason", "message"] {
        if let Some(detail) = status[detail].as_str() {
            line = format!("{line}: {}", output::escape_control(detail));
        }
    }
    line
}

fn is_terminal(state: &Json) -> bool {
    !matches!(state.as_str(), Some("TASK_STAGING" | "TASK_STARTING" | "TASK_RUNNING" | "TASK_KILLING"))
}

/// The exit status of a task, which executors report as a sentence: `Command exited with status 3`, `Command terminated
/// with signal Killed`.
fn exit_status(status: &Json) -> u8 {
    let message = status["message"].as_str().unwrap_or_default();
    if status["state"] == "TASK_FINISHED" {
        return 0;
    }
    if let Some((_, code)) = message.rsplit_once("exited with status ") {
        return code.trim_end_matches('.').parse().unwrap_or(UNKNOWN);
    }
    match message.rsplit_once("terminated with signal ") {
        Some((_, name)) => signal_of(name).map_or(UNKNOWN, |signal| 128 + signal),
        None => UNKNOWN,
    }
}

/// The number of a signal by its description in the C library.
fn signal_of(description: &str) -> Option<u8> {
    const DESCRIPTIONS: [(&str, u8); 14] = [
        ("Hangup", 1),
        ("Interrupt", 2),
        ("Quit", 3),
        ("Illegal instruction", 4),
        ("Trace/breakpoint trap", 5),
        ("Aborted", 6),
        ("Bus error", 7),
        ("Floating point exception", 8),
        ("Killed", 9),
        ("User defined signal 1", 10),
        ("Segmentation fault", 11),
        ("User defined signal 2", 12),
        ("Broken pipe", 13),
        ("Terminated", 15),
    ];
    let is_it = |known: &&(&str, u8)| description.trim_end_matches('.').starts_with(known.0);
    DESCRIPTIONS.iter().find(is_it).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_that_of_the_command() {
        let status = |state: &str, message: &str| exit_status(&json!({"state": state, "message": message}));
        assert_eq!(status("TASK_FINISHED", "Command exited with status 0"), 0);
        assert_eq!(status("TASK_FAILED", "Command exited with status 3"), 3);
        assert_eq!(status("TASK_KILLED", "Command terminated with signal Killed"), 137);
        assert_eq!(status("TASK_KILLED", "Command terminated with signal Terminated"), 143);
        assert_eq!(status("TASK_FAILED", "the container could not be launched"), 125);
        assert_eq!(exit_status(&json!({"state": "TASK_LOST"})), 125);
    }
}
