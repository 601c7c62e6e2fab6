//! PURE: prompts that no cache knows, of a wanted number of tokens.

/// Where the words of a prompt come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Made on the spot, as long as it has to be.
    Generated,
    /// The user's own.
    File(String),
}

/// Words of ordinary prose, so that tokenizers split it as they split ordinary prose.
const WORDS: [&str; 32] = [
    "the", "river", "of", "a", "morning", "and", "seven", "letters", "in", "quiet", "houses",
    "that", "carry", "bread", "through", "winter", "from", "one", "station", "to", "another",
    "while", "nobody", "counts", "stones", "under", "their", "bridge", "with", "paper", "lamps",
    "again",
];

/// Sentences have this many words.
const SENTENCE: usize = 12;

impl Text {
    /// How many characters there are at most; none where there is no end.
    #[must_use]
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::Generated => None,
            Self::File(text) => Some(text.chars().count()),
        }
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The first `characters` of it, behind `nonce`: caches reuse the longest common beginning, so what makes a
    /// prompt new must stand at its very start.
    #[must_use]
    pub fn prompt(&self, nonce: &str, characters: usize) -> String {
        let mut prompt = format!("{nonce} ");
        match self {
            Self::Generated => prompt.extend(prose().take(characters)),
            Self::File(text) => prompt.extend(text.chars().take(characters)),
        }
        prompt
    }
}

/// The same endless prose on every machine.
fn prose() -> impl Iterator<Item = char> {
    let mut state: u64 = 1;
    let word = move |index: usize| {
        // Knuth's linear congruential generator; its upper bits are random enough for words.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = usize::try_from(state >> 59)
            .ok()
            .and_then(|chosen| WORDS.get(chosen))
            .copied()
            .unwrap_or_default();
        word.chars().chain(
            if (index + 1).is_multiple_of(SENTENCE) {
                ". "
            } else {
                " "
            }
            .chars(),
        )
    };
    (0..).flat_map(word)
}

/// A prompt of which the server counted the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Its characters, nonce aside.
    pub characters: usize,
    /// Its tokens, with whatever the chat template adds.
    pub tokens: u64,
}

/// How many characters make `tokens` tokens, judged by two prompts that were counted.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "lengths of prompts, far below 2^53"
)]
pub fn characters_for(tokens: u64, one: Counted, other: Counted) -> usize {
    let run = other.characters as f64 - one.characters as f64;
    let rise = other.tokens as f64 - one.tokens as f64;
    let through_both = run / rise;
    // Two counts of the same length say nothing about the slope; then the larger one alone gives it.
    let per_token = if through_both.is_finite() && through_both > 0.0 {
        through_both
    } else {
        other.characters as f64 / (other.tokens as f64).max(1.0)
    };
    (other.characters as f64 + (tokens as f64 - other.tokens as f64) * per_token)
        .round()
        .max(1.0) as usize
}

/// Whether a count is as near to what was wanted as is promised: 1 %.
#[must_use]
pub fn is_near(tokens: u64, wanted: u64) -> bool {
    tokens.abs_diff(wanted) * 100 <= wanted
}

/// How much of a context a prompt may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// All of what was asked.
    Whole(u64),
    /// Less, because the context is smaller.
    Cut {
        /// The tokens that fit.
        tokens: u64,
        /// The context, in tokens.
        context: u64,
    },
    /// So little that nothing about the largest size can be learnt.
    TooSmall {
        /// The tokens that fit, or that were asked for.
        tokens: u64,
        /// The tokens that it takes.
        needed: u64,
        /// The context, where it is known and is what is too small.
        context: Option<u64>,
    },
}

/// What is kept free of a context for the answer and for a count that is 1 % off.
fn reserve(context: u64) -> u64 {
    (context / 64).max(64)
}

/// How many prompt tokens fit: all that were asked for, or less; at least twice the largest size.
#[must_use]
pub fn fit(asked: u64, context: Option<u64>, largest_size: u64) -> Fit {
    let needed = 2 * largest_size;
    let room = context.map(|context| context.saturating_sub(reserve(context)));
    let tokens = room.map_or(asked, |room| room.min(asked));
    match context {
        _ if tokens < needed => Fit::TooSmall {
            tokens,
            needed,
            context: context.filter(|_| tokens < asked),
        },
        Some(context) if tokens < asked => Fit::Cut { tokens, context },
        _ => Fit::Whole(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nonce_stands_at_the_very_start() {
        for text in [Text::Generated, Text::File("Once upon a time".to_owned())] {
            let (one, other) = (text.prompt("aaaa", 10), text.prompt("bbbb", 10));
            assert!(one.starts_with("aaaa ") && other.starts_with("bbbb "));
            assert_eq!(one.trim_start_matches('a'), other.trim_start_matches('b'));
            assert_eq!(one.chars().count(), 15);
        }
    }

    #[test]
    fn prose_is_the_same_everywhere_and_has_no_end() {
        let prompt = Text::Generated.prompt("n", 100_000);
        assert_eq!(prompt.chars().count(), 100_002);
        assert!(prompt.contains(". ") && WORDS.iter().all(|word| prompt.contains(word)));
        assert_eq!(prompt, Text::Generated.prompt("n", 100_000));
    }

    #[test]
    fn a_file_is_cut_between_characters() {
        let text = Text::File("Größe 你好".to_owned());
        assert_eq!(text.prompt("n", 3), "n Grö");
        assert_eq!(text.prompt("n", 900), "n Größe 你好");
        assert_eq!(text.len(), Some(8));
    }

    #[test]
    fn lengths_follow_from_two_counts() {
        let counted = |characters, tokens| Counted { characters, tokens };
        // Four characters a token, 20 tokens of template.
        assert_eq!(
            characters_for(10_000, counted(400, 120), counted(1600, 420)),
            39_920
        );
        assert_eq!(
            characters_for(10_000, counted(39_000, 9_900), counted(39_920, 10_120)),
            39_418
        );
        assert_eq!(
            characters_for(100, counted(400, 100), counted(400, 100)),
            400
        );
        assert_eq!(characters_for(1, counted(400, 120), counted(1600, 420)), 1);
    }

    #[test]
    fn one_percent_is_near() {
        assert!(is_near(10_100, 10_000) && is_near(9_900, 10_000));
        assert!(!is_near(10_101, 10_000) && !is_near(9_899, 10_000));
    }

    #[test]
    fn the_prompt_fits_what_is_loaded() {
        assert_eq!(fit(40_000, None, 8192), Fit::Whole(40_000));
        assert_eq!(fit(40_000, Some(131_072), 8192), Fit::Whole(40_000));
        assert_eq!(
            fit(40_000, Some(32_768), 8192),
            Fit::Cut {
                tokens: 32_256,
                context: 32_768
            }
        );
        let too_small = |tokens, context| Fit::TooSmall {
            tokens,
            needed: 16_384,
            context,
        };
        assert_eq!(fit(40_000, Some(4096), 8192), too_small(4032, Some(4096)));
        assert_eq!(fit(40_000, Some(10), 8192), too_small(0, Some(10)));
        assert_eq!(fit(10_000, None, 8192), too_small(10_000, None));
        assert_eq!(fit(10_000, Some(131_072), 8192), too_small(10_000, None));
        assert_eq!(fit(16_384, None, 8192), Fit::Whole(16_384));
    }
}
