//! How much memory this process can have: the machine's, or what its control groups leave, as
//! containers and schedulers set them.

use std::fs;
use std::path::{Path, PathBuf};

use sysinfo::System;

use crate::Error;

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What can be taken now, swap included.
    pub free: u64,
    /// What there is.
    pub total: u64,
}

impl Memory {
    /// What there is now; none where the system does not say.
    pub fn now() -> Option<Self> {
        let mut system = System::new();
        system.refresh_memory();
        let total = system.total_memory();
        let free = match system.available_memory() {
            // A system that does not say.
            0 => total,
            available => available.saturating_add(system.free_swap()),
        };
        let machine = Self { free, total };
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limits = limits(&groups, Path::new("/sys/fs/cgroup"));
        (machine.total > 0).then(|| limits.into_iter().fold(machine, Self::least))
    }

    /// What both leave.
    fn least(self, other: Self) -> Self {
        Self { free: self.free.min(other.free), total: self.total.min(other.total) }
    }
}

/// Whether `need` bytes can be had; `what` takes them.
///
/// # Errors
/// [`Error::Memory`] if they are not free. Where the system does not say what is free, they are
/// taken to be.
pub fn check(need: f64, what: impl FnOnce() -> String) -> Result<(), Error> {
    match Memory::now() {
        Some(Memory { free, total }) if need > free as f64 => {
            Err(Error::Memory { what: what(), need, free, total })
        }
        _ => Ok(()),
    }
}

/// The files of one version of control groups.
struct Version {
    /// Where their tree begins.
    root: PathBuf,
    limit: &'static str,
    used: &'static str,
    /// Lines of `memory.stat` with what the kernel takes back when it is needed: cached files.
    cached: [&'static str; 2],
}

/// What each of the control groups of a process leaves that limits its memory: its own and those
/// around it. `groups` is the text of `/proc/self/cgroup`.
fn limits(groups: &str, root: &Path) -> Vec<Memory> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let version = if controllers.is_empty() {
            Version {
                root: root.to_path_buf(),
                limit: "memory.max",
                used: "memory.current",
                cached: ["active_file", "inactive_file"],
            }
        } else if controllers.split(',').any(|controller| controller == "memory") {
            Version {
                root: root.join("memory"),
                limit: "memory.limit_in_bytes",
                used: "memory.usage_in_bytes",
                cached: ["total_active_file", "total_inactive_file"],
            }
        } else {
            continue;
        };
        let group = Path::new(group.trim_start_matches('/'));
        found.extend(group.ancestors().filter_map(|group| version.read(group)));
    }
    found
}

impl Version {
    /// What one group leaves; none without a limit.
    fn read(&self, group: &Path) -> Option<Memory> {
        let directory = self.root.join(group);
        let text = |name: &str| fs::read_to_string(directory.join(name)).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        let (total, used) = (number(self.limit)?, number(self.used)?);
        let stat = text("memory.stat").unwrap_or_default();
        let cached = stat.lines().filter_map(|line| {
            let (key, bytes) = line.split_once(' ')?;
            self.cached.contains(&key).then(|| bytes.parse::<u64>().ok())?
        });
        let used = used.saturating_sub(cached.sum());
        Some(Memory { free: total.saturating_sub(used), total })
    }
}

/// A number of bytes for a message.
pub fn size(bytes: f64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().find(|(_, bits)| bytes >= f64::powi(2.0, *bits));
    match unit {
        Some((name, bits)) => format!("{:.1} {name}", bytes / f64::powi(2.0, bits)),
        None => format!("{bytes:.0} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(root: &Path, name: &str, files: &[(&str, &str)]) {
        let directory = root.join(name);
        fs::create_dir_all(&directory).unwrap();
        files.iter().for_each(|(file, text)| fs::write(directory.join(file), text).unwrap());
    }

    #[test]
    fn the_tightest_control_group_around_the_process_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        group(root, "job", &[("memory.max", "1000\n"), ("memory.current", "700\n")]);
        let stat = "anon 300\nactive_file 150\ninactive_file 250\nfile 400\n";
        group(root, "job", &[("memory.stat", stat)]);
        group(root, "job/step", &[("memory.max", "max\n"), ("memory.current", "700\n")]);
        assert_eq!(limits("0::/job/step\n", root), [Memory { free: 700, total: 1000 }]);
        assert_eq!(limits("0::/other\n1:cpu:/job\n", root), []);
        assert_eq!(limits("damaged\n\n0\n0::\n", root), []);
        // The former version, and several controllers in one tree.
        let files = [("memory.limit_in_bytes", "500"), ("memory.usage_in_bytes", "600")];
        group(root, "memory/job", &files);
        group(root, "memory/job", &[("memory.stat", "total_inactive_file 50\n")]);
        assert_eq!(limits("4:cpu,memory:/job/step", root), [Memory { free: 0, total: 500 }]);
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_both_figures() {
        check(0.0, || unreachable!()).unwrap();
        if Memory::now().is_none() {
            eprintln!("SKIPPED: this system does not say how much memory there is");
            return;
        }
        let said = check(f64::powi(2.0, 60), || "the text".into()).unwrap_err().to_string();
        let wanted = "the text takes at least 1048576.0 TiB of memory, and ";
        assert!(said.starts_with(wanted) && said.contains(" are free"), "{said}");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(1023.0), "1023 bytes");
        assert_eq!(size(1536.0), "1.5 KiB");
        assert_eq!(size(3.0 * f64::powi(2.0, 30)), "3.0 GiB");
        assert_eq!(size(f64::INFINITY), "inf TiB");
    }
}
