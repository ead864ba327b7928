//! Commands.

use super::values::ENVIRONMENT;

message! { COMMAND_INFO = "mesos.v1.CommandInfo" {
    1 repeated uris: message COMMAND_INFO_URI,
    2 optional environment: message ENVIRONMENT,
    3 optional value: String,
    5 optional user: String,
    6 optional shell: Bool,
    7 repeated arguments: String,
} }

message! { COMMAND_INFO_URI = "mesos.v1.CommandInfo.URI" {
    1 required value: String,
    2 optional executable: Bool,
    3 optional extract: Bool,
    4 optional cache: Bool,
    5 optional output_file: String,
} }
