//! The flags of `cofferdam run` for volumes, as in docker.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use crate::cli::failure::Failure;
use cofferdam_core::model::{Volume, VolumeSource};

/// Flags that describe volumes.
#[derive(Debug, clap::Args)]
pub(super) struct VolumeFlags {
    /// Directory or file of the host (`/…` or `./…`), or volume of a driver, that is mounted in it. MODE is a list of `ro`, and for
    /// paths `slave` or `shared`
    #[arg(long = "volume", short, value_name = "SOURCE:PATH[:MODE]", value_parser = short)]
    volumes: Vec<Short>,
    /// Docker volume driver of the volumes of --volume that have a name
    #[arg(long, value_name = "NAME")]
    volume_driver: Option<String>,
    /// The same in full: `type=bind,src=PATH` or `type=volume,src=NAME,volume-driver=NAME[,volume-opt=KEY=VALUE]`, with
    /// `dst=PATH[,readonly]`; or the files of an image, `type=image,src=IMAGE,dst=PATH[,readonly]`: changes end with the
    /// container
    #[arg(long = "mount", value_name = "KEY=VALUE,…", value_parser = mount)]
    mounts: Vec<Volume>,
}

impl VolumeFlags {
    /// The volumes of the request.
    pub(super) fn volumes(self) -> Result<Vec<Volume>, Failure> {
        let mut volumes = Vec::new();
        for Short { source, container_path, read_only, propagation } in self.volumes {
            let source = if is_path(&source) {
                VolumeSource::HostPath { path: source.into(), propagation }
            } else {
                let driver = self.volume_driver.clone().ok_or_else(|| {
                    Failure::message(format!(
                        "`{source}` is the name of a volume, whose driver is missing: add `--volume-driver NAME`, or write the \
                         path of a directory as `./{source}`"
                    ))
                })?;
                VolumeSource::DockerVolume { driver, name: source, options: BTreeMap::new() }
            };
            volumes.push(Volume { container_path, read_only, source });
        }
        volumes.extend(self.mounts);
        for volume in &mut volumes {
            match &mut volume.source {
                VolumeSource::HostPath { path, .. } => *path = absolute(path)?,
                VolumeSource::Image { image, .. } => *image = absolute_image(image)?,
                _ => {}
            }
        }
        Ok(volumes)
    }
}

/// Makes a path absolute, as the daemon has another working directory. As in a shell, `..` takes the name before it away.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |source| Failure::system(format!("cannot resolve `{}`", path.display()), source);
    let absolute = std::path::absolute(path).map_err(failed)?;
    Ok(absolute.components().fold(PathBuf::new(), |mut path, component| {
        match component {
            Component::ParentDir => {
                path.pop();
            }
            component => path.push(component),
        }
        path
    }))
}

/// Makes the path of an image absolute, if it is one: `/…` or `./…`. Others are names and ids.
pub(super) fn absolute_image(image: &str) -> Result<String, Failure> {
    if !is_path(image) {
        return Ok(image.to_owned());
    }
    let path = absolute(Path::new(image))?;
    path.into_os_string().into_string().map_err(|path| {
        Failure::message(format!("the path `{}` of an image is not text in UTF-8", path.display()))
    })
}

/// A value of `--volume`.
#[derive(Debug, Clone)]
struct Short {
    source: String,
    container_path: PathBuf,
    read_only: bool,
    propagation: Option<String>,
}

/// Whether a source of `--volume` is a path of the host; others are names.
fn is_path(source: &str) -> bool {
    source.starts_with(['/', '.'])
}

fn host_path(path: PathBuf) -> VolumeSource {
    VolumeSource::HostPath { path, propagation: None }
}

