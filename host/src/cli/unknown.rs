//! Commands that this program does not have, but others of its kind.

use std::ffi::OsString;

use clap::CommandFactory;

use super::failure::Failure;

/// Exit status of usage errors, as of clap.
pub(super) const USAGE: u8 = 2;

/// What to type for a command of docker, podman, runc, crun or ctr.
const ELSEWHERE: &[(&str, &str)] = &[
    ("build", "images are built by other programs; `run --rootfs DIR` uses a directory as root file system"),
    ("builder", "images are built by other programs"),
    ("buildx", "images are built by other programs"),
    ("checkpoint", "containers cannot be stored while they run"),
    (
        "commit",
        "what a container changes ends with it; `cofferdam image import` makes an image of a directory",
    ),
    (
        "compose",
        "containers are launched one by one, or as tasks of a group by the API (`LAUNCH_TASK_GROUP`)",
    ),
    ("container", "leave `container` out: `cofferdam ps`, `cofferdam run`, …"),
    ("containers", "leave `containers` out: `cofferdam ps`, `cofferdam run`, …"),
    ("context", "`--socket` or COFFERDAM_SOCKET chooses the agent"),
    (
        "cp",
        "`cofferdam exec ID -- cat FILE` reads a file of a container, and `inspect` shows its sandbox on this machine; `run --volume` \
     and `run --uri` give it files",
    ),
    ("create", "`cofferdam run -d` creates and starts a container"),
    ("delete", "`cofferdam rm` removes a container that has ended, `cofferdam rm --force` ends it first"),
    ("diff", "what a container changes is not listed; it ends with the container"),
    (
        "export",
        "what a container changes ends with it; `cofferdam exec ID -- tar c /` writes its files, if it has `tar`",
    ),
    ("help", "`cofferdam --help` lists the commands, `cofferdam run --help` describes one"),
    ("history", "`cofferdam image inspect` shows the layers of an image"),
    ("import", "`cofferdam image import` adds images from files and directories"),
    ("init", "`cofferdam check --print-defaults` prints a configuration of the agent"),
    ("list", "`cofferdam ps`"),
    ("load", "`cofferdam image import` reads archives of `docker save`"),
    (
        "login",
        "`docker login` or another client writes the file with credentials that `cofferdam image pull` reads",
    ),
    (
        "logout",
        "`docker logout` or another client removes credentials from the file that `cofferdam image pull` reads",
    ),
    ("machine", "the agent runs on this machine: `cofferdam agent`"),
    ("manifest", "`cofferdam image inspect` shows an image"),
    ("network", "networks are configured for the plugin `network/cni`; `run --network NAME` joins one"),
    ("pause", "containers cannot be paused"),
    ("pod", "containers are nested in others: `cofferdam run --parent ID`"),
    ("port", "`cofferdam inspect` shows the networks of a container"),
    ("push", "images are pushed by other programs, such as `skopeo copy`"),
    ("rename", "a container keeps its name"),
    ("restart", "a container runs once: `cofferdam rm` it and `cofferdam run` another"),
    ("resume", "containers cannot be paused"),
    ("save", "images are written to archives by other programs, such as `skopeo copy`"),
    ("search", "registries are searched by other programs; `cofferdam image pull NAME` pulls an image"),
    (
        "secret",
        "secrets are given with the request of a container, for the plugins `volume/secret` and `environment_secret`",
    ),
    ("service", "containers run once, as tasks do: `cofferdam task run`"),
    ("spec", "a container has no file of its own: `cofferdam run --help`"),
    ("stack", "containers are launched one by one, or as tasks of a group by the API (`LAUNCH_TASK_GROUP`)"),
    (
        "start",
        "`cofferdam run -d` creates and starts a container; one that has ended cannot be started again",
    ),
    ("state", "`cofferdam inspect`"),
    ("swarm", "an agent manages one machine"),
    (
        "system",
        "`cofferdam info` shows the agent, `cofferdam events` what happens, `cofferdam image prune` frees space",
    ),
    ("tag", "an image gets its name when it is pulled, or by `cofferdam image import --name`"),
    ("unpause", "containers cannot be paused"),
    ("volume", "volumes belong to their drivers; `run --volume` and `run --mount` mount them"),
];

/// Fails with what to type instead.
pub(super) fn run(words: &[OsString]) -> Failure {
    let word = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let advice = match ELSEWHERE.iter().find(|(name, _)| *name == word) {
        Some((_, advice)) => (*advice).to_owned(),
        None => match similar(&word) {
            Some(similar) => format!("did you mean `cofferdam {similar}`?"),
            None => "`cofferdam --help` lists the commands".to_owned(),
        },
    };
    let word = super::output::escape_control(&word);
    Failure::message(format!("there is no command `{word}`\n{advice}")).with_status(USAGE)
}

/// The command that is most similar to a word, if one may be meant.
fn similar(word: &str) -> Option<String> {
    let program = super::Arguments::command();
    let visible = program.get_subcommands().filter(|command| !command.is_hide_set());
    let names = visible.map(|command| command.get_name().to_owned());
    let (distance, name) = names.map(|name| (strsim::osa_distance(word, &name), name)).min()?;
    (distance <= 2 && distance < word.chars().count()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_type_is_said() {
        for (word, expected) in [
            ("tag", "`cofferdam image import --name`"),
            ("restart", "`cofferdam run` another"),
            ("inspcet", "did you mean `cofferdam inspect`?"),
            ("frobnicate", "`cofferdam --help` lists"),
            ("x", "`cofferdam --help` lists"),
        ] {
            let failure = run(&[word.into()]).error().to_string();
            assert!(
                failure.contains(&format!("no command `{word}`")) && failure.contains(expected),
                "{failure}"
            );
        }
    }

    #[test]
    fn no_command_of_this_program_is_foreign() {
        let program = super::super::Arguments::command();
        for (name, _) in ELSEWHERE {
            assert!(program.find_subcommand(name).is_none(), "{name}");
        }
        assert!(ELSEWHERE.is_sorted());
    }
}
