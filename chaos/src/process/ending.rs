//! What happens to the nodes of a command that is told to end.

use std::io;

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// From now on SIGTERM and Ctrl-C kill all processes that this one has started, and end it with 128 and the signal's number, as a shell tells
/// it. What they wrote stays where it is.
///
/// # Errors
/// When signals cannot be listened for.
pub fn end_nodes_with_us() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    let wait = move || {
        let asked = runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => Signal::TERM,
                _ = interrupt.recv() => Signal::INT,
            }
        });
        for child in children() {
            // It may have ended by itself.
            let _ = kill_process(child, Signal::KILL);
        }
        std::process::exit(128 + asked.as_raw());
    };
    std::thread::Builder::new()
        .name("ending".to_owned())
        .spawn(wait)?;
    Ok(())
}

/// Of all threads.
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists = tasks.flatten().filter_map(|task| {
        // A thread may have ended.
        std::fs::read_to_string(task.path().join("children")).ok()
    });
    let of = |list: String| -> Vec<i32> { list.split_whitespace().flat_map(str::parse).collect() };
    lists.flat_map(of).filter_map(Pid::from_raw).collect()
}
