"""The messages of the Mesos v1 API that the tests use, for the implementation of protocol buffers by Google.

Written from the published numbers, independently of the agent's own table.
"""

import http.client
import re

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Message, then its fields: number, label, name, type. An enumeration has its values instead.
SCHEMA = """
FrameworkID
  1 required value string
ExecutorID
  1 required value string
TaskID
  1 required value string
AgentID
  1 required value string
ContainerID
  1 required value string
  2 optional parent ContainerID
DurationInfo
  1 required nanoseconds int64
Scalar
  1 required value double
ValueType = SCALAR 0 RANGES 1 SET 2 TEXT 3
Resource
  1 required name string
  2 required type ValueType
  3 optional scalar Scalar
CommandInfo
  3 optional value string
  6 optional shell bool
  7 repeated arguments string
VersionInfo
  1 required version string
Flag
  1 required name string
  2 optional value string
Metric
  1 required name string
  2 optional value double
FileInfo
  1 required path string
  3 optional size uint64
  5 optional mode uint32
WindowSize
  1 required rows uint32
  2 required columns uint32
TTYInfo
  1 optional window_size WindowSize
ProcessIOType = IO_UNKNOWN 0 DATA 1 CONTROL 2
ProcessIODataType = DATA_UNKNOWN 0 STDIN 1 STDOUT 2 STDERR 3
ProcessIOControlType = CONTROL_UNKNOWN 0 TTY_INFO 1 HEARTBEAT 2
ProcessIOData
  1 optional type ProcessIODataType
  2 optional data bytes
ProcessIOControl
  1 optional type ProcessIOControlType
  2 optional tty_info TTYInfo
ProcessIO
  1 optional type ProcessIOType
  2 optional data ProcessIOData
  3 optional control ProcessIOControl
CallType = GET_HEALTH 1 GET_FLAGS 2 GET_VERSION 3 GET_METRICS 4 LIST_FILES 7 READ_FILE 8 GET_STATE 9 GET_CONTAINERS 10 GET_FRAMEWORKS 11 GET_EXECUTORS 12 GET_TASKS 13 ATTACH_CONTAINER_INPUT 18 ATTACH_CONTAINER_OUTPUT 19 GET_AGENT 20 LAUNCH_CONTAINER 22 WAIT_CONTAINER 23 KILL_CONTAINER 24 REMOVE_CONTAINER 25 PRUNE_IMAGES 30 GET_RESOURCE_PROVIDERS 26 GET_OPERATIONS 31 MARK_RESOURCE_PROVIDER_GONE 32
ListFiles
  1 required path string
ReadFile
  1 required path string
  2 required offset uint64
  3 optional length uint64
GetContainers
  1 optional show_nested bool
  2 optional show_standalone bool
Limits
  1 required key string
  2 required value Scalar
LaunchContainer
  1 required container_id ContainerID
  2 optional command CommandInfo
  3 repeated resources Resource
  5 repeated limits Limits
OneContainer
  1 required container_id ContainerID
  2 optional signal int32
AttachInputType = INPUT_UNKNOWN 0 CONTAINER_ID 1 PROCESS_IO 2
AttachContainerInput
  1 optional type AttachInputType
  2 optional container_id ContainerID
  3 optional process_io ProcessIO
GetMetricsCall
  1 optional timeout DurationInfo
ImageType = APPC 1 DOCKER 2
ImageDocker
  1 required name string
Image
  1 required type ImageType
  3 optional docker ImageDocker
PruneImages
  1 repeated excluded_images Image
Call
  1 optional type CallType
  2 optional get_metrics GetMetricsCall
  4 optional list_files ListFiles
  5 optional read_file ReadFile
  10 optional attach_container_input AttachContainerInput
  11 optional attach_container_output OneContainer
  13 optional launch_container LaunchContainer
  14 optional wait_container OneContainer
  15 optional kill_container OneContainer
  16 optional remove_container OneContainer
  20 optional get_containers GetContainers
  21 optional prune_images PruneImages
GetHealth
  1 required healthy bool
GetFlags
  1 repeated flags Flag
GetVersion
  1 required version_info VersionInfo
GetMetrics
  1 repeated metrics Metric
FileList
  1 repeated file_infos FileInfo
FileData
  1 required size uint64
  2 required data bytes
ResourceStatistics
  1 required timestamp double
  4 optional cpus_limit double
  6 optional mem_limit_bytes uint64
ContainerStatus
  3 optional executor_pid uint32
  4 optional container_id ContainerID
Container
  1 optional framework_id FrameworkID
  2 optional executor_id ExecutorID
  4 required container_id ContainerID
  5 optional container_status ContainerStatus
  6 optional resource_statistics ResourceStatistics
Containers
  1 repeated containers Container
TaskState = TASK_STAGING 6 TASK_STARTING 0 TASK_RUNNING 1 TASK_KILLING 8 TASK_FINISHED 2 TASK_FAILED 3 TASK_KILLED 4 TASK_ERROR 7 TASK_LOST 5
Source = SOURCE_MASTER 0 SOURCE_AGENT 1 SOURCE_EXECUTOR 2
TaskStatus
  1 required task_id TaskID
  2 required state TaskState
  3 optional data bytes
  4 optional message string
  5 optional agent_id AgentID
  6 optional timestamp double
  7 optional executor_id ExecutorID
  9 optional source Source
  11 optional uuid bytes
FrameworkInfo
  1 required user string
  2 required name string
  3 optional id FrameworkID
ExecutorInfo
  1 required executor_id ExecutorID
  7 optional command CommandInfo
  8 optional framework_id FrameworkID
  9 optional name string
TaskInfo
  1 required name string
  2 required task_id TaskID
  3 required agent_id AgentID
  4 repeated resources Resource
  6 optional data bytes
Task
  1 required name string
  2 required task_id TaskID
  3 required framework_id FrameworkID
  4 optional executor_id ExecutorID
  5 required agent_id AgentID
  6 required state TaskState
  8 repeated statuses TaskStatus
Tasks
  1 repeated pending_tasks Task
  2 repeated queued_tasks Task
  3 repeated launched_tasks Task
  4 repeated terminated_tasks Task
  5 repeated completed_tasks Task
Executor
  1 required executor_info ExecutorInfo
Executors
  1 repeated executors Executor
  2 repeated completed_executors Executor
Framework
  1 required framework_info FrameworkInfo
Frameworks
  1 repeated frameworks Framework
  2 repeated completed_frameworks Framework
State
  1 optional get_tasks Tasks
  2 optional get_executors Executors
  3 optional get_frameworks Frameworks
GetAgent
  1 optional agent_info AgentInfo
Operations
ResourceProviders
Termination
  1 optional exit_status int32
  2 optional state TaskState
  5 optional message string
ResponseType = R_UNKNOWN 0 R_GET_HEALTH 1 R_GET_FLAGS 2 R_GET_VERSION 3 R_GET_METRICS 4 R_LIST_FILES 6 R_READ_FILE 7 R_GET_STATE 8 R_GET_CONTAINERS 9 R_GET_FRAMEWORKS 10 R_GET_EXECUTORS 11 R_GET_TASKS 12 R_GET_AGENT 14 R_WAIT_CONTAINER 15 R_GET_RESOURCE_PROVIDERS 16 R_GET_OPERATIONS 17
Response
  1 optional type ResponseType
  2 optional get_health GetHealth
  3 optional get_flags GetFlags
  4 optional get_version GetVersion
  5 optional get_metrics GetMetrics
  7 optional list_files FileList
  8 optional read_file FileData
  9 optional get_state State
  10 optional get_containers Containers
  11 optional get_frameworks Frameworks
  12 optional get_executors Executors
  13 optional get_tasks Tasks
  15 optional get_agent GetAgent
  16 optional wait_container Termination
  17 optional get_resource_providers ResourceProviders
  18 optional get_operations Operations
ExecutorCallType = E_UNKNOWN 0 E_SUBSCRIBE 1 E_UPDATE 2 E_MESSAGE 3 E_HEARTBEAT 4
Update
  1 required status TaskStatus
Subscribe
  1 repeated unacknowledged_tasks TaskInfo
  2 repeated unacknowledged_updates Update
CallMessage
  2 required data bytes
ExecutorCall
  1 required executor_id ExecutorID
  2 required framework_id FrameworkID
  3 optional type ExecutorCallType
  4 optional subscribe Subscribe
  5 optional update Update
  6 optional message CallMessage
EventType = V_UNKNOWN 0 V_SUBSCRIBED 1 V_LAUNCH 2 V_LAUNCH_GROUP 8 V_KILL 3 V_ACKNOWLEDGED 4 V_MESSAGE 5 V_ERROR 6 V_SHUTDOWN 7 V_HEARTBEAT 9
AgentInfo
  1 required hostname string
  3 repeated resources Resource
  6 optional id AgentID
Subscribed
  1 required executor_info ExecutorInfo
  2 required framework_info FrameworkInfo
  3 required agent_info AgentInfo
  4 optional container_id ContainerID
Launch
  1 required task TaskInfo
Kill
  1 required task_id TaskID
Acknowledged
  1 required task_id TaskID
  2 required uuid bytes
EventMessage
  1 required data bytes
Event
  1 optional type EventType
  2 optional subscribed Subscribed
  3 optional acknowledged Acknowledged
  4 optional launch Launch
  5 optional kill Kill
  6 optional message EventMessage
"""

