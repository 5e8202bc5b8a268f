-- In the order in which claims lock them, so that a live fleet waits instead of meeting half of this in a deadlock.
LOCK TABLE harness_workers, harness_jobs IN ACCESS EXCLUSIVE MODE;

-- What a background loop asks costs what it finds, not what lies there. A million jobs may wait for their next attempt,
-- and they have begun: whoever looks for a worker's jobs must not walk over them.
CREATE INDEX harness_jobs_running ON harness_jobs (worker_id) WHERE worker_id IS NOT NULL;
-- Sessions with blocked jobs, one after the other.
CREATE INDEX harness_jobs_blocked_session ON harness_jobs (session_id, seq) WHERE state = 'blocked';

-- Rows of workers stay for a day, and a pod that restarts again and again leaves many. None of these columns changes with
-- a heartbeat, so that one stays an update in place.
CREATE INDEX harness_workers_present ON harness_workers (worker_id) WHERE state IN ('alive', 'draining');
CREATE INDEX harness_workers_lost ON harness_workers (worker_id) WHERE state = 'dead' AND rescued_at IS NULL;
CREATE INDEX harness_workers_pool ON harness_workers (pool, state);
CREATE INDEX harness_workers_ended ON harness_workers (ended_at) WHERE ended_at IS NOT NULL;

-- Suspects: jobs at whose run two workers have died, so that a third death would prove them to be the cause.
ALTER TABLE harness_jobs
    -- Since when it is suspected, or has come back from a death that proved nothing.
    ADD COLUMN suspected_at timestamptz,
    -- The longest time that it ran before a worker died.
    ADD COLUMN killed_after_ms bigint,
    -- Deaths that proved nothing, because another suspect ran on that worker as well.
    ADD COLUMN shared_deaths integer NOT NULL DEFAULT 0;
-- When the worker was told to end (SIGTERM). A death after that is nobody's fault.
ALTER TABLE harness_workers ADD COLUMN noticed_at timestamptz;
