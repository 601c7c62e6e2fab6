//! What is good to know about a chunk size: one line each, only where it applies, naming the next step.

use std::fmt;

use super::Report;
use crate::patch::Done;
use crate::patch::backend::{Backend, State};
use crate::patch::original::Proof;

/// Prompt-cache checkpoints are kept on a grid of this many tokens (mlx-engine's vision kit).
const CHECKPOINT_GRID: u64 = 256;
/// Above this size reports of running out of memory begin (mlx-lm #943, lmstudio-bug-tracker #2240).
const MEMORY_CAUTION: u64 = 8192;
/// Runtimes whose context is fitted to memory with the chunk in the formula (2026-07-14 to 2026-08-21).
const FITTED_CONTEXT: std::ops::RangeInclusive<(u64, u64)> = (1, 9)..=(1, 11);

/// One thing that is good to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// The size is not on the grid of prompt-cache checkpoints.
    OffGrid(u64),
    /// The size is large enough for memory to run out.
    MemoryCaution(u64),
    /// The size is below what these backends ship with.
    BelowStock {
        /// The size, in tokens.
        size: u64,
        /// What they ship with, in tokens.
        stock: u64,
        /// The first of them and how many more.
        layers: Vec<String>,
    },
    /// These runtimes fit a smaller context at a larger chunk.
    SmallerContext(Vec<String>),
    /// The file was not as such files ship when it was first seen.
    NotAsShipped {
        /// The layer and the file.
        file: String,
        /// Whether that is what was given back now.
        is_restored: bool,
    },
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OffGrid(size) => {
                let below = size / CHECKPOINT_GRID * CHECKPOINT_GRID;
                write!(
                    f,
                    "{size} is not a multiple of 256, so hybrid models lose their prompt cache on disk; {} keeps it",
                    below.max(CHECKPOINT_GRID)
                )
            }
            Self::MemoryCaution(size) => write!(
                f,
                "{size} is above 8192: people have run out of memory there without gaining speed; go lower if a model \
                 fails to load or answer"
            ),
            Self::BelowStock {
                size,
                stock,
                layers,
            } => write!(
                f,
                "{size} is below the stock {stock} of {}: it saves memory, but prefill is slower than stock; \
                 `lmpatch --revert` restores the vendor's files",
                and_more(layers)
            ),
            Self::SmallerContext(runtimes) => write!(
                f,
                "{} (like all of 1.9 to 1.11) fits less context into memory at a larger chunk: in one worked case \
                 58,880 tokens at 2048, 34,304 at 4096",
                and_more(runtimes)
            ),
            Self::NotAsShipped {
                file,
                is_restored: false,
            } => write!(
                f,
                "{file} is no known release and did not have the values such files ship with when lmpatch first saw \
                 it; --revert will give that state back, which may not be the vendor's"
            ),
            Self::NotAsShipped {
                file,
                is_restored: true,
            } => write!(
                f,
                "{file} is as lmpatch first found it, which is no known release and not with the values such files \
                 ship with; if an earlier patch was in it, it still is"
            ),
        }
    }
}

fn and_more(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// What is good to know about the chunks that a report shows.
///
/// `wanted` is the size of a run that sets one, also of one that only rehearses.
#[must_use]
pub fn on_sizes(report: &Report, wanted: Option<u64>) -> Vec<Advice> {
    let mut advice = Vec::new();
    for backend in &report.backends {
        let is_off_stock =
            wanted.is_some() || matches!(backend.state, State::Patched | State::Mixed);
        let is_in_play = matches!(
            backend.result,
            None | Some("changed" | "unchanged" | "would-change")
        );
        let (Some(size), Some(stock)) = (wanted.or(backend.chunk), backend.stock) else {
            continue;
        };
        if !is_off_stock || !is_in_play || size == stock {
            continue;
        }
        if size % CHECKPOINT_GRID != 0 {
            add(&mut advice, Advice::OffGrid(size));
        }
        if size > MEMORY_CAUTION {
            add(&mut advice, Advice::MemoryCaution(size));
        }
        if size < stock {
            add(
                &mut advice,
                Advice::BelowStock {
                    size,
                    stock,
                    layers: vec![backend.layer.clone()],
                },
            );
        }
        let fitted = backend
            .runtimes
            .iter()
            .filter(|_| size > stock)
            .filter_map(|runtime| fitted(&runtime.version));
        for runtime in fitted {
            add(&mut advice, Advice::SmallerContext(vec![runtime]));
        }
    }
    advice
}

fn fitted(version: &str) -> Option<String> {
    let mut parts = version.split('.').map(str::parse::<u64>);
    let major_minor = (parts.next()?.ok()?, parts.next()?.ok()?);
    FITTED_CONTEXT
        .contains(&major_minor)
        .then(|| format!("MLX {version}"))
}

/// Adds a piece of advice; one that is there already only gets the new names.
fn add(advice: &mut Vec<Advice>, new: Advice) {
    for old in advice.iter_mut() {
        match (old, &new) {
            (Advice::SmallerContext(names), Advice::SmallerContext(more)) => {
                return names.extend(
                    more.iter()
                        .filter(|name| !names.contains(name))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
            }
            (
                Advice::BelowStock {
                    size,
                    stock,
                    layers,
                },
                Advice::BelowStock {
                    size: new_size,
                    stock: new_stock,
                    layers: more,
                },
            ) if size == new_size && stock == new_stock => {
                return layers.extend(more.iter().cloned());
            }
            (old, new) if old == new => return,
            _ => {}
        }
    }
    advice.push(new);
}

/// What is good to know about the originals of a backend that was changed, or would be.
#[must_use]
pub fn on_originals(done: &Done) -> Vec<Advice> {
    let doubtful = |backend: &Backend| {
        let files = backend.files.iter().filter(|file| {
            file.content()
                .is_some_and(|content| content.original.proof == Proof::Found)
        });
        files
            .map(|file| {
                format!(
                    "{}: {}",
                    backend.layer.name.to_string_lossy(),
                    file.short_path()
                )
            })
            .collect::<Vec<_>>()
    };
    let (before, after) = (doubtful(&done.before), doubtful(&done.after));
    let restored = before.iter().filter(|file| !after.contains(file));
    let restored = restored.map(|file| Advice::NotAsShipped {
        file: file.clone(),
        is_restored: true,
    });
    let edited = after.iter().filter(|file| !before.contains(file));
    let edited = edited.map(|file| Advice::NotAsShipped {
        file: file.clone(),
        is_restored: false,
    });
    restored.chain(edited).collect()
}
