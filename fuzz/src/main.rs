// SPDX-License-Identifier: Apache-2.0
//! libFuzzer around the targets of [`kube_ipvs::fuzzing`]. One program holds all of them: `FUZZ_TARGET` names
//! the one to run, and without it their names are printed.

#![no_main]

mod memory;

use std::sync::OnceLock;

use kube_ipvs::fuzzing::{LONGEST, Target, targets};

/// An input may take so much memory, and so much more for each of its bytes.
const ROOM: usize = 4 << 20;
const ROOM_PER_BYTE: usize = 1 << 10;

static TARGET: OnceLock<Target> = OnceLock::new();

fn choose() {
    let Ok(wanted) = std::env::var("FUZZ_TARGET") else {
        targets().iter().for_each(|(name, _)| println!("{name}"));
        std::process::exit(0);
    };
    let Some(target) = targets().into_iter().find(|(name, _)| *name == wanted) else {
        eprintln!("no target {wanted}: run without FUZZ_TARGET to see all");
        std::process::exit(2);
    };
    // Only a second start in one process could fail.
    let _ = TARGET.set(target);
    // What is made once, such as the tables of a parser, is no input's.
    (target.1)(b"");
}

libfuzzer_sys::fuzz_target!(init: choose(), |bytes: &[u8]| {
    if bytes.len() <= LONGEST
        && let Some((_, read)) = TARGET.get()
    {
        let peak = memory::peak(|| read(bytes));
        let room = ROOM + ROOM_PER_BYTE * bytes.len();
        assert!(peak <= room, "{} bytes of input took {peak} bytes of memory", bytes.len());
    }
});
