-- What somebody has done about a failed job. One that is neither redriven nor dismissed is shown as a dead letter.
-- Both are looked for among the failed ones only, by harness_results_failed; results are too many and too hot for an
-- index more.
ALTER TABLE harness_results
    -- The job that does its work again.
    ADD COLUMN redriven_as uuid,
    ADD COLUMN dismissed_at timestamptz;
