//! Names of the rows of the catalogue ([`crate::catalogue`] says what each is) and of the invariants.

use serde::{Deserialize, Serialize};

macro_rules! names {
    ($(#[$meta:meta])* $name:ident: $($row:ident)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "the catalogue describes each")]
        pub enum $name { $($row),* }

        impl $name {
            /// All, in order.
            pub const ALL: &[Self] = &[$(Self::$row),*];

            /// As in the catalogue.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$row => stringify!($row)),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let is_it = |row: &&Self| row.as_str().eq_ignore_ascii_case(text);
                Self::ALL.iter().find(is_it).copied().ok_or_else(|| {
                    format!("`{text}` is none of {}..{}", Self::ALL[0], Self::ALL[Self::ALL.len() - 1])
                })
            }
        }
    };
}

names! {
    /// A row of the catalogue.
    Row: P1 P2 P3 P4 P5 P6 P7 P8 P9 P10 P11 P12
        A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11
        N1 N2 N3 N4 N5 N6 N7 N8 N9 N10 N11
        O1 O2 O3 O4 O5 O6 O7 O8 O9 O10 O11 O12
        D1 D2 D3 D4 D5
        T1 T2 T3
        C1 C2 C3 C4
}

names! {
    /// What must hold.
    Invariant: S1 S2 S3 S4 S5 S6 S7 L1 L2 L3 R1 R2 R3 R4 R5
}

/// A part of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// P.
    Process,
    /// A.
    Actor,
    /// N.
    Network,
    /// O.
    Store,
    /// D.
    Disk,
    /// T.
    Clock,
    /// C.
    Configuration,
}

impl Row {
    /// Its part of the catalogue.
    #[must_use]
    pub fn section(self) -> Section {
        match self.as_str().as_bytes()[0] {
            b'P' => Section::Process,
            b'A' => Section::Actor,
            b'N' => Section::Network,
            b'O' => Section::Store,
            b'D' => Section::Disk,
            b'T' => Section::Clock,
            _ => Section::Configuration,
        }
    }
}
