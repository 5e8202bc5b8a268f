//! Instants and looks, over clock changes, outages and years, against a walk through every minute.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike, NaiveDateTime, TimeZone, Timelike};
use chrono_tz::Tz;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

fn at(text: &str) -> u64 {
    DateTime::parse_from_rfc3339(text).expect(text).timestamp_millis().unsigned_abs()
}

/// Weeks around both clock changes of 2026.
const ZONES: [(&str, &str, &str); 8] = [
    ("Europe/Berlin", "2026-03-26T00:00:00Z", "2026-10-22T00:00:00Z"),
    ("America/New_York", "2026-03-05T00:00:00Z", "2026-10-29T00:00:00Z"),
    ("America/St_Johns", "2026-03-05T00:00:00Z", "2026-10-29T00:00:00Z"),
    // Half an hour.
    ("Australia/Lord_Howe", "2026-10-01T00:00:00Z", "2026-04-02T00:00:00Z"),
    // At midnight.
    ("Africa/Cairo", "2026-04-21T00:00:00Z", "2026-10-27T00:00:00Z"),
    // The last hour of a Saturday is left out.
    ("America/Nuuk", "2026-03-26T00:00:00Z", "2026-10-22T00:00:00Z"),
    ("Asia/Kolkata", "2026-03-26T00:00:00Z", "2026-10-22T00:00:00Z"),
    ("UTC", "2026-03-26T00:00:00Z", "2026-10-22T00:00:00Z"),
];

/// One field of an expression: its text, and what it matches.
#[derive(Clone, Debug)]
struct Field(String, BTreeSet<u32>, bool);

fn field(last: u32) -> impl Strategy<Value = Field> {
    prop_oneof![
        3 => (0..=last).prop_map(|one| Field(one.to_string(), [one].into(), true)),
        1 => Just(Field("*".to_owned(), (0..=last).collect(), false)),
        1 => (2u32..20).prop_map(move |step| {
            Field(format!("*/{step}"), (0..=last).step_by(step as usize).collect(), false)
        }),
        1 => prop::collection::btree_set(0..=last, 2..4).prop_map(|some| {
            let text: Vec<String> = some.iter().map(u32::to_string).collect();
            Field(text.join(","), some, false)
        }),
    ]
}

/// All instants of a span, by a look at each of its minutes.
fn minute_by_minute(
    minute: &Field,
    hour: &Field,
    days: &BTreeSet<u32>,
    zone: Tz,
    from: u64,
    to: u64,
) -> Vec<u64> {
    let local = |ms: u64| -> NaiveDateTime {
        zone.timestamp_millis_opt(ms as i64).single().expect("a moment").naive_local()
    };
    let matches = |time: NaiveDateTime| {
        minute.1.contains(&time.minute())
            && hour.1.contains(&time.hour())
            && days.contains(&time.weekday().num_days_from_sunday())
    };
    let fixed = minute.2 && hour.2;
    let fires = |ms: u64| {
        let (here, before) = (local(ms), local(ms - MINUTE_MS));
        if !fixed {
            return matches(here);
        }
        // The times of day that the clock left out just before this minute.
        let mut left_out = before + chrono::Duration::minutes(1);
        while left_out < here {
            if matches(left_out) {
                return true;
            }
            left_out += chrono::Duration::minutes(1);
        }
        let repeats = (1..=180).any(|ago| local(ms - ago * MINUTE_MS) == here);
        matches(here) && !repeats
    };
    (from / MINUTE_MS + 1..=to / MINUTE_MS).map(|minute| minute * MINUTE_MS).filter(|ms| fires(*ms)).collect()
}

fn plan(cron: &str, zone: &str, jitter_ms: u64, catch_up: CatchUp, within_ms: u64) -> Plan {
    let when = When::read(Some(cron), None, zone).expect(cron);
    Plan { id: Uuid::from_u128(7), when, jitter_ms, catch_up, within_ms }
}

