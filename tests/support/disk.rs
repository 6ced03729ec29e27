//! Small file systems that can be full or read-only. Mounting them needs root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// tmpfs gives space in pages.
const PAGE: usize = 4096;

/// A tmpfs, unmounted when the test ends.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts an empty file system of 8 MiB on a folder.
    pub fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&path));
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves `bytes` free, rounded down to pages.
    pub fn fill_but(&self, bytes: usize) {
        let page = [0; PAGE];
        let mut file = File::create(self.filler()).unwrap();
        while file.write(&page).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length - (bytes / PAGE * PAGE) as u64).unwrap();
    }

    /// Takes back [`Disk::fill_but`].
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    pub fn make_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path));
    }

    pub fn make_writable(&self) {
        run(Command::new("mount").args(["-o", "remount,rw"]).arg(&self.path));
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is still ending must not keep it.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).status();
        assert!(std::thread::panicking() || unmounted.is_ok_and(|status| status.success()), "umount {:?}", self.path);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "small disks need root: run scripts/test as root ({command:?}: {stderr})");
}
