-- What somebody asks of a live job, how often it took its worker down with it, and until when it is wanted.
ALTER TABLE harness_jobs
    -- cancel: end it. interrupt: end its run at the next checkpoint. rollback: end its run now, without its state.
    ADD COLUMN asked text CHECK (asked IN ('cancel', 'interrupt', 'rollback')),
    -- Workers that died while they ran it.
    ADD COLUMN deaths integer NOT NULL DEFAULT 0,
    ADD COLUMN deadline_at timestamptz;

CREATE INDEX harness_jobs_asked ON harness_jobs (worker_id) WHERE asked IS NOT NULL;
CREATE INDEX harness_jobs_deadline ON harness_jobs (deadline_at) WHERE deadline_at IS NOT NULL;

-- A session works on one job at a time, to that job's end: who has begun keeps his turn through retries and rescues.
-- An epoch is given with the first claim and never taken back, so that this also means one runner. It serves to find
-- a worker's jobs, too: an index by worker would gather the dead entries of all jobs a worker ever ran in one place,
-- and every lookup would walk over them.
DROP INDEX harness_jobs_one_runner;
CREATE UNIQUE INDEX harness_jobs_one_begun ON harness_jobs (session_id) WHERE epoch > 0;
