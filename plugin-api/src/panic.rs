//! Keeps an author's panic from leaving the plugin.
//!
//! A panic that crossed the boundary would end the agent. Every library has its own copy of the standard
//! library, so the hook set here sees this plugin's panics and nobody else's.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static LOCATION: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A panic that was caught.
#[derive(Debug)]
pub(crate) struct Panicked {
    /// What it said.
    pub(crate) message: String,
    /// `file:line`, where known.
    pub(crate) location: String,
}

/// Runs author code; a panic in it is a value.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Panicked> {
    note_locations();
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    outcome.map_err(|payload| {
        let message = describe(&*payload);
        // A payload may panic when it is dropped, and nobody is left to catch that.
        std::mem::forget(payload);
        Panicked { message, location: LOCATION.take() }
    })
}

/// Has this library's panic hook remember where a guarded call panicked, instead of printing it.
fn note_locations() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outer = take_hook();
        set_hook(Box::new(move |panic| {
            let guarded = GUARDED.try_with(Cell::get).unwrap_or(false);
            let location = panic.location().map(|at| format!("{}:{}", at.file(), at.line()));
            if guarded {
                let _ = LOCATION.try_with(|cell| cell.replace(location.unwrap_or_default()));
            } else if std::thread::current().name() == Some("main") {
                outer(panic);
            } else {
                // A thread of the plugin's own: it ends, the agent does not, and somebody must hear of it.
                tracing::error!(
                    location = location.unwrap_or_default(),
                    "a thread of this plugin panicked: {}",
                    describe(panic.payload())
                );
                outer(panic);
            }
        }));
    });
}

fn describe(payload: &(dyn Any + Send)) -> String {
    if let Some(message) = payload.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = payload.downcast_ref::<String>() {
        message.clone()
    } else {
        "something that is not a text".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("and once more, while being dropped");
        }
    }

    #[test]
    fn a_panic_is_a_value_with_a_place() {
        let panicked = guarded(|| panic!("deliberate {}", 42)).unwrap_err();
        assert_eq!(panicked.message, "deliberate 42");
        assert!(panicked.location.contains("panic.rs:"), "{panicked:?}");
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_not_dropped() {
        let panicked = guarded(|| std::panic::panic_any(PanicsOnDrop)).unwrap_err();
        assert_eq!(panicked.message, "something that is not a text");
    }
}