PROTOBUF = "application/x-protobuf"


def _messages():
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mesos.proto", package="mesos")
    enumerations = set(re.findall(r"^(\w+) =", SCHEMA, re.M))
    for line in SCHEMA.strip().splitlines():
        words = line.split()
        if "=" in words:
            enumeration = file.enum_type.add(name=words[0])
            for name, number in zip(words[2::2], words[3::2]):
                enumeration.value.add(name=name, number=int(number))
        elif line.startswith(" "):
            number, label, name, kind = words
            added = message.field.add(name=name, number=int(number), label=getattr(field, "LABEL_" + label.upper()))
            if kind[0].islower():
                added.type = getattr(field, "TYPE_" + kind.upper())
            else:
                added.type = field.TYPE_ENUM if kind in enumerations else field.TYPE_MESSAGE
                added.type_name = ".mesos." + kind
        else:
            message = file.message_type.add(name=line)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptors = {message.name: pool.FindMessageTypeByName("mesos." + message.name) for message in file.message_type}
    if hasattr(message_factory, "GetMessageClass"):
        classes = {name: message_factory.GetMessageClass(found) for name, found in descriptors.items()}
    else:
        factory = message_factory.MessageFactory(pool)
        classes = {name: factory.GetPrototype(found) for name, found in descriptors.items()}
    values = {value.name: value.number for enumeration in file.enum_type for value in enumeration.value}
    return classes, values


