//! Behavior: HPA v2's stabilization windows and rate limits, by the rules of Kubernetes'
//! `pkg/controller/podautoscaler/horizontal.go`: `stabilizeRecommendationWithBehaviors`,
//! `calculateScaleUpLimitWithScalingRules`, `calculateScaleDownLimitWithBehaviors`, `getReplicasChangePerPeriod`.
//!
//! A limit counts from the number of workers at the beginning of its period. That number follows from all changes
//! since, in both directions. Percentages round up when growing and down when shrinking, in the same floating point as
//! in Kubernetes. One rule is ours: no policies mean no limit.

use super::{Behavior, History, Policy, RateLimit, RateUnit, SelectPolicy};

/// Compares the recommendation with the earlier ones: growing takes the lowest of its window, shrinking the highest.
pub(super) fn stabilize(
    recommended: u32,
    current: u32,
    history: &History,
    policy: &Policy,
    now_ms: u64,
) -> u32 {
    let mut up = recommended;
    let mut down = recommended;
    if policy.scale_up.stabilization_window_s > 0 {
        let after_ms = before_ms(now_ms, policy.scale_up.stabilization_window_s);
        up = up.min(history.lowest_after(after_ms, current));
    }
    if policy.scale_down.stabilization_window_s > 0 {
        let after_ms = before_ms(now_ms, policy.scale_down.stabilization_window_s);
        down = down.max(history.highest_after(after_ms, current));
    }
    current.max(up).min(down)
}

/// Returns the most workers that `scale_up` allows now; never fewer than `current`.
pub(super) fn most(current: u32, history: &History, behavior: &Behavior, now_ms: u64) -> u32 {
    let limits = behavior.policies.iter().map(|limit| {
        let start = period_start(current, history, limit, now_ms);
        match limit.unit {
            RateUnit::Pods => start.saturating_add(i64::from(limit.value)),
            RateUnit::Percent => (start as f64 * (1.0 + f64::from(limit.value) / 100.0)).ceil() as i64,
        }
    });
    let limit = match behavior.select_policy {
        SelectPolicy::Max => limits.max(),
        SelectPolicy::Min => limits.min(),
        SelectPolicy::Disabled => return current,
    };
    limit.map_or(u32::MAX, |limit| limit.clamp(i64::from(current), i64::from(u32::MAX)) as u32)
}

/// Returns the fewest workers that `scale_down` allows now; never more than `current`.
pub(super) fn fewest(current: u32, history: &History, behavior: &Behavior, now_ms: u64) -> u32 {
    let limits = behavior.policies.iter().map(|limit| {
        let start = period_start(current, history, limit, now_ms);
        match limit.unit {
            RateUnit::Pods => start.saturating_sub(i64::from(limit.value)),
            RateUnit::Percent => (start as f64 * (1.0 - f64::from(limit.value) / 100.0)) as i64,
        }
    });
    let limit = match behavior.select_policy {
        SelectPolicy::Max => limits.min(),
        SelectPolicy::Min => limits.max(),
        SelectPolicy::Disabled => return current,
    };
    limit.map_or(0, |limit| limit.clamp(0, i64::from(current)) as u32)
}

fn period_start(current: u32, history: &History, limit: &RateLimit, now_ms: u64) -> i64 {
    i64::from(current) - history.change_after(before_ms(now_ms, limit.period_s))
}

fn before_ms(now_ms: u64, seconds: u64) -> u64 {
    now_ms.saturating_sub(seconds.saturating_mul(1000))
}
