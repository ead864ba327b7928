//! Embeds the agent: runs one container, prints its output and exit status, and removes all files.

use std::error::Error;
use std::{env, fs};

use cofferdam_core::agent::Agent;
use cofferdam_core::config::{AgentConfig, LauncherKind, PluginConfig};
use cofferdam_core::model::{ContainerId, Request};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let command = env::args().nth(1).unwrap_or_else(|| "echo hello from process $$".into());
    let directory = tempfile::tempdir()?;
    let mut config = AgentConfig::new(directory.path(), LauncherKind::for_current_user());
    // `cargo build` places plugins in the directory of this program.
    config.plugin_dir = env::current_exe()?.with_file_name("");
    config.logger = Some(PluginConfig::new("sandbox"));

    let agent = Agent::start(config).await?;
    let outcome = run(&agent, &command).await;
    agent.destroy_all().await;
    agent.shutdown().await;
    outcome
}

/// Runs a shell command in a container.
async fn run(agent: &Agent, command: &str) -> Result<(), Box<dyn Error>> {
    let id = ContainerId::parse("hello")?;
    agent.launch(Request::shell(id.clone(), command)).await?;
    let ended = agent.wait(&id).await.and_then(|termination| termination.ended());
    let logs = agent.inspect(&id).ok_or("the container is unknown")?.logs;
    print!("{}", fs::read_to_string(logs.stdout.ok_or("the logger wrote no file")?)?);
    println!("the container {}", ended.ok_or("did not run")?);
    agent.remove(&id).await?;
    Ok(())
}
