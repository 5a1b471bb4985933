//! Gets Flink and compiles its jobs: everything below one folder, nothing else on the machine is changed.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The release that is measured.
pub const VERSION: &str = "2.3.0";
/// Of the jobs, in the folder that a cluster takes jars from.
pub(super) const JAR: &str = "perennial-bench.jar";
/// Where the jobs' sources lie.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/flink");

/// Flink cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A program is missing.
    #[error(
        "Flink needs `{program}`, which cannot be run ({source}); install {package}, or leave Flink out with --peers perennial,bare"
    )]
    Missing {
        /// Its name.
        program: &'static str,
        /// What has it, by Debian's name.
        package: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A program fails.
    #[error("cannot {what}: {output}")]
    Failed {
        /// What it was to do.
        what: String,
        /// What it said.
        output: String,
    },
    /// The folder cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Flink, unpacked, and the jobs' jar.
#[derive(Debug, Clone)]
pub struct Installation {
    /// Jars of Flink.
    pub(super) lib: PathBuf,
    /// The jar that computes the memory of a JVM from Flink's settings.
    pub(super) tools: PathBuf,
    /// The jobs.
    pub(super) jar: PathBuf,
}

impl Installation {
    /// Downloads, unpacks and compiles what is not there yet.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn prepare(folder: &Path, say: &dyn Fn(&str)) -> Result<Self, SetupError> {
        const JDK: &str = "openjdk-17-jdk-headless";
        for program in ["java", "javac", "jar"] {
            run(
                Command::new(program).arg("--version"),
                program,
                JDK,
                "run it",
            )?;
        }
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| SetupError::Folder { path, source }
        };
        std::fs::create_dir_all(folder).map_err(error(folder))?;
        let folder = folder.canonicalize().map_err(error(folder))?;
        let home = folder.join(format!("flink-{VERSION}"));
        let lib = home.join("pyflink/lib");
        if !lib.is_dir() {
            say(&format!("downloading Flink {VERSION} (330 MB, once)"));
            unpack(&folder, &home, error)?;
        }
        let installation = Self {
            tools: home.join("pyflink/bin/bash-java-utils.jar"),
            jar: folder.join(JAR),
            lib,
        };
        installation.compile(&folder, error)?;
        Ok(installation)
    }

    /// All jars of Flink, as a class path.
    pub(super) fn class_path(&self) -> String {
        format!("{}/*", self.lib.display())
    }

    fn compile<E: FnOnce(std::io::Error) -> SetupError>(
        &self,
        folder: &Path,
        error: impl Fn(&Path) -> E,
    ) -> Result<(), SetupError> {
        let mut sources = Vec::new();
        java_files(Path::new(SOURCES), &mut sources).map_err(error(Path::new(SOURCES)))?;
        let fingerprint = fingerprint(&sources).map_err(error(Path::new(SOURCES)))?;
        // Beside the jar. File times say nothing: those of a fresh checkout may be older than a jar of other sources.
        let packed = self.jar.with_extension("sources");
        let is_current = std::fs::read_to_string(&packed).is_ok_and(|of| of == fingerprint);
        if is_current && self.jar.is_file() {
            return Ok(());
        }
        // First away and written last: what is interrupted between leaves a jar that is made again.
        if packed.is_file() {
            std::fs::remove_file(&packed).map_err(error(&packed))?;
        }
        let classes = folder.join("classes");
        if classes.is_dir() {
            std::fs::remove_dir_all(&classes).map_err(error(&classes))?;
        }
        let mut compiler = Command::new("javac");
        compiler.args(["--release", "17", "-nowarn", "-cp"]);
        compiler.arg(self.class_path()).arg("-d").arg(&classes);
        compiler.args(&sources);
        run(
            &mut compiler,
            "javac",
            "a JDK",
            "compile the jobs for Flink",
        )?;
        let mut jar = Command::new("jar");
        jar.arg("cf")
            .arg(&self.jar)
            .arg("-C")
            .arg(&classes)
            .arg(".");
        run(&mut jar, "jar", "a JDK", "pack the jobs for Flink")?;
        std::fs::write(&packed, fingerprint).map_err(error(&packed))
    }
}

/// Tells names and contents of sources, and the release they are compiled for, apart from others.
fn fingerprint(sources: &[PathBuf]) -> std::io::Result<String> {
    let mut hasher = DefaultHasher::new();
    VERSION.hash(&mut hasher);
    for path in sources {
        // Not where the checkout lies.
        let name = path.strip_prefix(SOURCES).unwrap_or(path);
        (name, std::fs::read(path)?).hash(&mut hasher);
    }
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn unpack<E: FnOnce(std::io::Error) -> SetupError>(
    folder: &Path,
    home: &Path,
    error: impl Fn(&Path) -> E,
) -> Result<(), SetupError> {
    let download = folder.join("download");
    let package = format!("apache-flink-libraries=={VERSION}");
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]);
    pip.arg(&package).arg("-d").arg(&download);
    let what = format!("download {package} with pip");
    run(&mut pip, "python3", "python3-pip", &what)?;
    let files = std::fs::read_dir(&download).map_err(error(&download))?;
    let wheel = files
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| SetupError::Failed {
            what,
            output: format!("no wheel in {}", download.display()),
        })?;
    // Under its name only when it is whole.
    let partial = folder.join("unpacking");
    if partial.is_dir() {
        std::fs::remove_dir_all(&partial).map_err(error(&partial))?;
    }
    std::fs::create_dir_all(&partial).map_err(error(&partial))?;
    let mut jar = Command::new("jar");
    jar.current_dir(&partial).arg("xf").arg(&wheel);
    run(&mut jar, "jar", "a JDK", "unpack Flink")?;
    std::fs::rename(&partial, home).map_err(error(home))?;
    std::fs::remove_dir_all(&download).map_err(error(&download))
}

fn java_files(directory: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            java_files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "java") {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}

fn run(
    command: &mut Command,
    program: &'static str,
    package: &'static str,
    what: &str,
) -> Result<(), SetupError> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| SetupError::Missing {
        program,
        package,
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(SetupError::Failed {
        what: what.to_owned(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents count, times do not.
    #[test]
    fn a_jar_is_renewed_when_a_source_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        let now = || {
            let mut sources = Vec::new();
            java_files(folder.path(), &mut sources).unwrap();
            fingerprint(&sources).unwrap()
        };
        write("A.java", "a");
        let before = now();
        write("A.java", "a");
        write("notes.txt", "no source");
        assert_eq!(now(), before);
        write("A.java", "b");
        assert_ne!(now(), before);
        write("A.java", "a");
        write("B.java", "");
        assert_ne!(now(), before);
        std::fs::remove_file(path("B.java")).unwrap();
        assert_eq!(now(), before);
        std::fs::rename(path("A.java"), path("C.java")).unwrap();
        assert_ne!(now(), before);
    }
}
