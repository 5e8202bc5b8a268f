//! A share of all traces, by their ids.
//!
//! The SDK's own sampler looks at the last eight bytes of a trace id. In a UUIDv7 the first two bits of these are
//! always the same, so a share below a half would select nothing. Trace Context says that the last seven bytes are
//! random, and in a UUIDv7 they are.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

const RANDOM_BITS: u32 = 56;

/// Samples the traces whose random part is at least this.
#[derive(Clone, Debug)]
struct Share {
    from: u64,
}

impl Share {
    fn of(ratio: f64) -> Share {
        Share { from: ((1.0 - ratio) * (1u64 << RANDOM_BITS) as f64) as u64 }
    }

    fn has(&self, trace_id: TraceId) -> bool {
        let random = u128::from_be_bytes(trace_id.to_bytes()) as u64 & ((1 << RANDOM_BITS) - 1);
        random >= self.from
    }
}

impl ShouldSample for Share {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let decision =
            if self.has(trace_id) { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        let trace_state = parent
            .map_or_else(TraceState::default, |parent| parent.span().span_context().trace_state().clone());
        SamplingResult { decision, attributes: Vec::new(), trace_state }
    }
}

/// Returns the sampler of this name (`OTEL_TRACES_SAMPLER`) with this argument (`OTEL_TRACES_SAMPLER_ARG`).
pub fn sampler(name: &str, argument: Option<&str>) -> Result<Box<dyn ShouldSample>, String> {
    let share = || {
        let given = argument.unwrap_or("1.0");
        match given.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Share::of(ratio)),
            _ => Err(format!("OTEL_TRACES_SAMPLER_ARG: got \"{given}\", expected 0.0 to 1.0")),
        }
    };
    Ok(match name {
        "always_on" => Box::new(Sampler::AlwaysOn),
        "always_off" => Box::new(Sampler::AlwaysOff),
        "traceidratio" => Box::new(share()?),
        "parentbased_always_on" => Box::new(Sampler::ParentBased(Box::new(Sampler::AlwaysOn))),
        "parentbased_always_off" => Box::new(Sampler::ParentBased(Box::new(Sampler::AlwaysOff))),
        "parentbased_traceidratio" => Box::new(Sampler::ParentBased(Box::new(share()?))),
        other => {
            return Err(format!(
                "OTEL_TRACES_SAMPLER: got \"{other}\", expected always_on, always_off, traceidratio or one of these \
                 behind parentbased_"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_share_of_the_traces_of_jobs_is_that_share() {
        // Random bytes, because publishers in other languages make their ids that way.
        let ids: Vec<TraceId> = (0..20_000)
            .map(|ms| {
                let random: [u8; 10] = Uuid::new_v4().as_bytes()[..10].try_into().unwrap();
                let id =
                    uuid::Builder::from_unix_timestamp_millis(1_764_000_000_000 + ms, &random).into_uuid();
                TraceId::from(id.as_u128())
            })
            .collect();
        for ratio in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let share = Share::of(ratio);
            let sampled = ids.iter().filter(|id| share.has(**id)).count() as f64 / ids.len() as f64;
            assert!((sampled - ratio).abs() < 0.03, "{ratio}: {sampled}");
        }
        assert!(ids.iter().all(|id| !Share::of(0.0).has(*id) && Share::of(1.0).has(*id)));
    }

    #[test]
    fn a_sampler_that_does_not_exist_is_named() {
        assert!(sampler("parentbased_traceidratio", Some("0.5")).is_ok());
        assert!(sampler("xray", None).unwrap_err().contains("OTEL_TRACES_SAMPLER: got \"xray\""));
        for wrong in ["often", "1.5", "NaN"] {
            assert!(sampler("traceidratio", Some(wrong)).unwrap_err().contains("OTEL_TRACES_SAMPLER_ARG"));
        }
    }
}
