// SPDX-License-Identifier: Apache-2.0
//! One value for each IP family.

use std::borrow::Borrow;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

use super::Family;

/// A value for IPv4 and one for IPv6, by [`Family`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PerFamily<T>([T; 2]);

impl<T> PerFamily<T> {
    /// The values for IPv4 and for IPv6.
    pub const fn new(v4: T, v6: T) -> Self {
        Self([v4, v6])
    }

    /// The result of `value` for each family.
    pub fn of(value: impl FnMut(Family) -> T) -> Self {
        Self(Family::ALL.map(value))
    }

    /// Both values, IPv4 first.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Both values, IPv4 first.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }
}

impl<T, F: Borrow<Family>> Index<F> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: F) -> &T {
        &self.0[*family.borrow() as usize]
    }
}

impl<T, F: Borrow<Family>> IndexMut<F> for PerFamily<T> {
    fn index_mut(&mut self, family: F) -> &mut T {
        &mut self.0[*family.borrow() as usize]
    }
}

impl<T> IntoIterator for PerFamily<T> {
    type Item = T;
    type IntoIter = std::array::IntoIter<T, 2>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
