-- In the order in which transactions lock them, so that a live fleet waits instead of meeting half of this in a deadlock.
LOCK TABLE harness_workers, harness_jobs IN ACCESS EXCLUSIVE MODE;

-- Pools that have a row. With a line, a job that may run waits here until the admitter gives it its turn; without one it
-- goes to the broker at once, as in a pool that has no row. Older producers pass by the line, and lose nothing.
CREATE TABLE harness_pools (
    pool       text COLLATE "C" PRIMARY KEY,
    line       boolean NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT now(),
    -- What the admitter saw last, and when. Old is unknown.
    seen_at    timestamptz,
    waiting    bigint NOT NULL DEFAULT 0,
    -- Those that no limit, no bound of a tenant and no other job of their session holds back.
    could_run  bigint NOT NULL DEFAULT 0,
    -- By lane and by reason, for people and metrics.
    seen       json
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 100);

-- How many jobs with this key may be at work in a pool at a time, from the line to the attempt's end.
CREATE TABLE harness_limits (
    tenant     text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    most       bigint NOT NULL CHECK (most BETWEEN 0 AND 1000000),
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, key)
);

-- lane: 1 high, 2 normal, 3 low; 0 once a job that has begun waits in the line. line: its limit keys, in order, with commas.
ALTER TABLE harness_jobs
    ADD COLUMN lane smallint NOT NULL DEFAULT 2,
    ADD COLUMN line text COLLATE "C" NOT NULL DEFAULT '';

-- waiting: in its pool's line. No worker, no message. An older binary leaves such a row alone, or ends it as any job that waits.
ALTER TABLE harness_jobs DROP CONSTRAINT harness_jobs_state_check;
-- The rows that are there are looked at by migration 33, while the fleet works: all of them satisfy it, as the old one was
-- narrower.
ALTER TABLE harness_jobs ADD CONSTRAINT harness_jobs_state_check
    CHECK (state IN ('scheduled', 'waiting', 'publishing', 'queued', 'blocked', 'running', 'awaiting_input')) NOT VALID;

-- An older worker would take a message of a tenant's job that waits in a line for one of a job that nobody accepted.
CREATE FUNCTION harness_workers_know_lines() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM harness_pools WHERE line AND pool = NEW.pool) THEN
        RAISE EXCEPTION 'a worker of this release knows no lines, and this pool has one: run a newer release, or take the line away (producer pools line POOL off)';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER harness_workers_know_lines BEFORE INSERT ON harness_workers
    FOR EACH ROW WHEN (coalesce(NEW.schema_version, 0) < 31) EXECUTE FUNCTION harness_workers_know_lines();
