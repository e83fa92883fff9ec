// SPDX-License-Identifier: Apache-2.0
//! Locks without poisoning: a panic ends the agent, and in a test the panic is what is reported.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
