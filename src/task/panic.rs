//! Where a task's panic began. The hook is installed once per process and looks only at threads that run a task; every other
//! panic goes to the hook that was there before.
//!
//! The backtrace goes to the log and not into the failure: to name its frames takes a tenth of a second in a program of this size, and
//! the recovery does not wait for that.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use perennial_actors::model::FailureKind;

thread_local! {
    static IS_TASK: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<FailureKind>> = const { RefCell::new(None) };
}

static INSTALL: Once = Once::new();

/// Whether a backtrace is being named: one at a time, whatever fails over and over.
static IS_NAMING: AtomicBool = AtomicBool::new(false);

/// While alive, panics of this thread are recorded instead of printed.
pub(crate) struct TaskPanics(());

impl TaskPanics {
    pub(crate) fn record() -> Self {
        INSTALL.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if IS_TASK.get() {
                    LAST.with(|last| *last.borrow_mut() = Some(describe(info)));
                    log_later(Backtrace::capture());
                } else {
                    before(info);
                }
            }));
        });
        IS_TASK.set(true);
        Self(())
    }

    /// The panic that was just caught.
    pub(crate) fn take(&self) -> FailureKind {
        LAST.with(|last| last.borrow_mut().take())
            .unwrap_or_else(|| FailureKind::Panic {
                message: "unknown".into(),
                location: "unknown".into(),
            })
    }
}

impl Drop for TaskPanics {
    fn drop(&mut self) {
        IS_TASK.set(false);
    }
}

fn describe(info: &PanicHookInfo<'_>) -> FailureKind {
    let message = info
        .payload_as_str()
        .map_or_else(|| "a payload that is not a text".to_owned(), str::to_owned);
    let location = info
        .location()
        .map_or_else(|| "unknown".to_owned(), ToString::to_string);
    FailureKind::Panic { message, location }
}

/// Logs a backtrace with the names of its frames, from a thread of its own. Nothing when backtraces are off (`RUST_BACKTRACE`).
fn log_later(backtrace: Backtrace) {
    if backtrace.status() != BacktraceStatus::Captured {
        return;
    }
    let task = std::thread::current().name().map(str::to_owned);
    if IS_NAMING.swap(true, Ordering::Relaxed) {
        tracing::error!(task, "a panic; no backtrace, that of another is being read");
        return;
    }
    let name = move || {
        tracing::error!(task, "a panic, from here:\n{backtrace}");
        IS_NAMING.store(false, Ordering::Relaxed);
    };
    let thread = std::thread::Builder::new().name("backtrace".into());
    if thread.spawn(name).is_err() {
        IS_NAMING.store(false, Ordering::Relaxed);
    }
}
