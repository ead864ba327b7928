//! How the command of a request and that of an image become one, as in Mesos.
//!
//! ```text
//! shell  value  arguments │ the image has neither  Cmd               Entrypoint            both
//!   no    no       no     │ error                  Cmd               Entrypoint            Entrypoint Cmd
//!   no    no       yes    │ error                  Cmd[0] arguments  Entrypoint arguments  Entrypoint arguments
//!   no    yes      no     │ value
//!   no    yes      yes    │ value, with `arguments` as the whole argument vector
//!   yes   no       any    │ error
//!   yes   yes      any    │ /bin/sh -c value
//! ```
//!
//! With `replaces_cmd`, as with `docker run`, arguments without an entry point are the whole command.

use cofferdam_plugin_api::model::{Command, CommandRewrite, ImageConfig};
use cofferdam_plugin_api::{Error, Result};

/// What replaces the command of a request; `None` if it stays as it is.
///
/// # Errors
/// If there is nothing to run.
pub fn command(request: &Command, image: &ImageConfig) -> Result<Option<CommandRewrite>> {
    let Command { shell, value, arguments, .. } = request;
    match (shell, value) {
        (true, None) => {
            return Err(Error::invalid(
                "the command is a shell command without a line; set `value`, or set `shell` to false to run the command of \
                 the image",
            ));
        }
        (_, Some(_)) => return Ok(None),
        (false, None) => {}
    }
    let ImageConfig { entrypoint, cmd, .. } = image;
    let (program, rest) = match (&entrypoint[..], &cmd[..], &arguments[..]) {
        ([], _, [program, rest @ ..]) if request.replaces_cmd => (program, [rest, &[]]),
        ([], [], []) => {
            return Err(Error::invalid(
                "there is no command: neither the request nor the image has one; request a command",
            ));
        }
        ([], [], _) => {
            return Err(Error::invalid(
                "there are arguments but no program: the image has neither an entry point nor a command; set `value`",
            ));
        }
        ([], [program, cmd @ ..], []) => (program, [cmd, &[]]),
        ([], [program, ..], arguments) => (program, [arguments, &[]]),
        ([program, entrypoint @ ..], cmd, []) => (program, [entrypoint, cmd]),
        ([program, entrypoint @ ..], _, arguments) => (program, [entrypoint, arguments]),
    };
    if program.is_empty() {
        return Err(Error::invalid("the name of the image's program is empty; request a command"));
    }
    let arguments = std::iter::once(program).chain(rest.into_iter().flatten()).cloned().collect();
    Ok(Some(CommandRewrite { shell: Some(false), value: Some(program.clone()), arguments: Some(arguments) }))
}
