//! `cofferdam plugin`: lists and inspects plugins without running their code.

use std::path::{Path, PathBuf};

use cofferdam_plugin_model::{Manifest, Methods};
use serde_json::{Value as Json, json};

use super::client::{Client, ClientError};
use super::failure::Failure;
use super::index::Files;
use super::output::{Cell, Column, Table, Tone};
use super::{Outcome, block_on, output};
use crate::api::operator::types::{Call, PluginHealth, PluginInfo, PluginKind, Response};
use crate::config::{self, AvailablePlugin, Environment, PluginIndex, expected, nearest_names};
use cofferdam_core::{error_chain, plugin};

/// Lists and inspects plugins
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Ls(Ls),
    Inspect(Inspect),
}

/// Lists the plugins of a running agent, or those in the plugin directory if there is no agent
///
/// Examples:
///   cofferdam plugin ls
///   cofferdam plugin ls --plugin-dir target/release
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Ls {
    /// List the plugins in this directory
    #[arg(long, value_name = "PATH")]
    plugin_dir: Option<PathBuf>,
    /// Print JSON: an array of `PluginInfo` as in GET_PLUGINS (docs/api.md), or of manifests
    #[arg(long)]
    json: bool,
}

/// Shows the manifest of a plugin: version, methods, settings
///
/// Examples:
///   cofferdam plugin inspect cgroups/mem
///   cofferdam plugin inspect ./libgreeting.so --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Inspect {
    /// File, or name of a plugin in the plugin directory
    #[arg(value_name = "FILE|NAME")]
    plugin: String,
    /// Directory to look up the name in
    #[arg(long, value_name = "PATH")]
    plugin_dir: Option<PathBuf>,
    /// Print JSON: the manifest, with `file` and `sha256`
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    match &arguments.command {
        Command::Ls(arguments) => list(arguments, client),
        Command::Inspect(arguments) => inspect(arguments),
    }
}

