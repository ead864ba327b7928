//! Flags for the process of a command, shared by `run` and `exec`.

use std::env;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::path::PathBuf;

use cofferdam_core::model::Command;

/// The longest file of environment variables that is read: what the kernel passes to a program has less space.
const MAX_ENV_FILE: u64 = 2 << 20;

/// Flags for the process of a command.
#[derive(Debug, clap::Args)]
pub(super) struct ProcessFlags {
    /// Environment variable; without `=VALUE`, that of this process
    #[arg(long, short, value_name = "KEY[=VALUE]", value_parser = variable)]
    env: Vec<Variable>,
    /// File of environment variables, one `KEY[=VALUE]` on a line, and comments that begin with `#`; --env comes first
    #[arg(long, value_name = "FILE", value_parser = env_file)]
    env_file: Vec<EnvFile>,
    /// User to run as, by name or number
    #[arg(long, short)]
    user: Option<String>,
    /// Working directory: an absolute path in the container
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<PathBuf>,
}

/// A variable, with its value if that is not the one of this process.
type Variable = (String, Option<String>);

/// The variables of a file.
#[derive(Debug, Clone, PartialEq)]
struct EnvFile(Vec<Variable>);

impl ProcessFlags {
    /// Adds what the flags say to a command.
    pub(super) fn apply(self, command: Command) -> Command {
        let of_files = self.env_file.into_iter().flat_map(|EnvFile(variables)| variables);
        let environment = of_files.chain(self.env).filter_map(|(name, value)| {
            let value = value.or_else(|| env::var(&name).ok())?;
            Some((name, value))
        });
        Command {
            environment: environment.collect(),
            user: self.user,
            working_directory: self.workdir,
            ..command
        }
    }
}

/// A command that is executed as it is, without a shell.
pub(super) fn executed(arguments: Vec<String>) -> Command {
    Command { shell: false, value: arguments.first().cloned(), arguments, ..Command::default() }
}

/// A name that no other container has.
pub(super) fn random_name(prefix: &str) -> String {
    // The standard library seeds each hasher with random data of the kernel.
    format!("{prefix}-{:010x}", RandomState::new().build_hasher().finish() >> 24)
}

/// Reads a file of variables, as docker does: values are taken as they are, without quotes and references.
fn env_file(path: &str) -> Result<EnvFile, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_ENV_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read it: {error}"))?;
    if bytes.len() as u64 > MAX_ENV_FILE {
        return Err(format!("it has more than {MAX_ENV_FILE} bytes"));
    }
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    let parsed = lines.filter_map(|(index, line)| {
        let at_line = |error: String| format!("line {}: {error}", index + 1);
        match str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)) {
            Err(_) => Some(Err(at_line("it is not text in UTF-8".to_owned()))),
            Ok(line) => {
                let line = line.trim_start();
                (!line.is_empty() && !line.starts_with('#')).then(|| line_of_file(line).map_err(at_line))
            }
        }
    });
    parsed.collect::<Result<_, _>>().map(EnvFile)
}

/// The variable on a line of a file, where a space in a name is that of another format, such as a script.
fn line_of_file(line: &str) -> Result<Variable, String> {
    let variable = variable(line)?;
    match variable.0.contains(char::is_whitespace) {
        true => Err(format!("`{}` is not the name of a variable, as it contains a space", variable.0)),
        false => Ok(variable),
    }
}

fn variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        Err("the name of the variable is missing".to_owned())
    } else {
        Ok((name.to_owned(), value))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: ProcessFlags,
    }

    #[test]
    fn variables_come_from_files_and_then_from_flags() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        let one = file("one", b"# all of it\n\nA=1\n  B=\"x = y\" \r\nNOBODY_HAS_THIS\nC=");
        let other = file("other", b"A=2\nD=4\n");
        let line =
            Line::try_parse_from(["run", "--env-file", &one, "-e", "D=5", "--env-file", &other]).unwrap();
        let command = line.flags.apply(Command::default());
        let expected = [("A", "2"), ("B", "\"x = y\" "), ("C", ""), ("D", "5")];
        let found: Vec<(&str, &str)> =
            command.environment.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_file_that_is_none_of_variables_is_refused_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (bytes, expected) in [
            (&b"A=1\n=2\n"[..], "line 2: the name of the variable is missing"),
            (b"A=1\nexport B=2\n", "line 2: `export B` is not the name of a variable"),
            (b"A=1\n\n\xff=2\n", "line 3: it is not text"),
            (&vec![b'#'; MAX_ENV_FILE as usize + 1], "more than 2097152 bytes"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = env_file(path.to_str().unwrap()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(env_file("/nowhere/file").unwrap_err().contains("cannot read it"));
    }
}
