//! `cofferdam plugin`: which plugins there are, and what they say of themselves. None of their code runs.

use std::path::{Path, PathBuf};

use cofferdam_plugin_model::{Manifest, Methods};
use serde_json::{Value as Json, json};

use super::client::{Client, ClientError};
use super::index::Files;
use super::report::Failure;
use super::{Outcome, converse, out};
use crate::api::operator::types::{Call, PluginInfo, PluginKind, Response};
use crate::config::{Environment, PluginIndex};

/// Shows plugins
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Ls(Ls),
    Inspect(Inspect),
}

/// Lists plugins: those of the agent if one answers, else those in the plugin folder
///
/// Examples:
///   cofferdam plugin ls
///   cofferdam plugin ls --plugin-dir target/release
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Ls {
    /// Look in this folder, whatever an agent says
    #[arg(long, value_name = "PATH")]
    plugin_dir: Option<PathBuf>,
    /// As JSON: an array of `PluginInfo` as in GET_PLUGINS (docs/api.md), or of what the files say
    #[arg(long)]
    json: bool,
}

/// Shows what a plugin file says of itself, without running it: version, methods, settings
///
/// Examples:
///   cofferdam plugin inspect cgroups/mem
///   cofferdam plugin inspect ./libgreeting.so --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Inspect {
    /// A file, or the name of a plugin in the plugin folder
    #[arg(value_name = "FILE|NAME")]
    plugin: String,
    /// Look for the name in this folder
    #[arg(long, value_name = "PATH")]
    plugin_dir: Option<PathBuf>,
    /// As JSON: the manifest, with `file` and `sha256`
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    match &arguments.verb {
        Verb::Ls(verb) => list(verb, client),
        Verb::Inspect(verb) => inspect(verb),
    }
}

