//! Values, ids and small messages that others consist of.

message! { DURATION_INFO = "mesos.v1.DurationInfo" {
    1 required nanoseconds: Int64,
} }

message! { CONTAINER_ID = "mesos.v1.ContainerID" {
    1 required value: String,
    2 optional parent: message CONTAINER_ID,
} }

message! { ENVIRONMENT = "mesos.v1.Environment" {
    1 repeated variables: message ENVIRONMENT_VARIABLE,
} }

message! { ENVIRONMENT_VARIABLE = "mesos.v1.Environment.Variable" {
    1 required name: String,
    2 optional value: String,
    3 optional type: enum ENVIRONMENT_VARIABLE_TYPE,
    4 optional secret: message SECRET,
} }

enumeration! { ENVIRONMENT_VARIABLE_TYPE = "mesos.v1.Environment.Variable.Type" {
    UNKNOWN = 0,
    VALUE = 1,
    SECRET = 2,
} }

message! { SECRET = "mesos.v1.Secret" {
    1 optional type: enum SECRET_TYPE,
    2 optional reference: message SECRET_REFERENCE,
    3 optional value: message SECRET_VALUE,
} }

enumeration! { SECRET_TYPE = "mesos.v1.Secret.Type" {
    UNKNOWN = 0,
    REFERENCE = 1,
    VALUE = 2,
} }

message! { SECRET_REFERENCE = "mesos.v1.Secret.Reference" {
    1 required name: String,
    2 optional key: String,
} }

message! { SECRET_VALUE = "mesos.v1.Secret.Value" {
    1 required data: Bytes,
} }

message! { LABELS = "mesos.v1.Labels" {
    1 repeated labels: message LABEL,
} }

message! { LABEL = "mesos.v1.Label" {
    1 required key: String,
    2 optional value: String,
} }

message! { CREDENTIAL = "mesos.v1.Credential" {
    1 required principal: String,
    2 optional secret: String,
} }

message! { PARAMETERS = "mesos.v1.Parameters" {
    1 repeated parameter: message PARAMETER,
} }

message! { PARAMETER = "mesos.v1.Parameter" {
    1 required key: String,
    2 required value: String,
} }

message! { RESOURCE_PROVIDER_ID = "mesos.v1.ResourceProviderID" {
    1 required value: String,
} }

enumeration! { VALUE_TYPE = "mesos.v1.Value.Type" {
    SCALAR = 0,
    RANGES = 1,
    SET = 2,
    TEXT = 3,
} }

message! { VALUE_SCALAR = "mesos.v1.Value.Scalar" {
    1 required value: Double,
} }

message! { VALUE_RANGES = "mesos.v1.Value.Ranges" {
    1 repeated range: message VALUE_RANGE,
} }

message! { VALUE_RANGE = "mesos.v1.Value.Range" {
    1 required begin: Uint64,
    2 required end: Uint64,
} }

message! { VALUE_SET = "mesos.v1.Value.Set" {
    1 repeated item: String,
} }

message! { FLAG = "mesos.v1.Flag" {
    1 required name: String,
    2 optional value: String,
} }

message! { VERSION_INFO = "mesos.v1.VersionInfo" {
    1 required version: String,
    2 optional build_date: String,
    3 optional build_time: Double,
    4 optional build_user: String,
    5 optional git_sha: String,
    6 optional git_branch: String,
    7 optional git_tag: String,
} }

message! { METRIC = "mesos.v1.Metric" {
    1 required name: String,
    2 optional value: Double,
} }

message! { FILE_INFO = "mesos.v1.FileInfo" {
    1 required path: String,
    2 optional nlink: Int32,
    3 optional size: Uint64,
    4 optional mtime: message TIME_INFO,
    5 optional mode: Uint32,
    6 optional uid: String,
    7 optional gid: String,
} }

message! { TIME_INFO = "mesos.v1.TimeInfo" {
    1 required nanoseconds: Int64,
} }

message! { TASK_ID = "mesos.v1.TaskID" {
    1 required value: String,
} }

message! { FRAMEWORK_ID = "mesos.v1.FrameworkID" {
    1 required value: String,
} }

message! { EXECUTOR_ID = "mesos.v1.ExecutorID" {
    1 required value: String,
} }

message! { AGENT_ID = "mesos.v1.AgentID" {
    1 required value: String,
} }

message! { VALUE_TEXT = "mesos.v1.Value.Text" {
    1 required value: String,
} }
