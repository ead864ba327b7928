//! Resources and limits.

use std::collections::BTreeMap;

use super::error::{DecodeError, Result};
use crate::api::operator::types as wire;
use cofferdam_core::model::{ContainerId, Limit, Resources, Value, check_resources};

/// Decodes the resources and limits of a launch or an update.
pub(crate) fn decode_resources(
    id: &ContainerId,
    requests: &[wire::Resource],
    limits: &BTreeMap<String, wire::Scalar>,
) -> Result<Resources> {
    let mut resources = Resources::default();
    for resource in requests {
        add(&mut resources, resource)?;
    }
    for (name, limit) in limits {
        let limit = if limit.value == f64::INFINITY { Limit::Unlimited } else { Limit::At(limit.value) };
        resources.limits.insert(name.clone(), limit);
    }
    check_resources(id, &resources)?;
    Ok(resources)
}

/// Adds one entry. Entries of the same name add up.
fn add(resources: &mut Resources, resource: &wire::Resource) -> Result<()> {
    let name = &resource.name;
    let invalid = |field: &str, reason: &str| DecodeError::field(format!("resources.{name}.{field}"), reason);
    if name.is_empty() {
        return Err(invalid("name", "it is empty"));
    }
    reject_unsupported(resource)?;
    let value = value(resource)?;
    match (resources.requests.get_mut(name), value) {
        (None, value) => {
            resources.requests.insert(name.clone(), value);
        }
        (Some(Value::Scalar(sum)), Value::Scalar(more)) => *sum += more,
        (Some(Value::Ranges(all)), Value::Ranges(more)) => all.extend(more),
        (Some(Value::Set(all)), Value::Set(more)) => all.extend(more),
        (Some(_), _) => return Err(invalid("type", "another entry of this name has another type")),
    }
    match resources.requests.get_mut(name) {
        Some(Value::Ranges(ranges)) => {
            ranges.sort_unstable();
            if ranges.windows(2).any(|pair| pair[1].0 <= pair[0].1) {
                return Err(invalid("ranges", "two ranges overlap"));
            }
        }
        Some(Value::Set(items)) => {
            items.sort_unstable();
            if items.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(invalid("set", "an item occurs twice"));
            }
        }
        Some(Value::Scalar(amount)) if name == "gpus" && amount.fract() != 0.0 => {
            return Err(invalid("scalar", "gpus must be a whole number"));
        }
        _ => {}
    }
    Ok(())
}

fn reject_unsupported(resource: &wire::Resource) -> Result<()> {
    let reserved = resource.role.as_deref().is_some_and(|role| role != "*")
        || resource.reservation.is_some()
        || !resource.reservations.is_empty();
    let fields = [
        ("reservations", reserved),
        ("disk", resource.disk.is_some()),
        ("revocable", resource.revocable.is_some()),
        ("shared", resource.shared.is_some()),
        ("text", resource.kind == wire::ResourceKind::Text),
    ];
    match fields.into_iter().find(|(_, present)| *present) {
        Some((field, _)) => {
            let field = format!("resources.{}.{field}", resource.name);
            Err(DecodeError::Unsupported { field, advice: "" })
        }
        None => Ok(()),
    }
}

fn value(resource: &wire::Resource) -> Result<Value> {
    let field = |field: &str| format!("resources.{}.{field}", resource.name);
    let missing = |name: &str| DecodeError::field(field(name), "it is missing");
    match resource.kind {
        wire::ResourceKind::Scalar => {
            let scalar = resource.scalar.as_ref().ok_or_else(|| missing("scalar"))?;
            let amount = thousandths(scalar.value).ok_or_else(|| {
                DecodeError::field(field("scalar"), "expected a finite number of at least 0.001")
            })?;
            Ok(Value::Scalar(amount))
        }
        wire::ResourceKind::Ranges => {
            let ranges = resource.ranges.as_ref().ok_or_else(|| missing("ranges"))?;
            let ranges: Vec<(u64, u64)> = ranges.range.iter().map(|range| (range.begin, range.end)).collect();
            match ranges.iter().find(|(begin, end)| begin > end) {
                Some((begin, end)) => {
                    let reason = format!("the range {begin}-{end} ends before it begins");
                    Err(DecodeError::field(field("ranges"), reason))
                }
                None => Ok(Value::Ranges(ranges)),
            }
        }
        wire::ResourceKind::Set => {
            let set = resource.set.as_ref().ok_or_else(|| missing("set"))?;
            Ok(Value::Set(set.item.clone()))
        }
        wire::ResourceKind::Text => Err(DecodeError::Unsupported { field: field("text"), advice: "" }),
    }
}

