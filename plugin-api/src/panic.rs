//! Catches panics of plugin code.
//!
//! A panic that unwinds across the ABI boundary would abort the agent. Every plugin has its own copy of the standard
//! library, so the panic hook that is installed here is called for panics of this plugin only.

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
    /// Its message.
    pub(crate) message: String,
    /// `file:line`; empty if unknown.
    pub(crate) location: String,
}

/// Calls plugin code and returns a panic in it as an error.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Panicked> {
    install_hook();
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    outcome.map_err(|payload| {
        let message = describe(&*payload);
        // Leaked, as the payload may panic when it is dropped, and that panic would not be caught.
        std::mem::forget(payload);
        Panicked { message, location: LOCATION.take() }
    })
}

/// Installs the panic hook of this library. In a guarded call, it records the location of the panic instead of printing
/// the panic.
fn install_hook() {
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
                // A thread that the plugin started. The panic ends only this thread, so it is logged.
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
        "panic payload is not a string".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("while being dropped");
        }
    }

    #[test]
    fn a_panic_is_returned_with_message_and_location() {
        let panicked = guarded(|| panic!("deliberate {}", 42)).unwrap_err();
        assert_eq!(panicked.message, "deliberate 42");
        assert!(panicked.location.contains("panic.rs:"), "{panicked:?}");
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_not_dropped() {
        let panicked = guarded(|| std::panic::panic_any(PanicsOnDrop)).unwrap_err();
        assert_eq!(panicked.message, "panic payload is not a string");
    }
}
