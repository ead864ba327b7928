//! `cofferdam run IMAGE [CMD…]`, as users of docker type it.
//!
//! The first word that is neither an option nor the value of one is an image, and what follows is its command, options
//! included. A command without an image comes after `--`. clap cannot tell one from the other, so the command line is written
//! in the form with options before it is parsed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::{Arg, Command};
use cofferdam_core::provisioner::ImageName;

/// The hidden option that the image of the short form becomes.
pub(super) const OPTION: &str = "image-word";

/// The hidden option for the summary of the help.
pub(super) const SUMMARY: &str = "help-summary";

/// A command line in the form with options: `run [OPTIONS] IMAGE [CMD…]` becomes `run [OPTIONS] --image-word=IMAGE -- [CMD…]`.
pub(in crate::cli) fn expand(program: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let Some(run) = position_of_run(program, &arguments) else { return arguments };
    let Some(definition) = program.find_subcommand("run") else { return arguments };
    let known: Vec<&Arg> = definition.get_arguments().chain(program.get_arguments()).collect();
    let arguments = with_summary(&known, run, arguments);
    let Some(image) = first_word(&known, &arguments, run + 1) else { return arguments };
    let mut option = OsString::from(format!("--{OPTION}="));
    option.push(&arguments[image]);
    let mut expanded = arguments[..image].to_vec();
    expanded.extend([option, "--".into()]);
    let rest = &arguments[image + 1..];
    expanded.extend(rest.strip_prefix(&[OsString::from("--")]).unwrap_or(rest).iter().cloned());
    expanded
}

/// A command line whose last word is `-h`, which is no host name then: the summary of the help is asked for, unless it is a word
/// of the command in the container.
fn with_summary(known: &[&Arg], run: usize, mut arguments: Vec<OsString>) -> Vec<OsString> {
    let Some((last, options)) = arguments[run + 1..].split_last() else { return arguments };
    let is_option = !options.iter().any(|word| word == "--") && first_word(known, options, 0).is_none();
    if last == "-h" && is_option {
        arguments.pop();
        arguments.push(format!("--{SUMMARY}").into());
    }
    arguments
}

/// Where `run` is, if that is the command.
pub(super) fn position_of_run(program: &Command, arguments: &[OsString]) -> Option<usize> {
    let known: Vec<&Arg> = program.get_arguments().collect();
    first_word(&known, arguments, 1).filter(|&at| arguments[at] == "run")
}

