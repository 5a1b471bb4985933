//! What a process holds: threads, open files, memory. Read from `/proc`; nothing of the engine is asked.

use std::collections::BTreeSet;
use std::path::Path;

/// Threads of a process, by name, sorted. Empty when it has ended.
#[must_use]
pub fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let mut names: Vec<String> = tasks
        // A thread may end between the listing and the look.
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    names.sort();
    names
}

/// Threads that run tasks: named by vertex, subtask and attempt, as in `count/0#1.1`.
#[must_use]
pub fn task_threads(pid: u32) -> Vec<String> {
    let names = threads(pid).into_iter();
    names
        .filter(|name| name.contains('/') || name.contains('#'))
        .collect()
}

/// What a process has open, besides what the kernel's own machinery (epoll and such) needs; sockets by kind only.
#[must_use]
pub fn open_files(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let mut targets: Vec<String> = entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| !target.starts_with("anon_inode"))
        .map(|target| {
            if target.starts_with("socket:") {
                "socket".to_owned()
            } else {
                target
            }
        })
        .collect();
    targets.sort();
    targets
}

/// Memory of its own in bytes, without the pages of files that it has mapped (a backtrace maps all symbols); 0 when it has ended.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Files below a directory, hidden ones too.
#[must_use]
pub fn files_below(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let entries = std::fs::read_dir(&directory).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    found
}

/// Whether a process stands still, as after SIGSTOP.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("State:"));
    line.is_some_and(|state| state.trim_start().starts_with('T'))
}
