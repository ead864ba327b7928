//! Files that are generated from the definition of the command line: completions for shells, and man pages.

use std::io::{self, Write};
use std::path::PathBuf;

use clap_complete::Shell;

use super::failure::Failure;
use super::{Outcome, help};

/// Prints the completions of this program for a shell
///
/// Examples:
///   cofferdam completions bash > /usr/share/bash-completion/completions/cofferdam
///   cofferdam completions zsh > /usr/share/zsh/site-functions/_cofferdam
///   cofferdam completions fish > ~/.config/fish/completions/cofferdam.fish
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

/// Writes man pages of all commands (for packages)
#[derive(Debug, clap::Args)]
pub(super) struct ManPages {
    /// An existing directory
    directory: PathBuf,
}

pub(super) fn completions(arguments: &Completions) -> Outcome {
    // The generators panic when they cannot write.
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut help::program(), "cofferdam", &mut text);
    io::stdout().lock().write_all(&text)?;
    Ok(0)
}

pub(super) fn man_pages(arguments: &ManPages) -> Outcome {
    let directory = &arguments.directory;
    clap_mangen::generate_to(help::program(), directory).map_err(|source| {
        Failure::system(format!("cannot write man pages to `{}`", directory.display()), source)
    })?;
    Ok(0)
}
