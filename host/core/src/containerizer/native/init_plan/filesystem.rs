//! The container's view of the filesystem.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use cofferdam_init::plan::{Attributes, MountOption, Operation, Root};
use cofferdam_plugin_model as model;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::Descriptors;
use crate::chain::{LaunchPlan, Owned};
use crate::containerizer::native::record::NativeRecord;
use crate::model::{HostDirectory, Record};

pub(super) fn root(merged: &LaunchPlan) -> Result<Root, String> {
    let Some(Owned { value, owner }) = &merged.root else { return Ok(Root::Host) };
    match value {
        model::Root::Directory { path } => Ok(Root::Directory(path.clone())),
        model::Root::ReadOnly { path } => Ok(Root::ReadOnly(path.clone())),
        model::Root::Overlay { lower, upper, work } => Ok(Root::Overlay {
            lowers: lower.clone(),
            upper: Some(upper.clone()),
            work: Some(work.clone()),
            // What a container writes to its root is removed when it ends.
            volatile: true,
        }),
        _ => Err(format!("`{owner}` requests an unknown kind of root")),
    }
}

pub(super) fn operations(
    record: &Record<NativeRecord>,
    merged: &LaunchPlan,
    descriptors: &mut Descriptors<'_>,
) -> Result<Vec<Operation>, String> {
    if let (Some(first), false) =
        (merged.operations.first(), merged.clone_namespaces.contains_key(&model::Namespace::Mount))
    {
        return Err(format!(
            "`{}` requests `{}`, which needs a mount namespace of the container's own; create one",
            first.owner,
            name(&first.value)
        ));
    }
    let has_root = merged.root.is_some();
    let requested = merged.operations.iter().map(|owned| operation(owned, has_root, descriptors));
    let mut operations: Vec<Operation> = requested.collect::<Result<_, _>>()?;
    if has_root {
        // Last, so that nothing is mounted over them.
        operations.extend(record.request.host_directories.iter().map(host_directory));
    }
    Ok(operations)
}

/// A directory of the agent. Without a root file system of its own, the container has it where the host has it.
fn host_directory(HostDirectory { source, target }: &HostDirectory) -> Operation {
    let attributes = [Attributes::READ_ONLY, Attributes::NO_SUID, Attributes::NO_DEV];
    Operation::Bind {
        source: source.clone(),
        target: target.clone(),
        attributes: attributes.into_iter().fold(Attributes::default(), Attributes::with),
        recursive: false,
    }
}

