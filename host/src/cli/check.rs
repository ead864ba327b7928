//! `cofferdam check`: validates a configuration without starting an agent.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::agent::{OverrideFlags, load_config};
use super::failure::{Failure, Outcome};
use super::output::{self, Column, Table};
use crate::api::operator::flags;
use crate::config::{
    Config, ConfigError, Diagnostic, Diagnostics, Environment, Isolation, SCHEMA, default_text,
};
use cofferdam_core::config::{FailPolicy, LauncherKind, PluginConfig};

/// Validates a configuration as the agent would, including its plugins, and shows the result
///
/// Does not run plugin code or change anything. The exit status is 1 if the configuration is invalid.
///
/// Examples:
///   cofferdam check --config agent.toml
///   cofferdam check --print-defaults > agent.toml
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Configuration file
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: OverrideFlags,
    /// Print JSON: `{"problems": […], "flags": {…}, "chain": […], "hooks": […]}` (docs/operator.md)
    #[arg(long)]
    json: bool,
    /// Print a configuration file with all settings, their defaults and descriptions
    #[arg(long, conflicts_with_all = ["config", "json"])]
    print_defaults: bool,
    /// With the defaults of root, whoever asks (for packages)
    #[arg(long, hide = true, requires = "print_defaults")]
    root: bool,
    /// Print the isolators and the logger of a predefined chain, as a start for your own
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "json", "print_defaults"])]
    print_isolation: Option<Isolation>,
    /// Print the JSON schema of the configuration file, for editors
    #[arg(long, conflicts_with_all = ["config", "json", "print_defaults", "print_isolation"])]
    print_schema: bool,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Outcome {
    let environment = Environment::detect();
    if arguments.print_defaults {
        let environment = if arguments.root { environment.of_root() } else { environment };
        output::line(default_text(&environment).trim_end())?;
        return Ok(0);
    }
    if let Some(isolation) = arguments.print_isolation {
        let launcher = if environment.is_root() { LauncherKind::Linux } else { LauncherKind::Posix };
        output::line(isolation.with(launcher).text().trim_end())?;
        return Ok(0);
    }
    if arguments.print_schema {
        output::line(SCHEMA.trim_end())?;
        return Ok(0);
    }
    let overrides = arguments.overrides.clone().with_socket(socket);
    match load_config(arguments.config.clone(), &overrides, &environment) {
        Ok(config) if arguments.json => print_json(&config),
        Ok(config) => print(&config),
        Err(failure) if arguments.json => print_problems(failure),
        Err(failure) => Err(failure),
    }
}

fn print(config: &Config) -> Outcome {
    // These are in the table below.
    let is_chain = |name: &str| matches!(name, "isolation" | "logger" | "logger.to" | "hooks");
    output::facts(18, flags(config).into_iter().filter(|(name, _)| !is_chain(name)))?;
    output::line("")?;
    let columns = ["KIND", "NAME", "POLICY"].map(Column::new).into_iter();
    let mut table = Table::new(columns.chain([Column::new("FILE").optional(1)]).collect());
    let hooks = config.agent.hooks.iter().map(|plugin| ("hook", plugin));
    for (kind, plugin) in chain(config).chain(hooks) {
        table.push(vec![kind.into(), plugin.name.clone().into(), policy(plugin).into(), path(plugin).into()]);
    }
    if chain(config).next().is_none() {
        output::line(
            "no isolators and no logger: containers are not isolated and their output is discarded",
        )?;
    }
    if !table.is_empty() {
        table.print()?;
    }
    Ok(0)
}

fn print_json(config: &Config) -> Outcome {
    let entry = |(kind, plugin): (&str, &PluginConfig)| json!({"kind": kind, "name": plugin.name, "policy": policy(plugin), "path": path(plugin)});
    let chain: Vec<Json> = chain(config).map(entry).collect();
    let hooks: Vec<Json> = config.agent.hooks.iter().map(|plugin| entry(("hook", plugin))).collect();
    output::json(&json!({"problems": [], "flags": flags(config), "chain": chain, "hooks": hooks}))?;
    Ok(0)
}

/// The isolators and the loggers, each with its kind.
fn chain(config: &Config) -> impl Iterator<Item = (&'static str, &PluginConfig)> {
    let isolators = config.agent.isolators.iter().map(|plugin| ("isolator", plugin));
    let loggers = config.agent.log_targets.iter().chain(&config.agent.logger);
    isolators.chain(loggers.map(|plugin| ("logger", plugin)))
}

fn policy(plugin: &PluginConfig) -> &'static str {
    match plugin.policy {
        FailPolicy::Required => "required",
        FailPolicy::Optional => "optional",
    }
}

fn path(plugin: &PluginConfig) -> String {
    plugin.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

fn print_problems(failure: Failure) -> Outcome {
    let Some(ConfigError::Invalid(diagnostics)) = failure.error().downcast_ref::<ConfigError>() else {
        return Err(failure);
    };
    let problems: Vec<Json> = diagnostics.iter().map(|diagnostic| problem(diagnostics, diagnostic)).collect();
    output::json(&json!({"problems": problems}))?;
    Ok(1)
}

fn problem(diagnostics: &Diagnostics, diagnostic: &Diagnostic) -> Json {
    let (line, column) = diagnostics.position(diagnostic).unzip();
    json!({
        "message": diagnostic.message,
        "line": line,
        "column": column,
        "label": diagnostic.label,
        "help": diagnostic.help,
    })
}