fn short(text: &str) -> Result<Short, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, path, mode) = match parts[..] {
        [source, path] => (source, path, "rw"),
        [source, path, mode] => (source, path, mode),
        _ => return Err("expected `SOURCE:PATH`, or `SOURCE:PATH:ro`".to_owned()),
    };
    if source.is_empty() || path.is_empty() {
        return Err("expected a source and a path, such as `/srv/data:/data`".to_owned());
    }
    let (mut read_only, mut propagation) = (None, None);
    for mode in mode.split(',') {
        let value = match mode {
            "ro" => true,
            "rw" => false,
            // What docker's other modes ask for: a label of SELinux, which is not set here; no copy of the image's files, which
            // is never made here; consistency, which matters on macOS only.
            "nocopy" | "cached" | "consistent" | "delegated" => continue,
            "z" | "Z" => {
                return Err(format!(
                    "`{mode}` is not supported: files are not labelled for SELinux; leave it out"
                ));
            }
            // Volumes of the host are mounted with all that is mounted in them, so there is only the recursive form.
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => {
                propagation = Some(mode.trim_start_matches('r').to_owned());
                continue;
            }
            other => return Err(format!("`{other}` is not a mode; expected `ro` or `rw`")),
        };
        if read_only.replace(value).is_some_and(|other| other != value) {
            return Err("it is both `ro` and `rw`".to_owned());
        }
    }
    let read_only = read_only.unwrap_or(false);
    if propagation.is_some() && !is_path(source) {
        return Err(format!("`{source}` is the name of a volume; propagation is for paths of the host"));
    }
    Ok(Short { source: source.to_owned(), container_path: path.into(), read_only, propagation })
}

fn mount(text: &str) -> Result<Volume, String> {
    let (mut kind, mut source, mut target) = ("volume".to_owned(), None, None);
    let (mut read_only, mut driver, mut options) = (false, None, BTreeMap::new());
    for field in fields(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (field.as_str(), None),
        };
        let required = |value: Option<String>| {
            value.filter(|value| !value.is_empty()).ok_or_else(|| format!("`{key}` has no value"))
        };
        match key {
            "type" => kind = required(value)?,
            "source" | "src" => source = Some(required(value)?),
            "destination" | "dst" | "target" => target = Some(PathBuf::from(required(value)?)),
            "readonly" | "ro" => {
                read_only = match value.as_deref() {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(other) => return Err(format!("`{key}` is `{other}`; expected `true` or `false`")),
                }
            }
            "volume-driver" => driver = Some(required(value)?),
            "volume-opt" => {
                let option = required(value)?;
                // As in docker, an option without a value has an empty one.
                let (name, value) = option.split_once('=').unwrap_or((&option, ""));
                if name.is_empty() {
                    return Err(format!("`volume-opt` is `{option}`; expected `KEY=VALUE`"));
                }
                options.insert(name.to_owned(), value.to_owned());
            }
            other => {
                return Err(format!(
                    "`{other}` is not a key; expected `type`, `src`, `dst`, `readonly`, `volume-driver` or `volume-opt`"
                ));
            }
        }
    }
    let container_path = target.ok_or("`dst`, the path in the container, is missing")?;
    let of_volume = "is for volumes of drivers only, not for `type=bind` and `type=image`";
    let source = match kind.as_str() {
        "bind" | "image" if driver.is_some() => return Err(format!("`volume-driver` {of_volume}")),
        "bind" | "image" if !options.is_empty() => return Err(format!("`volume-opt` {of_volume}")),
        "image" => VolumeSource::Image {
            image: source.ok_or("`src`, the name of the image, is missing")?,
            force_pull: false,
            root: None,
        },
        "bind" => host_path(Path::new(&source.ok_or("`src`, the path on the host, is missing")?).to_owned()),
        "volume" => VolumeSource::DockerVolume {
            driver: driver.ok_or("`volume-driver`, the name of the volume's driver, is missing")?,
            name: source.ok_or("`src`, the name of the volume, is missing")?,
            options,
        },
        other => {
            return Err(format!("`{other}` is not a supported type; expected `bind`, `image` or `volume`"));
        }
    };
    Ok(Volume { container_path, read_only, source })
}

