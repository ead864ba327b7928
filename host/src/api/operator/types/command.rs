//! What runs in a container, and what it is given to run with.

use super::bytes::Bytes;

message! {
    /// The program of a container.
    pub struct CommandInfo {
        /// Files fetched into the sandbox before the program starts.
        repeated uris: Uri,
        /// Variables added to the environment of the program.
        optional environment: Environment,
        /// Whether `value` is a line for a shell; see [`CommandInfo::is_shell`].
        optional shell: bool,
        /// The shell line, or the path of the executable.
        optional value: String,
        /// The whole argument vector, `argv[0]` included. Ignored by a shell.
        repeated arguments: String,
        /// The user the program runs as; that of the agent when absent.
        optional user: String,
        /// Where the program starts: a full path, as it sees it. Ours; unknown to Mesos.
        optional working_directory: String,
    }
}

message! {
    /// A file to be fetched into the sandbox.
    pub struct Uri {
        /// Where it is: a path or a URL.
        required value: String,
        /// Whether it is made executable, which also keeps it from being extracted.
        optional executable: bool,
        /// Whether an archive is unpacked; see [`Uri::is_extracted`].
        optional extract: bool,
        /// Whether it may come from, and is kept in, the fetcher's cache. Not, when absent.
        optional cache: bool,
        /// Its name in the sandbox; the last component of `value` when absent.
        optional output_file: String,
        /// Its expected SHA-256 in lower-case hex. Ours; unknown to Mesos.
        optional sha256: String,
    }
}

message! {
    /// Environment variables, in order: a later one replaces an earlier one of the same name.
    pub struct Environment {
        /// The variables.
        repeated variables: Variable,
    }
}

message! {
    /// One environment variable.
    pub struct Variable {
        /// Its name.
        required name: String,
        /// Where its value comes from; a plain `value` when absent.
        #[serde(rename = "type")]
        optional kind: VariableKind,
        /// The value of a `VALUE`.
        optional value: String,
        /// The value of a `SECRET`.
        optional secret: Secret,
    }
}

word! {
    /// Where the value of a variable comes from.
    pub enum VariableKind {
        /// No source; refused by validation.
        Unknown,
        /// The field `value`.
        #[default]
        Value,
        /// The field `secret`.
        Secret,
    }
}

message! {
    /// Something that must not be shown, given or referred to.
    pub struct Secret {
        /// Which of the two it is.
        #[serde(rename = "type")]
        optional kind: SecretKind,
        /// For `REFERENCE`: where a resolver finds it.
        optional reference: SecretReference,
        /// For `VALUE`: the secret itself.
        optional value: SecretValue,
    }
}

word! {
    /// Whether a secret is given or referred to.
    pub enum SecretKind {
        /// Neither.
        #[default]
        Unknown,
        /// Its place is given.
        Reference,
        /// It is given itself.
        Value,
    }
}

message! {
    /// A place in a store of secrets.
    pub struct SecretReference {
        /// The name of the secret there.
        required name: String,
        /// The part of it that is meant.
        optional key: String,
    }
}

message! {
    /// A secret in the clear (base64 on the wire).
    pub struct SecretValue {
        /// The secret. Never shown by `Debug`.
        required data: Bytes,
    }
}

impl CommandInfo {
    /// Whether `value` is a line for a shell, which is what a command is unless it says otherwise.
    pub fn is_shell(&self) -> bool {
        self.shell.unwrap_or(true)
    }
}

impl Uri {
    /// Whether an archive is unpacked, which it is unless it is executable or the field says otherwise.
    pub fn is_extracted(&self) -> bool {
        self.extract.unwrap_or(true) && !self.executable.unwrap_or(false)
    }
}

impl Variable {
    /// Where the value comes from.
    pub fn kind(&self) -> VariableKind {
        self.kind.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_as_clients_send_it() {
        let wire = json!({
            "shell": false,
            "value": "/bin/server",
            "arguments": ["server", "--port", "8080"],
            "user": "nobody",
            "environment": {"variables": [
                {"name": "MODE", "type": "VALUE", "value": "fast"},
                {"name": "TOKEN", "type": "SECRET",
                 "secret": {"type": "VALUE", "value": {"data": "aHVudGVyMg=="}}},
            ]},
            "uris": [{"value": "https://example.org/a.tar.gz", "extract": false, "sha256": "ab12"}],
        });
        let command: CommandInfo = serde_json::from_value(wire.clone()).unwrap();
        assert!(!command.is_shell());
        assert!(!command.uris[0].is_extracted());
        let variables = &command.environment.as_ref().unwrap().variables;
        assert_eq!(variables[1].kind(), VariableKind::Secret);
        assert!(!format!("{command:?}").contains("hunter2"));
        assert_eq!(serde_json::to_value(&command).unwrap(), wire);
    }

    #[test]
    fn what_is_absent_has_the_defaults_of_the_schema() {
        let command: CommandInfo = serde_json::from_value(json!({
            "value": "sleep 1",
            "uris": [{"value": "/srv/a.zip"}, {"value": "/srv/tool", "executable": true}],
            "environment": {"variables": [{"name": "A", "value": "1"}]},
        }))
        .unwrap();
        assert!(command.is_shell() && CommandInfo::default().is_shell());
        assert_eq!(command.uris.iter().map(Uri::is_extracted).collect::<Vec<_>>(), [true, false]);
        assert_eq!(command.environment.unwrap().variables[0].kind(), VariableKind::Value);
    }
}
