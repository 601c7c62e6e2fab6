//! What is edited: the settings, where each stands, how many sites are expected, and what the vendor ships.
//!
//! A new engine shape or a new setting is one more row here.

use std::ops::RangeInclusive;

use memchr::memmem;

/// The chunk sizes that can be set, in tokens. Below 1 the engine misbehaves; far above 8192 memory ends first.
pub const SIZES: RangeInclusive<u64> = 64..=131_072;

/// The chunk size that a bare `lmpatch` sets, in tokens.
pub const DEFAULT_SIZE: u64 = 4096;

/// One vendor file that holds the chunk size.
#[derive(Debug)]
pub struct Setting {
    /// The Python package; also its directory in `site-packages`.
    pub package: &'static str,
    /// The file in that directory.
    pub file: &'static str,
    /// How the number is written, newest engines first. The first form that the file has is the one that counts.
    pub forms: &'static [Form],
    /// The number that the vendor ships.
    pub stock: StockRule,
    /// The owner whose site is the backend's chunk where this file alone tells it.
    pub governing_owner: Option<&'static str>,
}

impl Setting {
    /// The path below `site-packages`, as `RECORD` writes it.
    #[must_use]
    pub fn record_path(&self) -> String {
        format!("{}/{}", self.package, self.file)
    }
}

/// One way in which engines write the setting.
#[derive(Debug)]
pub struct Form {
    /// The name that is given the value.
    pub name: &'static str,
    /// Which definitions of that name are the setting.
    pub place: FormPlace,
    /// How many of them there must be.
    pub count: Count,
}

/// Which definitions of a name are the setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormPlace {
    /// A constant of the module.
    ModuleConstant,
    /// The default of a parameter of a method of this class.
    MethodParameter(&'static str),
    /// A parameter default, or an annotated variable or field, of anything.
    AnyDefinition,
}

/// How many sites a form must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// One; two would mean that one of them overrides the other.
    ExactlyOne,
    /// One or more.
    AtLeastOne,
}

impl Count {
    /// Whether `found` sites are as many as there must be.
    #[must_use]
    pub fn admits(self, found: usize) -> bool {
        match self {
            Self::ExactlyOne => found == 1,
            Self::AtLeastOne => found >= 1,
        }
    }
}

/// The value that the vendor ships, where neither `RECORD` nor the table of releases knows the file.
#[derive(Debug, Clone, Copy)]
pub enum StockRule {
    /// `then` where the source mentions the word, else `otherwise`.
    Mention {
        /// The word.
        word: &'static str,
        /// The value where it is mentioned.
        then: u64,
        /// The value where it is not.
        otherwise: u64,
    },
    /// `then` for the site of this owner, `otherwise` for every other one.
    Owner {
        /// The owner, as [`crate::patch::sites::Site::owner`] has it.
        owner: &'static str,
        /// The value of its site.
        then: u64,
        /// The value of all other sites.
        otherwise: u64,
    },
}

impl StockRule {
    /// The stock value of the site of `owner` in `source`.
    #[must_use]
    pub fn value(self, source: &[u8], owner: &str) -> u64 {
        let (applies, then, otherwise) = match self {
            Self::Mention {
                word,
                then,
                otherwise,
            } => (
                memmem::find(source, word.as_bytes()).is_some(),
                then,
                otherwise,
            ),
            Self::Owner {
                owner: special,
                then,
                otherwise,
            } => (owner == special, then, otherwise),
        };
        if applies { then } else { otherwise }
    }
}

/// Every setting, the one that governs first.
///
/// Names, places and stock values hold for every published mlx-engine since 2025-02 and every mlx-lm wheel since
/// 0.22.3: the chunk was 512 until 2026-03-25, when `validate_prefill_step_size` came with 2048; mlx-lm ships 512
/// for speculative decoding and 2048 for the rest.
pub const SETTINGS: [Setting; 2] = [
    Setting {
        package: "mlx_engine",
        file: "cache_wrapper.py",
        forms: &[
            Form {
                name: "PROMPT_PROCESSING_CHUNK_SIZE",
                place: FormPlace::ModuleConstant,
                count: Count::ExactlyOne,
            },
            // Engines of 2025-02 to 2025-09, before the constant existed.
            Form {
                name: "chunk_size",
                place: FormPlace::MethodParameter("CacheWrapper"),
                count: Count::ExactlyOne,
            },
        ],
        stock: StockRule::Mention {
            word: "validate_prefill_step_size",
            then: 2048,
            otherwise: 512,
        },
        governing_owner: None,
    },
    Setting {
        package: "mlx_lm",
        file: "generate.py",
        forms: &[Form {
            name: "prefill_step_size",
            place: FormPlace::AnyDefinition,
            count: Count::AtLeastOne,
        }],
        stock: StockRule::Owner {
            owner: "speculative_generate_step",
            then: 512,
            otherwise: 2048,
        },
        governing_owner: Some("generate_step"),
    },
];
