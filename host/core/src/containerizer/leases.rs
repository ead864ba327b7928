//! Numbers that plugins lease for containers. A lease is part of its container's record and ends with it.

use std::collections::BTreeSet;

use cofferdam_plugin_model::service::{AcquireLease, Lease};

use super::record_part::RecordPart;
use super::table::Table;
use crate::error_chain;
use crate::ledger::Ledger;
use crate::plugin::LeaseError;

/// Leases of one container. Each acquisition writes all of them.
const MAX_LEASES: usize = 1024;

/// Leases the smallest number of a range that is none of `used`. Blocks. The caller excludes concurrent acquisitions.
pub(super) fn acquire<P: RecordPart>(
    table: &Table<P>,
    ledger: &Ledger,
    plugin: &str,
    request: AcquireLease,
    used: &BTreeSet<u32>,
) -> Result<Lease, LeaseError> {
    let AcquireLease { pool, first, last, container } = request;
    if first > last {
        return Err(LeaseError::EmptyRange { pool, first, last });
    }
    let handle = table.get(&container).filter(|handle| {
        let record = handle.record();
        record.part.participants().iter().any(|participant| participant.plugin == plugin)
    });
    let Some(handle) = handle else {
        return Err(LeaseError::NotParticipant { plugin: plugin.to_owned(), container });
    };
    if handle.record().part.leases().len() >= MAX_LEASES {
        return Err(LeaseError::TooMany { container, limit: MAX_LEASES });
    }
    let Some(number) = (first..=last).find(|number| !used.contains(number)) else {
        return Err(LeaseError::Exhausted { pool, first, last });
    };
    let lease = Lease { pool, number, container: container.clone(), plugin: plugin.to_owned() };
    handle
        .update_persisted(ledger, |record| record.part.leases_mut().push(lease.clone()))
        .map_err(|source| LeaseError::Write { container, source: Box::new(source) })?;
    Ok(lease)
}

/// Ends a lease. Blocks. If that cannot be recorded, as on a full disk, the number is free until the agent restarts and then
/// again when the container has ended: a cleanup must not wait for space.
pub(super) fn release<P: RecordPart>(
    table: &Table<P>,
    ledger: &Ledger,
    plugin: &str,
    pool: &str,
    number: u32,
) -> Result<(), LeaseError> {
    let Some(lease) = list(table, pool).into_iter().find(|lease| lease.number == number) else {
        return Ok(());
    };
    if lease.plugin != plugin {
        return Err(LeaseError::OtherPlugin { pool: lease.pool, number, owner: lease.plugin });
    }
    let Some(handle) = table.get(&lease.container) else { return Ok(()) };
    let written =
        handle.update_freeing(ledger, |record| record.part.leases_mut().retain(|other| *other != lease));
    if let Err(error) = written {
        let error = error_chain::describe(&error);
        tracing::warn!(container = %handle.id(), "the end of a lease is not recorded: {error}");
    }
    Ok(())
}

/// The leases of a pool, by number.
pub(super) fn list<P: RecordPart>(table: &Table<P>, pool: &str) -> Vec<Lease> {
    let records = table.all().into_iter().map(|handle| handle.record());
    let mut leases: Vec<Lease> =
        records.flat_map(|record| record.part.leases().clone()).filter(|lease| lease.pool == pool).collect();
    leases.sort_by_key(|lease| lease.number);
    leases
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_model::ContainerId;
    use serde_json::json;

    use super::*;
    use crate::containerizer::NativeRecord;
    use crate::containerizer::native::NativeTable;
    use crate::model::{Record, Request};

    fn id(name: &str) -> ContainerId {
        ContainerId::parse(name).unwrap()
    }

    /// A table with two containers in which plugin `area/a` takes part, and plugin `area/b` in the second.
    fn table() -> NativeTable {
        let table = NativeTable::default();
        for (name, plugins) in [("x", &["area/a"][..]), ("y", &["area/a", "area/b"])] {
            let participant = |plugin: &&str| json!({"plugin": plugin, "version": "1.0.0", "state": null});
            let participants: Vec<_> = plugins.iter().map(participant).collect();
            let part = NativeRecord {
                participants: serde_json::from_value(participants.into()).unwrap(),
                ..NativeRecord::default()
            };
            let request = Request::shell(id(name), "true");
            assert!(table.insert(Record::new("native", request, "boot".into(), part)).is_some());
        }
        table
    }

    fn request(container: &str, first: u32, last: u32) -> AcquireLease {
        AcquireLease { pool: "class".into(), first, last, container: id(container) }
    }

    /// Leases a number of the only table.
    fn acquire(
        table: &NativeTable,
        ledger: &Ledger,
        plugin: &str,
        request: AcquireLease,
    ) -> Result<Lease, LeaseError> {
        let used = list(table, &request.pool).into_iter().map(|lease| lease.number).collect();
        super::acquire(table, ledger, plugin, request, &used)
    }

    #[test]
    fn a_number_that_another_table_has_leased_is_not_free() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let used = BTreeSet::from([5, 7]);
        let taken = super::acquire(&table(), &ledger, "area/a", request("x", 5, 9), &used).unwrap();
        assert_eq!(taken.number, 6);
    }

    #[test]
    fn a_number_belongs_to_one_container_until_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let table = table();
        let take = |plugin: &str, container: &str| {
            acquire(&table, &ledger, plugin, request(container, 5, 6)).map(|lease| lease.number)
        };
        assert_eq!(take("area/a", "x").unwrap(), 5);
        assert_eq!(take("area/b", "y").unwrap(), 6, "numbers are shared by all plugins");
        assert!(matches!(take("area/a", "y"), Err(LeaseError::Exhausted { .. })));
        assert!(matches!(take("area/b", "x"), Err(LeaseError::NotParticipant { .. })));
        let empty = acquire(&table, &ledger, "area/a", request("x", 2, 1));
        assert!(matches!(empty, Err(LeaseError::EmptyRange { .. })));

        let foreign = release(&table, &ledger, "area/a", "class", 6);
        assert!(matches!(foreign, Err(LeaseError::OtherPlugin { .. })));
        release(&table, &ledger, "area/b", "class", 6).unwrap();
        release(&table, &ledger, "area/b", "class", 6).unwrap();
        assert_eq!(take("area/a", "y").unwrap(), 6);

        // Another pool has other numbers.
        let other = AcquireLease { pool: "project".into(), ..request("x", 5, 6) };
        assert_eq!(acquire(&table, &ledger, "area/a", other).unwrap().number, 5);
        assert_eq!(list(&table, "class").iter().map(|lease| lease.number).collect::<Vec<_>>(), [5, 6]);
    }

    #[test]
    fn leases_are_on_disk_and_end_with_their_container() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let table = table();
        acquire(&table, &ledger, "area/a", request("x", 1, 9)).unwrap();
        let record = std::fs::read_dir(ledger.directory(&id("x"))).unwrap();
        let written = record.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
        assert!(written.into_iter().any(|text| text.contains("\"leases\"")));

        table.remove(&id("x"));
        assert!(list(&table, "class").is_empty());
        assert_eq!(acquire(&table, &ledger, "area/a", request("y", 1, 9)).unwrap().number, 1);
    }
}
