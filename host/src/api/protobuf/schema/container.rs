//! Containers: what is requested for them, and their status.

use super::values::{CONTAINER_ID, CREDENTIAL, LABELS, PARAMETER, PARAMETERS, SECRET};

message! { CONTAINER_INFO = "mesos.v1.ContainerInfo" {
    1 required type: enum CONTAINER_INFO_TYPE,
    2 repeated volumes: message VOLUME,
    3 optional docker: message CONTAINER_INFO_DOCKER_INFO,
    4 optional hostname: String,
    5 optional mesos: message CONTAINER_INFO_MESOS_INFO,
    7 repeated network_infos: message NETWORK_INFO,
    8 optional linux_info: message LINUX_INFO,
    9 optional rlimit_info: message RLIMIT_INFO,
    10 optional tty_info: message TTYINFO,
} }

enumeration! { CONTAINER_INFO_TYPE = "mesos.v1.ContainerInfo.Type" {
    DOCKER = 1,
    MESOS = 2,
} }

message! { VOLUME = "mesos.v1.Volume" {
    1 required container_path: String,
    2 optional host_path: String,
    3 required mode: enum VOLUME_MODE,
    4 optional image: message IMAGE,
    5 optional source: message VOLUME_SOURCE,
} }

enumeration! { VOLUME_MODE = "mesos.v1.Volume.Mode" {
    RW = 1,
    RO = 2,
} }

message! { IMAGE = "mesos.v1.Image" {
    1 required type: enum IMAGE_TYPE,
    2 optional appc: message IMAGE_APPC,
    3 optional docker: message IMAGE_DOCKER,
    4 optional cached: Bool,
} }

enumeration! { IMAGE_TYPE = "mesos.v1.Image.Type" {
    APPC = 1,
    DOCKER = 2,
} }

message! { IMAGE_APPC = "mesos.v1.Image.Appc" {
    1 required name: String,
    2 optional id: String,
    3 optional labels: message LABELS,
} }

message! { IMAGE_DOCKER = "mesos.v1.Image.Docker" {
    1 required name: String,
    2 optional credential: message CREDENTIAL,
    3 optional config: message SECRET,
} }

message! { VOLUME_SOURCE = "mesos.v1.Volume.Source" {
    1 optional type: enum VOLUME_SOURCE_TYPE,
    2 optional docker_volume: message VOLUME_SOURCE_DOCKER_VOLUME,
    3 optional sandbox_path: message VOLUME_SOURCE_SANDBOX_PATH,
    4 optional secret: message SECRET,
    5 optional host_path: message VOLUME_SOURCE_HOST_PATH,
    6 optional csi_volume: message VOLUME_SOURCE_CSIVOLUME,
} }

enumeration! { VOLUME_SOURCE_TYPE = "mesos.v1.Volume.Source.Type" {
    UNKNOWN = 0,
    DOCKER_VOLUME = 1,
    HOST_PATH = 4,
    SANDBOX_PATH = 2,
    SECRET = 3,
    CSI_VOLUME = 5,
} }

message! { VOLUME_SOURCE_DOCKER_VOLUME = "mesos.v1.Volume.Source.DockerVolume" {
    1 optional driver: String,
    2 required name: String,
    3 optional driver_options: message PARAMETERS,
} }

message! { VOLUME_SOURCE_HOST_PATH = "mesos.v1.Volume.Source.HostPath" {
    1 required path: String,
    2 optional mount_propagation: message MOUNT_PROPAGATION,
} }

message! { MOUNT_PROPAGATION = "mesos.v1.MountPropagation" {
    1 optional mode: enum MOUNT_PROPAGATION_MODE,
} }

enumeration! { MOUNT_PROPAGATION_MODE = "mesos.v1.MountPropagation.Mode" {
    UNKNOWN = 0,
    HOST_TO_CONTAINER = 1,
    BIDIRECTIONAL = 2,
} }

message! { VOLUME_SOURCE_SANDBOX_PATH = "mesos.v1.Volume.Source.SandboxPath" {
    1 optional type: enum VOLUME_SOURCE_SANDBOX_PATH_TYPE,
    2 required path: String,
} }

