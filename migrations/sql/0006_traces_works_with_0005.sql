-- The trace that a job's caller gave it (W3C Trace Context), 16 bytes. Null: the job's own, whose id is the job's.
ALTER TABLE harness_jobs ADD COLUMN trace_id uuid;
ALTER TABLE harness_results ADD COLUMN trace_id uuid;
