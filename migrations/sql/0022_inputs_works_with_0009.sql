-- In the order in which transactions lock them, so that a live fleet waits instead of meeting half of this in a deadlock.
LOCK TABLE harness_workers, harness_jobs IN ACCESS EXCLUSIVE MODE;

-- What jobs ask of persons, and what these answer. A row is changed under its session's lock, and is removed when its
-- job's result is.
CREATE TABLE harness_inputs (
    job_id      uuid NOT NULL,
    call_id     text COLLATE "C" NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('question', 'approval')),
    -- Null while only the answer is there.
    question    json,
    asked_at    timestamptz,
    -- When the job goes on without an answer; null: never.
    expires_at  timestamptz,
    -- Null: it is open. job_ended: nobody answered while the job lived.
    outcome     text CHECK (outcome IN ('answered', 'timed_out', 'job_ended')),
    closed_at   timestamptz,
    answer      json,
    answered_by text,
    PRIMARY KEY (job_id, call_id),
    CHECK ((outcome IS NULL) = (closed_at IS NULL)),
    CHECK ((outcome IS NOT DISTINCT FROM 'answered') = (answer IS NOT NULL)),
    CHECK ((question IS NULL) = (asked_at IS NULL)),
    CHECK (asked_at IS NOT NULL OR answer IS NOT NULL)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX harness_inputs_open ON harness_inputs (expires_at) WHERE outcome IS NULL;

-- awaiting_input: it has begun, and waits for a person. No worker, no message. An older binary leaves such a row alone, or
-- ends it as any job that waits; but an older worker that claims the job afterwards would run it without its answer. So
-- none comes while a job of its pool waits, and no job begins to wait while there is one.
ALTER TABLE harness_jobs DROP CONSTRAINT harness_jobs_state_check;
-- The rows that are there are looked at by migration 25, while the fleet works: all of them satisfy it, as the old one was
-- narrower.
ALTER TABLE harness_jobs ADD CONSTRAINT harness_jobs_state_check
    CHECK (state IN ('scheduled', 'publishing', 'queued', 'blocked', 'running', 'awaiting_input')) NOT VALID;

CREATE FUNCTION harness_workers_know_inputs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM harness_jobs WHERE state = 'awaiting_input' AND pool = NEW.pool) THEN
        RAISE EXCEPTION 'a worker of this release runs jobs without the answers of persons, and jobs of this pool wait for them: run a newer release';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER harness_workers_know_inputs BEFORE INSERT ON harness_workers
    FOR EACH ROW WHEN (coalesce(NEW.schema_version, 0) < 22) EXECUTE FUNCTION harness_workers_know_inputs();
