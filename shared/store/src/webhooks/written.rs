//! The deliveries of ends, as a part of the statements that end jobs.

/// A member of a `WITH` that writes a delivery for each row of `$ended` (with `tenant` and `job_id`) and each enabled
/// webhook of its tenant that wants ends of this state. In a fleet without an enabled webhook it looks at one page of
/// an index per batch, and at none of the rows.
macro_rules! deliveries {
    ($ended:literal, $state:literal) => {
        concat!(
            "deliveries AS (
        INSERT INTO harness_deliveries (webhook_id, job_id)
        SELECT w.id, e.job_id
          FROM ",
            $ended,
            " e CROSS JOIN LATERAL (SELECT id FROM harness_webhooks
                                     WHERE tenant = e.tenant AND disabled_at IS NULL AND ",
            $state,
            " = ANY(states) OFFSET 0) w
         WHERE (SELECT true FROM harness_webhooks WHERE disabled_at IS NULL LIMIT 1)
        ON CONFLICT DO NOTHING
    )"
        )
    };
}
pub(crate) use deliveries;
