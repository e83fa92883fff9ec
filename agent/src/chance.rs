// SPDX-License-Identifier: Apache-2.0
//! Random numbers, so that the nodes of a cluster do not act all at the same moment.

use std::hash::{BuildHasher, Hash, RandomState};

/// Random numbers by key, different in each process.
#[derive(Clone, Debug, Default)]
pub struct Chance(RandomState);

impl Chance {
    /// A number from 0 to 1 (exclusive), always the same for one key.
    pub fn of(&self, key: impl Hash) -> f64 {
        (self.0.hash_one(key) % 1000) as f64 / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread() {
        let values: Vec<f64> = (0..100).map(|_| Chance::default().of(0)).collect();
        assert!(values.iter().any(|v| *v < 0.3) && values.iter().any(|v| *v > 0.7));
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
    }
}