enumeration! { VOLUME_SOURCE_SANDBOX_PATH_TYPE = "mesos.v1.Volume.Source.SandboxPath.Type" {
    UNKNOWN = 0,
    SELF = 1,
    PARENT = 2,
} }

message! { VOLUME_SOURCE_CSIVOLUME = "mesos.v1.Volume.Source.CSIVolume" {
    1 required plugin_name: String,
    2 optional static_provisioning: message VOLUME_SOURCE_CSIVOLUME_STATIC_PROVISIONING,
} }

message! { VOLUME_SOURCE_CSIVOLUME_STATIC_PROVISIONING = "mesos.v1.Volume.Source.CSIVolume.StaticProvisioning" {
    1 required volume_id: String,
    2 required volume_capability: message VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY,
    3 map node_stage_secrets: message SECRET,
    4 map node_publish_secrets: message SECRET,
    5 map volume_context: String,
} }

message! { VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY = "mesos.v1.Volume.Source.CSIVolume.VolumeCapability" {
    1 optional block: message VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY_BLOCK_VOLUME,
    2 optional mount: message VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY_MOUNT_VOLUME,
    3 required access_mode: message VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY_ACCESS_MODE,
} }

message! { VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY_BLOCK_VOLUME = "mesos.v1.Volume.Source.CSIVolume.VolumeCapability.BlockVolume" {
} }

message! { VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY_MOUNT_VOLUME = "mesos.v1.Volume.Source.CSIVolume.VolumeCapability.MountVolume" {
    1 optional fs_type: String,
    2 repeated mount_flags: String,
} }

message! { VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY_ACCESS_MODE = "mesos.v1.Volume.Source.CSIVolume.VolumeCapability.AccessMode" {
    1 required mode: enum VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY_ACCESS_MODE_MODE,
} }

enumeration! { VOLUME_SOURCE_CSIVOLUME_VOLUME_CAPABILITY_ACCESS_MODE_MODE = "mesos.v1.Volume.Source.CSIVolume.VolumeCapability.AccessMode.Mode" {
    UNKNOWN = 0,
    SINGLE_NODE_WRITER = 1,
    SINGLE_NODE_READER_ONLY = 2,
    MULTI_NODE_READER_ONLY = 3,
    MULTI_NODE_SINGLE_WRITER = 4,
    MULTI_NODE_MULTI_WRITER = 5,
} }

message! { CONTAINER_INFO_DOCKER_INFO = "mesos.v1.ContainerInfo.DockerInfo" {
    1 required image: String,
    2 optional network: enum CONTAINER_INFO_DOCKER_INFO_NETWORK,
    3 repeated port_mappings: message CONTAINER_INFO_DOCKER_INFO_PORT_MAPPING,
    4 optional privileged: Bool,
    5 repeated parameters: message PARAMETER,
    6 optional force_pull_image: Bool,
    7 optional volume_driver: String,
} }

enumeration! { CONTAINER_INFO_DOCKER_INFO_NETWORK = "mesos.v1.ContainerInfo.DockerInfo.Network" {
    HOST = 1,
    BRIDGE = 2,
    NONE = 3,
    USER = 4,
} }

message! { CONTAINER_INFO_DOCKER_INFO_PORT_MAPPING = "mesos.v1.ContainerInfo.DockerInfo.PortMapping" {
    1 required host_port: Uint32,
    2 required container_port: Uint32,
    3 optional protocol: String,
} }

message! { CONTAINER_INFO_MESOS_INFO = "mesos.v1.ContainerInfo.MesosInfo" {
    1 optional image: message IMAGE,
} }

message! { NETWORK_INFO = "mesos.v1.NetworkInfo" {
    3 repeated groups: String,
    4 optional labels: message LABELS,
    5 repeated ip_addresses: message NETWORK_INFO_IPADDRESS,
    6 optional name: String,
    7 repeated port_mappings: message NETWORK_INFO_PORT_MAPPING,
} }