_CLASSES, _VALUES = _messages()


def __getattr__(name):
    return _CLASSES[name] if name in _CLASSES else _VALUES[name]


def parse(kind, data):
    """The message in some bytes, which has all fields that are required."""
    message = _CLASSES[kind]()
    message.MergeFromString(data)
    assert message.IsInitialized(), (kind, message.FindInitializationErrors())
    return message


def records(response):
    """The records of a stream, as they arrive."""
    while True:
        digits = b""
        while not digits.endswith(b"\n"):
            byte = response.read(1)
            if not byte:
                return
            digits += byte
        data = b""
        while len(data) < int(digits):
            part = response.read(int(digits) - len(data))
            assert part, "the stream ends within a record"
            data += part
        yield data


class Client:
    """A client that keeps its connection, as those of Mesos do."""

    def __init__(self, address, token, path="/api/v1"):
        host, _, port = address.rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self.headers = {"Authorization": "Bearer " + token, "Content-Type": PROTOBUF, "Accept": PROTOBUF}
        self.path = path

    def request(self, body, path=None, method="POST", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path or self.path, body, {**self.headers, **headers})
        return self.connection.getresponse()

    def status(self, body, **options):
        response = self.request(body, **options)
        return response.status, response.read().decode()

    def call(self, kind, **fields):
        """Makes a call on the kept connection, and returns the body of the response that its type names."""
        response = self.request(_CLASSES["Call"](type=_VALUES[kind], **fields).SerializeToString())
        data = response.read()
        assert response.status == 200, (kind, response.status, data)
        if not data:
            return None
        assert response.getheader("Content-Type") == PROTOBUF, response.getheaders()
        message = parse("Response", data)
        assert message.type == _VALUES["R_" + kind], message
        return getattr(message, kind.lower())
