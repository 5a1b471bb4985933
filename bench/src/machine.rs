//! What processes and the machine have spent, from `/proc`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Signal, kill_process};

/// Columns of `/proc/PID/stat` after the name in parentheses.
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

fn stat(process: &str) -> Vec<u64> {
    // A process that has ended has spent nothing more.
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = text.rsplit_once(')').map_or("", |(_name, rest)| rest);
    let words = after_name.split_whitespace();
    words.map(|word| word.parse().unwrap_or(0)).collect()
}

/// CPU seconds of a process so far; 0 when it has ended.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = stat(&pid.to_string());
    let ticks = |column: usize| stat.get(column).copied().unwrap_or(0);
    seconds(ticks(USER_TICKS) + ticks(SYSTEM_TICKS))
}

/// CPU seconds of this process and of all its children that have ended.
#[must_use]
pub fn own_cpu_seconds() -> f64 {
    let stat = stat("self");
    let columns = stat.get(USER_TICKS..USER_TICKS + 4);
    seconds(columns.unwrap_or_default().iter().sum())
}

/// CPU seconds that anything on this machine has spent so far, time stolen from it included.
#[must_use]
pub fn busy_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(|word| word.parse().unwrap_or(0))
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    seconds(ticks.iter().sum::<u64>() - idle)
}

/// Processors that this process may use.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn memory_mb(pid: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = status.lines().find_map(|l| l.strip_prefix(line));
    let kilobytes = value.and_then(|v| v.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1024.0 / 1e6
}

/// Resident memory now, in MB.
#[must_use]
pub fn resident_mb(pid: u32) -> f64 {
    memory_mb(pid, "VmRSS:")
}

/// Most resident memory since the start or since [`forget_peak`], in MB.
#[must_use]
pub fn peak_resident_mb(pid: u32) -> f64 {
    memory_mb(pid, "VmHWM:")
}

/// Begins the peak anew.
pub fn forget_peak(pid: u32) {
    // Of processes that are not ours it cannot be forgotten; then the peak is that since the start.
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Sends a signal.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| anyhow::anyhow!("{pid} is no process"))?;
    Ok(kill_process(process, signal)?)
}

/// Lets a process, and all that its threads start from now on, use only the first so many processors.
///
/// # Errors
/// When there is no such process, not so many processors, or no `taskset`.
pub fn pin(pid: u32, processors: usize) -> anyhow::Result<()> {
    // It would not complain.
    std::fs::metadata(format!("/proc/{pid}")).with_context(|| format!("no process {pid}"))?;
    let list = format!("0-{}", processors.saturating_sub(1));
    let output = Command::new("taskset")
        .args(["--all-tasks", "--pid", "--cpu-list", &list])
        .arg(pid.to_string())
        .output()
        .context("cannot run taskset")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cannot pin {pid}: {errors}");
    Ok(())
}

/// Model of the processor, for the report.
#[must_use]
pub fn processor_model() -> String {
    let text = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("model name"));
    line.map_or_else(String::new, |l| l.trim_matches([' ', '\t', ':']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_process_uses_what_it_may() {
        let child = std::process::Command::new("sleep").arg("60").spawn();
        let mut child = child.unwrap();
        pin(child.id(), 1).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        let status = status.unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
        assert!(pin(child.id(), 1).is_err(), "it has ended");
    }

    /// Our own figures are there, plausible, and grow.
    #[test]
    fn a_process_sees_what_it_spends() {
        let pid = std::process::id();
        let before = cpu_seconds(pid);
        let mut sum = 0_u64;
        while cpu_seconds(pid) < before + 0.03 {
            sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
        }
        assert!(own_cpu_seconds() >= before + 0.03);
        assert!(busy_seconds() >= before);
        assert!(resident_mb(pid) > 1.0 && peak_resident_mb(pid) >= resident_mb(pid) * 0.9);
        assert!(processors() >= 1);
    }
}
