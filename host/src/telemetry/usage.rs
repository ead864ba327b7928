//! What the statistics of a container say of its usage.

use std::ops::Add;

/// CPU time: that in user mode and that in the kernel, if at least one is known.
#[must_use]
pub fn cpu_time<T: Add<Output = T> + Default + Copy>(user: Option<T>, system: Option<T>) -> Option<T> {
    user.or(system).map(|_| user.unwrap_or_default() + system.unwrap_or_default())
}

/// Memory in use: what is charged to the container, or the resident memory of its processes if that is not known.
#[must_use]
pub fn memory<T>(total: Option<T>, resident: Option<T>) -> Option<T> {
    total.or(resident)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_known_part_is_enough() {
        assert_eq!(cpu_time(Some(1.5), None), Some(1.5));
        assert_eq!(cpu_time(Some(1.5), Some(0.5)), Some(2.0));
        assert_eq!(cpu_time::<f64>(None, None), None);
        assert_eq!([memory(Some(1), Some(2)), memory(None, Some(2))], [Some(1), Some(2)]);
    }
}
