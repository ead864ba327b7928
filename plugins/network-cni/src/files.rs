//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` of a container.
//!
//! Those of a container with networks are files in memory, in no directory of the host, which nothing has to remove. They
//! are read-only: what a container writes would take memory of nobody.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Component, Path, PathBuf};

use cofferdam_plugin_api::foreign::{self, OpenError, Resolve};
use cofferdam_plugin_api::mount;
use cofferdam_plugin_api::prelude::*;

const FLAGS: [&str; 4] = ["ro", "nodev", "noexec", "nosuid"];

pub const HOSTNAME: &str = "/etc/hostname";
pub const HOSTS: &str = "/etc/hosts";
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The names of a container with networks.
pub fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        text += &format!("{address}\t{hostname}\n");
    }
    text
}

/// Mounts a file with a content. Without a root file system of the container's own, only over one that the host has.
pub fn provide(prepared: Prepared, rootfs: Option<&Path>, path: &str, content: &str) -> Result<Prepared> {
    let Some(target) = target(rootfs, path)? else { return Ok(prepared) };
    // The kernel mounts no empty file system; a blank line means nothing in these files.
    let content = if content.is_empty() { "\n" } else { content };
    let file = mount::file(content.as_bytes(), 0o444, (0, 0)).context(format!("cannot create `{path}`"))?;
    Ok(prepared.bind_descriptor(file, target, FLAGS))
}

/// Mounts the host's file, if it has it.
pub fn share(prepared: Prepared, rootfs: &Path, path: &str) -> Result<Prepared> {
    if !Path::new(path).is_file() {
        return Ok(prepared);
    }
    let Some(target) = target(Some(rootfs), path)? else { return Ok(prepared) };
    Ok(prepared.operation(Operation::Bind {
        source: path.into(),
        target,
        recursive: false,
        flags: FLAGS.map(str::to_owned).into(),
    }))
}

/// Where a file is mounted. The agent resolves symbolic links within the root when it mounts, but creates nothing where
/// one leads nowhere, as `/etc/resolv.conf` does in many images; then the file is mounted where it leads.
fn target(rootfs: Option<&Path>, path: &str) -> Result<Option<PathBuf>> {
    const MAX_LINKS: usize = 8;
    let Some(rootfs) = rootfs else {
        return Ok(Path::new(path).is_file().then(|| path.into()));
    };
    let root = foreign::directory(rootfs).context(format!("cannot open `{}`", rootfs.display()))?;
    let mut target = PathBuf::from(path);
    for _ in 0..MAX_LINKS {
        let relative = target.strip_prefix("/").unwrap_or(&target);
        match foreign::find(&root, relative, Resolve::InRoot) {
            Ok(_) => break,
            Err(error) if error.is_missing() => {}
            // The agent reports it, with the path.
            Err(OpenError::Outside) => break,
            Err(error) => return Err(error).context(format!("cannot find `{path}` in its root file system")),
        }
        let Some(next) = link(&root, relative) else { break };
        target = normal(&target.with_file_name("").join(next));
    }
    Ok(Some(target))
}

/// The target of a symbolic link below a root.
fn link(root: impl AsFd, path: &Path) -> Option<PathBuf> {
    let parent = foreign::find(root, path.parent()?, Resolve::InRoot).ok()?;
    let parent = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    fs::read_link(parent.join(path.file_name()?)).ok()
}

/// An absolute path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => drop(normal.pop()),
            _ => {}
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_host_file_has_every_address() {
        let addresses = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let text = hosts("web", &addresses);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.ends_with("10.0.0.2\tweb\nfd00::2\tweb\n"), "{text}");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_followed_within_the_root() {
        let directory = std::env::temp_dir().join(format!("cofferdam-network-cni-{}", std::process::id()));
        let etc = directory.join("etc");
        fs::create_dir_all(&etc).unwrap();
        symlink("../run/systemd/resolve/stub.conf", etc.join("resolv.conf")).unwrap();
        symlink("/../../outside", etc.join("hosts")).unwrap();
        symlink("hostname", etc.join("hostname")).unwrap();
        fs::write(etc.join("real"), "").unwrap();
        let of = |path: &str| target(Some(&directory), path).unwrap().unwrap();
        assert_eq!(of(RESOLV_CONF), Path::new("/run/systemd/resolve/stub.conf"));
        assert_eq!(of(HOSTS), Path::new("/outside"));
        assert_eq!(of(HOSTNAME), Path::new(HOSTNAME));
        assert_eq!(of("/etc/real"), Path::new("/etc/real"));
        assert_eq!(of("/none/x"), Path::new("/none/x"));
        assert!(target(None, "/etc/this-is-missing").unwrap().is_none());
        cofferdam_plugin_api::tree::remove(&directory).unwrap();
    }
}
