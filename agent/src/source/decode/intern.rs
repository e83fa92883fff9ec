// SPDX-License-Identifier: Apache-2.0
//! Shares values that many objects repeat, such as names of nodes: one copy for each thread that decodes, dropped when no
//! object uses it.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::hash::Hash;
use std::sync::Arc;

use crate::core::model::map::Set;
use crate::core::model::service_defaults::Labels;
use crate::core::model::{Hints, ObjectName, Place};

/// Calls between two drops, at least.
const PERIOD: usize = 1024;

/// Shared values, including some that are no longer used.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: Set<Arc<T>>,
    /// Calls until unused values are dropped; in proportion to the cost of dropping.
    left: usize,
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn new() -> Self {
        Self { values: Set::default(), left: PERIOD }
    }

    fn share<K: Borrow<T> + Into<Arc<T>>>(&mut self, value: K) -> Arc<T> {
        self.left -= 1;
        if self.left == 0 {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.values.shrink_to(2 * self.values.len());
            self.left = PERIOD + 4 * self.values.len();
        }
        if let Some(known) = self.values.get(value.borrow()) {
            return known.clone();
        }
        let new: Arc<T> = value.into();
        self.values.insert(new.clone());
        new
    }
}

thread_local! {
    static TEXTS: RefCell<Pool<str>> = RefCell::new(Pool::new());
    static LABELS: RefCell<Pool<Labels>> = RefCell::new(Pool::new());
    static PLACES: RefCell<Pool<Place>> = RefCell::new(Pool::new());
}

pub fn text(text: &str) -> Arc<str> {
    TEXTS.with_borrow_mut(|texts| texts.share(text))
}

/// The name of an object, with a shared namespace.
pub fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: text(namespace), name: name.into() }
}

/// Selected labels; `None` if there are none.
pub fn labels(labels: Labels) -> Option<Arc<Labels>> {
    (labels != Labels::default()).then(|| LABELS.with_borrow_mut(|all| all.share(labels)))
}

/// The node of an endpoint and its hints; `None` if both are absent.
pub fn place(node: Option<&str>, hints: Hints) -> Option<Arc<Place>> {
    let place = Place { node: node.map(text), hints };
    (place != Place::default()).then(|| PLACES.with_borrow_mut(|places| places.share(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_shared_and_dropped_when_unused() {
        let mut pool = Pool::<str>::new();
        let kept = pool.share("a");
        assert!(Arc::ptr_eq(&kept, &pool.share("a")));
        for n in 0..10 * PERIOD {
            drop(pool.share(n.to_string().as_str()));
        }
        assert!(pool.values.len() <= PERIOD + 4, "{}", pool.values.len());
        assert!(Arc::ptr_eq(&kept, &pool.share("a")));
        let places = [(); 2].map(|()| place(Some("n"), Hints::default()).unwrap());
        assert!(Arc::ptr_eq(&places[0], &places[1]));
        assert_eq!(place(None, Hints::default()), None);
    }
}