message! { NETWORK_INFO_IPADDRESS = "mesos.v1.NetworkInfo.IPAddress" {
    1 optional protocol: enum NETWORK_INFO_PROTOCOL,
    2 optional ip_address: String,
} }

enumeration! { NETWORK_INFO_PROTOCOL = "mesos.v1.NetworkInfo.Protocol" {
    IPv4 = 1,
    IPv6 = 2,
} }

message! { NETWORK_INFO_PORT_MAPPING = "mesos.v1.NetworkInfo.PortMapping" {
    1 required host_port: Uint32,
    2 required container_port: Uint32,
    3 optional protocol: String,
} }

message! { LINUX_INFO = "mesos.v1.LinuxInfo" {
    1 optional capability_info: message CAPABILITY_INFO,
    2 optional bounding_capabilities: message CAPABILITY_INFO,
    3 optional effective_capabilities: message CAPABILITY_INFO,
    4 optional share_pid_namespace: Bool,
    5 optional seccomp: message SECCOMP_INFO,
    6 optional ipc_mode: enum LINUX_INFO_IPC_MODE,
    7 optional shm_size: Uint32,
    8 optional share_cgroups: Bool,
} }

message! { CAPABILITY_INFO = "mesos.v1.CapabilityInfo" {
    1 repeated capabilities: enum CAPABILITY_INFO_CAPABILITY,
} }

enumeration! { CAPABILITY_INFO_CAPABILITY = "mesos.v1.CapabilityInfo.Capability" {
    UNKNOWN = 0,
    CHOWN = 1000,
    DAC_OVERRIDE = 1001,
    DAC_READ_SEARCH = 1002,
    FOWNER = 1003,
    FSETID = 1004,
    KILL = 1005,
    SETGID = 1006,
    SETUID = 1007,
    SETPCAP = 1008,
    LINUX_IMMUTABLE = 1009,
    NET_BIND_SERVICE = 1010,
    NET_BROADCAST = 1011,
    NET_ADMIN = 1012,
    NET_RAW = 1013,
    IPC_LOCK = 1014,
    IPC_OWNER = 1015,
    SYS_MODULE = 1016,
    SYS_RAWIO = 1017,
    SYS_CHROOT = 1018,
    SYS_PTRACE = 1019,
    SYS_PACCT = 1020,
    SYS_ADMIN = 1021,
    SYS_BOOT = 1022,
    SYS_NICE = 1023,
    SYS_RESOURCE = 1024,
    SYS_TIME = 1025,
    SYS_TTY_CONFIG = 1026,
    MKNOD = 1027,
    LEASE = 1028,
    AUDIT_WRITE = 1029,
    AUDIT_CONTROL = 1030,
    SETFCAP = 1031,
    MAC_OVERRIDE = 1032,
    MAC_ADMIN = 1033,
    SYSLOG = 1034,
    WAKE_ALARM = 1035,
    BLOCK_SUSPEND = 1036,
    AUDIT_READ = 1037,
    PERFMON = 1038,
    BPF = 1039,
    CHECKPOINT_RESTORE = 1040,
} }

message! { SECCOMP_INFO = "mesos.v1.SeccompInfo" {
    1 optional profile_name: String,
    2 optional unconfined: Bool,
} }

enumeration! { LINUX_INFO_IPC_MODE = "mesos.v1.LinuxInfo.IpcMode" {
    UNKNOWN = 0,
    PRIVATE = 1,
    SHARE_PARENT = 2,
} }

message! { RLIMIT_INFO = "mesos.v1.RLimitInfo" {
    1 repeated rlimits: message RLIMIT_INFO_RLIMIT,
} }

message! { RLIMIT_INFO_RLIMIT = "mesos.v1.RLimitInfo.RLimit" {
    1 optional type: enum RLIMIT_INFO_RLIMIT_TYPE,
    2 optional hard: Uint64,
    3 optional soft: Uint64,
} }

