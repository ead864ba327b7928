//! `cofferdam image ls` and `cofferdam image inspect`.

use serde_json::{Value as Json, json};

use super::familiar;
use crate::cli::failure::Failure;
use crate::cli::output::{Cell, Column, Table};
use crate::cli::{Outcome, format, output};
use cofferdam_core::provisioner::{Image, Store};

/// Lists the images of the store
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Print only the ids
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON: an array of objects as `inspect` prints them
    #[arg(long)]
    json: bool,
}

/// Shows an image: its layers, and how containers of it are run
///
/// Examples:
///   cofferdam image inspect busybox:1.36
///   cofferdam image inspect --json 3f57d9401f8d
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct InspectArguments {
    /// Name, or at least 12 digits of the id
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, store: &Store) -> Outcome {
    let images = store.images().map_err(Failure::of)?;
    if arguments.json {
        output::json(&images.iter().map(|image| describe(image, store)).collect::<Vec<_>>())?;
    } else if arguments.quiet {
        images.iter().try_for_each(|image| output::line(&image.id.to_string()))?;
    } else {
        let mut table = Table::new(vec![
            Column::new("NAME").elastic(),
            Column::new("ID"),
            Column::new("PLATFORM").elastic().optional(2),
            Column::new("LAYERS").optional(1),
            Column::new("SIZE"),
            Column::new("CREATED").elastic().optional(3),
        ]);
        images.iter().for_each(|image| table.push(row(image)));
        table.print()?;
    }
    Ok(0)
}

fn row(image: &Image) -> Vec<Cell> {
    let names: Vec<String> = image.names.iter().map(|name| familiar(name)).collect();
    vec![
        output::escape_control(&names.join(", ")).into(),
        image.id.short().into(),
        output::escape_control(&image.platform).into(),
        image.layers.len().to_string().into(),
        format::bytes(image.size).into(),
        output::escape_control(image.created.as_deref().unwrap_or("-")).into(),
    ]
}

pub(super) fn inspect(arguments: &InspectArguments, store: &Store) -> Outcome {
    let image = store.find(&arguments.image).map_err(Failure::of)?;
    if arguments.json {
        output::json(&describe(&image, store))?;
        return Ok(0);
    }
    let list = |words: &[String]| match words.is_empty() {
        true => "-".to_owned(),
        false => serde_json::to_string(words).unwrap_or_default(),
    };
    let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let config = &image.config;
    let facts = [
        ("names", image.names.iter().map(|name| familiar(name)).collect::<Vec<_>>().join(", ")),
        ("id", image.id.to_string()),
        ("manifest", image.manifest.to_string()),
        ("platform", image.platform.clone()),
        ("created", text(image.created.clone())),
        ("size", format::bytes(image.size)),
        ("entrypoint", list(&config.entrypoint)),
        ("cmd", list(&config.cmd)),
        ("user", text(config.user.clone())),
        ("directory", text(config.working_directory.as_ref().map(|path| path.display().to_string()))),
        ("stop signal", text(config.stop_signal.clone())),
    ];
    let pair = |(name, value): (&String, &String)| format!("{name}={value}");
    let environment = config.environment.iter().map(pair).map(|variable| ("environment", variable));
    let labels = config.labels.iter().map(pair).map(|label| ("label", label));
    let layers = image.layers.iter().map(|layer| ("layer", layer.to_string()));
    output::facts(12, facts.into_iter().chain(environment).chain(labels).chain(layers))?;
    Ok(0)
}

/// An image as JSON.
pub(super) fn describe(image: &Image, store: &Store) -> Json {
    let layer = |layer| json!({ "diff_id": layer, "path": store.layer(layer) });
    json!({
        "id": image.id,
        "manifest": image.manifest,
        "names": image.names,
        "platform": image.platform,
        "created": image.created,
        "size": image.size,
        "layers": image.layers.iter().map(layer).collect::<Vec<_>>(),
        "config": image.config,
    })
}
