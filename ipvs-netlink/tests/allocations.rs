// SPDX-License-Identifier: Apache-2.0
//! An entry of a list is decoded without a vector of its attributes.
#![cfg(target_endian = "little")]
#![allow(unsafe_code, reason = "there is no other way to count allocations")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ipvs_netlink::packet::{DestinationAttribute, ServiceAttribute, attributes};
use ipvs_netlink::{Destination, Service};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed on to the system's allocator as it is; counting touches only a thread-local
// number that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        unsafe { System.dealloc(place, layout) }
    }
}

/// The value of the first attribute in the first captured message.
fn entry(text: &str) -> Vec<u8> {
    let line = text.lines().find(|line| !line.starts_with('#')).unwrap().trim();
    let digits = line.as_bytes().chunks(2).skip(4);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn counted<T>(decode: impl FnOnce() -> T) -> (T, usize) {
    let before = COUNT.get();
    let decoded = decode();
    (decoded, COUNT.get() - before)
}

#[test]
fn a_service_takes_one_allocation_and_a_destination_none() {
    let bytes = entry(include_str!("captured/services.hex"));
    let (service, count) = counted(|| Service::from_attributes(attributes::<ServiceAttribute>(&bytes)));
    assert_eq!((service.unwrap().scheduler.as_str(), count), ("rr", 1), "the name of the scheduler");
    let bytes = entry(include_str!("captured/destinations.hex"));
    let (dest, count) =
        counted(|| Destination::from_attributes(attributes::<DestinationAttribute>(&bytes), None));
    assert_eq!((dest.unwrap().port, count), (8443, 0));
}
