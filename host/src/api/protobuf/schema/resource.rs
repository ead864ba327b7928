//! Resources, attributes and domains.

use super::container::VOLUME;
use super::values::{
    LABELS, RESOURCE_PROVIDER_ID, VALUE_RANGES, VALUE_SCALAR, VALUE_SET, VALUE_TEXT, VALUE_TYPE,
};

message! { RESOURCE = "mesos.v1.Resource" {
    1 required name: String,
    2 required type: enum VALUE_TYPE,
    3 optional scalar: message VALUE_SCALAR,
    4 optional ranges: message VALUE_RANGES,
    5 optional set: message VALUE_SET,
    6 optional role: String,
    7 optional disk: message RESOURCE_DISK_INFO,
    8 optional reservation: message RESOURCE_RESERVATION_INFO,
    9 optional revocable: message RESOURCE_REVOCABLE_INFO,
    10 optional shared: message RESOURCE_SHARED_INFO,
    11 optional allocation_info: message RESOURCE_ALLOCATION_INFO,
    12 optional provider_id: message RESOURCE_PROVIDER_ID,
    13 repeated reservations: message RESOURCE_RESERVATION_INFO,
} }

message! { RESOURCE_ALLOCATION_INFO = "mesos.v1.Resource.AllocationInfo" {
    1 optional role: String,
} }

message! { RESOURCE_RESERVATION_INFO = "mesos.v1.Resource.ReservationInfo" {
    1 optional principal: String,
    2 optional labels: message LABELS,
    3 optional role: String,
    4 optional type: enum RESOURCE_RESERVATION_INFO_TYPE,
} }

enumeration! { RESOURCE_RESERVATION_INFO_TYPE = "mesos.v1.Resource.ReservationInfo.Type" {
    UNKNOWN = 0,
    STATIC = 1,
    DYNAMIC = 2,
} }

message! { RESOURCE_DISK_INFO = "mesos.v1.Resource.DiskInfo" {
    1 optional persistence: message RESOURCE_DISK_INFO_PERSISTENCE,
    2 optional volume: message VOLUME,
    3 optional source: message RESOURCE_DISK_INFO_SOURCE,
} }

message! { RESOURCE_DISK_INFO_PERSISTENCE = "mesos.v1.Resource.DiskInfo.Persistence" {
    1 required id: String,
    2 optional principal: String,
} }

message! { RESOURCE_DISK_INFO_SOURCE = "mesos.v1.Resource.DiskInfo.Source" {
    1 required type: enum RESOURCE_DISK_INFO_SOURCE_TYPE,
    2 optional path: message RESOURCE_DISK_INFO_SOURCE_PATH,
    3 optional mount: message RESOURCE_DISK_INFO_SOURCE_MOUNT,
    4 optional id: String,
    5 optional metadata: message LABELS,
    6 optional profile: String,
    7 optional vendor: String,
} }

enumeration! { RESOURCE_DISK_INFO_SOURCE_TYPE = "mesos.v1.Resource.DiskInfo.Source.Type" {
    UNKNOWN = 0,
    PATH = 1,
    MOUNT = 2,
    BLOCK = 3,
    RAW = 4,
} }

message! { RESOURCE_DISK_INFO_SOURCE_PATH = "mesos.v1.Resource.DiskInfo.Source.Path" {
    1 optional root: String,
} }

message! { RESOURCE_DISK_INFO_SOURCE_MOUNT = "mesos.v1.Resource.DiskInfo.Source.Mount" {
    1 optional root: String,
} }

message! { RESOURCE_REVOCABLE_INFO = "mesos.v1.Resource.RevocableInfo" {
} }

message! { RESOURCE_SHARED_INFO = "mesos.v1.Resource.SharedInfo" {
} }

message! { OFFER_FILTERS = "mesos.v1.OfferFilters" {
    1 optional min_allocatable_resources: message OFFER_FILTERS_MIN_ALLOCATABLE_RESOURCES,
} }

message! { OFFER_FILTERS_MIN_ALLOCATABLE_RESOURCES = "mesos.v1.OfferFilters.MinAllocatableResources" {
    1 repeated quantities: message OFFER_FILTERS_RESOURCE_QUANTITIES,
} }

message! { OFFER_FILTERS_RESOURCE_QUANTITIES = "mesos.v1.OfferFilters.ResourceQuantities" {
    1 map quantities: message VALUE_SCALAR,
} }

message! { ATTRIBUTE = "mesos.v1.Attribute" {
    1 required name: String,
    2 required type: enum VALUE_TYPE,
    3 optional scalar: message VALUE_SCALAR,
    4 optional ranges: message VALUE_RANGES,
    5 optional text: message VALUE_TEXT,
    6 optional set: message VALUE_SET,
} }

message! { DOMAIN_INFO = "mesos.v1.DomainInfo" {
    1 optional fault_domain: message DOMAIN_INFO_FAULT_DOMAIN,
} }

message! { DOMAIN_INFO_FAULT_DOMAIN = "mesos.v1.DomainInfo.FaultDomain" {
    1 required region: message DOMAIN_INFO_FAULT_DOMAIN_REGION_INFO,
    2 required zone: message DOMAIN_INFO_FAULT_DOMAIN_ZONE_INFO,
} }

message! { DOMAIN_INFO_FAULT_DOMAIN_REGION_INFO = "mesos.v1.DomainInfo.FaultDomain.RegionInfo" {
    1 required name: String,
} }

message! { DOMAIN_INFO_FAULT_DOMAIN_ZONE_INFO = "mesos.v1.DomainInfo.FaultDomain.ZoneInfo" {
    1 required name: String,
} }
