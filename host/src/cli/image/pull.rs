//! `cofferdam image pull`.

use std::path::PathBuf;

use super::limits::ImageFlags;
use super::{familiar, ls};
use crate::cli::foreground::Signals;
use crate::cli::pull::{self, Pulled};
use crate::cli::{Outcome, block_on, output, registry};
use crate::config::Environment;
use crate::image::PullRequest;
use cofferdam_core::provisioner::{ImageName, Store};

/// Pulls an image from a registry
///
/// Layers that the store has are not pulled again. What was received of a layer stays when a pull is interrupted, and the
/// next one continues there; SIGINT, SIGTERM and SIGHUP end it at once, with 128 plus the number of the signal as exit status.
/// Every size and digest is verified, and nothing of an image that is refused can be used.
///
/// Registries, mirrors and registries without TLS are those of `[registry]` in the configuration file. Credentials are
/// those of `docker login`, also with credential helpers: in `config.json` in $DOCKER_CONFIG, otherwise in
/// ~/.docker/config.json or ~/.dockercfg, unless `credentials` of `[registry]` names another file. Proxies are those of
/// HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.
///
/// Examples:
///   cofferdam image pull busybox:1.36
///   cofferdam image pull registry.example:5000/team/web@sha256:…
///   cofferdam image pull --platform linux/arm64/v8 debian
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Arguments {
    /// Name of the image
    #[arg(value_name = "NAME[:TAG|@DIGEST]", value_parser = str::parse::<ImageName>)]
    name: ImageName,
    #[command(flatten)]
    flags: ImageFlags,
    /// Ask the registry of the image without TLS
    #[arg(long)]
    insecure: bool,
    /// Configuration file with `[registry]` [default: that of the agent, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print nothing but the id of the image
    #[arg(long, short)]
    quiet: bool,
    /// Print JSON: the image as `inspect` prints it
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

pub(super) fn run(arguments: Arguments, store: &Store) -> Outcome {
    let Arguments { name, flags, insecure, config, quiet, json } = arguments;
    super::require_root()?;
    let (mut registry, credentials) = registry::load(config.as_deref(), &Environment::detect())?;
    if insecure {
        registry.insecure.push(name.registry.clone());
    }
    let request = PullRequest {
        name,
        platform: flags.platform(),
        limits: flags.limits(),
        registry,
        credentials,
        own_credentials: None,
    };
    let pulled = block_on(async {
        let mut signals = Signals::new()?;
        pull::pull(store.clone(), request, quiet, &mut signals).await
    });
    let image = match pulled? {
        Pulled::Image(image) => image,
        Pulled::Signalled(status) => return Ok(status),
    };
    if json {
        output::json(&ls::describe(&image, store))?;
    } else if quiet {
        output::line(&image.id.to_string())?;
    } else {
        let names: Vec<String> = image.names.iter().map(|name| familiar(name)).collect();
        output::line(&format!("{} {}", image.id, names.join(" ")))?;
    }
    Ok(0)
}