enumeration! { RLIMIT_INFO_RLIMIT_TYPE = "mesos.v1.RLimitInfo.RLimit.Type" {
    UNKNOWN = 0,
    RLMT_AS = 1,
    RLMT_CORE = 2,
    RLMT_CPU = 3,
    RLMT_DATA = 4,
    RLMT_FSIZE = 5,
    RLMT_LOCKS = 6,
    RLMT_MEMLOCK = 7,
    RLMT_MSGQUEUE = 8,
    RLMT_NICE = 9,
    RLMT_NOFILE = 10,
    RLMT_NPROC = 11,
    RLMT_RSS = 12,
    RLMT_RTPRIO = 13,
    RLMT_RTTIME = 14,
    RLMT_SIGPENDING = 15,
    RLMT_STACK = 16,
} }

message! { TTYINFO = "mesos.v1.TTYInfo" {
    1 optional window_size: message TTYINFO_WINDOW_SIZE,
} }

message! { TTYINFO_WINDOW_SIZE = "mesos.v1.TTYInfo.WindowSize" {
    1 required rows: Uint32,
    2 required columns: Uint32,
} }

message! { CONTAINER_STATUS = "mesos.v1.ContainerStatus" {
    1 repeated network_infos: message NETWORK_INFO,
    2 optional cgroup_info: message CGROUP_INFO,
    3 optional executor_pid: Uint32,
    4 optional container_id: message CONTAINER_ID,
} }

message! { CGROUP_INFO = "mesos.v1.CgroupInfo" {
    1 optional net_cls: message CGROUP_INFO_NET_CLS,
} }

message! { CGROUP_INFO_NET_CLS = "mesos.v1.CgroupInfo.NetCls" {
    1 optional classid: Uint32,
} }

message! { CGROUP_INFO_BLKIO_STATISTICS = "mesos.v1.CgroupInfo.Blkio.Statistics" {
    1 repeated cfq: message CGROUP_INFO_BLKIO_CFQ_STATISTICS,
    2 repeated cfq_recursive: message CGROUP_INFO_BLKIO_CFQ_STATISTICS,
    3 repeated throttling: message CGROUP_INFO_BLKIO_THROTTLING_STATISTICS,
} }

message! { CGROUP_INFO_BLKIO_CFQ_STATISTICS = "mesos.v1.CgroupInfo.Blkio.CFQ.Statistics" {
    1 optional device: message DEVICE_NUMBER,
    2 optional sectors: Uint64,
    3 optional time: Uint64,
    4 repeated io_serviced: message CGROUP_INFO_BLKIO_VALUE,
    5 repeated io_service_bytes: message CGROUP_INFO_BLKIO_VALUE,
    6 repeated io_service_time: message CGROUP_INFO_BLKIO_VALUE,
    7 repeated io_wait_time: message CGROUP_INFO_BLKIO_VALUE,
    8 repeated io_merged: message CGROUP_INFO_BLKIO_VALUE,
    9 repeated io_queued: message CGROUP_INFO_BLKIO_VALUE,
} }

message! { DEVICE_NUMBER = "mesos.v1.Device.Number" {
    1 required major_number: Uint64,
    2 required minor_number: Uint64,
} }

message! { CGROUP_INFO_BLKIO_VALUE = "mesos.v1.CgroupInfo.Blkio.Value" {
    1 optional op: enum CGROUP_INFO_BLKIO_OPERATION,
    2 optional value: Uint64,
} }

enumeration! { CGROUP_INFO_BLKIO_OPERATION = "mesos.v1.CgroupInfo.Blkio.Operation" {
    UNKNOWN = 0,
    TOTAL = 1,
    READ = 2,
    WRITE = 3,
    SYNC = 4,
    ASYNC = 5,
    DISCARD = 6,
} }

message! { CGROUP_INFO_BLKIO_THROTTLING_STATISTICS = "mesos.v1.CgroupInfo.Blkio.Throttling.Statistics" {
    1 optional device: message DEVICE_NUMBER,
    2 repeated io_serviced: message CGROUP_INFO_BLKIO_VALUE,
    3 repeated io_service_bytes: message CGROUP_INFO_BLKIO_VALUE,
} }
