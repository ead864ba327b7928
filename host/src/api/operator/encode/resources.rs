//! Resources and limits.

use std::collections::BTreeMap;

use crate::api::operator::types as wire;
use cofferdam_core::model::{Limit, Resources, Value};

/// Encodes the requested amounts.
pub(crate) fn encode_resources(resources: &Resources) -> Vec<wire::Resource> {
    encode_values(&resources.requests)
}

/// Encodes amounts by resource. Those that messages cannot express are left out.
pub(super) fn encode_values(values: &BTreeMap<String, Value>) -> Vec<wire::Resource> {
    let encode = |(name, value): (&String, &Value)| match value {
        Value::Scalar(amount) if !amount.is_finite() => None,
        Value::Scalar(amount) => Some(wire::Resource::scalar(name, *amount)),
        Value::Ranges(ranges) => Some(wire::Resource {
            name: name.clone(),
            kind: wire::ResourceKind::Ranges,
            ranges: Some(wire::Ranges {
                range: ranges.iter().map(|&(begin, end)| wire::Range { begin, end }).collect(),
            }),
            ..wire::Resource::default()
        }),
        Value::Set(item) => Some(wire::Resource {
            name: name.clone(),
            kind: wire::ResourceKind::Set,
            set: Some(wire::Set { item: item.clone() }),
            ..wire::Resource::default()
        }),
        _ => None,
    };
    values.iter().filter_map(encode).collect()
}

/// Encodes the limits.
pub(crate) fn encode_limits(resources: &Resources) -> BTreeMap<String, wire::Scalar> {
    let encode = |(name, limit): (&String, &Limit)| {
        let value = match limit {
            Limit::At(amount) => *amount,
            Limit::Unlimited => f64::INFINITY,
            _ => return None,
        };
        Some((name.clone(), wire::Scalar { value }))
    };
    resources.limits.iter().filter_map(encode).collect()
}
