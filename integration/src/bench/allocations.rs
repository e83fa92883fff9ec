// SPDX-License-Identifier: Apache-2.0
//! Counts what a thread allocates. The allocator itself is the system's.

#![allow(unsafe_code, reason = "there is no other way to count allocations")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<Allocations> = const { Cell::new(Allocations { count: 0, bytes: 0 }) };
}

/// Number and total size of allocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    /// Number of allocations.
    pub count: u64,
    /// Total size in bytes.
    pub bytes: u64,
}

/// The system's allocator, counting. Make it the global one to count at all.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call is handed on to the system's allocator as it is; counting touches only a thread-local
// number that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(place, layout, size) }
    }
}

fn count(bytes: usize) {
    // A thread that is ending may have no number any more.
    let _ = COUNT.try_with(|counted| {
        let Allocations { count, bytes: before } = counted.get();
        counted.set(Allocations { count: count + 1, bytes: before + bytes as u64 });
    });
}

/// What this thread allocated while `work` ran.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, Allocations) {
    let before = COUNT.get();
    let result = work();
    let after = COUNT.get();
    (result, Allocations { count: after.count - before.count, bytes: after.bytes - before.bytes })
}
