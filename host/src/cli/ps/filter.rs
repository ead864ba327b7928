//! Which containers are listed.

use super::is_live;
use crate::api::operator::types::Container;
use cofferdam_core::model::Ended;

/// One condition.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Filter {
    /// The id contains a text.
    Name(String),
    /// The container is in a state.
    State(String),
    /// Its command has exited with a status, as a shell reports it.
    Exited(i32),
    /// It is nested in another one, at any depth.
    Parent(String),
}

/// Parses `KEY=VALUE`, with the keys of docker where they mean the same.
pub(super) fn parse(text: &str) -> Result<Filter, String> {
    let wrong = || "expected `name=TEXT`, `state=RUNNING`, `exited=STATUS` or `parent=ID`".to_owned();
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    let value = value.to_owned();
    match key {
        "name" | "id" => Ok(Filter::Name(value)),
        "state" | "status" if value.eq_ignore_ascii_case("exited") => Ok(Filter::State("ENDED".to_owned())),
        "state" | "status" => Ok(Filter::State(value)),
        "exited" => match value.parse() {
            Ok(status) => Ok(Filter::Exited(status)),
            Err(_) => Err(format!("`{value}` is not an exit status")),
        },
        "parent" => Ok(Filter::Parent(value)),
        _ => Err(wrong()),
    }
}

/// Whether containers that have ended are meant, although not all are asked for.
pub(super) fn is_about_ended(filters: &[Filter]) -> bool {
    filters.iter().any(|filter| matches!(filter, Filter::State(_) | Filter::Exited(_)))
}

/// Whether a container is listed: of the filters of each kind, one matches.
pub(super) fn is_listed(container: &Container, filters: &[Filter]) -> bool {
    filters.iter().all(|filter| {
        let kind = std::mem::discriminant(filter);
        let mut alternatives = filters.iter().filter(|other| std::mem::discriminant(*other) == kind);
        alternatives.any(|filter| matches(container, filter))
    })
}

fn matches(container: &Container, filter: &Filter) -> bool {
    let id = container.container_id.to_string();
    match filter {
        Filter::Name(text) => id.contains(&**text),
        Filter::State(state) => {
            container.state.as_ref().is_some_and(|found| found.eq_ignore_ascii_case(state))
        }
        Filter::Exited(status) => {
            let raw = container.termination.as_ref().and_then(|termination| termination.exit_status);
            !is_live(container) && raw.is_some_and(|raw| Ended::from_raw(raw).shell_code() == *status)
        }
        Filter::Parent(parent) => id.strip_prefix(&**parent).is_some_and(|rest| rest.starts_with('.')),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_the_filters_of_each_kind_one_matches() {
        let container: Container = serde_json::from_value(json!({
            "container_id": {"value": "web-1", "parent": {"value": "pod"}}, "state": "ENDED",
            "termination": {"exit_status": 768},
        }))
        .unwrap();
        let listed = |filters: &[&str]| {
            let filters: Vec<_> = filters.iter().map(|text| parse(text).unwrap()).collect();
            is_listed(&container, &filters)
        };
        for filters in [
            &[][..],
            &["name=web"],
            &["state=ended"],
            &["status=exited", "exited=3"],
            &["exited=0", "exited=3"],
            &["parent=pod"],
        ] {
            assert!(listed(filters), "{filters:?}");
        }
        for filters in
            [&["name=db"][..], &["state=RUNNING"], &["exited=1"], &["parent=po"], &["name=web", "exited=0"]]
        {
            assert!(!listed(filters), "{filters:?}");
        }
    }

    #[test]
    fn what_is_no_filter_is_an_error() {
        for wrong in ["web", "label=x", "exited=all"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
