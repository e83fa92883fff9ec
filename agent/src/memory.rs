// SPDX-License-Identifier: Apache-2.0
//! Returns free memory to the kernel. A cold start needs several times the memory of normal operation, and the
//! allocator would keep it.

/// Limits the number of heaps and disables huge pages, which count in full when nearly empty. Call it before the
/// first thread starts.
#[allow(unsafe_code, reason = "glibc has no other way")]
pub fn limit() {
    // An error means that the kernel has no huge pages.
    let _ = nix::sys::prctl::set_thp_disable(true);
    // One heap for all threads: every heap has free memory of its own, and few threads allocate at the same time.
    // SAFETY: mallopt may be called at any time; a rejected parameter changes nothing.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns free memory to the kernel.
#[allow(unsafe_code, reason = "glibc has no other way")]
pub fn trim() {
    // SAFETY: malloc_trim may be called at any time, by any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
