//! Measures prefills through anything that answers prompts.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use super::chunk::{self, Progress};
use super::progress::Bar;
use super::prompt::{Counted, Text, characters_for, is_near};
use super::record::{Flag, Row, Run, Source};
use crate::lmstudio::chat::Reply;
use crate::lmstudio::server::Trouble;

/// Something that answers prompts: a server, or in tests a made-up one.
pub trait Engine {
    /// One token behind `prompt`. `told` is given the part of the prompt that is done, from 0 to 1.
    fn prefill(&mut self, prompt: &str, told: &mut dyn FnMut(f64)) -> Result<Reply, Trouble>;
}

/// The lengths of the two short prompts of the calibration, in characters.
const PROBES: [usize; 2] = [400, 1600];

/// How often a full prompt is sent to get its length right. The first of them is the warm-up.
const ATTEMPTS: usize = 3;

/// What makes a prompt new.
#[must_use]
pub fn nonce() -> String {
    // The standard library's hasher takes its keys from the system's randomness.
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// Prompts of one length, each of them new.
#[derive(Debug)]
pub struct Prompts {
    text: Text,
    counted: Counted,
    /// The tokens that each is to have.
    pub tokens: u64,
    characters: usize,
}

impl Prompts {
    /// Finds out with two short prompts how long the text's tokens are.
    pub fn calibrate(text: Text, engine: &mut dyn Engine) -> Result<Self, Trouble> {
        let mut count = |characters: usize| {
            let characters = text.len().map_or(characters, |len| len.min(characters));
            let reply = engine.prefill(&text.prompt(&nonce(), characters), &mut |_| {})?;
            Ok(Counted {
                characters,
                tokens: reply.prompt_tokens,
            })
        };
        let (one, other) = (count(PROBES[0])?, count(PROBES[1])?);
        let characters = other.characters;
        // From here on the two probes are one: the slope between them, through the second.
        let counted = if other.characters > one.characters {
            one
        } else {
            Counted {
                characters: 0,
                tokens: 0,
            }
        };
        Ok(Self {
            text,
            counted,
            tokens: other.tokens,
            characters,
        })
    }

    /// About how many tokens all of the text has; none where it has no end.
    #[must_use]
    pub fn whole(&self) -> Option<u64> {
        let characters = self.text.len()?;
        // The inverse question: tokens per character, by the same two counts.
        let per_character = ratio(
            self.tokens - self.counted.tokens.min(self.tokens),
            self.characters - self.counted.characters,
        );
        Some(self.tokens + tokens_of(characters.saturating_sub(self.characters), per_character))
    }

    /// From now on prompts are to have so many tokens.
    pub fn aim(&mut self, tokens: u64) {
        let last = Counted {
            characters: self.characters,
            tokens: self.tokens,
        };
        self.characters = self.limited(characters_for(tokens, self.counted, last));
        self.counted = last;
        self.tokens = tokens;
    }

    fn limited(&self, characters: usize) -> usize {
        self.text
            .len()
            .map_or(characters, |len| len.min(characters))
    }

    fn next(&self) -> String {
        self.text.prompt(&nonce(), self.characters)
    }

    /// Sends a full prompt that does not count, and corrects the length by what the server counted.
    pub fn warm_up(&mut self, engine: &mut dyn Engine, bar: &mut Bar) -> Result<(), Trouble> {
        for attempt in 1..=ATTEMPTS {
            let reply = engine.prefill(&self.next(), &mut |part| {
                bar.at(tokens_of_part(part, self.tokens))
            })?;
            let is_all =
                self.text.len() == Some(self.characters) && reply.prompt_tokens <= self.tokens;
            if is_near(reply.prompt_tokens, self.tokens) || is_all || attempt == ATTEMPTS {
                break;
            }
            let now = Counted {
                characters: self.characters,
                tokens: reply.prompt_tokens,
            };
            self.characters = self.limited(characters_for(self.tokens, self.counted, now));
        }
        bar.pass(self.tokens);
        Ok(())
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "lengths of prompts, far below 2^53"
)]
fn ratio(tokens: u64, characters: usize) -> f64 {
    tokens as f64 / (characters as f64).max(1.0)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "lengths of prompts, far below 2^53"
)]
fn tokens_of(characters: usize, per_character: f64) -> u64 {
    (characters as f64 * per_character).round() as u64
}

fn tokens_of_part(part: f64, tokens: u64) -> u64 {
    tokens_of(
        usize::try_from(tokens).unwrap_or_default(),
        part.clamp(0.0, 1.0),
    )
}

