//! Commands, URIs, environment and secrets.

use super::bytes::Bytes;

message! {
    /// Command of a container.
    pub struct CommandInfo {
        /// Files fetched into the sandbox before the command starts.
        repeated uris: Uri,
        /// Environment variables of the command.
        optional environment: Environment,
        /// Whether `value` is a shell command; see [`CommandInfo::is_shell`].
        optional shell: bool,
        /// Shell command, or path of the executable.
        optional value: String,
        /// Argument vector, `argv[0]` included. Ignored for a shell command.
        repeated arguments: String,
        /// User of the command; that of the agent when absent.
        optional user: String,
        /// Working directory: an absolute path in the container. Extension.
        optional working_directory: String,
        /// Whether `arguments` are those of the image's entry point, and the whole command if it has none, as with `docker
        /// run`. Only without `value`. Extension.
        optional replaces_cmd: bool,
    }
}

message! {
    /// A file to fetch into the sandbox.
    pub struct Uri {
        /// Path or URL.
        required value: String,
        /// Whether it is made executable; if so, it is not extracted.
        optional executable: bool,
        /// Whether it is extracted if it is an archive; see [`Uri::is_extracted`].
        optional extract: bool,
        /// Whether the fetcher's cache is used; false when absent.
        optional cache: bool,
        /// Name in the sandbox; the last component of `value` when absent.
        optional output_file: String,
        /// Expected SHA-256 in hexadecimal. Extension.
        optional sha256: String,
    }
}

message! {
    /// Environment variables. A later variable replaces an earlier one of the same name.
    pub struct Environment {
        repeated variables: Variable,
    }
}

message! {
    /// An environment variable.
    pub struct Variable {
        required name: String,
        /// Which field has the value; `VALUE` when absent.
        #[serde(rename = "type")]
        optional kind: VariableKind,
        /// The value of a `VALUE`.
        optional value: String,
        /// The value of a `SECRET`.
        optional secret: Secret,
    }
}

word! {
    /// Which field has the value of a variable.
    pub enum VariableKind {
        /// None; invalid.
        Unknown,
        /// The field `value`.
        #[default]
        Value,
        /// The field `secret`.
        Secret,
    }
}

message! {
    /// A secret, by value or by reference.
    pub struct Secret {
        /// Which field is set.
        #[serde(rename = "type")]
        optional kind: SecretKind,
        /// For `REFERENCE`: its name in a secret store.
        optional reference: SecretReference,
        /// For `VALUE`: the secret.
        optional value: SecretValue,
    }
}

word! {
    /// How a secret is given.
    pub enum SecretKind {
        /// Not set; invalid.
        #[default]
        Unknown,
        /// By reference.
        Reference,
        /// By value.
        Value,
    }
}

message! {
    /// Reference to a secret in a secret store.
    pub struct SecretReference {
        /// Name of the secret.
        required name: String,
        /// Key within the secret.
        optional key: String,
    }
}

message! {
    /// A secret in plain text (base64 in JSON).
    pub struct SecretValue {
        /// The secret. `Debug` does not show it.
        required data: Bytes,
    }
}

impl CommandInfo {
    /// Whether `value` is a shell command. The default is true.
    pub fn is_shell(&self) -> bool {
        self.shell.unwrap_or(true)
    }
}

impl Uri {
    /// Whether an archive is extracted: by default, unless it is executable.
    pub fn is_extracted(&self) -> bool {
        self.extract.unwrap_or(true) && !self.executable.unwrap_or(false)
    }
}

impl Variable {
    /// Which field has the value.
    pub fn kind(&self) -> VariableKind {
        self.kind.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_survives_a_round_trip() {
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
    fn absent_fields_have_the_defaults_of_mesos() {
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
