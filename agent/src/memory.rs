// SPDX-License-Identifier: Apache-2.0
//! Returns free memory to the kernel. A cold start needs several times the memory of normal operation, and the
//! allocator would keep it.

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "glibc has no other way")]
mod glibc {
    /// One heap for all threads: every heap has free memory of its own, and few threads allocate at the same time.
    const ARENAS: libc::c_int = 1;

    pub fn limit() {
        // SAFETY: mallopt may be called at any time; a rejected parameter changes nothing.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }

    pub fn trim() {
        // SAFETY: malloc_trim may be called at any time, by any thread.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Limits the number of heaps and disables huge pages, which count in full when nearly empty. Call it before the
/// first thread starts.
pub fn limit() {
    // An error means that the kernel has no huge pages.
    let _ = nix::sys::prctl::set_thp_disable(true);
    #[cfg(target_env = "gnu")]
    glibc::limit();
}

/// Returns free memory to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    glibc::trim();
}
