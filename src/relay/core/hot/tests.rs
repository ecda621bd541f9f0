//! When a group counts as hot, and what is told of it.

use proptest::prelude::*;

use super::*;

fn at(samples: u64) -> Time {
    Time::default() + SAMPLE_EVERY * samples as u32
}

fn limited(groups: &[(&str, i64)]) -> Vec<Limited> {
    groups.iter().map(|(group, head)| Limited { group: Arc::from(*group), head: MessageId(*head) }).collect()
}

/// Group a in these samples: whether it is limited.
fn sampled(samples: impl IntoIterator<Item = bool>) -> HotGroups {
    let mut hot = HotGroups::default();
    for (number, is_limited) in samples.into_iter().enumerate() {
        let groups = limited(if is_limited { &[("a", 1)] } else { &[] });
        hot.sample(groups, at(number as u64));
    }
    hot
}

#[test]
fn a_group_is_hot_after_it_was_limited_for_ten_seconds_and_no_earlier() {
    assert_eq!(sampled(vec![true; 17]).hot().groups, 0);
    assert_eq!(sampled(vec![true; 18]).hot().groups, 1);
    let misses = |which: &[usize]| sampled((0..20).map(|sample| !which.contains(&sample))).hot().groups;
    assert_eq!(misses(&[3, 11]), 1, "a claim that began has not read it yet");
    assert_eq!(misses(&[3, 11, 15]), 0, "it caught up now and then");
    assert_eq!(sampled((0..200).map(|sample| sample % 5 != 0)).hot().groups, 0, "four fifths are not always");
}

#[test]
fn a_group_is_not_hot_any_more_two_seconds_after_it_caught_up() {
    let after = |missed: usize| sampled((0..20 + missed).map(|sample| sample < 20));
    assert_eq!(after(3).hot().groups, 1);
    assert_eq!((after(4).hot(), after(4).groups.len()), (Hot::default(), 0));
}

#[test]
fn the_rate_is_what_each_hot_group_gets() {
    let mut hot = HotGroups::default();
    for number in 0..60 {
        let also = if number < 55 { ("b", 2) } else { ("c", 3) };
        hot.sample(limited(&[("a", 1), also]), at(number));
        for _ in 0..10 {
            hot.accepted("a");
        }
        for _ in 0..4 {
            hot.accepted(also.0);
            hot.accepted("not limited");
        }
    }
    let Hot { groups, per_second } = hot.hot();
    assert_eq!(groups, 1, "b has caught up, and c has just begun");
    assert!((per_second - 20.0).abs() < 0.001, "{per_second}");
}

#[test]
fn what_is_hot_is_told_once_with_the_names_of_those_that_wait_longest() {
    let mut hot = HotGroups::default();
    let groups = [("d", 4), ("b", 2), ("a", 7), ("c", 3), ("e", 5)];
    for number in 0..20 {
        hot.sample(limited(&groups), at(number));
        let told = hot.tell(at(number)).map(|names| names.join(" "));
        assert_eq!(told.as_deref(), (number == 17).then_some("b c d"), "{number}");
    }
    assert_eq!(hot.hot().groups, 5);
}

#[test]
fn groups_that_become_hot_again_soon_are_told_when_ten_minutes_have_passed() {
    let mut hot = HotGroups::default();
    let mut told = Vec::new();
    for number in 0..2000 {
        // Ten seconds hot, ten seconds not, until they stay hot.
        let is_limited = number % 80 < 40 || number > 1100;
        hot.sample(limited(if is_limited { &[("a", 1)] } else { &[] }), at(number));
        told.extend(hot.tell(at(number)).map(|_| number / 2));
    }
    assert_eq!(told, [8, 608], "seconds");
}

#[test]
fn samples_before_a_pause_say_nothing() {
    let mut hot = sampled(vec![true; 20]);
    hot.expire(at(19) + LONGEST_GAP);
    assert_eq!(hot.hot().groups, 1);
    hot.expire(at(19) + LONGEST_GAP + Duration::from_millis(1));
    assert_eq!((hot.hot(), hot.groups.len()), (Hot::default(), 0));
    let mut hot = sampled(vec![true; 17]);
    hot.sample(limited(&[("a", 1)]), at(16) + LONGEST_GAP + SAMPLE_EVERY);
    assert_eq!(hot.hot().groups, 0, "one sample since");
}

#[test]
fn another_mode_is_told_at_once_and_another_cause_is_not() {
    let told_after = |change: fn(&mut HotGroups)| {
        let mut hot = sampled(vec![true; 20]);
        assert!(hot.tell(at(20)).is_some());
        change(&mut hot);
        assert_eq!(hot.hot(), Hot::default());
        (20..60).for_each(|number| hot.sample(limited(&[("a", 1)]), at(number)));
        assert_eq!(hot.hot().groups, 1);
        hot.tell(at(60)).is_some()
    };
    assert!(told_after(HotGroups::begin_again));
    assert!(!told_after(HotGroups::forget));
}

#[test]
fn the_groups_that_are_remembered_are_bounded() {
    let names: Vec<String> = (0..5000).map(|number| format!("g{number}")).collect();
    let all: Vec<(&str, i64)> = names.iter().zip(1..).map(|(name, head)| (name.as_str(), head)).collect();
    let mut hot = HotGroups::default();
    (0..20).for_each(|number| hot.sample(limited(&all), at(number)));
    assert_eq!((hot.groups.len(), hot.hot().groups), (MAX_GROUPS, MAX_GROUPS));
    assert_eq!(hot.tell(at(20)).map(|names| names.join(" ")).as_deref(), Some("g0 g1 g2"));
}

proptest! {
    /// Whatever the samples, and whenever: a group becomes hot with enough samples of it that no gap divides, not
    /// without them, and stays hot until it was not limited for a while.
    #[test]
    fn a_group_is_hot_if_and_only_if_the_samples_say_so(
        samples in prop::collection::vec((0..4u32, prop::bool::weighted(0.95), prop::bool::weighted(0.8)), 0..200)
    ) {
        let (mut hot, mut now) = (HotGroups::default(), Time::default());
        let mut seen: Vec<[bool; 2]> = Vec::new();
        let mut is_hot = [false; 2];
        for (pause, a, b) in samples {
            // A pause of six seconds is a gap.
            now = now + SAMPLE_EVERY + Duration::from_secs(2) * u32::from(pause == 3) * pause;
            if pause == 3 {
                (seen, is_hot) = (Vec::new(), [false; 2]);
            }
            let both = [("a", a), ("b", b)];
            let groups: Vec<(&str, i64)> = both.iter().filter(|(_, is_in)| *is_in).map(|(name, _)| (*name, 1)).collect();
            hot.sample(limited(&groups), now);
            seen.push([a, b]);
            for (group, is_hot) in is_hot.iter_mut().enumerate() {
                let last = |samples: usize| seen.iter().rev().take(samples).filter(|limited| limited[group]).count();
                *is_hot = last(4) > 0 && (*is_hot || last(SAMPLES) >= ENOUGH as usize);
                let found = hot.groups.get(["a", "b"][group]).is_some_and(|track| track.is_hot);
                prop_assert_eq!(found, *is_hot);
            }
            prop_assert_eq!(hot.hot().groups, is_hot.iter().filter(|is_hot| **is_hot).count());
        }
    }
}
