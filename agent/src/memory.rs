// SPDX-License-Identifier: Apache-2.0
//! Gives memory back. A cold start needs several times what is kept afterwards, and the allocator would
//! keep all of it.

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "glibc has no other way")]
mod glibc {
    /// One heap for all threads: each keeps holes of its own, and few threads allocate at a time.
    const ARENAS: libc::c_int = 1;

    pub fn limit() {
        // SAFETY: mallopt may be called at any time; what it refuses changes nothing.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }

    pub fn trim() {
        // SAFETY: malloc_trim may be called at any time, by any thread.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Keeps the number of heaps small, and huge pages out of them: one that is nearly empty counts in full.
/// To be called before the first thread starts.
pub fn limit() {
    // A kernel that does not know huge pages has none.
    let _ = nix::sys::prctl::set_thp_disable(true);
    #[cfg(target_env = "gnu")]
    glibc::limit();
}

/// Returns what is free to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    glibc::trim();
}
