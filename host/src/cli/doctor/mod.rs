//! `cofferdam doctor`: checks whether this machine has what containers need.

mod finding;
mod host;
mod service;
mod storage;

use std::io;
use std::path::PathBuf;

use serde_json::json;

use self::finding::{Finding, Verdict};
use super::agent::{OverrideFlags, load_config};
use super::client::Client;
use super::failure::Failure;
use super::output::{Tone, escape_control, has_colour};
use super::{Outcome, block_on, client, output};
use crate::config::{Config, ConfigError, Environment};
use cofferdam_core::error_chain;

/// Checks this machine, the configuration and the agent, and says what to do
///
/// Nothing is changed. Each line is `ok`, `warning` (it works, but not everything, or not as fast as it could) or `failure`. The
/// exit status is 1 if there is a failure.
///
/// Examples:
///   cofferdam doctor
///   cofferdam doctor --config agent.toml --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Configuration file of the agent
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: OverrideFlags,
    /// Print JSON: `{"findings": [{"check", "verdict", "message", "advice"}]}`
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Outcome {
    let environment = Environment::detect();
    let overrides = arguments.overrides.clone().with_socket(socket.clone());
    let mut findings = Vec::new();
    let config = match load_config(arguments.config.clone(), &overrides, &environment) {
        Ok(config) => {
            findings.push(configuration(&config));
            Some(config)
        }
        Err(failure) => {
            findings.push(invalid_configuration(&failure));
            None
        }
    };
    findings.extend(host::findings(config.as_ref()));
    findings.extend(storage::findings(config.as_ref(), &overrides, &environment));
    let socket = socket.or_else(|| config.as_ref().map(|config| config.socket.clone()));
    let client: Client = client(socket);
    findings.extend(block_on(async { Ok(service::findings(config.as_ref(), &client).await) })?);
    if arguments.json {
        output::json(&json!({"findings": findings}))?;
    } else {
        show(&findings)?;
    }
    let has_failed = findings.iter().any(|finding| finding.verdict == Verdict::Failure);
    Ok(u8::from(has_failed))
}

fn configuration(config: &Config) -> Finding {
    let file = config
        .file
        .as_ref()
        .map_or_else(|| "the defaults".to_owned(), |file| format!("`{}`", file.display()));
    let isolators = config.agent.isolators.len();
    let launcher = config.agent.launcher.name();
    Finding::ok("configuration", format!("{file}: launcher `{launcher}`, {isolators} isolators"))
}

fn invalid_configuration(failure: &Failure) -> Finding {
    let message = match failure.error().downcast_ref::<ConfigError>() {
        Some(ConfigError::Invalid(diagnostics)) => {
            diagnostics.iter().map(|diagnostic| diagnostic.message.clone()).collect::<Vec<_>>().join("\n")
        }
        _ => error_chain::describe(failure.error()),
    };
    Finding::failure("configuration", message, "`cofferdam check` shows all problems with their lines")
}

fn show(findings: &[Finding]) -> io::Result<()> {
    let (has_colour, columns) = (has_colour(&io::stdout()), output::width());
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    for finding in findings {
        let (word, tone) = match finding.verdict {
            Verdict::Ok => ("ok     ", Tone::Good),
            Verdict::Warning => ("warning", Tone::Warning),
            Verdict::Failure => ("failure", Tone::Bad),
        };
        let indent = word.len() + width + 4;
        let text = |line: &str| output::wrapped(&escape_control(line), indent, indent, columns);
        let spaces = " ".repeat(indent);
        let lines = finding.message.lines().map(text).collect::<Vec<_>>().join(&format!("\n{spaces}"));
        output::line(&format!("{}  {:width$}  {lines}", tone.paint(word, has_colour), finding.check))?;
        if let Some(advice) = &finding.advice {
            let advice = output::wrapped(&escape_control(advice), indent + 2, indent + 2, columns);
            output::line(&format!("{spaces}→ {advice}"))?;
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (warnings, failures) = (count(Verdict::Warning), count(Verdict::Failure));
    output::line("")?;
    let counted = |count, word| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    output::line(&format!(
        "{}, {}, {}",
        counted(findings.len(), "check"),
        counted(warnings, "warning"),
        counted(failures, "failure")
    ))
}
