//! A machine of a test's own, as far as files and processes go: this one's files below an overlay, on which scripts may install what they like.
//!
//! What they change is gone when they end, but for the folder of the case, which is the same inside and outside; and no process outlives them.
//! It needs root.

use std::process::Command;

use super::server::repository;
use super::{Case, Running, TRADES};

/// $1 is the folder of the case, $2 what `scripts/tools cron` unpacked, $3 the script, which the last line runs as process 1.
const BOOT: &str = r#"
set -eu
new=$1/machine
mkdir -p "$new"
mount -t tmpfs -o mode=755 tmpfs "$new"
mkdir "$new/upper" "$new/work" "$new/root"
cp -a "$2/etc" "$2/usr" "$2/var" "$new/upper"
mount -t overlay -o "lowerdir=/,upperdir=$new/upper,workdir=$new/work" overlay "$new/root"
cd "$new/root"
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero random urandom; do : >"dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs run
mount -t proc proc proc
mkdir -p "./$1"
mount --bind "$1" "./$1"
exec chroot . sh -euc "cd $PWD_OF_REPOSITORY; $3"
"#;

impl Case {
    /// Writes a configuration of the table of most tests that may be read from any folder, because its paths are absolute.
    pub fn config_for_any_folder(&self, file: &str) {
        let folder = self.folder().display();
        let catalog = format!("[catalog]\nuri = 'sqlite:///{folder}/catalog.db'\nwarehouse = '{folder}/warehouse'\n");
        self.config_file(file, "", &format!("{catalog}[state]\npath = '{folder}/state.db'\n"), TRADES);
    }

    /// Starts a shell script as root on a machine of its own, in the folder of the repository.
    pub fn machine(&self, script: &str) -> Running {
        let mut boot = Command::new("unshare");
        boot.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", BOOT, "boot"]);
        boot.arg(self.folder()).arg(tools("cron")).arg(script);
        Running::start(boot.env("PWD_OF_REPOSITORY", repository()))
    }
}

/// The folder into which `scripts/tools` installs what it knows by this name.
pub fn tools(name: &str) -> String {
    let output = Command::new(repository().join("scripts/tools")).arg(name).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}
