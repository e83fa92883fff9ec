// SPDX-License-Identifier: Apache-2.0
//! How much memory work takes at once. The allocator itself is the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes in use by this thread, and the most of them. What another thread gives back can make it negative.
    static USED: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: every call is handed on to the system's allocator as it is; counting touches only a thread-local
// number that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(place, layout, size) }
    }
}

fn count(bytes: isize) {
    // A thread that is ending may have no number any more.
    let _ = USED.try_with(|used| {
        let (now, most) = used.get();
        let now = now.wrapping_add(bytes);
        used.set((now, most.max(now)));
    });
}

/// The most that this thread had in use during `work`, over what it had before. Memory that is asked for and not
/// touched counts.
pub fn peak(work: impl FnOnce()) -> usize {
    let (before, _) = USED.get();
    USED.set((before, before));
    work();
    let (_, most) = USED.get();
    usize::try_from(most - before).unwrap_or(0)
}