/// The fields of a line of CSV: one in double quotes may contain commas, and a quote as two of them.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        let mut field = String::new();
        if rest.next_if_eq(&'"').is_some() {
            loop {
                match rest.next() {
                    Some('"') if rest.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(c) => field.push(c),
                    None => return Err("a double quote is not closed".to_owned()),
                }
            }
        } else {
            while let Some(c) = rest.next_if(|c| *c != ',') {
                if c == '"' {
                    return Err(format!(
                        "`{field}` is followed by a double quote; put the whole field in quotes"
                    ));
                }
                field.push(c);
            }
        }
        fields.push(field);
        match rest.next() {
            None => return Ok(fields),
            Some(',') => {}
            Some(_) => return Err("a comma is missing after a double quote".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: VolumeFlags,
    }

    fn volumes(arguments: &[&str]) -> Result<Vec<Volume>, String> {
        let line =
            Line::try_parse_from(std::iter::once(&"run").chain(arguments)).map_err(|e| e.to_string())?;
        line.flags.volumes().map_err(|failure| failure.error().to_string())
    }

    fn volume(source: VolumeSource, read_only: bool) -> Volume {
        Volume { container_path: "/data".into(), read_only, source }
    }

    fn of_driver(options: &[(&str, &str)]) -> VolumeSource {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        VolumeSource::DockerVolume { driver: "nfs".to_owned(), name: "db".to_owned(), options }
    }

    #[test]
    fn paths_and_names_are_told_apart_as_in_docker() {
        let here = std::env::current_dir().unwrap();
        for (arguments, expected) in [
            (&["-v", "/srv:/data"][..], volume(host_path("/srv".into()), false)),
            (&["--volume", "./x:/data:ro"], volume(host_path(here.join("x")), true)),
            (&["-v", "./y/../x:/data"], volume(host_path(here.join("x")), false)),
            (&["-v", "/a/../../b/.:/data"], volume(host_path("/b".into()), false)),
            (&["-v", "db:/data:rw", "--volume-driver", "nfs"], volume(of_driver(&[]), false)),
            (
                &["-v", "/srv:/data:ro,rslave,cached"],
                volume(
                    VolumeSource::HostPath { path: "/srv".into(), propagation: Some("slave".to_owned()) },
                    true,
                ),
            ),
            (
                &["--mount", "type=bind,source=/srv,target=/data,readonly"],
                volume(host_path("/srv".into()), true),
            ),
            (
                &["--mount", "type=image,src=jdk:21,dst=/data,readonly"],
                volume(
                    VolumeSource::Image { image: "jdk:21".to_owned(), force_pull: false, root: None },
                    true,
                ),
            ),
            (
                &[
                    "--mount",
                    "src=db,dst=/data,volume-driver=nfs,ro=false,\"volume-opt=o=a,\"\"b\"\"\",volume-opt=x=",
                ],
                volume(of_driver(&[("o", "a,\"b\""), ("x", "")]), false),
            ),
        ] {
            assert_eq!(volumes(arguments).unwrap(), [expected], "{arguments:?}");
        }
    }

    #[test]
    fn invalid_volumes_are_rejected() {
        for (flag, text, expected) in [
            ("-v", "/srv", "expected `SOURCE:PATH`"),
            ("-v", ":/data", "expected a source"),
            ("-v", "/srv:/data:z", "`z` is not supported"),
            ("-v", "/srv:/data:ro,rw", "both `ro` and `rw`"),
            ("-v", "/srv:/data:ro,", "`` is not a mode"),
            ("-v", "db:/data:rslave", "propagation is for paths"),
            ("--mount", "src=d\"b,dst=/data", "`src=d` is followed by a double quote"),
            ("-v", "db:/data", "--volume-driver NAME"),
            ("--mount", "type=tmpfs,dst=/data", "`tmpfs` is not a supported type"),
            ("--mount", "src=db,volume-driver=nfs", "`dst`"),
            ("--mount", "src=db,dst=/data", "`volume-driver`"),
            ("--mount", "dst=/data,volume-driver=nfs", "`src`"),
            ("--mount", "type=bind,dst=/data", "`src`"),
            ("--mount", "type=bind,src=/srv,dst=/data,volume-opt=a=b", "`volume-opt` is for volumes"),
            ("--mount", "type=image,dst=/data", "the name of the image"),
            ("--mount", "type=image,src=a,dst=/data,volume-driver=b", "`volume-driver` is for volumes"),
            ("--mount", "src=db,dst=/data,volume-driver=nfs,volume-opt==a", "expected `KEY=VALUE`"),
            ("--mount", "src=db,dst=/data,colour=red", "`colour` is not a key"),
            ("--mount", "src=", "`src` has no value"),
            ("--mount", "ro=maybe", "expected `true` or `false`"),
            ("--mount", "\"src=db", "not closed"),
            ("--mount", "\"src=db\"x", "a comma is missing"),
        ] {
            let error = volumes(&[flag, text]).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
