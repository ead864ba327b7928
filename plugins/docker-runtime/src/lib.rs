//! Runs containers as the configuration of their image says.
//!
//! What a container requests itself takes precedence over its image. How its command and that of the image become one is
//! in `command`, what its volumes are in `volumes`.

mod command;
mod signal;
mod volumes;

use cofferdam_plugin_api::prelude::*;

struct Runtime {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Whether a container whose request has no user runs as that of its image. Mesos ignores it.
    user: bool,
    /// Whether a container is stopped with the signal of its image. Mesos ignores it.
    stop_signal: bool,
    /// Whether the launch plan shows the labels of the image. Mesos ignores them.
    labels: bool,
    /// Whether the volumes of an image are writable directories of the container. Mesos ignores them.
    volumes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { user: true, stop_signal: true, labels: true, volumes: true }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Runtime {
    const NAME: &'static str = "docker/runtime";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launch.labels", "launch.stop_signal", "launch.user"];
    const HANDLES: &'static [&'static str] = &["command.replaces_cmd", "image"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let Some(image) = &container.image else { return Ok(Prepared::new()) };
        let mut prepared = match command::command(&container.command, image)? {
            Some(rewrite) => Prepared::new().command(rewrite),
            None => Prepared::new(),
        };
        for (name, value) in &image.environment {
            if name.is_empty() || name.contains('\0') || value.contains('\0') {
                let name = name.escape_debug();
                return Err(Error::invalid(format!(
                    "the image sets the environment variable `{name}`, which is invalid"
                )));
            }
            prepared = prepared.environment(name, value);
        }
        if let Some(directory) = &image.working_directory {
            let directory = directory.to_str().filter(|text| text.starts_with('/') && !text.contains('\0'));
            match directory {
                Some(directory) => prepared = prepared.working_directory(directory),
                // That of the request takes precedence.
                None if container.command.working_directory.is_some() => {}
                None => {
                    let reason =
                        "the working directory of the image is not an absolute path; request another";
                    return Err(Error::invalid(reason));
                }
            }
        }
        if let Some(user) = image.user.as_ref().filter(|_| self.config.user) {
            prepared = prepared.user(user);
        }
        if let Some(signal) = image.stop_signal.as_ref().filter(|_| self.config.stop_signal) {
            prepared = prepared.stop_signal(signal::parse(signal)?);
        }
        if self.config.labels {
            for (name, value) in image.labels.iter().filter(|(name, _)| !container.labels.contains_key(*name))
            {
                prepared = prepared.label(name, value);
            }
        }
        if self.config.volumes {
            prepared = volumes::add(prepared, container, image)?;
        }
        Ok(prepared)
    }
}

#[cfg(test)]
mod tests;
