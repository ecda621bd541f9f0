//! Statistics of several values: the median, and how far they are apart.

/// The median; 0 if there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut ascending = values.to_vec();
    ascending.sort_by(f64::total_cmp);
    let at = ascending.len() / 2;
    match (ascending.get(at), ascending.len() % 2) {
        (None, _) => 0.0,
        (Some(middle), 1) => *middle,
        (Some(upper), _) => f64::midpoint(ascending[at - 1], *upper),
    }
}

/// The value that this fraction of the ascending values does not exceed.
pub fn percentile(ascending: &[f64], part: f64) -> f64 {
    let index = (ascending.len() as f64 * part).ceil() as usize;
    ascending.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// A measured value: the median, followed by the lowest and the highest if there are several.
pub fn spread(values: &[f64], show: impl Fn(f64) -> String) -> String {
    let middle = show(median(values));
    if values.len() < 2 {
        return middle;
    }
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{middle} ({} to {})", show(lowest), show(highest))
}

/// The count of each run, one after the other; once if all are equal.
pub fn counts(values: &[i64]) -> String {
    match values {
        [first, others @ ..] if others.iter().all(|other| other == first) => first.to_string(),
        values => values.iter().map(i64::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!((median(&[7.0]), median(&[])), (7.0, 0.0));
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let all: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&all, 0.5), percentile(&all, 0.95), percentile(&all, 0.99)), (50.0, 95.0, 99.0));
        assert_eq!((percentile(&[7.0], 0.5), percentile(&[], 0.5)), (7.0, 0.0));
    }

    #[test]
    fn several_runs_are_shown_with_how_far_they_lie_apart() {
        let show = |value: f64| format!("{value:.1} ms");
        assert_eq!(spread(&[2.0, 1.0, 4.0], show), "2.0 ms (1.0 ms to 4.0 ms)");
        assert_eq!(spread(&[2.0], show), "2.0 ms");
    }

    #[test]
    fn equal_counts_are_shown_once() {
        assert_eq!((counts(&[0, 0, 0]), counts(&[5, 0, 7]), counts(&[3])), ("0".into(), "5, 0, 7".into(), "3".into()));
    }
}
