// SPDX-License-Identifier: Apache-2.0
//! Resource versions. Numbers are comparable (KEP-5504); other versions are only equal or not.

/// Whether both are numbers and `version` is the smaller one.
pub(super) fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_compared() {
        assert!(is_older("9", "10") && !is_older("10", "10") && !is_older("11", "10"));
        assert!(!is_older("", "10") && !is_older("a", "b") && !is_older("1", "x"));
    }
}
