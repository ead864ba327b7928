//! The same work for several items on a few threads.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// More threads than this do not help: the loader and the file system hold locks of their own.
const MAX_THREADS: usize = 4;

/// Number of threads on which such work is fastest.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS)
}

/// Calls `work` for each item, on this thread and, if there are CPUs for them, on a few more. Returns the
/// results in the order of the items. A panic in `work` is passed on.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = threads().min(items.len());
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let span = tracing::Span::current();
    let take = || {
        while let Some((number, item)) = {
            let number = next.fetch_add(1, Ordering::Relaxed);
            items.get(number).map(|item| (number, item))
        } {
            let result = work(item);
            results.lock().push((number, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without another thread, this one does it all.
            drop(
                std::thread::Builder::new()
                    .name("parallel".into())
                    .spawn_scoped(scope, || span.in_scope(take)),
            );
        }
        take();
    });
    let mut results = results.into_inner();
    results.sort_unstable_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// As [`map`], for work that takes the items.
pub(crate) fn map_owned<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    map(&items, |item| item.lock().take().map(&work)).into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..1000).collect();
        let doubled = super::map(&items, |item| {
            if item % 7 == 0 {
                std::thread::yield_now();
            }
            2 * item
        });
        assert_eq!(doubled, items.iter().map(|item| 2 * item).collect::<Vec<_>>());
        assert!(super::map(&[] as &[u8], |_| ()).is_empty());
        let owned: Vec<String> = items.iter().map(ToString::to_string).collect();
        assert_eq!(super::map_owned(owned.clone(), |item| item), owned);
    }
}
