//! Resources.

use super::volume::Volume;

message! {
    /// An amount of one resource.
    ///
    /// Units: `cpus` in CPUs, `mem` and `disk` in MiB, `gpus` in devices; `ports` are ranges.
    pub struct Resource {
        /// Its name.
        required name: String,
        /// Which field has the value.
        #[serde(rename = "type")]
        required kind: ResourceKind,
        /// Value of a `SCALAR`.
        optional scalar: Scalar,
        /// Value of `RANGES`.
        optional ranges: Ranges,
        /// Value of a `SET`.
        optional set: Set,
        /// Deprecated: the role it is reserved for, `*` for none.
        optional role: String,
        /// Its reservation in the older form, verbatim.
        optional reservation: serde_json::Value,
        /// Its reservations, verbatim. This agent supports unreserved resources only.
        repeated reservations: serde_json::Value,
        /// For `disk`: its source and mount point.
        optional disk: DiskInfo,
        /// Present if it may be revoked at any time.
        optional revocable: Marker,
        /// Present if several containers may use it at once.
        optional shared: Marker,
    }
}

word! {
    /// Type of the value of a resource.
    pub enum ResourceKind {
        /// A number.
        #[default]
        Scalar,
        /// Ranges of integers.
        Ranges,
        /// A set of strings.
        Set,
        /// Text; not used by any resource.
        Text,
    }
}

message! {
    /// A number, rounded to three decimals.
    pub struct Scalar {
        /// As a limit, `"Infinity"` means unlimited.
        #[serde(with = "super::wire::double")]
        required value: f64,
    }
}

message! {
    /// A range of integers, both ends included.
    pub struct Range {
        #[serde(deserialize_with = "super::wire::integer")]
        required begin: u64,
        #[serde(deserialize_with = "super::wire::integer")]
        required end: u64,
    }
}

message! {
    /// Ranges of integers.
    pub struct Ranges {
        repeated range: Range,
    }
}

message! {
    /// A set of strings.
    pub struct Set {
        repeated item: String,
    }
}

message! {
    /// Text.
    pub struct Text {
        required value: String,
    }
}

message! {
    /// Source and mount point of a disk resource.
    pub struct DiskInfo {
        /// Present if its data outlives the container.
        optional persistence: DiskPersistence,
        /// Its mount point in the container.
        optional volume: Volume,
        /// The disk, verbatim; that of the sandboxes when absent.
        optional source: serde_json::Value,
    }
}

message! {
    /// A persistent volume.
    pub struct DiskPersistence {
        required id: String,
        /// Who created it.
        optional principal: String,
    }
}

message! {
    /// A message without fields: only its presence has a meaning.
    pub struct Marker {}
}

impl Resource {
    /// A scalar resource.
    pub fn scalar(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), scalar: Some(Scalar { value }), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn resources_survive_a_round_trip() {
        let wire = json!([
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.5}},
            {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 31000, "end": 31005}]}},
            {"name": "disks", "type": "SET", "set": {"item": ["sda", "sdb"]}},
            {"name": "mem", "type": "SCALAR", "role": "*", "scalar": {"value": 64.0}},
        ]);
        let resources: Vec<Resource> = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(resources[0], Resource::scalar("cpus", 0.5));
        assert_eq!(serde_json::to_value(&resources).unwrap(), wire);
    }

    #[test]
    fn a_resource_without_a_type_is_rejected() {
        let error = serde_json::from_value::<Resource>(json!({"name": "cpus"})).unwrap_err().to_string();
        assert!(error.contains("`type`"), "{error}");
    }

    #[test]
    fn a_marker_is_present_or_absent() {
        let resource: Resource =
            serde_json::from_value(json!({"name": "cpus", "type": "SCALAR", "revocable": {}})).unwrap();
        assert!(resource.revocable.is_some() && resource.shared.is_none());
    }

    #[test]
    fn an_infinite_limit_survives_a_round_trip() {
        let wire = json!({"cpus": {"value": "Infinity"}, "mem": {"value": 512.0}});
        let limits: BTreeMap<String, Scalar> = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(limits["cpus"].value, f64::INFINITY);
        assert_eq!(serde_json::to_value(&limits).unwrap(), wire);
    }
}
