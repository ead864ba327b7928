//! Rounds, in each of which every subject has one turn, so that other load on the machine affects all alike.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::environment::Environment;

/// Number of rounds.
#[derive(Clone, Copy)]
pub struct Rounds {
    /// Those that are not measured come first.
    pub warm_up: usize,
    pub most: usize,
    /// Minimum, even if the budget is used up.
    pub least: usize,
    pub budget: Duration,
}

/// Gives each of some subjects a turn in each round. Returns the results of each, without those of the warm-up.
///
/// A subject may still affect the next one through deferred work of the kernel, so the order is random.
pub fn in_turns<T>(
    environment: &Environment,
    seed: u32,
    rounds: Rounds,
    subjects: usize,
    mut turn: impl FnMut(usize) -> Outcome<T>,
) -> Outcome<Vec<Vec<T>>> {
    let mut results: Vec<Vec<T>> = (0..subjects).map(|_| Vec::new()).collect();
    let mut order: Vec<usize> = (0..subjects).collect();
    let mut random = Random(seed.into());
    let started = Instant::now();
    for round in 0..rounds.warm_up + rounds.most {
        if round >= rounds.warm_up + rounds.least && started.elapsed() > rounds.budget {
            break;
        }
        random.shuffle(&mut order);
        for &place in &order {
            environment.check_interrupted()?;
            let result = turn(place)?;
            if round >= rounds.warm_up {
                results[place].push(result);
            }
        }
    }
    Ok(results)
}

/// A random seed.
#[expect(clippy::cast_possible_truncation, reason = "short enough to be typed")]
pub fn seed() -> u32 {
    // Its keys are random.
    RandomState::new().hash_one(()) as u32
}

/// Pseudo-random numbers, the same for the same seed.
struct Random(u64);

impl Random {
    /// Knuth's linear congruential generator, of which the upper bits are used.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % end
    }

    fn shuffle(&mut self, order: &mut [usize]) {
        for last in (1..order.len()).rev() {
            order.swap(last, self.below(last + 1));
        }
    }
}
