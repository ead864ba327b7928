//! Fuzz tests: a parser gets mutations of valid inputs, and must neither panic nor break the properties that the test
//! asserts. `docs/testing.md` lists the tests and says how to run them for longer, and how to repeat a failure.

mod bytes;
mod json;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use serde_json::Value as Json;

/// For how many seconds each test runs. Without it, [`ORDINARY`], always with the same inputs.
const SECONDS: &str = "COFFERDAM_FUZZ_SECONDS";

/// The first seed. Without it, the time if [`SECONDS`] is set, otherwise 0.
const SEED: &str = "COFFERDAM_FUZZ_SEED";

const ORDINARY: Duration = Duration::from_secs(2);

/// Inputs with one seed.
const BATCH: u32 = 64;

/// Checks what `check` does with mutations of byte strings. `words` are inserted now and then.
///
/// # Panics
/// When `check` does, with the smallest input found, and the seed.
pub fn fuzz_bytes(samples: &[Vec<u8>], words: &[&str], check: impl Fn(&[u8])) {
    explore(&bytes::mutated(samples, words), |input| check(&input));
}

/// Checks what `check` does with mutations of JSON values.
///
/// # Panics
/// When `check` does, with the smallest input found, and the seed.
pub fn fuzz_json(samples: &[Json], check: impl Fn(&Json)) {
    explore(&json::mutated(samples), |input| check(&input));
}

fn explore<S: Strategy>(strategy: &S, check: impl Fn(S::Value)) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seconds = number(SECONDS);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let first = number(SEED).unwrap_or_else(|| seconds.map_or(0, |_| now()));
    let end = Instant::now() + seconds.map_or(ORDINARY, Duration::from_secs);
    let mut seed = first;
    while seed == first || Instant::now() < end {
        batch(seed, strategy, &check);
        seed = seed.wrapping_add(1);
    }
}

/// Checks the inputs of one seed.
fn batch<S: Strategy>(seed: u64, strategy: &S, check: &impl Fn(S::Value)) {
    let config = Config { cases: BATCH, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let result = runner.run(strategy, |input| -> TestCaseResult {
        check(input);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}\nRepeat it with {SEED}={seed}");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_yields_the_same_inputs_each_time() {
        let inputs = |seed| {
            let inputs = RefCell::new(Vec::new());
            let strategy = bytes::mutated(&[b"sample".to_vec()], &["word"]);
            batch(seed, &strategy, &|input| inputs.borrow_mut().push(input));
            inputs.into_inner()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        let different: BTreeSet<_> = inputs(1).into_iter().collect();
        assert!(different.len() > BATCH as usize / 2, "{different:?}");
    }

    #[test]
    fn a_failure_names_its_seed_and_the_smallest_input() {
        let strategy = bytes::mutated(&[b"sample".to_vec()], &[]);
        let failed = std::panic::catch_unwind(|| {
            batch(7, &strategy, &|input: Vec<u8>| assert!(input.len() < 20, "too long"));
        });
        let message = failed.expect_err("a failure");
        let message = message.downcast_ref::<String>().expect("a text");
        assert!(message.contains("too long") && message.contains("COFFERDAM_FUZZ_SEED=7"), "{message}");
    }
}
