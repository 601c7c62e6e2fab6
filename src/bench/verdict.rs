//! PURE: which size to keep.
//!
//! The rule: the smallest size whose median speed is within the noise of the best one, because a larger chunk costs
//! memory and context. The noise of a pair is the largest of 2 %, the drift of the first size over the whole sweep,
//! and the sum of both spreads (robust standard deviations, [`super::stats::spread`]).

use serde::Serialize;

use super::record::Row;

/// Differences below this part are never told apart, however few runs there were.
const LEAST_NOISE: f64 = 0.02;

/// Which size to keep, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The size, in tokens; none where the measurements do not tell.
    pub keep: Option<u64>,
    /// Whether that is the size that the backend ships with, so that nothing has to be changed.
    pub is_stock: bool,
    /// Why, in words.
    pub reason: String,
}

struct Candidate {
    size: u64,
    speed: f64,
    spread: f64,
}

impl Verdict {
    /// The verdict on these rows. Sizes that failed, or that the engine did not use, are no candidates.
    #[must_use]
    pub fn of(rows: &[Row], stock: Option<u64>, drift: Option<f64>) -> Self {
        let mut candidates: Vec<_> = rows.iter().filter_map(candidate).collect();
        candidates.sort_by_key(|candidate| candidate.size);
        let best = candidates
            .iter()
            .max_by(|one, other| one.speed.total_cmp(&other.speed));
        let Some(best) = best.filter(|_| candidates.len() > 1) else {
            return Self::none(rows, candidates.len());
        };
        let noise = |other: &Candidate| {
            LEAST_NOISE
                .max(drift.unwrap_or_default().abs())
                .max(best.spread + other.spread)
        };
        let is_as_good =
            |candidate: &&Candidate| candidate.speed >= best.speed * (1.0 - noise(candidate));
        let keep = candidates.iter().find(is_as_good).unwrap_or(best);
        let is_stock = stock == Some(keep.size);
        Self {
            keep: Some(keep.size),
            is_stock,
            reason: reason(keep, best, noise(keep), is_stock),
        }
    }

    fn none(rows: &[Row], candidates: usize) -> Self {
        let reason = if rows.len() > 1 && rows.iter().all(Row::is_not_in_effect) {
            "no size took effect: the engine went on with the chunk that it had, so nothing can be said about the sizes"
        } else if candidates == 0 {
            "no size could be measured"
        } else if rows.len() == 1 {
            "only one size was measured; give several with --sizes to compare"
        } else {
            "only one of the sizes could be measured, so there is nothing to compare it with"
        };
        Self {
            keep: None,
            is_stock: false,
            reason: reason.to_owned(),
        }
    }
}

fn candidate(row: &Row) -> Option<Candidate> {
    let is_sound = row.failed.is_none() && !row.is_not_in_effect();
    let speed = row.median_tokens_per_second.filter(|_| is_sound)?;
    Some(Candidate {
        size: row.size?,
        speed,
        spread: row.spread.unwrap_or_default(),
    })
}

fn reason(keep: &Candidate, best: &Candidate, noise: f64, is_stock: bool) -> String {
    let what = if is_stock { "keep stock: " } else { "" };
    let percent = noise * 100.0;
    if keep.size == best.size {
        return format!(
            "{what}{} is the fastest, and no smaller size comes within the noise of it",
            keep.size
        );
    }
    format!(
        "{what}{} is the smallest size within the noise ({percent:.1} %) of the fastest, {}; a larger chunk costs memory \
         and context",
        keep.size, best.size
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(size: u64, speed: f64, spread: f64) -> Row {
        Row {
            size: Some(size),
            median_tokens_per_second: Some(speed),
            spread: Some(spread),
            observed_chunk: Some(size),
            ..Row::default()
        }
    }

    fn keep(rows: &[Row], drift: Option<f64>) -> Option<u64> {
        Verdict::of(rows, Some(2048), drift).keep
    }

    #[test]
    fn the_smallest_within_the_noise_of_the_best() {
        let rows = [
            row(512, 500.0, 0.0),
            row(2048, 900.0, 0.0),
            row(4096, 985.0, 0.0),
            row(8192, 1000.0, 0.0),
        ];
        assert_eq!(keep(&rows, None), Some(4096));
        assert_eq!(keep(&rows[..2], None), Some(2048));
        let shuffled = [rows[3].clone(), rows[2].clone(), rows[0].clone()];
        assert_eq!(keep(&shuffled, None), Some(4096));
    }

    #[test]
    fn noise_is_the_floor_the_drift_or_both_spreads() {
        let rows = [row(2048, 970.0, 0.0), row(4096, 1000.0, 0.0)];
        assert_eq!(keep(&rows, None), Some(4096));
        assert_eq!(keep(&rows, Some(-0.04)), Some(2048));
        let rows = [row(2048, 970.0, 0.02), row(4096, 1000.0, 0.02)];
        assert_eq!(keep(&rows, None), Some(2048));
    }

    #[test]
    fn keeping_stock_is_a_verdict() {
        let verdict = Verdict::of(
            &[row(2048, 990.0, 0.0), row(8192, 1000.0, 0.0)],
            Some(2048),
            None,
        );
        assert!(
            verdict.is_stock && verdict.reason.starts_with("keep stock: 2048"),
            "{verdict:?}"
        );
        let verdict = Verdict::of(
            &[row(512, 1000.0, 0.0), row(2048, 900.0, 0.0)],
            Some(2048),
            None,
        );
        assert!(
            !verdict.is_stock && verdict.keep == Some(512),
            "{verdict:?}"
        );
    }

    #[test]
    fn what_failed_or_did_not_take_effect_is_no_candidate() {
        let mut wrong = row(8192, 2000.0, 0.0);
        wrong.observed_chunk = Some(2048);
        let failed = Row {
            failed: Some("out of memory".to_owned()),
            ..row(16_384, 3000.0, 0.0)
        };
        let rows = [
            row(2048, 500.0, 0.0),
            row(4096, 1000.0, 0.0),
            wrong.clone(),
            failed.clone(),
        ];
        assert_eq!(keep(&rows, None), Some(4096));
        let none = |rows: &[Row]| Verdict::of(rows, None, None);
        assert!(
            none(&[wrong.clone(), wrong.clone()])
                .reason
                .contains("took effect")
        );
        assert!(
            none(&[wrong, failed.clone()])
                .reason
                .contains("no size could be measured")
        );
        assert!(none(&[row(512, 1.0, 0.0)]).reason.contains("only one size"));
        assert!(none(&[row(512, 1.0, 0.0), failed]).keep.is_none());
        assert_eq!(none(&[]).keep, None);
    }

    #[test]
    fn an_unobservable_chunk_may_be_kept() {
        let unseen = Row {
            observed_chunk: None,
            ..row(4096, 1000.0, 0.0)
        };
        assert_eq!(keep(&[row(2048, 500.0, 0.0), unseen], None), Some(4096));
    }
}
