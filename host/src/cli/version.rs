//! `cofferdam version`: the versions of this program and of the agent.

use cofferdam_core::plugin::API_VERSION;
use serde_json::json;

use super::client::{Client, ClientError};
use super::{Outcome, block_on, output};
use crate::api::operator::types::{Call, Response};

/// Shows the versions of this program, of its plugin API, and of the agent
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print JSON: `{"client": …, "plugin_api": …, "agent": … or null}`
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let agent = block_on(async { Ok(of_agent(client).await?) })?;
    let own = env!("CARGO_PKG_VERSION");
    if arguments.json {
        output::json(&json!({ "client": own, "plugin_api": API_VERSION, "agent": agent }))?;
        return Ok(0);
    }
    let agent = agent.unwrap_or_else(|| "not running".to_owned());
    for (what, version) in [("cofferdam", own), ("plugin API", API_VERSION), ("agent", &*agent)] {
        output::line(&format!("{what:10}  {}", output::escape_control(version)))?;
    }
    Ok(0)
}

/// `None` if no agent is running.
async fn of_agent(client: &Client) -> Result<Option<String>, ClientError> {
    let asked = client.ask(&Call::GetVersion, |response| match response {
        Response::GetVersion(version) => Some(version.version_info.version),
        _ => None,
    });
    match asked.await {
        Ok(version) => Ok(Some(version)),
        Err(ClientError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