fn list(arguments: &Ls, client: &Client) -> Outcome {
    if let Some(directory) = &arguments.plugin_dir {
        return list_folder(directory, arguments.json);
    }
    let asked = converse(async {
        let take = |response| match response {
            Response::GetPlugins(list) => Some(list.plugins),
            _ => None,
        };
        match client.ask(&Call::GetPlugins, take).await {
            Ok(plugins) => Ok(Some(plugins)),
            Err(ClientError::NobodyAnswers { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?;
    match asked {
        Some(plugins) => list_loaded(&plugins, arguments.json),
        None => list_folder(&Environment::look().plugins, arguments.json),
    }
}

fn list_loaded(plugins: &[PluginInfo], json: bool) -> Outcome {
    if json {
        out::json(plugins)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = plugins
        .iter()
        .map(|plugin| {
            let kind = match plugin.kind {
                PluginKind::Isolator => "isolator",
                PluginKind::Logger => "logger",
            };
            let calls: u64 = plugin.calls.values().map(|count| count.calls).sum();
            let failed: u64 =
                plugin.calls.values().map(|count| count.failures + count.timeouts + count.panics).sum();
            let health = serde_json::to_value(plugin.health).unwrap_or_default();
            let health = health.as_str().unwrap_or_default().to_lowercase().replace('_', " ");
            vec![
                plugin.name.clone(),
                kind.to_owned(),
                plugin.version.clone(),
                plugin
                    .message
                    .as_ref()
                    .map_or(health.clone(), |why| format!("{health}: {}", out::escape_control(why))),
                calls.to_string(),
                failed.to_string(),
                plugin.path.clone(),
            ]
        })
        .collect();
    out::table(&["NAME", "KIND", "VERSION", "HEALTH", "CALLS", "FAILED", "FILE"], &rows)?;
    Ok(0)
}

fn list_folder(directory: &Path, json: bool) -> Outcome {
    let found = Files.in_directory(directory);
    if json {
        let entries: Vec<Json> = found
            .iter()
            .map(|(file, manifest)| match manifest {
                Ok(manifest) => shown(manifest, file, None),
                Err(error) => {
                    json!({"file": file, "error": cofferdam_core::error_chain::describe(error.as_ref())})
                }
            })
            .collect();
        out::json(&entries)?;
        return Ok(0);
    }
    if found.is_empty() {
        return Err(Failure::told(format!(
            "there are no plugins in `{}`; say where they are with `--plugin-dir`",
            directory.display()
        )));
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(file, manifest)| {
            let file = file.display().to_string();
            match manifest {
                Ok(manifest) => vec![
                    manifest.name.clone(),
                    manifest.kind.to_string(),
                    manifest.version.to_string(),
                    file,
                    out::escape_control(&manifest.description),
                ],
                Err(error) => {
                    let why = out::escape_control(&cofferdam_core::error_chain::describe(error.as_ref()));
                    vec!["-".into(), "-".into(), "-".into(), file, format!("cannot be used: {why}")]
                }
            }
        })
        .collect();
    out::table(&["NAME", "KIND", "VERSION", "FILE", "DESCRIPTION"], &rows)?;
    Ok(0)
}

fn inspect(arguments: &Inspect) -> Outcome {
    let file = find(arguments)?;
    let (manifest, sha256) = Files.at(&file).map_err(Failure::of)?;
    if arguments.json {
        out::json(&shown(&manifest, &file, Some(&sha256)))?;
        return Ok(0);
    }
    let list = |names: &[String]| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let facts = [
        ("name", manifest.name.clone()),
        ("kind", manifest.kind.to_string()),
        ("version", manifest.version.to_string()),
        ("description", out::escape_control(&manifest.description)),
        ("file", file.display().to_string()),
        ("sha256", sha256),
        ("plugin API", manifest.api.to_string()),
        ("entry", format!("{}, {}, panic={}", manifest.abi, manifest.encoding, manifest.panic)),
        ("methods", list(&methods(manifest.methods))),
        ("nested", yes(manifest.nesting)),
        ("standalone", yes(manifest.standalone)),
        ("requires", list(&manifest.requires)),
        ("conflicts", list(&manifest.conflicts)),
        ("after", list(&manifest.after)),
    ];
    for (name, fact) in facts {
        out::line(&format!("{name:12} {fact}"))?;
    }
    let rows = settings(&manifest.config, "");
    if !rows.is_empty() {
        out::line("")?;
        out::table(&["SETTING", "VALUE", "REQUIRED", "WHAT IT IS FOR"], &rows)?;
    }
    Ok(0)
}

/// The file that is meant: by its path if it looks like one, else by the name of the plugin.
fn find(arguments: &Inspect) -> Result<PathBuf, Failure> {
    let file = PathBuf::from(&arguments.plugin);
    if file.is_file() || file.extension().is_some_and(|extension| extension == "so") {
        return Ok(file);
    }
    let directory = arguments.plugin_dir.clone().unwrap_or_else(|| Environment::look().plugins);
    let offers = Files.in_directory(&directory).into_iter();
    let mut offers = offers
        .filter(|(_, manifest)| manifest.as_ref().is_ok_and(|manifest| manifest.name == arguments.plugin));
    offers.next().map(|(file, _)| file).ok_or_else(|| {
        Failure::told(format!("there is no plugin `{}` in `{}`", arguments.plugin, directory.display()))
    })
}

fn shown(manifest: &Manifest, file: &Path, sha256: Option<&str>) -> Json {
    let mut shown = serde_json::to_value(manifest).unwrap_or_default();
    shown["file"] = json!(file);
    if let Some(sha256) = sha256 {
        shown["sha256"] = json!(sha256);
    }
    shown
}

fn methods(methods: Methods) -> Vec<String> {
    methods.into()
}

/// A row per key of a schema, with those of inner tables below their own.
fn settings(schema: &Json, path: &str) -> Vec<Vec<String>> {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let mut rows = Vec::new();
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        rows.push(vec![
            path.clone(),
            crate::config::expected(inner),
            if required.contains(&name.as_str()) { "yes" } else { "no" }.to_owned(),
            out::escape_control(inner["description"].as_str().unwrap_or_default()),
        ]);
        rows.extend(settings(inner, &path));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_listed_with_those_of_inner_tables() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "string", "format": "size", "description": "How much."},
            "b": {"type": "object", "properties": {"c": {"enum": ["x", "y"]}}},
        }});
        let rows = settings(&schema, "");
        assert_eq!(rows[0], ["a", "a size such as \"64 MiB\"", "yes", "How much."]);
        assert_eq!(rows[2], ["b.c", "`x` or `y`", "no", ""]);
    }
}
