//! Environment variables of several hooks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::HookError;

/// Variables, each with the hook that set it.
#[derive(Default)]
pub(super) struct Merged(BTreeMap<String, (String, String)>);

impl Merged {
    /// Adds the variables of a hook.
    pub(super) fn add(&mut self, hook: &str, variables: BTreeMap<String, String>) -> Result<(), HookError> {
        for (variable, value) in variables {
            match self.0.entry(variable) {
                Entry::Vacant(entry) => {
                    entry.insert((hook.to_owned(), value));
                }
                Entry::Occupied(entry) if entry.get().1 == value => {}
                Entry::Occupied(entry) => {
                    return Err(HookError::Conflict {
                        variable: entry.key().clone(),
                        first: entry.get().0.clone(),
                        second: hook.to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    pub(super) fn take(self) -> BTreeMap<String, String> {
        self.0.into_iter().map(|(variable, (_, value))| (variable, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_merged_and_a_conflict_names_both_hooks_but_no_value() {
        let of = |value: &str| BTreeMap::from([("A".to_owned(), value.to_owned())]);
        let mut merged = Merged::default();
        merged.add("one", of("secret")).unwrap();
        merged.add("two", of("secret")).unwrap();
        let error = merged.add("three", of("hidden")).unwrap_err().to_string();
        assert!(error.contains("`one` and `three` set the environment variable `A`"), "{error}");
        assert!(!error.contains("secret") && !error.contains("hidden"), "{error}");
        assert_eq!(merged.take(), of("secret"));
    }
}
