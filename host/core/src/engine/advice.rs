//! What to do about what an engine reports, by its words. Engines have no other names for their errors than these.

/// Parts of a message in lower case, and what to do if it has one of them.
type Advice = (&'static [&'static str], &'static str);

/// What an engine says of a container.
const ON_CONTAINERS: &[Advice] = &[
    (
        &["is already in use by", "name is already in use"],
        "remove or rename the container that has the name, or choose another container id",
    ),
    (
        &["port is already allocated", "address already in use"],
        "find what has the port with `ss -ltnp`, or map another port",
    ),
    (
        &["unknown runtime", "invalid runtime name", "default runtime"],
        "choose one of the runtimes that `docker info` lists, or add it to the engine's configuration",
    ),
    (&["no space left on device"], "free space on the engine's disk, such as with `docker system prune`"),
    (
        &["executable file not found", "exec: \"", "exec format error"],
        "check that the program is in the image, for this machine, and executable",
    ),
    (&["unable to find user", "no matching entries in passwd file"], "check that the user is in the image"),
    (
        &["bind source path does not exist", "mounts denied", "invalid mount config"],
        "check that the engine is on this machine, and sees the same directories",
    ),
    (
        &["volumedriver", "volume driver", "error looking up volume plugin"],
        "check that the driver is running, with `docker plugin ls` or in `/run/docker/plugins`",
    ),
    (
        &["operation not permitted", "permission denied"],
        "check what the engine itself may do, and its security profiles",
    ),
];

/// What an engine says of an image that it is to pull.
const ON_PULLS: &[Advice] = &[
    (
        &["unauthorized", "denied", "no basic auth", "authentication required", "incorrect username"],
        "check the name, and the credentials for its registry in `docker.credentials`, or in the `.docker/config.json` that the container fetches",
    ),
    (
        &["no matching manifest", "does not match the specified platform"],
        "the image is not for this machine; check its tag, and the parameter `platform`",
    ),
    (&["manifest unknown", "not found", "does not exist", "name unknown"], "check its name and its tag"),
    (&["toomanyrequests", "rate limit"], "wait, or use credentials, or a mirror of the registry"),
    (&["invalid reference format", "repository name must be"], "write it as `registry/name:tag`"),
    (&["no space left on device"], "free space on the engine's disk, such as with `docker system prune`"),
    (
        &[
            "connection refused",
            "no such host",
            "i/o timeout",
            "network is unreachable",
            "client.timeout exceeded",
            "x509",
            "tls",
            "server gave http response to https client",
            "eof",
        ],
        "check that the engine can reach the registry: its address, the proxy of the engine, and the certificates in `/etc/docker/certs.d`",
    ),
];

/// Beginning of the action that is a pull.
pub(super) const PULL: &str = "pull image ";

/// What to do if an engine refuses something.
pub(super) fn on_refusal(action: &str, message: &str) -> &'static str {
    if action.starts_with(PULL) { on_pull(message) } else { find(ON_CONTAINERS, message) }
}

/// What to do if an engine cannot pull an image.
pub(super) fn on_pull(message: &str) -> &'static str {
    find(ON_PULLS, message)
}

fn find(known: &[Advice], message: &str) -> &'static str {
    let message = message.to_lowercase();
    let found = known.iter().find(|(parts, _)| parts.iter().any(|part| message.contains(part)));
    found.map_or("the log of the engine may tell more", |(_, advice)| advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_engines_are_known() {
        for (action, message, expected) in [
            (
                "create the container",
                "Conflict. The container name \"/mesos-web\" is already in use by container \"0f\".",
                "choose another container id",
            ),
            (
                "create the container",
                "creating container storage: the container name \"mesos-web\" is already in use by 0f. You have to remove that container",
                "choose another container id",
            ),
            ("create the container", "Unknown runtime specified none-such", "`docker info`"),
            ("create the container", "unknown or invalid runtime name: none-such", "`docker info`"),
            (
                "start the container",
                "driver failed programming external connectivity: Bind for 0.0.0.0:80 failed: port is already allocated",
                "map another port",
            ),
            (
                "start the container",
                "OCI runtime create failed: exec: \"/x\": stat /x: no such file or directory: unknown",
                "the program is in the image",
            ),
            ("start the container", "something new", "log of the engine"),
            ("pull image `a`", "pull access denied for a, repository does not exist", "`docker.credentials`"),
            ("pull image `a`", "manifest for a:9 not found: manifest unknown", "its tag"),
            ("pull image `a`", "no matching manifest for linux/amd64 in the manifest list", "`platform`"),
            (
                "pull image `a`",
                "Get http://127.0.0.1:1/v2/: dial tcp: connection refused",
                "reach the registry",
            ),
        ] {
            let found = on_refusal(action, message);
            assert!(found.contains(expected), "{message}: {found}");
        }
    }

    #[test]
    fn what_is_known_is_in_lower_case() {
        for (parts, advice) in ON_CONTAINERS.iter().chain(ON_PULLS) {
            assert!(parts.iter().all(|part| *part == part.to_lowercase()), "{parts:?}");
            assert!(!advice.ends_with('.'));
        }
    }
}