fn walk(rule: &Rule, from: u64, to: u64) -> Vec<u64> {
    std::iter::successors(rule.after(from), |at| rule.after(*at)).take_while(|at| *at <= to).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_week_over_both_clock_changes_has_every_instant_once(
        minute in field(59), hour in field(23),
        days in prop_oneof![Just("*".to_owned()), (0u32..7).prop_map(|day| day.to_string())],
        zone in prop::sample::select(&ZONES[..]),
    ) {
        let (name, forward, back) = zone;
        let cron = format!("{} {} * * {days}", minute.0, hour.0);
        let rule = Rule::read(&cron, name).expect(&cron);
        let days: BTreeSet<u32> = days.parse().map_or_else(|_| (0..7).collect(), |day| [day].into());
        for week in [forward, back] {
            let (from, to) = (at(week), at(week) + 7 * DAY_MS);
            let naive = minute_by_minute(&minute, &hour, &days, name.parse().unwrap(), from, to);
            prop_assert_eq!(walk(&rule, from, to), naive, "{} in {} from {}", cron, name, week);
        }
    }

    #[test]
    fn after_an_outage_each_instant_is_fired_or_missed_once(
        every in prop::sample::select(&["* * * * *", "*/7 * * * *", "30 2 * * *", "0 * * * *"][..]),
        looks in prop::collection::vec(1u64..200 * MINUTE_MS, 1..20),
        within_ms in 0..300 * MINUTE_MS, most in 1usize..50,
        jitter_ms in prop_oneof![Just(0), 0..30 * MINUTE_MS],
        catch_up in prop::sample::select(&[CatchUp::Skip, CatchUp::Last, CatchUp::All][..]),
    ) {
        let rule = Rule::read(every, "Europe/Berlin").unwrap();
        let plan = plan(every, "Europe/Berlin", jitter_ms, catch_up, within_ms);
        let start = at("2026-10-24T22:00:00Z");
        let mut next = plan.head(rule.after(start).unwrap());
        let (mut now, mut fired, mut missed) = (start, Vec::new(), 0);
        for pause in looks {
            now += pause;
            loop {
                let found = plan.look(next, now, most);
                prop_assert!(found.fire.len() <= most);
                let late_ms = |at: u64| at + jitter_ms + within_ms.max(IN_TIME_MS);
                prop_assert!(found.fire.iter().all(|at| (plan.due(*at)..=late_ms(*at)).contains(&now)));
                fired.extend(found.fire);
                missed += found.missed;
                next = found.next.unwrap();
                if next.due > now {
                    break;
                }
            }
        }
        let all = walk(&rule, start, next.at - 1);
        prop_assert_eq!(fired.len() as u64 + missed, all.len() as u64);
        let once: BTreeSet<u64> = fired.iter().copied().collect();
        prop_assert!(once.len() == fired.len() && once.iter().all(|at| all.contains(at)));
    }

    #[test]
    fn with_a_leader_every_instant_fires_within_its_jitter_whatever_that_is(
        every in prop::sample::select(&["* * * * *", "*/5 * * * *", "30 2 * * *", "0 * * * *"][..]),
        jitter_ms in prop_oneof![Just(0), 0..15 * MINUTE_MS, 0..=DAY_MS],
        catch_up in prop::sample::select(&[CatchUp::Skip, CatchUp::Last, CatchUp::All][..]),
        within_ms in 0..300 * MINUTE_MS, most in 1usize..50, schedule in any::<u128>(), delays in prop::collection::vec(0..20_000u64, 1..50),
    ) {
        let rule = Rule::read(every, "Europe/Berlin").unwrap();
        let plan = Plan { id: Uuid::from_u128(schedule), ..plan(every, "Europe/Berlin", jitter_ms, catch_up, within_ms) };
        let start = at("2026-10-24T22:00:00Z");
        let (mut next, mut now, mut fired) = (plan.head(rule.after(start).unwrap()), start, Vec::new());
        // The leader looks a moment after an instant is due, and at once while more is.
        for delay_ms in delays.iter().cycle().take(100) {
            now = if next.due <= now { now + 10 } else { next.due + delay_ms };
            let found = plan.look(next, now, most);
            prop_assert_eq!(found.missed, 0);
            prop_assert!(found.fire.iter().all(|at| (*at..=*at + jitter_ms + MINUTE_MS).contains(&now)));
            fired.extend(found.fire);
            next = found.next.unwrap();
        }
        prop_assert_eq!(fired, walk(&rule, start, next.at - 1));
    }

    #[test]
    fn in_a_week_over_both_clock_changes_every_instant_fires_once_by_several_leaders(
        cron in prop::sample::select(&["30 2 * * *", "*/20 * * * *", "15 */3 * * *", "0 0 * * 0"][..]),
        zone in prop::sample::select(&ZONES[..]), jitter_ms in prop_oneof![Just(0), 0..90 * MINUTE_MS],
        steps in prop::collection::vec((0usize..3, 0u8..4, 1u64..40 * MINUTE_MS), 200..600),
    ) {
        let (name, forward, back) = zone;
        let rule = Rule::read(cron, name).unwrap();
        let plan = plan(cron, name, jitter_ms, CatchUp::All, 7 * DAY_MS);
        for week in [forward, back] {
            // The schedule's row, and the jobs that were made. Each write changes both or nothing.
            let (mut row, mut jobs, mut now) = ((rule.after(at(week)).map(|at| plan.head(at)), 0_u64), Vec::new(), at(week));
            // What each of three leaders has read, and may act upon at any time later.
            let mut read = [row; 3];
            let until = now + 7 * DAY_MS;
            let settled = [(0, 0, until - now), (0, 1, 1)];
            for (leader, act, pause) in steps.iter().copied().filter(|step| step.1 < 3).chain(settled) {
                match act {
                    0 => read[leader] = row,
                    // It may have read the row long ago, or have been killed and started again in between.
                    1 => while let (Some(next), version) = read[leader] {
                        let found = plan.look(next, now.min(until), 7);
                        if version != row.1 || found.next.map(|head| head.at) == Some(next.at) {
                            break;
                        }
                        jobs.extend(found.fire.iter().map(|instant| firing_id(plan.id, *instant)));
                        row = (found.next, version + 1);
                        // Killed before it has heard that.
                        if pause % 3 > 0 {
                            break;
                        }
                        read[leader] = row;
                    },
                    _ => now = (now + pause).min(until),
                }
            }
            now = until + 2 * jitter_ms;
            while let Some(next) = row.0.filter(|next| next.due <= now && next.at <= until) {
                let found = plan.look(next, now, 1);
                jobs.extend(found.fire.iter().map(|instant| firing_id(plan.id, *instant)));
                prop_assert_eq!(found.missed, 0);
                row.0 = found.next;
            }
            let made: Vec<u64> = jobs.iter().map(|job| (job.as_u128() >> 80) as u64).filter(|at| *at <= until).collect();
            prop_assert_eq!(made, walk(&rule, at(week), until), "{} in {} from {}", cron, name, week);
        }
    }

    #[test]
    fn a_delay_is_within_the_jitter(schedule in any::<u128>(), instant in any::<u64>(), jitter_ms in any::<u64>()) {
        prop_assert!(delay_ms(Uuid::from_u128(schedule), instant, jitter_ms) <= jitter_ms);
    }

    #[test]
    fn no_text_panics(cron in ".*", zone in ".*") {
        let _ = Rule::read(&cron, &zone);
    }
}

