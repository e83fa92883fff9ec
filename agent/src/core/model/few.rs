// SPDX-License-Identifier: Apache-2.0
//! A list that nearly always has one member, kept for every Service: the one needs no allocation.

use std::ops::Deref;

/// A list; see the module.
#[derive(Clone, Debug)]
pub struct Few<T>(List<T>);

#[derive(Clone, Debug)]
enum List<T> {
    One([T; 1]),
    Any(Box<[T]>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(List::Any(Box::default()))
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(list: Vec<T>) -> Self {
        Self(match <[T; 1]>::try_from(list) {
            Ok(one) => List::One(one),
            Err(list) => List::Any(list.into()),
        })
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(iter: I) -> Self {
        Vec::from_iter(iter).into()
    }
}

impl<T> Few<T> {
    /// The same as one that can grow.
    pub fn into_vec(self) -> Vec<T> {
        match self.0 {
            List::One(one) => one.into(),
            List::Any(list) => list.into(),
        }
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            List::One(one) => one,
            List::Any(list) => list,
        }
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Few<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_list_that_it_was_made_of() {
        for len in 0..5u8 {
            let list: Vec<u8> = (0..len).collect();
            let few = Few::from(list.clone());
            assert_eq!((&*few, few.iter().len()), (&*list, usize::from(len)));
            assert_eq!(few, list.iter().copied().collect());
            assert_eq!(few.into_vec(), list);
        }
        assert!(Few::<u8>::default().is_empty());
        assert!(size_of::<Few<u64>>() <= 24, "the one is kept inside");
    }
}
