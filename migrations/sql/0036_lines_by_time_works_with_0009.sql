-- Where lines come with the same upgrade no job waits in one yet, so both are built without an entry.
--
-- What has entered a line lately. A walk from line to line passes all that has left them, for as long as a snapshot
-- elsewhere keeps Postgres from removing it. By time, only what has left since is passed.
CREATE INDEX harness_jobs_line_entered ON harness_jobs (pool, state_since) WHERE state = 'waiting';
-- Those that ask something of a busy session while they wait: few.
CREATE INDEX harness_jobs_line_asking ON harness_jobs (state_since, job_id)
    WHERE state = 'waiting' AND epoch = 0 AND coalesce(message ->> 'on_busy', 'enqueue') <> 'enqueue';