/// Warms up and measures one size: a row also where something fails, with the runs until then.
pub fn row(
    engine: &mut dyn Engine,
    prompts: &mut Prompts,
    size: Option<u64>,
    runs: u32,
    bar: &mut Bar,
) -> Row {
    let name = size.map_or_else(|| "as it is".to_owned(), |size| size.to_string());
    bar.label(format!("{name}, warm-up"));
    if let Err(trouble) = prompts.warm_up(engine, bar) {
        return Row::failed(size, trouble.to_string());
    }
    let mut measured = Vec::new();
    for number in 1..=runs {
        bar.label(format!("{name}, run {number} of {runs}"));
        let told = &mut |part| bar.at(tokens_of_part(part, prompts.tokens));
        match engine
            .prefill(&prompts.next(), told)
            .and_then(|reply| run(&reply))
        {
            Ok(run) => measured.push(run),
            Err(trouble) => return Row::of(size, measured, Some(trouble.to_string())),
        }
        bar.pass(prompts.tokens);
    }
    Row::of(size, measured, None)
}

/// What one reply says about prefill.
pub fn run(reply: &Reply) -> Result<Run, Trouble> {
    let (seconds, source) = match (reply.server_seconds, reply.client_seconds) {
        (Some(seconds), _) => (seconds, Source::Server),
        (None, Some(seconds)) => (seconds, Source::Client),
        (None, None) => {
            return Err(Trouble::Unreadable(
                "it tells no time to first token".to_owned(),
            ));
        }
    };
    let tokens = f64::from(u32::try_from(reply.prompt_tokens).unwrap_or(u32::MAX));
    let progress: Vec<_> = reply
        .progress
        .iter()
        .map(|told| Progress {
            seconds: told.seconds,
            done: told.total.map_or(told.done * tokens, |_| told.done),
        })
        .collect();
    // A chat template's own beginning is the same in every prompt, so a few cached tokens are no cache hit.
    let told_hit = reply
        .cached_tokens
        .is_some_and(|cached| cached * 100 > reply.prompt_tokens);
    let is_hit = told_hit || chunk::starts_in_cache(&progress);
    Ok(Run {
        prompt_tokens: reply.prompt_tokens,
        prefill_seconds: seconds,
        tokens_per_second: tokens / seconds,
        source,
        flags: if is_hit {
            vec![Flag::CacheHit]
        } else {
            Vec::new()
        },
        cached_tokens: reply.cached_tokens,
        peak_memory_bytes: None,
        observed: chunk::observed(&progress),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lmstudio::chat;
    use crate::ui::Ui;

    /// Four characters a token, 20 tokens of template, a known speed; no clock, no sleep.
    #[derive(Default)]
    struct Mock {
        prompts: Vec<String>,
        speeds: Vec<f64>,
        fails_at: Option<usize>,
        per_token: usize,
    }

    impl Engine for Mock {
        fn prefill(&mut self, prompt: &str, told: &mut dyn FnMut(f64)) -> Result<Reply, Trouble> {
            self.prompts.push(prompt.to_owned());
            if self.fails_at == Some(self.prompts.len()) {
                return Err(Trouble::CutOff("out of memory".to_owned()));
            }
            let prompt_tokens =
                u64::try_from(20 + prompt.chars().count() / self.per_token.max(4)).unwrap();
            let tokens = f64::from(u32::try_from(prompt_tokens).unwrap());
            let speed = if self.speeds.is_empty() {
                1000.0
            } else {
                self.speeds.remove(0)
            };
            told(0.5);
            let steps = (0..)
                .map(|step| f64::from(step) * 512.0)
                .take_while(|done| *done < tokens)
                .chain([tokens]);
            let progress = steps.map(|done| chat::Progress {
                seconds: done / speed,
                done: done / tokens,
                total: None,
            });
            Ok(Reply {
                prompt_tokens,
                server_seconds: Some(tokens / speed),
                progress: progress.collect(),
                ..Reply::default()
            })
        }
    }

    fn bar() -> Bar {
        Bar::new(&Ui::new(anstream::ColorChoice::Never, true, false), 0)
    }

    fn measure(mock: &mut Mock, text: Text, tokens: u64, runs: u32) -> Row {
        let mut prompts = Prompts::calibrate(text, mock).unwrap();
        prompts.aim(tokens);
        row(mock, &mut prompts, Some(512), runs, &mut bar())
    }

    #[test]
    fn two_probes_one_warm_up_and_the_runs_are_sent_and_the_figures_are_exact() {
        // Two probes and the warm-up at speeds that must not count.
        let mut mock = Mock {
            speeds: vec![1.0, 1.0, 1.0, 800.0, 1000.0, 900.0],
            ..Mock::default()
        };
        let row = measure(&mut mock, Text::Generated, 10_000, 3);
        assert_eq!(mock.prompts.len(), 6);
        assert!(
            row.median_tokens_per_second
                .is_some_and(|speed| (speed - 900.0).abs() < 1e-6),
            "{row:?}"
        );
        assert_eq!(
            (row.observed_chunk, row.observed_steps, row.failed),
            (Some(512), Some(20), None)
        );
        assert!(
            row.runs
                .iter()
                .all(|run| is_near(run.prompt_tokens, 10_000)),
            "{:?}",
            row.runs
        );
        assert!(
            row.runs
                .iter()
                .all(|run| run.source == Source::Server && run.flags.is_empty())
        );
    }

    #[test]
    fn no_two_prompts_start_alike() {
        let mut mock = Mock::default();
        measure(&mut mock, Text::Generated, 10_000, 5);
        let starts: std::collections::BTreeSet<_> = mock
            .prompts
            .iter()
            .map(|prompt| prompt.chars().take(16).collect::<String>())
            .collect();
        assert_eq!(starts.len(), mock.prompts.len());
    }

    #[test]
    fn the_length_is_corrected_by_the_warm_up() {
        let mut mock = Mock::default();
        let mut prompts = Prompts::calibrate(Text::Generated, &mut mock).unwrap();
        prompts.aim(10_000);
        mock.per_token = 5;
        prompts.warm_up(&mut mock, &mut bar()).unwrap();
        assert!(mock.prompts.len() > 3);
        let reply = mock.prefill(&prompts.next(), &mut |_| {}).unwrap();
        assert!(
            is_near(reply.prompt_tokens, 10_000),
            "{}",
            reply.prompt_tokens
        );
    }

    #[test]
    fn a_file_is_taken_as_far_as_it_goes() {
        let text = Text::File("four".repeat(3000));
        let prompts = Prompts::calibrate(text.clone(), &mut Mock::default()).unwrap();
        assert!(
            prompts.whole().is_some_and(|tokens| is_near(tokens, 3024)),
            "{:?}",
            prompts.whole()
        );
        let mut mock = Mock::default();
        let row = measure(&mut mock, text, 3024, 1);
        assert_eq!((mock.prompts.len(), row.runs[0].prompt_tokens), (4, 3024));
        let short =
            Prompts::calibrate(Text::File("four".repeat(10)), &mut Mock::default()).unwrap();
        assert!(
            short.whole().is_some_and(|tokens| tokens.abs_diff(34) < 3),
            "{:?}",
            short.whole()
        );
    }

    #[test]
    fn what_fails_is_a_row_with_the_runs_until_then() {
        let mut mock = Mock {
            fails_at: Some(5),
            ..Mock::default()
        };
        let row = measure(&mut mock, Text::Generated, 10_000, 3);
        assert_eq!(row.runs.len(), 1);
        assert!(row.failed.is_some_and(|why| why.contains("out of memory")));
        let mut mock = Mock {
            fails_at: Some(3),
            ..Mock::default()
        };
        assert!(
            measure(&mut mock, Text::Generated, 10_000, 3)
                .runs
                .is_empty()
        );
    }

    #[test]
    fn the_servers_clock_comes_first_and_cached_tokens_are_a_hit() {
        let reply = Reply {
            prompt_tokens: 1000,
            client_seconds: Some(2.0),
            ..Reply::default()
        };
        let found = run(&reply).unwrap();
        assert_eq!(
            (found.source, found.prefill_seconds, found.tokens_per_second),
            (Source::Client, 2.0, 500.0)
        );
        let found = run(&Reply {
            server_seconds: Some(1.0),
            cached_tokens: Some(10),
            ..reply.clone()
        })
        .unwrap();
        assert_eq!(
            (found.source, found.tokens_per_second, found.flags),
            (Source::Server, 1000.0, vec![])
        );
        let found = run(&Reply {
            cached_tokens: Some(11),
            ..reply.clone()
        })
        .unwrap();
        assert_eq!(found.flags, [Flag::CacheHit]);
        assert!(
            run(&Reply {
                client_seconds: None,
                ..reply
            })
            .is_err()
        );
    }
}