fn operation(
    owned: &Owned<model::Operation>,
    has_root: bool,
    descriptors: &mut Descriptors<'_>,
) -> Result<Operation, String> {
    use model::Operation as Requested;
    let Owned { value, owner } = owned;
    let absolute = |path: &Path| -> Result<PathBuf, String> {
        if path.is_absolute() {
            Ok(path.to_owned())
        } else {
            Err(format!(
                "`{owner}` requests `{}` with `{}`, which is not absolute",
                name(value),
                path.display()
            ))
        }
    };
    // A path of the container. Where `..` leads after a name depends on symbolic links.
    let inside = |path: &Path| -> Result<PathBuf, String> {
        let mut below_root =
            path.components().skip_while(|component| !matches!(component, Component::Normal(_)));
        if below_root.any(|component| component == Component::ParentDir) {
            return Err(format!(
                "`{owner}` requests `{}` with `{}`, in which `..` follows a name; write the path without it",
                name(value),
                path.display()
            ));
        }
        absolute(path)
    };
    // A path at which something is created, which on the host nothing would remove.
    let created = |path: &Path| -> Result<PathBuf, String> {
        if has_root {
            return inside(path);
        }
        Err(format!(
            "`{owner}` requests `{}` at `{}`, which would change the host: the container has no root filesystem \
             of its own",
            name(value),
            path.display()
        ))
    };
    // The kernel would leave the owner unchanged, which is root.
    let owned_by = |file_owner: &model::Owner| match [file_owner.uid, file_owner.gid].contains(&u32::MAX) {
        true => Err(format!("`{owner}` requests `{}` with an owner that is no user or group", name(value))),
        false => Ok((file_owner.uid, file_owner.gid)),
    };
    Ok(match value {
        Requested::Bind { source, target, recursive, flags } => Operation::Bind {
            source: absolute(source)?,
            target: inside(target)?,
            attributes: attributes(owner, flags)?,
            recursive: *recursive,
        },
        Requested::BindDescriptor { index, target, recursive, flags } => {
            let mount = detached_mount(descriptors.get(*index)?, *recursive)
                .map_err(|errno| format!("a descriptor of `{owner}` cannot be mounted: {errno}"))?;
            Operation::BindDescriptor {
                descriptor: descriptors.pass(mount)?,
                target: inside(target)?,
                attributes: attributes(owner, flags)?,
                recursive: *recursive,
            }
        }
        Requested::Mount { fstype, target, flags, options } => Operation::Filesystem {
            kind: fstype.into(),
            target: inside(target)?,
            attributes: attributes(owner, flags)?,
            options: options.iter().map(|option| mount_option(option)).collect(),
        },
        Requested::Move { source, target } => {
            Operation::Move { source: inside(source)?, target: inside(target)? }
        }
        Requested::Device { path, kind, major, minor, mode, owner: file_owner } => Operation::Device {
            path: created(path)?,
            mode: device_type(owner, *kind)? | (mode & 0o7777),
            major: *major,
            minor: *minor,
            uid: owned_by(file_owner)?.0,
            gid: owned_by(file_owner)?.1,
        },
        Requested::Symlink { path, target } => {
            Operation::Symlink { path: created(path)?, target: target.clone() }
        }
        Requested::Mkdir { path, mode, owner: file_owner } => Operation::Directory {
            path: created(path)?,
            mode: mode & 0o7777,
            uid: owned_by(file_owner)?.0,
            gid: owned_by(file_owner)?.1,
        },
        Requested::WriteFile { path, content, mode, owner: file_owner } => Operation::WriteFile {
            path: created(path)?,
            content: content.clone().into_bytes(),
            mode: mode & 0o7777,
            uid: owned_by(file_owner)?.0,
            gid: owned_by(file_owner)?.1,
        },
        Requested::Mask { path } => Operation::Mask { path: inside(path)? },
        Requested::ReadOnly { path } => Operation::ReadOnly { path: inside(path)? },
        Requested::Propagation { path, propagation, recursive } => Operation::Propagation {
            path: inside(path)?,
            propagation: match propagation {
                model::Propagation::Private => libc::MS_PRIVATE,
                model::Propagation::Slave => libc::MS_SLAVE,
                model::Propagation::Shared => libc::MS_SHARED,
                model::Propagation::Unbindable => libc::MS_UNBINDABLE,
                _ => return Err(format!("`{owner}` requests an unknown propagation")),
            },
            recursive: *recursive,
        },
        _ => return Err(format!("`{owner}` requests an unknown operation")),
    })
}

/// Name of an operation, as in the model's JSON.
fn name(operation: &model::Operation) -> String {
    let json = serde_json::to_value(operation).unwrap_or_default();
    json["type"].as_str().unwrap_or("operation").to_owned()
}

/// A detached copy of what a descriptor refers to. It is made in the agent's mount namespace, where the plugin opened
/// it; the container's first process could not copy it. A mount that is detached already is used as it is.
fn detached_mount(descriptor: &OwnedFd, recursive: bool) -> Result<OwnedFd, std::io::Error> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    match open_tree(descriptor.as_fd(), c"", flags) {
        Ok(mount) => Ok(mount),
        Err(Errno::INVAL) => descriptor.try_clone(),
        Err(errno) => Err(errno.into()),
    }
}

fn device_type(owner: &str, kind: model::DeviceKind) -> Result<u32, String> {
    match kind {
        model::DeviceKind::Char => Ok(libc::S_IFCHR),
        model::DeviceKind::Block => Ok(libc::S_IFBLK),
        model::DeviceKind::Fifo => Ok(libc::S_IFIFO),
        _ => Err(format!("`{owner}` requests an unknown kind of device")),
    }
}

fn mount_option(option: &str) -> MountOption {
    match option.split_once('=') {
        Some((name, value)) => MountOption { name: name.into(), value: Some(value.into()) },
        None => MountOption { name: option.into(), value: None },
    }
}

fn attributes(owner: &str, flags: &BTreeSet<String>) -> Result<Attributes, String> {
    flags.iter().try_fold(Attributes::default(), |attributes, flag| {
        Ok(attributes.with(match flag.as_str() {
            "ro" => Attributes::READ_ONLY,
            "rw" => Attributes::default(),
            "nosuid" => Attributes::NO_SUID,
            "nodev" => Attributes::NO_DEV,
            "noexec" => Attributes::NO_EXEC,
            "noatime" => Attributes::NO_ATIME,
            "strictatime" => Attributes::STRICT_ATIME,
            "nosymfollow" => Attributes::NO_SYMFOLLOW,
            other => return Err(format!("`{owner}` requests the unknown mount flag `{other}`")),
        }))
    })
}
