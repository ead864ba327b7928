//! The agent, and the container engine.

use cofferdam_core::config::{ContainerizerConfig, DockerConfig};
use cofferdam_core::engine;
use cofferdam_core::error_chain;

use super::finding::Finding;
use crate::api::operator::types::{Call, PluginHealth, PluginInfo, Response};
use crate::cli::client::{Client, ClientError};
use crate::config::Config;

pub(super) async fn findings(config: Option<&Config>, client: &Client) -> Vec<Finding> {
    let mut findings = agent(client).await;
    let containerizers = config.map(|config| config.agent.containerizers.as_slice()).unwrap_or_default();
    for containerizer in containerizers {
        if let ContainerizerConfig::Docker(docker) = containerizer {
            findings.push(engine(docker).await);
        }
    }
    findings
}

/// The agent and its plugins.
async fn agent(client: &Client) -> Vec<Finding> {
    const CHECK: &str = "agent";
    let own = env!("CARGO_PKG_VERSION");
    let version = |response| match response {
        Response::GetVersion(version) => Some(version.version_info.version),
        _ => None,
    };
    let running = match client.ask(&Call::GetVersion, version).await {
        Ok(version) if version == own => Finding::ok(CHECK, format!("running, version {version}")),
        Ok(version) => Finding::warning(
            CHECK,
            format!("version {version} is running; this program has version {own}"),
            "restart the agent; its containers keep running",
        ),
        Err(error @ ClientError::NotRunning { .. }) => {
            let advice = "start it with `cofferdam agent`, or set its socket with `--socket`; `cofferdam run` needs none";
            return vec![Finding::warning(CHECK, error.to_string(), advice)];
        }
        Err(error) => {
            let advice = "only root and the user of the agent may use its API; its log says more";
            return vec![Finding::failure(CHECK, error_chain::describe(&error), advice)];
        }
    };
    let plugins = |response| match response {
        Response::GetPlugins(list) => Some(list.plugins),
        _ => None,
    };
    let plugins: Vec<PluginInfo> = client.ask(&Call::GetPlugins, plugins).await.unwrap_or_default();
    let unhealthy = plugins.into_iter().filter(|plugin| plugin.health != PluginHealth::Healthy).map(|plugin| {
        let reason = plugin.message.unwrap_or_default();
        let advice = "restart the agent with a fixed or an older file; launches that require the plugin fail until then";
        Finding::failure("plugin health", format!("`{}`: {reason}", plugin.name), advice)
    });
    std::iter::once(running).chain(unhealthy).collect()
}

async fn engine(docker: &DockerConfig) -> Finding {
    const CHECK: &str = "container engine";
    let client = engine::Client::new(std::sync::Arc::clone(&docker.engine), docker.timeouts);
    match client.version().await {
        Ok(found) => Finding::ok(CHECK, format!("version {}, API {}", found.version, found.api_version)),
        Err(error) => Finding::failure(
            CHECK,
            error_chain::describe(&error),
            "start it, correct `docker.socket`, or take `docker` out of `containerizers`",
        ),
    }
}
