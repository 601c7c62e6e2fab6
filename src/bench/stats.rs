//! PURE: what a handful of measurements says.
//!
//! Everything is robust: medians, and the median absolute deviation (MAD) for the spread, because a few runs on a
//! machine that does other things too have long tails.

/// What turns a MAD into an estimate of the standard deviation of a normal distribution.
const MAD_TO_SIGMA: f64 = 1.4826;

/// The modified z-score beyond which a value is an outlier: Iglewicz and Hoaglin, "How to Detect and Handle Outliers",
/// ASQC Basic References in Quality Control 16 (1993). Their score is 0.6745 · (x − median) / MAD.
const OUTLIER_SCORE: f64 = 3.5;
const SIGMA_TO_MAD: f64 = 0.6745;

/// Deviations below this part of the median are never outliers: with three runs the MAD can be next to nothing.
const NEVER_AN_OUTLIER: f64 = 0.02;

/// The median; none of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted
        .get(sorted.len() / 2 - 1)
        .map(|lower| f64::midpoint(*lower, upper))
}

/// The median of the distances from the median.
fn median_absolute_deviation(values: &[f64]) -> Option<f64> {
    let middle = median(values)?;
    median(
        &values
            .iter()
            .map(|value| (value - middle).abs())
            .collect::<Vec<_>>(),
    )
}

/// The robust standard deviation as a part of the median: 0.01 is 1 %. None of fewer than two values.
#[must_use]
pub fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values).filter(|middle| *middle > 0.0)?;
    (values.len() > 1).then_some(MAD_TO_SIGMA * median_absolute_deviation(values)? / middle)
}

/// Which of the values are outliers; never any of fewer than three.
#[must_use]
pub fn outliers(values: &[f64]) -> Vec<bool> {
    let (Some(middle), Some(deviation)) = (median(values), median_absolute_deviation(values))
    else {
        return Vec::new();
    };
    let is_outlier = |value: &f64| {
        let distance = (value - middle).abs();
        let is_far = distance > NEVER_AN_OUTLIER * middle.abs();
        values.len() > 2 && is_far && SIGMA_TO_MAD * distance > OUTLIER_SCORE * deviation
    };
    values.iter().map(is_outlier).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(found: Option<f64>, wanted: f64) {
        assert!(
            found.is_some_and(|found| (found - wanted).abs() < 1e-9),
            "{found:?} is not {wanted}"
        );
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        near(median(&[7.0]), 7.0);
        near(median(&[9.0, 1.0]), 5.0);
        near(median(&[3.0, 900.0, 1.0]), 3.0);
        near(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn the_spread_is_the_robust_deviation_as_a_part_of_the_median() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[5.0]), None);
        assert_eq!(spread(&[0.0, 0.0]), None);
        near(spread(&[100.0, 100.0, 250.0]), 0.0);
        near(spread(&[98.0, 100.0, 103.0]), 0.014_826 * 2.0);
    }

    #[test]
    fn outliers_are_those_with_a_modified_z_score_above_three_and_a_half() {
        assert_eq!(outliers(&[]), Vec::<bool>::new());
        assert_eq!(outliers(&[1.0, 1000.0]), [false, false]);
        assert_eq!(outliers(&[100.0, 101.0, 102.0]), [false; 3]);
        // MAD 1; 0.6745 · 5 = 3.37 is within, 0.6745 · 6 = 4.05 is not.
        assert_eq!(outliers(&[100.0, 101.0, 106.0]), [false; 3]);
        assert_eq!(outliers(&[100.0, 101.0, 107.0]), [false, false, true]);
        assert_eq!(
            outliers(&[100.0, 101.0, 90.0, 102.0]),
            [false, false, true, false]
        );
    }

    #[test]
    fn values_next_to_each_other_are_no_outliers_even_where_most_are_the_same() {
        assert_eq!(outliers(&[100.0, 100.0, 101.9]), [false; 3]);
        assert_eq!(outliers(&[100.0, 100.0, 102.1]), [false, false, true]);
    }
}
