//! What a container may use.

use super::volume::Volume;

message! {
    /// An amount of one resource.
    ///
    /// Units: `cpus` in cores, `mem` and `disk` in MiB, `gpus` in devices, `ports` as ranges.
    pub struct Resource {
        /// Its name.
        required name: String,
        /// Which of the value fields counts.
        #[serde(rename = "type")]
        required kind: ResourceKind,
        /// The amount of a `SCALAR`.
        optional scalar: Scalar,
        /// The members of `RANGES`.
        optional ranges: Ranges,
        /// The members of a `SET`.
        optional set: Set,
        /// Retired: the role it is reserved for, `*` for none.
        optional role: String,
        /// Its reservation in the older form, as written.
        optional reservation: serde_json::Value,
        /// Its reservations, as written. A container of this agent may use unreserved resources only.
        repeated reservations: serde_json::Value,
        /// For `disk`: what backs it and where it appears.
        optional disk: DiskInfo,
        /// Present if it may be taken back at any time; refused for top-level containers.
        optional revocable: Marker,
        /// Present if several containers use it at once.
        optional shared: Marker,
    }
}

word! {
    /// What kind of value a resource has.
    pub enum ResourceKind {
        /// A number.
        #[default]
        Scalar,
        /// Ranges of integers.
        Ranges,
        /// Words.
        Set,
        /// Text; no resource has it.
        Text,
    }
}

message! {
    /// A number. Three decimals count.
    pub struct Scalar {
        /// The number; infinite (`"Infinity"` on the wire) means no limit.
        #[serde(with = "super::wire::double")]
        required value: f64,
    }
}

message! {
    /// Integers from one to another, both included.
    pub struct Range {
        /// The first.
        #[serde(deserialize_with = "super::wire::integer")]
        required begin: u64,
        /// The last.
        #[serde(deserialize_with = "super::wire::integer")]
        required end: u64,
    }
}

message! {
    /// Ranges of integers.
    pub struct Ranges {
        /// The ranges.
        repeated range: Range,
    }
}

message! {
    /// A set of words.
    pub struct Set {
        /// The words.
        repeated item: String,
    }
}

message! {
    /// Text.
    pub struct Text {
        /// The text.
        required value: String,
    }
}

message! {
    /// What backs a disk resource.
    pub struct DiskInfo {
        /// Present if it outlives the container: refused for top-level containers.
        optional persistence: DiskPersistence,
        /// Where it appears in the container.
        optional volume: Volume,
        /// The disk it is on, as written; that of the sandboxes when absent.
        optional source: serde_json::Value,
    }
}

message! {
    /// The identity of data that outlives its container.
    pub struct DiskPersistence {
        /// Its name.
        required id: String,
        /// Who made it.
        optional principal: String,
    }
}

message! {
    /// A message without fields, whose presence is what it says.
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
    fn resources_as_clients_send_them() {
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
    fn a_resource_without_a_type_is_refused() {
        let error = serde_json::from_value::<Resource>(json!({"name": "cpus"})).unwrap_err().to_string();
        assert!(error.contains("`type`"), "{error}");
    }

    #[test]
    fn markers_speak_by_their_presence() {
        let resource: Resource =
            serde_json::from_value(json!({"name": "cpus", "type": "SCALAR", "revocable": {}})).unwrap();
        assert!(resource.revocable.is_some() && resource.shared.is_none());
    }

    #[test]
    fn no_limit_is_infinity_in_both_directions() {
        let wire = json!({"cpus": {"value": "Infinity"}, "mem": {"value": 512.0}});
        let limits: BTreeMap<String, Scalar> = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(limits["cpus"].value, f64::INFINITY);
        assert_eq!(serde_json::to_value(&limits).unwrap(), wire);
    }
}
