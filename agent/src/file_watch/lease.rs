// SPDX-License-Identifier: Apache-2.0
//! Detects whether another program has a file open for writing: the kernel then refuses a read lease. While the lease is
//! held, a program that opens the file for writing or truncates it waits, so the text that is read is complete.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statfs::fstatfs;

/// From `<asm-generic/fcntl.h>`; missing in the crate `libc`.
const F_SETSIG: libc::c_int = 10;
/// NFS, CIFS and SMB refuse a lease with the same error if the server did not grant a delegation.
const OF_A_SERVER: [u32; 3] = [0x6969, 0xff53_4d42, 0xfe53_4d42];

/// The result of the request for a lease.
#[derive(Debug)]
enum LeaseAnswer<'a> {
    /// No program has the file open for writing, and none can open it for writing while the lease is held.
    Granted(Lease<'a>),
    /// Another program has it open for writing.
    Refused,
    /// This user or this file system has no leases.
    Unknown,
}

/// A read lease; dropping it returns it.
#[derive(Debug)]
struct Lease<'a>(&'a File);

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // The kernel also takes it back when the file is closed.
        let _ = set(self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

/// The text of a file; `None`: another program has it open for writing.
pub(super) fn read(path: &Path) -> io::Result<Option<String>> {
    let mut file = &File::open(path)?;
    let _lease = match request(file) {
        LeaseAnswer::Refused => return Ok(None),
        LeaseAnswer::Granted(lease) => Some(lease),
        LeaseAnswer::Unknown => None,
    };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Whether another program is known to have a file open for writing.
pub(super) fn is_open_for_writing(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(request(&file), LeaseAnswer::Refused))
}

fn request(file: &File) -> LeaseAnswer<'_> {
    // The default signal when another program waits for the lease is SIGIO, which ends a process; SIGURG is ignored.
    let result = set(file, F_SETSIG, libc::SIGURG).and_then(|()| set(file, libc::F_SETLEASE, libc::F_RDLCK));
    match result {
        Ok(()) => LeaseAnswer::Granted(Lease(file)),
        Err(Errno::EAGAIN) if !is_of_a_server(file) => LeaseAnswer::Refused,
        Err(_) => LeaseAnswer::Unknown,
    }
}

fn is_of_a_server(file: &File) -> bool {
    fstatfs(file).is_ok_and(|fs| OF_A_SERVER.contains(&(fs.filesystem_type().0 as u32)))
}

#[allow(unsafe_code, reason = "no safe call sets leases")]
fn set(file: &File, what: libc::c_int, value: libc::c_int) -> nix::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and both commands take a number.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), what, value) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn a_file_is_read_when_nobody_has_it_open_for_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "whole").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("whole"));
        let reader = File::open(&path).unwrap();
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        assert!(read(&path).unwrap().is_none() && is_open_for_writing(&path));
        drop(writer);
        assert!(read(&path).unwrap().is_some() && !is_open_for_writing(&path), "readers count for nothing");
        drop(reader);
        assert!(read(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn a_file_without_leases_is_read_all_the_same() {
        assert!(matches!(request(&File::open("/dev/null").unwrap()), LeaseAnswer::Unknown));
        assert!(read(Path::new("/proc/self/stat")).unwrap().is_some());
    }

    #[test]
    fn a_writer_waits_for_the_reader_and_the_signal_ends_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "whole").unwrap();
        let mut file = &File::open(&path).unwrap();
        let LeaseAnswer::Granted(lease) = request(file) else { panic!("no lease") };
        let (sender, opened) = channel();
        let writer = std::thread::spawn({
            let path = path.clone();
            move || {
                fs::write(&path, "new").unwrap();
                sender.send(()).unwrap();
            }
        });
        // The signal arrives meanwhile.
        assert!(opened.recv_timeout(Duration::from_millis(200)).is_err(), "it waits");
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");
        drop(lease);
        writer.join().unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("new"));
    }
}
