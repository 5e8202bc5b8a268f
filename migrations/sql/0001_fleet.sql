-- The ledger. Who locks what, and in which order, is told in shared/store.

-- Fencing tokens: every claim takes the next one while it holds its session's lock, so that within a session
-- they only grow.
CREATE SEQUENCE harness_epoch AS bigint;

CREATE TABLE harness_sessions (
    session_id       text COLLATE "C" PRIMARY KEY,
    agent_id         text NOT NULL,
    user_id          text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    last_updated     timestamptz NOT NULL DEFAULT now(),
    memory           jsonb NOT NULL DEFAULT '{}',
    context_window   jsonb NOT NULL DEFAULT '[]',
    feature_progress jsonb NOT NULL DEFAULT '{}',
    iteration_count  bigint NOT NULL DEFAULT 0,
    cost_microusd    bigint NOT NULL DEFAULT 0,
    input_tokens     bigint NOT NULL DEFAULT 0,
    output_tokens    bigint NOT NULL DEFAULT 0,
    -- How many jobs were folded into this state.
    version          bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 80);

-- What a running job has added to its session since the last fold. Appended, never rewritten.
CREATE TABLE harness_checkpoints (
    session_id    text COLLATE "C" NOT NULL,
    epoch         bigint NOT NULL,
    ordinal       integer NOT NULL,
    job_id        uuid NOT NULL,
    iterations    bigint NOT NULL,
    cost_microusd bigint NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    delta         jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, epoch, ordinal)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);

-- A boot of a worker process, and its lease on all jobs it runs.
CREATE TABLE harness_workers (
    worker_id    uuid PRIMARY KEY,
    host         text NOT NULL,
    pod_name     text,
    pool         text NOT NULL,
    slots        integer NOT NULL,
    state        text NOT NULL CHECK (state IN ('alive', 'draining', 'stopped', 'dead')),
    lease_ms     bigint NOT NULL CHECK (lease_ms > 0),
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    ended_at     timestamptz
) WITH (fillfactor = 50);

-- Live jobs only; an end moves a job to harness_results.
CREATE TABLE harness_jobs (
    job_id      uuid PRIMARY KEY,
    session_id  text COLLATE "C" NOT NULL,
    agent_id    text NOT NULL,
    user_id     text,
    pool        text NOT NULL,
    state       text NOT NULL CHECK (state IN ('scheduled', 'publishing', 'queued', 'blocked', 'running')),
    -- The order of acceptance, which is the order within a session.
    seq         bigint GENERATED ALWAYS AS IDENTITY,
    -- Attempts spent; the running one is not among them.
    attempts    integer NOT NULL DEFAULT 0,
    epoch       bigint NOT NULL DEFAULT 0,
    worker_id   uuid,
    due_at      timestamptz NOT NULL DEFAULT now(),
    accepted_at timestamptz NOT NULL DEFAULT now(),
    -- When the state last changed.
    state_since timestamptz NOT NULL DEFAULT now(),
    -- The first start of all attempts.
    started_at  timestamptz,
    -- Why the last attempt failed, {code, message, retryable}.
    failure     json,
    -- The harness.job.v1 envelope, to the letter.
    message     json NOT NULL,
    CHECK ((state = 'running') = (worker_id IS NOT NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0.2);

CREATE INDEX harness_jobs_session ON harness_jobs (session_id, seq);
CREATE INDEX harness_jobs_due ON harness_jobs (due_at) WHERE state = 'scheduled';
CREATE INDEX harness_jobs_dispatch ON harness_jobs (state_since) WHERE state IN ('publishing', 'queued');
CREATE INDEX harness_jobs_blocked ON harness_jobs (state_since) WHERE state = 'blocked';
-- One session, one runner, whatever the code believes. It also serves to find a worker's jobs: an index by worker would
-- gather the dead entries of all jobs a worker ever ran in one place, and every lookup would walk over them.
CREATE UNIQUE INDEX harness_jobs_one_runner ON harness_jobs (session_id) WHERE state = 'running';

-- Ends, in partitions by the time inside the job id, made ahead and dropped by retention.
CREATE TABLE harness_results (
    job_id          uuid NOT NULL,
    session_id      text COLLATE "C" NOT NULL,
    agent_id        text NOT NULL,
    user_id         text,
    pool            text NOT NULL,
    state           text NOT NULL CHECK (state IN ('succeeded', 'failed', 'cancelled')),
    attempts        integer NOT NULL,
    output          json,
    failure         json,
    iterations      bigint NOT NULL,
    cost_microusd   bigint NOT NULL,
    input_tokens    bigint NOT NULL,
    output_tokens   bigint NOT NULL,
    epoch           bigint NOT NULL,
    worker_id       uuid,
    accepted_at     timestamptz NOT NULL,
    started_at      timestamptz,
    finished_at     timestamptz NOT NULL DEFAULT now(),
    -- Kept for what did not succeed, so that it can be run again.
    message         json,
    PRIMARY KEY (job_id)
) PARTITION BY RANGE (job_id);

CREATE INDEX harness_results_session ON harness_results (session_id, job_id);
CREATE INDEX harness_results_failed ON harness_results (job_id) WHERE state = 'failed';
