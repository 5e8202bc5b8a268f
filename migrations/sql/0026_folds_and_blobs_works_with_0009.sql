-- In the order in which transactions lock them, so that a live fleet waits instead of meeting half of this in a deadlock.
LOCK TABLE harness_workers, harness_sessions, harness_jobs, harness_checkpoints, harness_history IN ACCESS EXCLUSIVE MODE;

-- Of a job in whose run its session was folded. They go with the job's row, whoever ends it.
ALTER TABLE harness_jobs
    -- The last checkpoint that was folded so. Null: none was.
    ADD COLUMN folded_epoch bigint,
    ADD COLUMN folded_ordinal integer,
    -- What the job has used in those that were.
    ADD COLUMN folded_iterations bigint,
    ADD COLUMN folded_cost_microusd bigint,
    ADD COLUMN folded_input_tokens bigint,
    ADD COLUMN folded_output_tokens bigint,
    -- The state of the session before the job, for a rollback.
    ADD COLUMN before_memory jsonb,
    ADD COLUMN before_context json,
    ADD COLUMN before_progress jsonb;

-- schema_26: all workers know this migration.
ALTER TABLE harness_switches DROP CONSTRAINT harness_switches_name_check;
ALTER TABLE harness_switches ADD CONSTRAINT harness_switches_name_check CHECK (name IN ('context_as_text', 'schema_26'));

-- For the look whether there is one that does not: empty, but for the time after an update.
CREATE INDEX harness_workers_before_0026 ON harness_workers (worker_id) WHERE coalesce(schema_version, 0) < 26;

-- Turns on what no worker is in the way of any more, and returns what is on. A worker of an older schema is in the way while
-- it is neither dead nor stopped, and for ten minutes after that.
--
-- Ten minutes are for its release: its last workers may restart, or move to another host, without being locked out. The data
-- needs no time after a worker's end. What could make an older worker read what it does not understand?
-- * It claims. A claim locks the worker's row and is refused to one that is dead or stopped, for good. One whose lease has
--   run out is alive here until a rescuer declares it dead, and so in the way.
-- * It works on with what it read before, for instance after a pause. That was written before the switch, in its form. What it
--   writes is in its form, which newer workers read as well; and it writes only until its job is rescued, by its epoch.
-- * It registers again, as those do that were declared dead. Its row is there before the look below, or it waits for the
--   lock until the switch is on, and is refused. So does an older worker that starts.
CREATE FUNCTION harness_turn_switches() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN SELECT * FROM (VALUES ('context_as_text', 20), ('schema_26', 26)) AS v(name, schema)
                   WHERE NOT EXISTS (SELECT FROM harness_switches s WHERE s.name = v.name) ORDER BY schema LOOP
        PERFORM pg_advisory_xact_lock(7521418671159472916);
        IF NOT EXISTS (SELECT FROM harness_workers
                        WHERE coalesce(schema_version, 0) < 26 AND coalesce(schema_version, 0) < wanted.schema
                          AND (state IN ('alive', 'draining') OR ended_at > clock_timestamp() - interval '10 minutes')) THEN
            INSERT INTO harness_switches (name) VALUES (wanted.name) ON CONFLICT DO NOTHING;
        END IF;
    END LOOP;
    RETURN QUERY SELECT name FROM harness_switches ORDER BY name;
END $$;

-- What programs from before this migration call.
CREATE OR REPLACE FUNCTION harness_keep_contexts_as_text() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM harness_turn_switches();
END $$;
DROP INDEX harness_workers_before_0020;

-- An older worker would roll back a job, and count what it has used, without what was folded in its run.
CREATE FUNCTION harness_workers_know_schema_26() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7521418671159472916);
    IF EXISTS (SELECT FROM harness_switches WHERE name = 'schema_26') THEN
        RAISE EXCEPTION 'a worker of this release does not understand how this fleet keeps its sessions: run a newer release';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER harness_workers_know_schema_26 BEFORE INSERT ON harness_workers
    FOR EACH ROW WHEN (coalesce(NEW.schema_version, 0) < 26) EXECUTE FUNCTION harness_workers_know_schema_26();

-- Long strings of sessions' contexts, each kept once for its session: images, documents, outputs of tools. Texts have a
-- reference in their place; what refers to them, and how, is in shared/store/src/jobs/blobs.rs.
CREATE TABLE harness_blobs (
    session_id text COLLATE "C" NOT NULL,
    -- SHA-256 of the content.
    hash       bytea NOT NULL CHECK (octet_length(hash) = 32),
    -- A JSON string as it was written, with its quotes and escapes.
    content    json NOT NULL,
    -- Whether the session's state, the state before its live job or a checkpoint that is left to fold may refer to it.
    live       boolean NOT NULL DEFAULT true,
    -- It is kept as long as what this job has folded into the history. Null: nothing of it is in the history.
    kept_by    uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, hash)
);
CREATE INDEX harness_blobs_left ON harness_blobs (kept_by) WHERE NOT live;

-- The blobs that a row's context refers to. Null: none, and its text is as it was written.
ALTER TABLE harness_sessions ADD COLUMN blobs bytea[];
ALTER TABLE harness_checkpoints ADD COLUMN blobs bytea[];
ALTER TABLE harness_history ADD COLUMN blobs bytea[];
ALTER TABLE harness_jobs ADD COLUMN before_blobs bytea[];

-- As in migration 20.
CREATE OR REPLACE FUNCTION harness_sessions_are_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.context_json := NULL;
    NEW.blobs := NULL;
    DELETE FROM harness_history WHERE session_id = NEW.session_id;
    DELETE FROM harness_blobs WHERE session_id = NEW.session_id;
    RETURN NEW;
END $$;
