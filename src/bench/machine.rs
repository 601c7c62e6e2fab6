//! The machine that a benchmark ran on, as far as it tells.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::files;

/// What the figures depend on beside the model and the runtime.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Machine {
    /// `macos` or `linux`.
    pub os: &'static str,
    /// Its version, where it is known.
    pub os_version: Option<String>,
    /// `aarch64` or `x86_64`.
    pub arch: &'static str,
    /// `Apple M3 Ultra`.
    pub cpu: Option<String>,
    /// In bytes.
    pub memory_bytes: Option<u64>,
}

impl Machine {
    /// This machine. What cannot be found out is left out.
    #[must_use]
    pub fn this() -> Self {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        if os == "macos" {
            return Self {
                os,
                os_version: answer("sw_vers", &["-productVersion"]),
                arch,
                cpu: answer("sysctl", &["-n", "machdep.cpu.brand_string"]),
                memory_bytes: answer("sysctl", &["-n", "hw.memsize"])
                    .and_then(|bytes| bytes.parse().ok()),
            };
        }
        let kilobytes = |text: String| text.split(' ').next()?.parse::<u64>().ok();
        Self {
            os,
            os_version: line("/etc/os-release", "PRETTY_NAME=")
                .map(|name| name.trim_matches('"').to_owned()),
            arch,
            cpu: line("/proc/cpuinfo", "model name\t: "),
            memory_bytes: line("/proc/meminfo", "MemTotal:")
                .and_then(kilobytes)
                .map(|kilobytes| kilobytes * 1024),
        }
    }

    /// In one line: `Apple M3 Ultra, 256 GB, macOS 26.1`.
    #[must_use]
    pub fn label(&self) -> String {
        let memory = self
            .memory_bytes
            .map(|bytes| format!("{} GB", bytes.div_ceil(1 << 30)));
        let os = if self.os == "macos" { "macOS" } else { self.os };
        let system = match &self.os_version {
            Some(version) if self.os == "macos" => format!("{os} {version}"),
            Some(version) => version.clone(),
            None => format!("{os} {}", self.arch),
        };
        [self.cpu.clone(), memory, Some(system)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }
}

fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The rest of the first line that starts like this.
fn line(path: &str, start: &str) -> Option<String> {
    let text = String::from_utf8(files::read(Path::new(path)).ok()?).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(start))
        .map(|rest| rest.trim().to_owned())
}
