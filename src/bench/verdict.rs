//! PURE: which size to keep, from how the sizes stand and what was seen of them.

use super::race::Standing;
use super::results::{Results, Row, Verdict};

impl Results {
    /// Brings everything that follows from the runs up to date; `asked` sizes were to be compared.
    pub fn conclude(&mut self, standing: Option<Standing>, asked: usize) {
        self.rows.sort_by_key(|row| row.size);
        self.rows.iter_mut().for_each(Row::summarize);
        let is_stock = |row: &&Row| row.size.is_some() && row.size == self.stock;
        let stock = self.rows.iter().find(is_stock);
        let stock = stock.and_then(|row| row.median_tokens_per_second);
        for row in &mut self.rows {
            let speed = row.median_tokens_per_second;
            row.times_stock = speed.zip(stock).map(|(speed, stock)| speed / stock);
        }
        self.verdict = verdict(self, standing, asked);
    }
}

/// The verdict on a comparison of `asked` sizes.
fn verdict(results: &Results, standing: Option<Standing>, asked: usize) -> Verdict {
    let compared = |row: &&Row| row.failed.is_none() && row.speed().is_some();
    let compared = results.rows.iter().filter(compared).count();
    let is_seen = results.rows.iter().any(|row| row.observed_chunk.is_some());
    let nothing = match standing {
        None => "no size could be measured",
        Some(_) if asked < 2 => "one size was measured; give several with --sizes to compare",
        Some(_) if compared < 2 => {
            "only one size could be measured, so there is nothing to compare it with"
        }
        // The size of a direct run is an argument: it needs no proof of effect.
        Some(_) if !is_seen && results.api != "direct" => {
            "the engine's chunk could not be observed at any size, so nothing shows that a size took effect"
        }
        Some(standing) => {
            return Verdict {
                keep: Some(standing.keep),
                reason: reason(standing, results.stock, compared < asked),
            };
        }
    };
    Verdict {
        keep: None,
        reason: nothing.to_owned(),
    }
}

fn reason(standing: Standing, stock: Option<u64>, is_partial: bool) -> String {
    let (keep, best) = (standing.keep, standing.best);
    let is_stock = stock == Some(keep);
    let stock = if is_stock { "keep stock: " } else { "" };
    let partial = "of the sizes that could be measured, ";
    let partial = if is_partial { partial } else { "" };
    let noise = format!("within the noise ({:.1} %) of", standing.noise * 100.0);
    let mut why = format!("the fastest, and no smaller size comes {noise} it");
    if keep != best {
        let cost = "a larger chunk costs memory and context";
        why = format!("the smallest size {noise} the fastest, {best}; {cost}");
    }
    format!("{stock}{partial}{keep} is {why}")
}