#[test]
fn what_is_refused_is_named() {
    for (cron, zone, field, problem) in [
        ("* * * * * *", "UTC", "cron", "6 fields"),
        ("0 0 1 1 * * 2030", "UTC", "cron", "7 fields"),
        ("@hourly", "UTC", "cron", "which has 1 field"),
        ("@every 5 m x y", "UTC", "cron", "got \"@every"),
        ("0 0 31 2 *", "UTC", "cron", "never comes"),
        ("60 * * * *", "UTC", "cron", "expected five fields"),
        ("a b c d e", "UTC", "cron", "expected five fields"),
        ("", "UTC", "cron", "0 fields"),
        ("0 8 * * *", "Europe/Bonn", "zone", "IANA"),
        ("0 8 * * *", "", "zone", "IANA"),
    ] {
        let wrong = Rule::read(cron, zone).expect_err(cron);
        assert!(wrong.field == field && wrong.problem.contains(problem), "{cron}: {wrong}");
    }
}

#[test]
fn the_last_of_an_outage_is_made_up_for_once() {
    let (next, now) = (at("2026-01-01T10:00:00Z"), at("2026-01-01T12:05:00Z"));
    let found = |catch_up| {
        let plan = plan("*/10 * * * *", "UTC", 0, catch_up, 60 * MINUTE_MS);
        plan.look(plan.head(next), now, 100)
    };
    let last = at("2026-01-01T12:00:00Z");
    assert_eq!(found(CatchUp::Last).fire, [last]);
    assert_eq!(found(CatchUp::Skip).fire, [0; 0]);
    assert_eq!(found(CatchUp::All).fire.len(), 6, "those of the last hour");
    assert_eq!(found(CatchUp::All).next.map(|head| head.at), Some(last + 10 * MINUTE_MS));
}

