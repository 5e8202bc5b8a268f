-- Scale-in: who is to take no more jobs, until when, and since when it holds none. The mark is the leader's, the rest the
-- worker's. A mark that is not renewed is none.
ALTER TABLE harness_workers
    -- The leader that marked it last, or took its mark back.
    ADD COLUMN drain_epoch bigint,
    ADD COLUMN drain_until timestamptz,
    -- While the mark is valid, no claim of this worker is granted.
    ADD COLUMN drained_at timestamptz,
    -- What the worker tells of itself with its heartbeats: runs begun per second, and how long runs took lately.
    ADD COLUMN starts_per_s real NOT NULL DEFAULT 0,
    ADD COLUMN durations json;

-- Fencing tokens of leaders. They grow over all names, so that of two fleets that are set on one pool by mistake the
-- later one decides.
CREATE SEQUENCE harness_leader_epoch AS bigint;

-- Who leads, by the name of what is led.
CREATE TABLE harness_leases (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    epoch      bigint NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What an autoscaler decided, why, and what came of it.
CREATE TABLE harness_scale_decisions (
    id                   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pool                 text NOT NULL,
    decided_at           timestamptz NOT NULL,
    epoch                bigint NOT NULL,
    from_replicas        integer NOT NULL,
    -- Before any behaviour was applied; null when the demand was unknown.
    recommended_replicas integer,
    desired_replicas     integer NOT NULL,
    reason               text NOT NULL,
    inputs               json NOT NULL,
    decision             json NOT NULL,
    -- Null until it is known, which is for ever when the leader died over it.
    outcome              text,
    detail               text,
    finished_at          timestamptz
);

CREATE INDEX harness_scale_decisions_pool ON harness_scale_decisions (pool, id);
CREATE INDEX harness_scale_decisions_time ON harness_scale_decisions (decided_at);

-- What waits is counted pool by pool, each second; and a sweep for one state walks over no other's rows.
CREATE INDEX harness_jobs_waiting ON harness_jobs (state, pool, state_since)
    WHERE state IN ('publishing', 'queued', 'blocked');
CREATE INDEX harness_jobs_due_in_pool ON harness_jobs (pool, due_at) WHERE state = 'scheduled';
DROP INDEX harness_jobs_dispatch;
DROP INDEX harness_jobs_blocked;
