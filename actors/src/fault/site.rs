//! The places in the code where a fault may strike: each is a moment in which a failure is hard to get right.

/// One kind of moment. [`FaultPlace`](super::FaultPlace) says whose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "fault-points", derive(Debug, Hash))]
pub enum FaultSite {
    /// JobManager: before it looks for the epoch that it may claim.
    BeforeEpochClaim,
    /// JobManager: a TaskManager introduces itself.
    OnRegister,
    /// JobMaster: a failure is being decided about.
    OnFailover,
    /// Coordinator: a snapshot to restore is about to be chosen.
    OnRestoreChoice,
    /// JobMaster: everything is granted, nothing sent.
    BeforeDeploy,
    /// JobMaster: all deployments are sent.
    AfterDeploy,
    /// TaskManager: a deployment has come, nothing is started.
    OnDeploy,
    /// Task: it has nothing of its state yet.
    BeforeRestore,
    /// Task: a former attempt's state is rolled back, or given up; nothing is read yet.
    DuringRestore,
    /// Task: its operators are about to be opened.
    OnOpen,
    /// Task: its first record is processed or emitted.
    OnFirstRecord,
    /// Task: a timer is about to fire, or a window.
    OnTimer,
    /// Coordinator: a checkpoint has been triggered.
    WithCheckpointPending,
    /// Coordinator: a savepoint is asked for.
    OnSavepoint,
    /// Task: one channel's barrier has come, another's has not.
    DuringAlignment,
    /// Task: the synchronous part of its snapshot begins.
    OnSnapshot,
    /// Sink: it has prepared a commit.
    AfterPreCommit,
    /// TaskManager: everything of a checkpoint is gathered, nothing is written.
    BeforeUpload,
    /// TaskManager: its object is durable, the JobManager does not know.
    AfterUploadBeforeAck,
    /// Coordinator: every object is durable and the manifest composed, the record is not written.
    AfterManifestBeforeRecord,
    /// Coordinator: the record is written, nobody knows.
    AfterRecordBeforeNotify,
    /// Task: it hears that a checkpoint is complete.
    OnNotify,
    /// Sink: a commit has its permit and is about to happen.
    BeforeCommit,
    /// Task: its operators are about to be closed.
    OnClose,
}

#[cfg(feature = "fault-points")]
impl FaultSite {
    /// All.
    pub const ALL: [Self; 24] = [
        Self::BeforeEpochClaim,
        Self::OnRegister,
        Self::OnFailover,
        Self::OnRestoreChoice,
        Self::BeforeDeploy,
        Self::AfterDeploy,
        Self::OnDeploy,
        Self::BeforeRestore,
        Self::DuringRestore,
        Self::OnOpen,
        Self::OnFirstRecord,
        Self::OnTimer,
        Self::WithCheckpointPending,
        Self::OnSavepoint,
        Self::DuringAlignment,
        Self::OnSnapshot,
        Self::AfterPreCommit,
        Self::BeforeUpload,
        Self::AfterUploadBeforeAck,
        Self::AfterManifestBeforeRecord,
        Self::AfterRecordBeforeNotify,
        Self::OnNotify,
        Self::BeforeCommit,
        Self::OnClose,
    ];

    /// As plans and reports write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeEpochClaim => "before-epoch-claim",
            Self::OnRegister => "on-register",
            Self::OnFailover => "on-failover",
            Self::OnRestoreChoice => "on-restore-choice",
            Self::BeforeDeploy => "before-deploy",
            Self::AfterDeploy => "after-deploy",
            Self::OnDeploy => "on-deploy",
            Self::BeforeRestore => "before-restore",
            Self::DuringRestore => "during-restore",
            Self::OnOpen => "on-open",
            Self::OnFirstRecord => "on-first-record",
            Self::OnTimer => "on-timer",
            Self::WithCheckpointPending => "with-checkpoint-pending",
            Self::OnSavepoint => "on-savepoint",
            Self::DuringAlignment => "during-alignment",
            Self::OnSnapshot => "on-snapshot",
            Self::AfterPreCommit => "after-pre-commit",
            Self::BeforeUpload => "before-upload",
            Self::AfterUploadBeforeAck => "after-upload-before-ack",
            Self::AfterManifestBeforeRecord => "after-manifest-before-record",
            Self::AfterRecordBeforeNotify => "after-record-before-notify",
            Self::OnNotify => "on-notify",
            Self::BeforeCommit => "before-commit",
            Self::OnClose => "on-close",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|site| site.name() == name)
    }
}

#[cfg(feature = "fault-points")]
impl std::fmt::Display for FaultSite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