/// Where the first word is that is neither an option nor the value of one. `None` if there is none before `--`.
fn first_word(known: &[&Arg], arguments: &[OsString], start: usize) -> Option<usize> {
    let mut at = start;
    while let Some(argument) = arguments.get(at) {
        let text = argument.to_string_lossy();
        if text == "--" {
            return None;
        } else if let Some(long) = text.strip_prefix("--") {
            let takes_next =
                !long.contains('=') && known.iter().any(|arg| is_long(arg, long) && has_value(arg));
            at += usize::from(takes_next);
        } else if let Some(shorts) = text.strip_prefix('-').filter(|shorts| !shorts.is_empty()) {
            at += usize::from(takes_next(known, shorts));
        } else {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Whether a word of short options ends with one whose value is the next word.
fn takes_next(known: &[&Arg], shorts: &str) -> bool {
    let with_value = |short: char| known.iter().any(|arg| arg.get_short() == Some(short) && has_value(arg));
    let mut rest = shorts.chars();
    // What follows one that has a value is its value.
    rest.by_ref().any(with_value) && rest.next().is_none()
}

fn is_long(arg: &Arg, name: &str) -> bool {
    arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
}

fn has_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// Checks that a word is meant as an image, not as a command: a path is a command, and so may be a plain word that is a program
/// of this machine and no image of the store. Returns what to type otherwise.
pub(super) fn check(word: &str, is_in_store: impl Fn() -> bool) -> Result<(), String> {
    check_with(word, is_in_store, is_program)
}

fn check_with(
    word: &str,
    is_in_store: impl Fn() -> bool,
    is_program: impl FnOnce(&str) -> bool,
) -> Result<(), String> {
    if word.starts_with(['/', '.']) {
        return Err(format!("`{word}` is a path, not an image; to run it, type `cofferdam run -- {word} …`"));
    }
    let is_plain = !word.contains(['/', ':', '@']);
    if is_plain && !is_in_store() && is_program(word) {
        return Err(format!(
            "`{word}` may be an image or a program of this machine; type `cofferdam run {word}:latest …` for the image, or \
             `cofferdam run -- {word} …` for the program"
        ));
    }
    match word.parse::<ImageName>() {
        Ok(_) => Ok(()),
        Err(_) if is_in_store() => Ok(()),
        Err(error) => Err(format!("{error}; a command comes after `--`")),
    }
}

/// Whether a word is the name of a program in PATH.
fn is_program(word: &str) -> bool {
    let is_executable = |directory: &Path| {
        let found = directory.join(word).metadata();
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let path = env::var_os("PATH").unwrap_or_else(|| OsStr::new("/usr/bin:/bin").to_owned());
    env::split_paths(&path).any(|directory| directory.is_absolute() && is_executable(&directory))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Arguments;

    fn expanded(line: &str) -> String {
        let program = Arguments::command();
        let arguments = line.split(' ').map(OsString::from).collect();
        let words = expand(&program, arguments);
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_first_word_is_the_image_and_the_rest_is_its_command() {
        for (line, expected) in [
            ("c run busybox", "c run --image-word=busybox --"),
            ("c run busybox ls -l --all", "c run --image-word=busybox -- ls -l --all"),
            ("c run busybox -- ls", "c run --image-word=busybox -- ls"),
            ("c run -it --rm -v /a:/b web sh", "c run -it --rm -v /a:/b --image-word=web -- sh"),
            ("c run -v/a:/b web", "c run -v/a:/b --image-word=web --"),
            ("c run -itu root web id", "c run -itu root --image-word=web -- id"),
            ("c run --name a --cpus=2 web", "c run --name a --cpus=2 --image-word=web --"),
            ("c --socket /s run -e A=1 web", "c --socket /s run -e A=1 --image-word=web --"),
            ("c run --socket /s web x", "c run --socket /s --image-word=web -- x"),
            ("c run -h web busybox ls -h", "c run -h web --image-word=busybox -- ls -h"),
            ("c run -it -h", "c run -it --help-summary"),
        ] {
            assert_eq!(expanded(line), expected, "{line}");
        }
        for line in [
            "c run -- ls -l",
            "c run -- ls -h",
            "c run --image web -- ls",
            "c run --shell ls",
            "c ps run",
            "c run",
            "c --socket run",
            "c",
        ] {
            assert_eq!(expanded(line), line);
        }
    }

    #[test]
    fn a_word_that_may_be_a_command_is_refused_with_what_to_type() {
        let check = |word: &str, is_in_store: bool, is_program: bool| {
            check_with(word, || is_in_store, |_| is_program)
        };
        for (word, is_in_store, is_program) in [
            ("busybox", true, true),
            ("busybox", false, false),
            ("busybox:1.36", false, true),
            ("team/web", false, true),
            (
                "registry.example:5000/web@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                false,
                false,
            ),
            ("sha256:0123456789ab", true, false),
        ] {
            assert_eq!(check(word, is_in_store, is_program), Ok(()), "{word}");
        }
        for (word, is_in_store, is_program, expected) in [
            ("/bin/ls", false, true, "cofferdam run -- /bin/ls"),
            ("./ls", false, true, "cofferdam run -- ./ls"),
            ("ls", false, true, "`cofferdam run -- ls …` for the program"),
            ("Web", false, false, "after `--`"),
        ] {
            let error = check(word, is_in_store, is_program).unwrap_err();
            assert!(error.contains(expected), "{word}: {error}");
        }
    }
}
