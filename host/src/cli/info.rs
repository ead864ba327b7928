//! `cofferdam info`: shows what the agent is and what it has.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::client::{Client, ClientError};
use super::ps::Details;
use super::{Outcome, block_on, format, output, ps, time};
use crate::api::operator::types::{Call, PluginInfo, PluginKind, Response};
use cofferdam_core::plugin::API_VERSION;

/// Time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// Shows this machine, the agent, its settings, and how many containers it has
///
/// `cofferdam doctor` says whether that is as it should be.
///
/// Examples:
///   cofferdam info
///   cofferdam agent & cofferdam info --wait
///   cofferdam info --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Wait until the agent answers, at most so long [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = time::parse_duration, num_args = 0..=1, require_equals = true,
        default_missing_value = "10s")]
    wait: Option<Duration>,
    /// Print JSON: `{"client", "plugin_api", "host": {…}, "agent": {"version", "containers", "plugins", "flags"} or null}`
    #[arg(long)]
    json: bool,
}

/// What an agent is.
struct AgentFacts {
    version: String,
    /// How many containers are in each state.
    containers: BTreeMap<String, u64>,
    plugins: Vec<PluginInfo>,
    flags: BTreeMap<String, String>,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let agent = block_on(async {
        let until = arguments.wait.map(|wait| Instant::now() + wait);
        loop {
            match (facts(client).await, until) {
                (Ok(facts), _) => return Ok(Some(facts)),
                (Err(ClientError::NotRunning { .. }), None) => return Ok(None),
                // Nothing tells when there will be a socket.
                (Err(ClientError::NotRunning { .. }), Some(until)) if Instant::now() < until => {
                    tokio::time::sleep(RETRY).await;
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
    })?;
    if arguments.json {
        let agent = agent.as_ref().map(|agent| {
            let plugins: Vec<&str> = agent.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
            json!({
                "version": agent.version, "containers": agent.containers, "plugins": plugins, "flags": agent.flags,
            })
        });
        let own = env!("CARGO_PKG_VERSION");
        output::json(&json!({"client": own, "plugin_api": API_VERSION, "host": host(), "agent": agent}))?;
        return Ok(0);
    }
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let host = host();
    let memory = host["memory_bytes"].as_u64().unwrap_or_default();
    let mut lines = vec![
        ("version".to_owned(), format!("{}, plugin API {API_VERSION}", env!("CARGO_PKG_VERSION"))),
        ("kernel".to_owned(), text(&host["kernel"])),
        ("machine".to_owned(), format!("{} CPUs, {}", host["cpus"], format::bytes(memory))),
    ];
    match agent {
        None => lines.push(("agent".to_owned(), "not running; `cofferdam agent` starts it".to_owned())),
        Some(AgentFacts { version, containers, plugins, flags }) => {
            lines.push(("agent".to_owned(), format!("running, version {version}")));
            let states: Vec<String> =
                containers.iter().map(|(state, count)| format!("{count} {}", state.to_lowercase())).collect();
            let states = if states.is_empty() { "none".to_owned() } else { states.join(", ") };
            lines.push(("containers".to_owned(), states));
            let of = |kind| plugins.iter().filter(|plugin| plugin.kind == kind).count();
            let (isolators, loggers) = (of(PluginKind::Isolator), of(PluginKind::Logger));
            let hooks = of(PluginKind::Hook);
            lines.push((
                "plugins".to_owned(),
                format!("{isolators} isolators, {loggers} logger, {hooks} hooks"),
            ));
            lines.extend(flags.into_iter().map(|(name, value)| (name, readable(&value))));
        }
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    output::facts(width + 1, lines)?;
    Ok(0)
}

/// A setting as people read it: sizes with three digits, and lists with spaces, between which they can be wrapped.
fn readable(value: &str) -> String {
    match value.strip_suffix(" B").and_then(|bytes| bytes.parse().ok()) {
        Some(bytes) => format::bytes(bytes),
        None => value.replace(',', ", "),
    }
}

async fn facts(client: &Client) -> Result<AgentFacts, ClientError> {
    let version = client.ask(&Call::GetVersion, |response| match response {
        Response::GetVersion(version) => Some(version.version_info.version),
        _ => None,
    });
    let version = version.await?;
    let plugins = client.ask(&Call::GetPlugins, |response| match response {
        Response::GetPlugins(list) => Some(list.plugins),
        _ => None,
    });
    let plugins = plugins.await?;
    let flags = client.ask(&Call::GetFlags, |response| match response {
        Response::GetFlags(list) => Some(list.flags),
        _ => None,
    });
    let flags = flags.await?.into_iter().map(|flag| (flag.name, flag.value.unwrap_or_default())).collect();
    let mut containers = BTreeMap::new();
    for container in ps::list(client, &[], Details::NONE).await? {
        *containers.entry(container.state.unwrap_or_default()).or_default() += 1;
    }
    Ok(AgentFacts { version, containers, plugins, flags })
}

/// What this machine is.
fn host() -> Json {
    let names = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    json!({
        "kernel": format!("{} {}", names.sysname().to_string_lossy(), names.release().to_string_lossy()),
        "machine": names.machine().to_string_lossy(),
        "name": names.nodename().to_string_lossy(),
        "cpus": cpus,
        "memory_bytes": memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
    })
}