fn list(arguments: &Ls, client: &Client) -> Outcome {
    if let Some(directory) = &arguments.plugin_dir {
        return list_directory(directory, arguments.json);
    }
    let loaded = block_on(async {
        let take = |response| match response {
            Response::GetPlugins(list) => Some(list.plugins),
            _ => None,
        };
        match client.ask(&Call::GetPlugins, take).await {
            Ok(plugins) => Ok(Some(plugins)),
            Err(ClientError::NotRunning { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?;
    match loaded {
        Some(plugins) => list_loaded(&plugins, arguments.json),
        None => list_directory(&Environment::detect().plugin_dir, arguments.json),
    }
}

fn list_loaded(plugins: &[PluginInfo], json: bool) -> Outcome {
    if json {
        output::json(plugins)?;
        return Ok(0);
    }
    loaded_table(plugins).print()?;
    Ok(0)
}

fn loaded_table(plugins: &[PluginInfo]) -> Table {
    let mut table = Table::new(vec![
        Column::new("NAME"),
        Column::new("KIND").optional(3),
        Column::new("VERSION").optional(2),
        Column::new("HEALTH").elastic(),
        Column::new("CALLS"),
        Column::new("FAILED"),
        Column::new("FILE").optional(4),
    ]);
    plugins.iter().for_each(|plugin| table.push(loaded_row(plugin)));
    table
}

fn loaded_row(plugin: &PluginInfo) -> Vec<Cell> {
    let kind = match plugin.kind {
        PluginKind::Isolator => "isolator",
        PluginKind::Logger => "logger",
        PluginKind::Hook => "hook",
    };
    let health = match plugin.health {
        PluginHealth::Healthy => "healthy",
        PluginHealth::Quarantined => "quarantined",
        PluginHealth::OutOfService => "out of service",
    };
    let mut health = match &plugin.message {
        Some(reason) => format!("{health}: {}", output::escape_control(reason)),
        None => health.to_owned(),
    };
    if let Some(call) = plugin.interrupted_calls.first() {
        health += &format!(" (the previous agent died during `{}`)", call.method);
    }
    let tone = if plugin.health == PluginHealth::Healthy { Tone::Plain } else { Tone::Bad };
    let calls: u64 = plugin.calls.values().map(|count| count.calls).sum();
    let failed: u64 = plugin.calls.values().map(|count| count.failures + count.timeouts + count.panics).sum();
    vec![
        plugin.name.clone().into(),
        kind.into(),
        plugin.version.clone().into(),
        Cell::toned(health, tone),
        calls.to_string().into(),
        failed.to_string().into(),
        plugin.path.clone().into(),
    ]
}

fn list_directory(directory: &Path, json: bool) -> Outcome {
    let found = Files::Read.in_directory(directory);
    if json {
        let entries: Vec<Json> = found
            .iter()
            .map(|(file, manifest)| match manifest {
                Ok(manifest) => manifest_json(manifest, file, None),
                Err(error) => {
                    json!({"file": file, "error": error_chain::describe(error.as_ref())})
                }
            })
            .collect();
        output::json(&entries)?;
        return Ok(0);
    }
    if found.is_empty() {
        return Err(Failure::message(format!(
            "there are no plugins in `{}`; set `--plugin-dir`",
            directory.display()
        )));
    }
    directory_table(&found).print()?;
    Ok(0)
}

/// Of a file that cannot be used, only the name says which one it is.
fn directory_table(found: &[AvailablePlugin]) -> Table {
    let mut table = Table::new(vec![
        Column::new("NAME"),
        Column::new("KIND").optional(2),
        Column::new("VERSION").optional(3),
        Column::new("FILE").optional(4),
        Column::new("DESCRIPTION").elastic(),
    ]);
    for (file, manifest) in found {
        let path = file.display().to_string();
        table.push(match manifest {
            Ok(manifest) => vec![
                manifest.name.clone().into(),
                manifest.kind.to_string().into(),
                manifest.version.to_string().into(),
                path.into(),
                output::escape_control(&manifest.description).into(),
            ],
            Err(error) => {
                let reason = output::escape_control(&error_chain::describe(error.as_ref()));
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let reason = format!("`{}` cannot be used: {reason}", output::escape_control(&name));
                vec!["-".into(), "-".into(), "-".into(), path.into(), Cell::toned(reason, Tone::Bad)]
            }
        });
    }
    table
}

fn inspect(arguments: &Inspect) -> Outcome {
    let file = find(arguments)?;
    let (manifest, sha256) = plugin::inspect_file(&file).map_err(Failure::of)?;
    if arguments.json {
        output::json(&manifest_json(&manifest, &file, Some(&sha256)))?;
        return Ok(0);
    }
    let list = |names: &[String]| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let facts = [
        ("name", manifest.name.clone()),
        ("kind", manifest.kind.to_string()),
        ("version", manifest.version.to_string()),
        ("description", manifest.description.clone()),
        ("file", file.display().to_string()),
        ("sha256", sha256),
        ("plugin API", manifest.api.to_string()),
        ("entry", format!("{}, {}, panic={}", manifest.abi, manifest.encoding, manifest.panic)),
        ("methods", list(&methods(manifest.methods))),
        ("nested", yes_no(manifest.nesting)),
        ("standalone", yes_no(manifest.standalone)),
        ("requires", list(&manifest.requires)),
        ("conflicts", list(&manifest.conflicts)),
        ("after", list(&manifest.after)),
        ("before", list(&manifest.before)),
        ("features", list(&manifest.features)),
        ("handles", list(&manifest.handles)),
    ];
    output::facts(12, facts)?;
    let rows = setting_rows(&manifest.config, "");
    if !rows.is_empty() {
        output::line("")?;
        let headings = ["SETTING", "VALUE", "REQUIRED", "DESCRIPTION"].map(Column::new);
        let [setting, value, required, description] = headings;
        let mut table =
            Table::new(vec![setting, value.elastic(), required.optional(1), description.elastic()]);
        rows.into_iter().for_each(|row| table.push(row.into_iter().map(Cell::from).collect()));
        table.print()?;
    }
    Ok(0)
}

/// Finds the plugin by its file, or by its name in the plugin directory.
fn find(arguments: &Inspect) -> Result<PathBuf, Failure> {
    let file = PathBuf::from(&arguments.plugin);
    if file.is_file() || file.extension().is_some_and(|extension| extension == "so") {
        return Ok(file);
    }
    let directory = arguments.plugin_dir.clone().unwrap_or_else(|| Environment::detect().plugin_dir);
    let found = Files::Read.in_directory(&directory);
    let named =
        || found.iter().filter_map(|(file, manifest)| Some((file, manifest.as_ref().ok()?.name.as_str())));
    if let Some((file, _)) = named().find(|(_, name)| *name == arguments.plugin) {
        return Ok(file.clone());
    }
    let (name, shown) = (&arguments.plugin, directory.display());
    let similar = nearest_names(name, named().map(|(_, name)| name));
    Err(Failure::message(match &similar[..] {
        [] => format!(
            "there is no plugin `{name}` in `{shown}`; `cofferdam plugin ls` lists those that there are"
        ),
        similar => {
            let similar = config::list(similar.iter().copied(), "or");
            format!("there is no plugin `{name}` in `{shown}`; did you mean {similar}?")
        }
    }))
}

fn manifest_json(manifest: &Manifest, file: &Path, sha256: Option<&str>) -> Json {
    let mut json = serde_json::to_value(manifest).unwrap_or_default();
    json["file"] = json!(file);
    if let Some(sha256) = sha256 {
        json["sha256"] = json!(sha256);
    }
    json
}

fn methods(methods: Methods) -> Vec<String> {
    methods.into()
}

/// A row per key of a schema, each followed by the keys of its nested table.
fn setting_rows(schema: &Json, path: &str) -> Vec<Vec<String>> {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let mut rows = Vec::new();
    for (name, setting) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        rows.push(vec![
            path.clone(),
            expected(setting),
            if required.contains(&name.as_str()) { "yes" } else { "no" }.to_owned(),
            output::escape_control(setting["description"].as_str().unwrap_or_default()),
        ]);
        rows.extend(setting_rows(setting, &path));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_plugins_fit_80_columns() {
        let long = "/usr/local/lib/cofferdam/plugins/libcofferdam_network_cni.so";
        let plugin = PluginInfo {
            name: "linux/capabilities".into(),
            path: long.into(),
            version: "0.1.0".into(),
            health: PluginHealth::Quarantined,
            message: Some("panicked 3 times in a minute, the last time in `prepare` of `web`".into()),
            ..PluginInfo::default()
        };
        let loaded = loaded_table(std::slice::from_ref(&plugin));
        let unusable: Box<dyn std::error::Error + Send + Sync> = "it has no note".into();
        let directory = directory_table(&[(long.into(), Err(unusable))]);
        for table in [loaded, directory] {
            let text = table.layout(Some(80), false);
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            assert!(
                text.contains("linux/capabilities") || text.contains("libcofferdam_network_cni.so"),
                "{text}"
            );
            // In pipes and files, nothing is left out.
            assert!(table.layout(None, false).contains(long));
        }
    }

    #[test]
    fn settings_of_nested_tables_are_listed() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "string", "format": "size", "description": "How much."},
            "b": {"type": "object", "properties": {"c": {"enum": ["x", "y"]}}},
        }});
        let rows = setting_rows(&schema, "");
        assert_eq!(rows[0], ["a", "a size such as \"64 MiB\"", "yes", "How much."]);
        assert_eq!(rows[2], ["b.c", "`x` or `y`", "no", ""]);
    }
}
