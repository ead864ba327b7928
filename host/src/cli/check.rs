//! `cofferdam check`: what a configuration means, and what is wrong with it, before anything starts.

use std::path::PathBuf;

use serde_json::json;

use super::agent::{Flags, configuration};
use super::report::Failure;
use super::{Outcome, out};
use cofferdam_core::config::FailPolicy;

use crate::config::{Config, ConfigError, Environment, Findings, SCHEMA, default_text};

/// Reads a configuration as the agent would, plugins and their tables included, and shows what it means
///
/// Nothing is loaded, made or started. The exit status is 1 if anything is wrong.
///
/// Examples:
///   cofferdam check --config agent.toml
///   cofferdam check --print-defaults > agent.toml
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Flags,
    /// As JSON: `{"problems": […], "flags": {…}, "chain": […]}` (docs/operator.md)
    #[arg(long)]
    json: bool,
    /// Print every setting with its default and what it is for, as a file to start from
    #[arg(long, conflicts_with_all = ["config", "json"])]
    print_defaults: bool,
    /// Print the JSON schema of the file, for editors
    #[arg(long, conflicts_with_all = ["config", "json", "print_defaults"])]
    print_schema: bool,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Outcome {
    let environment = Environment::look();
    if arguments.print_defaults {
        out::line(default_text(&environment).trim_end())?;
        return Ok(0);
    }
    if arguments.print_schema {
        out::line(SCHEMA.trim_end())?;
        return Ok(0);
    }
    let overrides = arguments.overrides.clone().overrides(socket);
    match configuration(arguments.config.clone(), &overrides, &environment) {
        Ok(config) => show(&config, arguments.json),
        Err(failure) if arguments.json => show_problems(failure),
        Err(failure) => Err(failure),
    }
}

fn show(config: &Config, json: bool) -> Outcome {
    let flags = crate::api::operator::flags(config);
    let chain: Vec<Vec<String>> = config
        .agent
        .isolators
        .iter()
        .map(|plugin| ("isolator", plugin))
        .chain(config.agent.logger.iter().map(|plugin| ("logger", plugin)))
        .map(|(kind, plugin)| {
            let policy = if plugin.policy == FailPolicy::Required { "required" } else { "optional" };
            let file = plugin.path.as_ref().map(|path| path.display().to_string());
            vec![kind.to_owned(), plugin.name.clone(), policy.to_owned(), file.unwrap_or_default()]
        })
        .collect();
    if json {
        let chain: Vec<_> = chain
            .iter()
            .map(|row| json!({"kind": row[0], "name": row[1], "policy": row[2], "path": row[3]}))
            .collect();
        out::json(&json!({"problems": [], "flags": flags, "chain": chain}))?;
        return Ok(0);
    }
    for (name, value) in flags.iter().filter(|(name, _)| !matches!(name.as_str(), "isolation" | "logger")) {
        out::line(&format!("{name:18} {value}"))?;
    }
    out::line("")?;
    if chain.is_empty() {
        out::line("no isolators and no logger: containers are not isolated and their output is lost")?;
    } else {
        out::table(&["KIND", "NAME", "POLICY", "FILE"], &chain)?;
    }
    Ok(0)
}

fn show_problems(failure: Failure) -> Outcome {
    let Some(ConfigError::Findings(findings)) = failure.error().downcast_ref::<ConfigError>() else {
        return Err(failure);
    };
    out::json(&json!({"problems": problems(findings)}))?;
    Ok(1)
}

fn problems(findings: &Findings) -> Vec<serde_json::Value> {
    let problem = |finding: &crate::config::Finding| {
        let position = findings.position(finding);
        json!({
            "message": finding.message,
            "line": position.map(|(line, _)| line),
            "column": position.map(|(_, column)| column),
            "label": finding.label,
            "help": finding.help,
        })
    };
    findings.findings().iter().map(problem).collect()
}
