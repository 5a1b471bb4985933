//! The JVMs of a cluster. Flink's scripts are not used: they start one more JVM for each node, only to compute its memory, which is asked
//! for once here.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use perennial_actors::clock::Instant;
use perennial_chaos::process::free_port;
use tempfile::TempDir;

use super::rest::Rest;
use super::{Collector, Installation, setup};
use crate::peer::{Heartbeats, Memory, Shape};

/// Of a TaskManager for each of its slots, all its memory together. Bigger machines have more; this one has 24 GB.
const TASK_MANAGER_MB_PER_SLOT: u32 = 4096;
/// The part of it that is set aside for windows of SQL, which fail without; all else is the heap's.
const MANAGED_MB_PER_SLOT: u32 = 256;
/// How long nodes may take to come up.
const START_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// What the modules of Java hide and Flink takes, as its own configuration has it.
const OPENED: [&str; 12] = [
    "java.base/java.lang",
    "java.base/java.net",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/sun.nio.ch",
    "java.base/java.lang.reflect",
    "java.base/java.text",
    "java.base/java.time",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/java.util.concurrent.locks",
];

const LOGGING: &str = "rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %-60c %x - %m%n
";

/// A role of a JVM.
#[derive(Debug, Clone, Copy)]
enum Role {
    JobManager,
    TaskManager,
}

impl Role {
    fn class(self) -> &'static str {
        match self {
            Self::JobManager => {
                "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
            }
            Self::TaskManager => "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
        }
    }

    /// What computes its memory.
    fn memory_command(self) -> &'static str {
        match self {
            Self::JobManager => "GET_JM_RESOURCE_PARAMS",
            Self::TaskManager => "GET_TM_RESOURCE_PARAMS",
        }
    }
}

/// Options of a JVM and of the program in it.
#[derive(Debug, Clone)]
struct JvmOptions {
    jvm: Vec<String>,
    program: Vec<String>,
}

/// How nodes of a shape divide their memory.
#[derive(Debug, Clone)]
pub(super) struct NodeOptions {
    job_manager: JvmOptions,
    task_manager: JvmOptions,
}

impl NodeOptions {
    /// Asks Flink, which takes two JVMs and is the same each time.
    pub(super) fn of(installation: &Installation, shape: &Shape) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("flink-").tempdir()?;
        configure(directory.path(), shape, free_port()?)?;
        let conf = directory.path().join("conf");
        Ok(Self {
            job_manager: options(installation, Role::JobManager, &conf)?,
            task_manager: options(installation, Role::TaskManager, &conf)?,
        })
    }
}

/// A running cluster. Dropping it ends all its processes.
#[derive(Debug)]
pub(super) struct Cluster {
    installation: Installation,
    collector: Collector,
    shape: Shape,
    directory: TempDir,
    options: JvmOptions,
    job_manager: Child,
    task_managers: Vec<Child>,
    started: u32,
    pub(super) rest: Rest,
}

impl Cluster {
    /// Starts all nodes; returns when the JobManager answers.
    pub(super) fn start(
        installation: &Installation,
        collector: Collector,
        shape: &Shape,
        options: NodeOptions,
    ) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("flink-").tempdir()?;
        let root = directory.path();
        let port = free_port()?;
        configure(root, shape, port)?;
        // A jar that lies there need not be uploaded.
        let jars = root.join("jars/flink-web-upload");
        std::fs::create_dir_all(&jars)?;
        std::fs::copy(&installation.jar, jars.join(setup::JAR))?;
        let mut command = node(
            installation,
            collector,
            Role::JobManager,
            root,
            &options.job_manager,
        );
        command.args(["--executionMode", "cluster"]);
        let rest = Rest::new(port)?;
        let mut cluster = Self {
            job_manager: spawn(command, root, "jobmanager")?,
            rest,
            installation: installation.clone(),
            collector,
            shape: shape.clone(),
            directory,
            options: options.task_manager,
            task_managers: Vec::new(),
            started: 0,
        };
        // A TaskManager that comes too early waits ten seconds before it asks again.
        cluster.wait_for("a JobManager", |cluster| {
            cluster.rest.get("/overview").is_ok()
        })?;
        for _ in 0..shape.task_managers {
            cluster.start_task_manager()?;
        }
        Ok(cluster)
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    fn start_task_manager(&mut self) -> anyhow::Result<()> {
        let root = self.directory.path();
        let mut command = node(
            &self.installation,
            self.collector,
            Role::TaskManager,
            root,
            &self.options,
        );
        command.args(&self.options.program);
        self.started += 1;
        let name = format!("taskmanager-{}", self.started);
        self.task_managers.push(spawn(command, root, &name)?);
        Ok(())
    }

