//! Where a task's panic began. The hook is installed once per process and looks only at threads that run a task; every other
//! panic goes to the hook that was there before.

use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;
use std::sync::Once;

use perennial_actors::model::FailureKind;

/// Longest backtrace kept in a failure, in bytes.
const BACKTRACE_BYTES_MAX: usize = 8 << 10;

thread_local! {
    static IS_TASK: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<FailureKind>> = const { RefCell::new(None) };
}

static INSTALL: Once = Once::new();

/// While alive, panics of this thread are recorded instead of printed.
pub(crate) struct TaskPanics(());

impl TaskPanics {
    pub(crate) fn record() -> Self {
        INSTALL.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if IS_TASK.get() {
                    LAST.with(|last| *last.borrow_mut() = Some(describe(info)));
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
                backtrace: String::new(),
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
    let mut backtrace = match std::backtrace::Backtrace::capture() {
        trace if trace.status() == std::backtrace::BacktraceStatus::Captured => trace.to_string(),
        _ => String::new(),
    };
    let mut end = BACKTRACE_BYTES_MAX.min(backtrace.len());
    while !backtrace.is_char_boundary(end) {
        end -= 1;
    }
    backtrace.truncate(end);
    FailureKind::Panic {
        message,
        location,
        backtrace,
    }
}
