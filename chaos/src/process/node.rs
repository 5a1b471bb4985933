//! One node: a child process with its log.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use perennial_actors::clock::Instant;
use perennial_actors::fault::Sabotage;
use rustix::process::{Pid, Resource, Rlimit, kill_process, prlimit};

pub use rustix::process::Signal;

/// How a node's log comes into its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logging {
    /// It writes it itself.
    File,
    /// Through us, so that a limit on the files that it writes does not silence it.
    Piped,
}

/// What breaks a node from inside, if its program has that.
#[derive(Debug, Clone, Default)]
pub(super) struct Inside {
    /// Fault points of its next process.
    pub(super) points: Option<String>,
    /// Of all its processes.
    pub(super) sabotage: Vec<Sabotage>,
}

/// A JobManager or TaskManager process, and how to start it again.
#[derive(Debug)]
pub struct Node {
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    logging: Logging,
    child: Child,
    started: Instant,
    ended: Option<ExitStatus>,
    may_exit: bool,
    inside: Inside,
}

impl Node {
    pub(super) fn start(
        name: &str,
        binary: &Path,
        arguments: Vec<String>,
        mut inside: Inside,
        logs: &Path,
        logging: Logging,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(logs)?;
        let log = logs.join(format!("{name}.log"));
        let child = spawn(binary, &arguments, &inside, &log, logging)?;
        // What struck a process has struck.
        inside.points = None;
        Ok(Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            arguments,
            log,
            logging,
            child,
            started: Instant::now(),
            ended: None,
            may_exit: false,
            inside,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Since it was started last.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// From now on its end is no surprise.
    pub fn may_exit(&mut self) {
        self.may_exit = true;
    }

    /// Its exit code, once it has ended; for one that a signal ended 128 and the signal's number, as shells say it.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn exit_code(&mut self) -> anyhow::Result<Option<i32>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended.map(|status| {
            status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
        }))
    }

    pub(super) fn unexpected_exit(&mut self) -> Option<i32> {
        if self.may_exit {
            return None;
        }
        self.exit_code().ok().flatten()
    }

    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.may_exit = true;
        if self.exit_code()?.is_some() {
            return Ok(());
        }
        self.child.kill()?;
        self.ended = Some(self.child.wait()?);
        Ok(())
    }

    pub(super) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // Without this look the id might belong to another process by now.
        if let Some(code) = self.exit_code()? {
            bail!("{} has ended with exit code {code}", self.name);
        }
        self.may_exit |= signal == Signal::TERM;
        let pid = self.process()?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to {}", self.name))
    }

    fn process(&self) -> anyhow::Result<Pid> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| anyhow!("{} has no process id", self.name))
    }

    /// Sets the soft limit of a resource while the process runs; returns what it was. A child's limits may be changed without being root.
    pub(super) fn limit(
        &mut self,
        resource: Resource,
        soft: Option<u64>,
    ) -> anyhow::Result<Option<u64>> {
        if let Some(code) = self.exit_code()? {
            bail!("{} has ended with exit code {code}", self.name);
        }
        let pid = self.process()?;
        let before = rustix::process::getrlimit(resource);
        let set = Rlimit {
            current: soft,
            maximum: before.maximum,
        };
        let before = prlimit(Some(pid), resource, set)
            .with_context(|| format!("limit of {resource:?} for {}", self.name))?;
        Ok(before.current)
    }

    /// Fault points of the process that [`restart`](Self::restart) starts next.
    pub(super) fn arm(&mut self, points: Option<String>) {
        self.inside.points = points;
    }

    pub(super) fn is_allowed_to_exit(&self) -> bool {
        self.may_exit
    }

    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        if self.exit_code()?.is_none() {
            bail!("{} still runs", self.name);
        }
        self.child = spawn(
            &self.binary,
            &self.arguments,
            &self.inside,
            &self.log,
            self.logging,
        )?;
        self.inside.points = None;
        self.started = Instant::now();
        self.ended = None;
        self.may_exit = false;
        Ok(())
    }
}

/// Unless some is asked for, that of our own environment holds.
fn sabotage(switches: &[Sabotage]) -> Option<(&'static str, String)> {
    let names: Vec<&str> = switches.iter().map(|s| s.name()).collect();
    (!names.is_empty()).then(|| (crate::node::SABOTAGE, names.join(",")))
}

fn spawn(
    binary: &Path,
    arguments: &[String],
    inside: &Inside,
    log: &Path,
    logging: Logging,
) -> anyhow::Result<Child> {
    let mut file: File = OpenOptions::new().create(true).append(true).open(log)?;
    writeln!(file, "--- {} {}", binary.display(), arguments.join(" "))?;
    // Of its own, so that a test can see what a node leaves lying about.
    let root = log
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new("."));
    let (work, temporary) = (root.join("work"), root.join("tmp"));
    std::fs::create_dir_all(&work)?;
    std::fs::create_dir_all(&temporary)?;
    let mut command = match logging {
        Logging::File => {
            let mut command = Command::new(binary);
            command.stdout(file.try_clone()?).stderr(file.try_clone()?);
            command
        }
        Logging::Piped => {
            // Without it a write beyond the limit kills the process instead of failing.
            let mut command = Command::new("sh");
            command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
            command.arg(binary);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        }
    };
    let mut child = command
        .args(["--log", "info"])
        .args(arguments)
        .env("RUST_BACKTRACE", "1")
        .env("TMPDIR", temporary)
        .env(
            crate::node::POINTS,
            inside.points.as_deref().unwrap_or_default(),
        )
        .envs(sabotage(&inside.sabotage))
        .current_dir(work)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    if let Some(stream) = child.stdout.take() {
        copy_in_background(stream, file.try_clone()?)?;
    }
    if let Some(stream) = child.stderr.take() {
        copy_in_background(stream, file)?;
    }
    Ok(child)
}

/// Until the process has ended.
fn copy_in_background(mut from: impl Read + Send + 'static, mut to: File) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("node-log".to_owned())
        .spawn(move || {
            // A log that cannot be written is seen in the log.
            let _ = std::io::copy(&mut from, &mut to);
        })?;
    Ok(())
}