    /// Starts TaskManagers for those that are dead, and waits until all slots are there and free.
    pub(super) fn repair(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.job_manager.try_wait()?.is_none(),
            "the JobManager is dead"
        );
        self.task_managers
            .retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        for _ in self.task_managers.len()..self.shape.task_managers as usize {
            self.start_task_manager()?;
        }
        self.wait_for_slots()
    }

    /// Also until it has given up those of TaskManagers that are gone.
    pub(super) fn wait_for_slots(&mut self) -> anyhow::Result<()> {
        let wanted = u64::from(self.shape.task_managers * self.shape.slots);
        self.wait_for("free slots", |cluster| {
            let overview = cluster.rest.get("/overview").unwrap_or_default();
            overview["slots-total"] == wanted && overview["slots-available"] == wanted
        })
    }

    fn wait_for(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        while !condition(self) {
            if let Some(status) = self.job_manager.try_wait()? {
                bail!("Flink's JobManager ended with {status}: {}", self.log());
            }
            if began.elapsed() > START_DEADLINE {
                bail!(
                    "no {what} of Flink within {START_DEADLINE:?}: {}",
                    self.log()
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The end of the JobManager's log.
    fn log(&self) -> String {
        let path = self.directory.path().join("jobmanager.log");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub(super) fn processes(&mut self) -> Vec<u32> {
        let children = std::iter::once(&mut self.job_manager).chain(&mut self.task_managers);
        let alive = children.filter_map(|child| match child.try_wait() {
            Ok(None) => Some(child.id()),
            Ok(Some(_)) | Err(_) => None,
        });
        alive.collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in std::iter::once(&mut self.job_manager).chain(&mut self.task_managers) {
            // It may be dead already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All of Flink and a job in one JVM, which is started for it: it has its own cluster within.
pub(super) fn start_alone(
    installation: &Installation,
    collector: Collector,
    class: &str,
    words: &[String],
) -> anyhow::Result<(Child, TempDir)> {
    let directory = tempfile::Builder::new().prefix("flink-").tempdir()?;
    let root = directory.path();
    std::fs::create_dir_all(root.join("conf"))?;
    std::fs::write(root.join("conf/log4j.properties"), LOGGING)?;
    let mut command = java(collector, root);
    let jar = installation.jar.display();
    command
        .args(["-cp", &format!("{jar}:{}", installation.class_path())])
        .arg(class)
        .args(words);
    let child = spawn(command, root, "alone")?;
    Ok((child, directory))
}

fn configure(root: &Path, shape: &Shape, rest_port: u16) -> anyhow::Result<()> {
    let text = |value: &str| value.to_owned();
    let directory = |name: &str| format!("{}/{name}", root.display());
    let mut settings = BTreeMap::from([
        ("jobmanager.rpc.address", text("localhost")),
        ("jobmanager.rpc.port", free_port()?.to_string()),
        ("jobmanager.bind-host", text("localhost")),
        ("jobmanager.memory.process.size", text("1600m")),
        ("blob.server.port", free_port()?.to_string()),
        ("rest.address", text("localhost")),
        ("rest.bind-address", text("localhost")),
        ("rest.port", rest_port.to_string()),
        ("rest.bind-port", rest_port.to_string()),
        ("taskmanager.host", text("localhost")),
        ("taskmanager.bind-host", text("localhost")),
        ("taskmanager.numberOfTaskSlots", shape.slots.to_string()),
        ("state.backend.type", text("hashmap")),
        (
            "execution.checkpointing.dir",
            format!("file://{}", directory("checkpoints")),
        ),
        (
            "execution.checkpointing.savepoint-dir",
            format!("file://{}", directory("savepoints")),
        ),
        ("io.tmp.dirs", directory("tmp")),
        ("web.upload.dir", directory("jars")),
        // What it tells is at most so old, in ms.
        ("web.refresh-interval", text("100")),
        ("web.checkpoints.history", text("100")),
    ]);
    let process = "taskmanager.memory.process.size";
    match shape.memory {
        // It stands in the configuration that Flink comes with.
        Memory::Default => {
            settings.insert(process, text("1728m"));
        }
        Memory::Ample => {
            let megabytes = |per_slot: u32| format!("{}m", per_slot * shape.slots);
            settings.insert(process, megabytes(TASK_MANAGER_MB_PER_SLOT));
            let managed = "taskmanager.memory.managed.size";
            settings.insert(managed, megabytes(MANAGED_MB_PER_SLOT));
        }
    }
    match shape.heartbeats {
        Heartbeats::Default => {}
        Heartbeats::Tuned => {
            settings.insert("heartbeat.interval", text("300"));
            settings.insert("heartbeat.timeout", text("5000"));
        }
    }
    let conf = root.join("conf");
    std::fs::create_dir_all(&conf)?;
    std::fs::create_dir_all(root.join("tmp"))?;
    let lines = settings
        .iter()
        .map(|(key, value)| format!("{key}: {value}\n"));
    std::fs::write(conf.join("config.yaml"), lines.collect::<String>())?;
    std::fs::write(conf.join("log4j.properties"), LOGGING)?;
    Ok(())
}

/// Asks Flink how it divides a process's memory.
fn options(installation: &Installation, role: Role, conf: &Path) -> anyhow::Result<JvmOptions> {
    const ANSWER: &str = "BASH_JAVA_UTILS_EXEC_RESULT:";
    let tools = installation.tools.display();
    let output = Command::new("java")
        .args(["-cp", &format!("{tools}:{}", installation.class_path())])
        .arg("org.apache.flink.runtime.util.bash.BashJavaUtils")
        .args([role.memory_command(), "--configDir"])
        .arg(conf)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut answers = text.lines().filter_map(|line| line.strip_prefix(ANSWER));
    let mut words = || {
        let line = answers.next().with_context(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("Flink does not say how much memory it needs: {text}{errors}")
        })?;
        anyhow::Ok(line.split_whitespace().map(str::to_owned).collect())
    };
    Ok(JvmOptions {
        jvm: words()?,
        program: words()?,
    })
}

fn node(
    installation: &Installation,
    collector: Collector,
    role: Role,
    root: &Path,
    options: &JvmOptions,
) -> Command {
    let mut command = java(collector, root);
    command
        .args(&options.jvm)
        .arg("-cp")
        .arg(installation.class_path())
        .arg(role.class())
        .arg("--configDir")
        .arg(root.join("conf"));
    command
}

/// A JVM that writes its log below a folder.
fn java(collector: Collector, root: &Path) -> Command {
    let mut command = Command::new("java");
    command.arg(match collector {
        Collector::G1 => "-XX:+UseG1GC",
        Collector::Parallel => "-XX:+UseParallelGC",
    });
    for module in OPENED {
        command.arg(format!("--add-opens={module}=ALL-UNNAMED"));
    }
    let logging = root.join("conf/log4j.properties");
    command.arg(format!(
        "-Dlog4j.configurationFile=file:{}",
        logging.display()
    ));
    command
}

fn spawn(mut command: Command, root: &Path, name: &str) -> anyhow::Result<Child> {
    let log: PathBuf = root.join(format!("{name}.log"));
    let file = File::create(&log)?;
    let child = command
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn();
    child.context("cannot start java")
}
