//! PURE: what the measurements say about the size to keep.

use serde::Serialize;

use super::race::{Standing, median, spread};
use super::results::{Results, Row};

/// Which size to keep, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In tokens; none where the measurements do not tell.
    pub keep: Option<u64>,
    /// Whether that is what the backend ships with.
    pub is_stock: bool,
    pub reason: String,
}

impl Results {
    /// Brings everything that follows from the runs up to date; `asked` sizes were to be compared.
    pub fn conclude(&mut self, standing: Option<Standing>, asked: usize) {
        self.rows.sort_by_key(|row| row.size);
        self.rows.iter_mut().for_each(Row::summarize);
        let stock = self.stock.and_then(|stock| {
            let row = self.rows.iter().find(|row| row.size == Some(stock))?;
            row.median_tokens_per_second
        });
        for row in &mut self.rows {
            let speed = row.median_tokens_per_second.zip(stock);
            row.times_stock = speed.map(|(speed, stock)| speed / stock);
        }
        let cut = self.rows.iter().filter(|row| row.cut.is_some()).count();
        let known = cut + standing.map_or(0, |standing| standing.measured);
        let is_unseen = self.rows.iter().all(|row| row.observed_chunk.is_none());
        let none = |reason: &str| Verdict {
            reason: reason.to_owned(),
            ..Verdict::default()
        };
        self.verdict = match standing {
            None => none("no size could be measured"),
            Some(_) if asked < 2 => {
                none("one size was measured; give several with --sizes to compare")
            }
            Some(_) if known < 2 => {
                none("only one size could be measured, so there is nothing to compare it with")
            }
            // The size of a direct run is an argument: it needs no proof of effect.
            Some(_) if is_unseen && self.api != "direct" => none(
                "the engine's chunk could not be observed at any size, so nothing shows that a size took effect",
            ),
            Some(standing) => self.keep(standing, known < asked),
        };
    }

    fn keep(&self, standing: Standing, is_partial: bool) -> Verdict {
        let (keep, best) = (standing.keep, standing.best);
        let noise = standing.noise * 100.0;
        let is_stock = self.stock == Some(keep);
        let mut reason = if keep == best {
            format!(
                "{keep} is the fastest, and no smaller size comes within the noise ({noise:.1} %) of it"
            )
        } else {
            format!(
                "{keep} is the smallest size within the noise ({noise:.1} %) of the fastest, {best}; a larger \
                 chunk costs memory and context"
            )
        };
        if is_partial {
            reason = format!("of the sizes that could be measured, {reason}");
        }
        if is_stock {
            reason = format!("keep stock: {reason}");
        }
        let keep = Some(keep);
        Verdict {
            keep,
            is_stock,
            reason,
        }
    }

    /// What is said below the rows.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for row in &self.rows {
            remarks.extend(row.remark());
            let ignored = row.runs.iter().filter_map(|run| run.ignored.as_ref());
            remarks.extend(ignored.map(|why| format!("a run does not count: {why}")));
        }
        if !self.rows.is_empty() {
            remarks.push(format!("Verdict: {}.", self.verdict.reason));
        }
        remarks
    }

    /// Whether something was not measured as it was asked for.
    pub fn has_failures(&self, asked: usize) -> bool {
        let has_no_verdict = asked > 1 && self.verdict.keep.is_none();
        let has_failed = self.rows.iter().any(|row| row.failed.is_some());
        self.error.is_some() || has_no_verdict || has_failed
    }
}

impl Row {
    fn remark(&self) -> Option<String> {
        let name = self.name();
        if let Some(why) = &self.failed {
            return Some(format!("{name} failed: {why}"));
        }
        let cut = self.cut?;
        let (at, here) = (cut.tokens, cut.tokens_per_second);
        let best = cut.best_tokens_per_second;
        Some(format!(
            "{name} was cut short at {at:.0} tokens: {here:.1} tok/s there, {best:.1} for the best"
        ))
    }

    /// What follows from its runs.
    fn summarize(&mut self) {
        let runs = || self.runs.iter().filter(|run| run.ignored.is_none());
        let speeds: Vec<f64> = runs().map(|run| run.tokens_per_second).collect();
        let seconds: Vec<f64> = runs().map(|run| run.prefill_seconds).collect();
        let peak = runs().filter_map(|run| run.peak_memory_bytes).max();
        self.median_tokens_per_second = median(&speeds);
        self.median_prefill_seconds = median(&seconds);
        self.spread = spread(&speeds);
        self.peak_memory_bytes = peak;
    }
}
