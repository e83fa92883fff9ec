// SPDX-License-Identifier: Apache-2.0
//! Whether another program has a file open for writing. The kernel tells that when it is asked for a read lease,
//! which it refuses then. While the lease is held, who opens the file for writing or cuts it short waits: what
//! is read is complete.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statfs::fstatfs;

/// Of `<asm-generic/fcntl.h>`; the crate `libc` leaves it out.
const F_SETSIG: libc::c_int = 10;
/// NFS, CIFS and SMB refuse a lease with the same error where the server did not grant a delegation.
const OF_A_SERVER: [u32; 3] = [0x6969, 0xff53_4d42, 0xfe53_4d42];

/// What the kernel says about a lease.
#[derive(Debug)]
enum Asked<'a> {
    /// Nobody has the file open for writing, and nobody can open it so while the lease is there.
    Granted(Lease<'a>),
    /// Another program has it open for writing.
    Refused,
    /// There are no leases for this user, or on this file system.
    Unknown,
}

/// A read lease; given back when this goes away.
#[derive(Debug)]
struct Lease<'a>(&'a File);

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // At the latest the kernel takes it back when the file is closed.
        let _ = set(self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

/// The text of a file; `None`: another program has it open for writing.
pub(super) fn read(path: &Path) -> io::Result<Option<String>> {
    let mut file = &File::open(path)?;
    let _lease = match ask(file) {
        Asked::Refused => return Ok(None),
        Asked::Granted(lease) => Some(lease),
        Asked::Unknown => None,
    };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Whether another program is known to have a file open for writing.
pub(super) fn is_open_for_writing(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(ask(&file), Asked::Refused))
}

fn ask(file: &File) -> Asked<'_> {
    // The signal for a lease that somebody waits for is SIGIO, which ends a process; SIGURG is ignored.
    let asked = set(file, F_SETSIG, libc::SIGURG).and_then(|()| set(file, libc::F_SETLEASE, libc::F_RDLCK));
    match asked {
        Ok(()) => Asked::Granted(Lease(file)),
        Err(Errno::EAGAIN) if !is_of_a_server(file) => Asked::Refused,
        Err(_) => Asked::Unknown,
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
    fn what_has_no_leases_is_read_as_ever() {
        assert!(matches!(ask(&File::open("/dev/null").unwrap()), Asked::Unknown));
        assert!(read(Path::new("/proc/self/stat")).unwrap().is_some());
    }

    #[test]
    fn who_wants_to_write_meanwhile_waits_and_the_reader_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "whole").unwrap();
        let mut file = &File::open(&path).unwrap();
        let Asked::Granted(lease) = ask(file) else { panic!("no lease") };
        let (sender, opened) = channel();
        let writer = std::thread::spawn({
            let path = path.clone();
            move || {
                fs::write(&path, "new").unwrap();
                sender.send(()).unwrap();
            }
        });
        // The signal comes meanwhile.
        assert!(opened.recv_timeout(Duration::from_millis(200)).is_err(), "it waits");
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");
        drop(lease);
        writer.join().unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("new"));
    }
}