/// Rounds to three decimals, the precision of scalars in Mesos. `None` if nothing is left.
fn thousandths(amount: f64) -> Option<f64> {
    let rounded = (amount * 1000.0).round() / 1000.0;
    (rounded.is_finite() && rounded >= 0.001).then_some(rounded)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn decode(body: Json) -> std::result::Result<Resources, String> {
        let call: wire::LaunchContainer = serde_json::from_value(body).unwrap();
        let id = ContainerId::parse("web").unwrap();
        decode_resources(&id, &call.resources, &call.limits).map_err(|error| error.to_string())
    }

    fn assert_rejected(mut body: Json, expected: &str) {
        body["container_id"] = json!({"value": "web"});
        let text = body.to_string();
        let error = decode(body).expect_err(&text);
        assert!(error.contains(expected), "{text}: {error}");
    }

    fn scalar(name: &str, value: impl Into<Json>) -> Json {
        let value = value.into();
        json!({"container_id": {"value": "web"},
               "resources": [{"name": name, "type": "SCALAR", "scalar": {"value": value}}]})
    }

    #[test]
    fn entries_of_one_name_add_up() {
        let resources = decode(json!({
            "container_id": {"value": "web"},
            "resources": [
                {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.25}},
                {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.5}},
                {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 9, "end": 9}]}},
                {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 5, "end": 7}]}},
            ],
            "limits": {"cpus": {"value": "Infinity"}},
        }))
        .unwrap();
        assert_eq!(resources.cpus(), Some(0.75));
        assert_eq!(resources.requests["ports"], Value::Ranges(vec![(5, 7), (9, 9)]));
        assert_eq!(resources.limits["cpus"], Limit::Unlimited);
        assert_eq!(decode(scalar("mem", 1e15)).unwrap().scalar("mem"), Some(1e15));
    }

    #[test]
    fn invalid_amounts_are_rejected() {
        for value in [json!(-1), json!(0), json!(0.0001), json!("Infinity"), json!("-Infinity")] {
            assert_rejected(scalar("cpus", value), "`resources.cpus.scalar` is invalid");
        }
        assert_rejected(scalar("gpus", 1.5), "gpus must be a whole number");
        assert_rejected(json!({"limits": {"mem": {"value": -3}}}), "-3");
        assert_rejected(
            json!({"resources": [{"name": "mem", "type": "SCALAR", "scalar": {"value": 64}}],
                   "limits": {"mem": {"value": 32}}}),
            "limit",
        );
        let ranges = |ranges: Json| json!({"resources": [{"name": "ports", "type": "RANGES", "ranges": {"range": ranges}}]});
        assert_rejected(ranges(json!([{"begin": 9, "end": 8}])), "9-8 ends before it begins");
        assert_rejected(
            ranges(json!([{"begin": 5, "end": 9}, {"begin": 1, "end": 5}])),
            "two ranges overlap",
        );
    }

    #[test]
    fn features_of_resources_that_are_not_supported_are_rejected_by_name() {
        for (key, value) in [
            ("role", json!("web")),
            ("reservations", json!([{}])),
            ("revocable", json!({})),
            ("shared", json!({})),
        ] {
            let mut body = scalar("cpus", 1);
            body["resources"][0][key] = value;
            assert_rejected(body, "is not supported by this agent");
        }
    }
}
