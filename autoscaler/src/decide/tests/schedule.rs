//! Windows of the schedule, in their own time zone.

use super::*;

fn at(text: &str) -> u64 {
    chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis() as u64
}

fn office(timezone: &str) -> Window {
    Window::new("0 8 * * 1-5", "0 18 * * 1-5", timezone, 7)
}

#[test]
fn a_window_is_open_from_its_start_until_its_end() {
    let window = office("Europe/Berlin");
    for (moment, open) in [
        ("2026-01-02T06:59:59Z", false), // Friday, 7:59:59 there
        ("2026-01-02T07:00:00Z", true),
        ("2026-01-02T16:59:59Z", true),
        ("2026-01-02T17:00:00Z", false),
        ("2026-01-03T12:00:00Z", false), // Saturday
        ("2026-01-02T07:00:00Z", true),  // back in time
        ("2026-07-03T06:00:00Z", true),  // summer time: 8:00 there
        ("2026-07-03T05:59:59Z", false),
    ] {
        assert_eq!(window.is_open(at(moment)), open, "{moment}");
    }
}

#[test]
fn a_window_may_go_over_midnight() {
    let night = Window::new("0 22 * * *", "0 6 * * *", "UTC", 4);
    assert!(night.is_open(at("2026-01-02T23:00:00Z")));
    assert!(night.is_open(at("2026-01-03T05:59:00Z")));
    assert!(!night.is_open(at("2026-01-03T06:00:00Z")));
}

#[test]
fn an_open_window_raises_the_minimum_and_its_end_lets_go() {
    let mut policy = plain();
    policy.min_replicas = 2;
    policy.schedule = vec![office("UTC"), Window::new("0 9 * * *", "0 10 * * *", "UTC", 9)];
    let when = |moment: &str, current: u32| {
        let now_ms = at(moment);
        let decision = decide(&History::default(), &seen(now_ms, 0, current), &policy, now_ms);
        (decision.desired.unwrap(), decision.reason)
    };
    assert_eq!(when("2026-01-02T07:59:59Z", 2), (2, Reason::Minimum));
    assert_eq!(when("2026-01-02T08:00:00Z", 2), (7, Reason::Schedule));
    assert_eq!(when("2026-01-02T09:00:00Z", 7), (9, Reason::Schedule));
    assert_eq!(when("2026-01-02T10:00:00Z", 9), (7, Reason::Schedule));
    assert_eq!(when("2026-01-02T18:00:00Z", 7), (2, Reason::Minimum));
}

#[test]
fn a_policy_reports_everything_that_is_wrong_with_it_by_name() {
    let limit = |value, period_s| RateLimit { unit: RateUnit::Pods, value, period_s };
    let wrong = Policy {
        mode: Mode::TargetWait {
            target_s: 0.0,
            slots_per_worker: 0,
            utilization: 1.5,
            startup_s: -1.0,
            assumed_service_s: f64::NAN,
        },
        min_replicas: 3,
        max_replicas: 0,
        scale_up: Behavior {
            stabilization_window_s: 3601,
            select_policy: SelectPolicy::Max,
            policies: vec![limit(1, 1), limit(0, 1801)],
            tolerance: -0.1,
        },
        scale_down: Behavior { tolerance: 1.0, ..Policy::default().scale_down },
        activation: 0,
        cooldown_s: 604_801,
        due_horizon_s: u64::MAX,
        stale_after_s: 0,
        schedule: vec![
            Window::new("0 8 * *", "0 25 * * *", "Mars/Olympus", 1),
            Window::new("0 0 30 2 *", "0 8 * * *", "UTC", 1),
            Window::new("0 8 * * *", "0 8 * * *", "UTC", 1),
        ],
        ..Policy::default()
    };
    let problems = wrong.check();
    let named: Vec<&str> = problems.iter().map(|problem| problem.split_once(": ").unwrap().0).collect();
    let fields = [
        "max_replicas",
        "min_replicas",
        "activation",
        "cooldown_s",
        "due_horizon_s",
        "stale_after_s",
        "mode.target_s",
        "mode.startup_s",
        "mode.assumed_service_s",
        "mode.slots_per_worker",
        "mode.utilization",
        "scale_up.stabilization_window_s",
        "scale_up.tolerance",
        "scale_up.policies[1].value",
        "scale_up.policies[1].period_s",
        "scale_down.tolerance",
        "schedule[0].start",
        "schedule[0].end",
        "schedule[0].timezone",
        "schedule[0].min_replicas",
        "schedule[1].start",
        "schedule[1].min_replicas",
        "schedule[2].end",
        "schedule[2].min_replicas",
    ];
    assert_eq!(named, fields, "{problems:#?}");
    assert_eq!(Policy { mode: Mode::Backlog { jobs_per_worker: 0.0 }, ..plain() }.check().len(), 1);
    assert!(Policy::default().check().is_empty());
}

#[test]
fn a_policy_reads_what_it_writes() {
    let mut policy = plain();
    policy.schedule = vec![office("Europe/Berlin")];
    let text = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
    let toml = toml::to_string(&policy).unwrap();
    assert_eq!(toml::from_str::<Policy>(&toml).unwrap(), policy);
    let typo =
        r#"{"schedule": [{"start": "0 8 * * *", "end": "0 9 * * *", "zone": "UTC", "min_replicas": 1}]}"#;
    assert!(serde_json::from_str::<Policy>(typo).unwrap_err().to_string().contains("zone"));
}
