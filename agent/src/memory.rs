// SPDX-License-Identifier: Apache-2.0
//! Returns free memory to the kernel. A cold start needs several times the memory of normal operation, and the
//! allocator would keep it.

use std::path::Path;

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

/// Unmaps the code of the program, of which a start or an audit uses more than normal operation. What is used again is mapped again,
/// normally without a read from the disk.
pub fn unmap_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    code(&maps, |path| program == Path::new(path)).for_each(|(start, length)| advise_unneeded(start, length));
}

/// The executable mappings of a file in the format of `/proc/PID/maps`: start and length in bytes.
fn code(maps: &str, is_program: impl Fn(&str) -> bool) -> impl Iterator<Item = (usize, usize)> {
    maps.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, mode, path) = (fields.next()?, fields.next()?, fields.nth(3)?);
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).ok());
        // Only pages that nothing can have written have all their content in the file.
        (mode == "r-xp" && is_program(path)).then_some((start?, end?.checked_sub(start?)?))
    })
}

#[allow(unsafe_code, reason = "no crate has a safe interface")]
fn advise_unneeded(start: usize, length: usize) {
    // SAFETY: the kernel fills read-only pages of a file again from the file.
    unsafe {
        libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_pages_of_the_program_are_unmapped() {
        let maps = "55d0-55e0 r--p 00000000 00:2a 7 /bin/agent\n55e0-5600 r-xp 00010000 00:2a 7 /bin/agent\n\
                    5600-5610 rw-p 00030000 00:2a 7 /bin/agent\n7f00-7f20 r-xp 00000000 00:2a 9 /lib/libc.so.6\n\
                    7ff0-7ff8 r-xp 00000000 00:00 0\n7ff8-7ffa r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(code(maps, |path| path == "/bin/agent").collect::<Vec<_>>(), [(0x55e0, 0x20)]);
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let program = std::env::current_exe().unwrap().display().to_string();
            let of_code = |line: &&str| line.contains(" r-xp ") && line.ends_with(&program);
            let mut lines = smaps.lines().skip_while(|line| !of_code(line));
            let size = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            size.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        unmap_code();
        assert!(resident() < before, "{before} KiB before");
    }
}