#[test]
fn years_of_outage_are_gone_through_in_several_looks() {
    let plan = plan("* * * * *", "UTC", 0, CatchUp::Last, DAY_MS);
    let (mut next, now) = (plan.head(at("2026-01-01T00:00:00Z")), at("2026-02-01T00:00:30Z"));
    let (mut missed, mut fired, mut looks) = (0, Vec::new(), 0);
    while next.due <= now {
        let found = plan.look(next, now, 100);
        (missed, looks) = (missed + found.missed, looks + 1);
        fired.extend(found.fire);
        next = found.next.expect("a next minute");
    }
    assert_eq!((missed, fired, looks), (31 * 24 * 60, vec![at("2026-02-01T00:00:00Z")], 5));
}

#[test]
fn once_is_once() {
    let when = When::read(None, Some("2026-03-29T02:30:00+01:00"), "Europe/Berlin").unwrap();
    let instant = at("2026-03-29T01:30:00Z");
    assert_eq!(when.after(0), Some(instant));
    assert_eq!(when.after(instant), None);
    assert_eq!(when.on_the_wall(instant), Some(("2026-03-29T03:30:00+02:00".to_owned(), 7_200)));
    let plan = Plan { id: Uuid::nil(), when, jitter_ms: 0, catch_up: CatchUp::Last, within_ms: DAY_MS };
    let looked = |now| plan.look(plan.head(instant), now, 10);
    assert_eq!(looked(instant - 1), Look { fire: Vec::new(), missed: 0, next: Some(plan.head(instant)) });
    assert_eq!(looked(instant + DAY_MS), Look { fire: vec![instant], missed: 0, next: None });
    assert_eq!(looked(instant + DAY_MS + 1), Look { fire: Vec::new(), missed: 1, next: None });
}

#[test]
fn it_is_a_rule_or_a_moment() {
    let refused = |cron, at| When::read(cron, at, "UTC").expect_err("one of the two").field;
    assert_eq!(refused(None, None), "cron");
    assert_eq!(refused(Some("* * * * *"), Some("2026-01-01T00:00:00Z")), "at");
    assert_eq!(refused(None, Some("tomorrow")), "at");
    assert_eq!(refused(None, Some("1969-12-31T23:59:59Z")), "at");
    assert_eq!(When::read(None, Some("2026-01-01T00:00:00Z"), "Mars").expect_err("no zone").field, "zone");
    assert_eq!("last".parse(), Ok(CatchUp::Last));
    assert_eq!("on_busy".parse(), Ok(Overlap::OnBusy));
    assert_eq!("none".parse::<CatchUp>(), Err("got \"none\", expected one of skip, last, all".to_owned()));
}

#[test]
fn a_firing_is_the_same_job_each_time() {
    let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let instant = at("2026-03-29T01:00:00Z");
    let id = firing_id(one, instant);
    assert_eq!(id, firing_id(one, instant));
    assert_eq!((id.get_version_num(), (id.as_u128() >> 80) as u64), (7, instant));
    assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
    assert!(id != firing_id(other, instant) && id != firing_id(one, instant + 1));
}

#[test]
fn a_time_in_a_gap_before_midnight_fires_at_its_end_though_that_is_another_day() {
    let rule = Rule::read("30 23 * * 6", "America/Nuuk").unwrap();
    let fired = walk(&rule, at("2026-03-23T00:00:00Z"), at("2026-04-06T00:00:00Z"));
    // Sunday, 00:00, of 29 March; and the Saturday after it.
    assert_eq!(fired, [at("2026-03-29T01:00:00Z"), at("2026-04-05T00:30:00Z")]);
    // Samoa has had no 30 December in 2011.
    let rule = Rule::read("0 8 30 12 *", "Pacific/Apia").unwrap();
    assert_eq!(rule.after(at("2011-12-01T00:00:00Z")), Some(at("2011-12-30T10:00:00Z")));
}
