//! `cofferdam image rm` and `cofferdam image prune`.

use std::io;

use serde_json::json;

use super::familiar;
use crate::api::operator::types::{Call, DockerImage, Image, PruneImages, PrunedImages, Response};
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::{Outcome, block_on, format, output};
use cofferdam_core::provisioner::{ImageName, PrunePolicy, Pruned, Store};

/// Removes images from the store
///
/// Takes the name away from an image. Its layers are removed when it has no other name and no container uses it: layers that a
/// container uses stay until the next `rm` or `prune` after its end. An id removes all names of the image.
///
/// Examples:
///   cofferdam image rm busybox:1.36
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct RemoveArguments {
    /// Names, or at least 12 digits of the ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Print JSON: `{"names": […], "layers": …, "bytes": …}` with what was removed
    #[arg(long)]
    json: bool,
}

/// Removes what no image and no container uses
///
/// Waits for pulls and imports that are in progress. With --socket or COFFERDAM_SOCKET, the daemon removes them from its store,
/// and keeps the images of `image_gc.excluded_images`.
///
/// Examples:
///   cofferdam image prune
///   cofferdam image prune --all --keep busybox:1.36
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Also remove the images that no container uses
    #[arg(long)]
    all: bool,
    /// Keep this image
    #[arg(long, value_name = "NAME", value_parser = str::parse::<ImageName>, requires = "all")]
    keep: Vec<ImageName>,
    /// Print JSON: `{"names": […], "layers": …, "bytes": …}` with what was removed
    #[arg(long)]
    json: bool,
}

pub(super) fn remove(arguments: &RemoveArguments, store: &Store) -> Outcome {
    let mut all = Pruned::default();
    for image in &arguments.images {
        let pruned = store.remove(image).map_err(Failure::of)?;
        if !arguments.json {
            report(&pruned)?;
        }
        all.names.extend(pruned.names);
        all.layers += pruned.layers;
        all.bytes = all.bytes.saturating_add(pruned.bytes);
    }
    if arguments.json {
        print_json(&all)?;
    }
    Ok(0)
}

pub(super) fn run(arguments: &Arguments, store: &Store) -> Outcome {
    let policy = PrunePolicy { named: arguments.all, excluded: arguments.keep.clone() };
    summarize(&store.prune(&policy).map_err(Failure::of)?, arguments.json)
}

/// Has a daemon remove images from its store.
pub(super) fn run_by_daemon(arguments: &Arguments, client: &Client) -> Outcome {
    let excluded = |name: &ImageName| Image {
        docker: Some(DockerImage { name: name.to_string(), config: None }),
        ..Image::default()
    };
    let call = Call::PruneImages(PruneImages {
        excluded_images: arguments.keep.iter().map(excluded).collect(),
        keep_named: (!arguments.all).then_some(true),
    });
    let PrunedImages { names, layers, bytes } = block_on(async {
        let pruned = client.ask(&call, |response| match response {
            Response::PruneImages(pruned) => Some(pruned),
            _ => None,
        });
        Ok(pruned.await?)
    })?;
    let layers = usize::try_from(layers).unwrap_or(usize::MAX);
    summarize(&Pruned { names, layers, bytes }, arguments.json)
}

fn summarize(pruned: &Pruned, as_json: bool) -> Outcome {
    if as_json {
        print_json(pruned)?;
        return Ok(0);
    }
    report(pruned)?;
    output::line(&format!("freed {} in {} layers", format::bytes(pruned.bytes), pruned.layers))?;
    Ok(0)
}

fn print_json(pruned: &Pruned) -> io::Result<()> {
    let Pruned { names, layers, bytes } = pruned;
    output::json(&json!({ "names": names, "layers": layers, "bytes": bytes }))
}

fn report(pruned: &Pruned) -> io::Result<()> {
    pruned.names.iter().try_for_each(|name| output::line(&output::escape_control(&familiar(name))))
}
