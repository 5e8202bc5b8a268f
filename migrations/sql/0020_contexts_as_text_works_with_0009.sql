-- In the order in which transactions lock them, so that a live fleet waits instead of meeting half of this in a deadlock.
LOCK TABLE harness_workers, harness_sessions, harness_checkpoints IN ACCESS EXCLUSIVE MODE;

-- Entries of a session's context, to the letter: a provider checks what it gets back, and jsonb reorders keys, rewrites
-- numbers and refuses \u0000. Nothing casts these columns or looks into them.
--
-- An array of entries that the checkpoint appends. Null: `delta` has them, if there are any.
ALTER TABLE harness_checkpoints ADD COLUMN context_json json;
-- The context at the last fold. Then `context_window` is null.
ALTER TABLE harness_sessions
    ADD COLUMN context_json json,
    ALTER COLUMN context_window DROP NOT NULL;

-- What all processes do from some moment on, because no process is left that would not understand it.
CREATE TABLE harness_switches (
    name  text COLLATE "C" PRIMARY KEY CHECK (name = 'context_as_text'),
    since timestamptz NOT NULL DEFAULT now()
);

-- For the look whether there is one that cannot read them: empty, but for the time after an update.
CREATE INDEX harness_workers_before_0020 ON harness_workers (worker_id) WHERE coalesce(schema_version, 0) < 20;

-- Contexts rest as text once no worker that cannot read them is in the list of workers. One stays there for a day after its
-- end, so for a day after an update the release before it can be taken back.
CREATE FUNCTION harness_keep_contexts_as_text() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM harness_switches WHERE name = 'context_as_text') THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(7521418671159472916);
    IF NOT EXISTS (SELECT FROM harness_workers WHERE coalesce(schema_version, 0) < 20) THEN
        INSERT INTO harness_switches (name) VALUES ('context_as_text') ON CONFLICT DO NOTHING;
    END IF;
END $$;

-- From then on no such worker comes, for instance under a new id after its lease was lost: it would run a session without
-- its context.
CREATE FUNCTION harness_workers_read_contexts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7521418671159472916);
    IF EXISTS (SELECT FROM harness_switches WHERE name = 'context_as_text') THEN
        RAISE EXCEPTION 'a worker of this release cannot read the contexts of this fleet''s sessions: run a newer release';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER harness_workers_read_contexts BEFORE INSERT ON harness_workers
    FOR EACH ROW WHEN (coalesce(NEW.schema_version, 0) < 20) EXECUTE FUNCTION harness_workers_read_contexts();

-- Checkpoints that were folded: with those that are not, the whole transcript of a session, which a compaction does not
-- shorten. In partitions by the time inside the id of the job whose end folded them, which are made and dropped with those
-- of harness_results.
CREATE TABLE harness_history (
    session_id    text COLLATE "C" NOT NULL,
    epoch         bigint NOT NULL,
    ordinal       integer NOT NULL,
    folded_by     uuid NOT NULL,
    job_id        uuid NOT NULL,
    iterations    bigint NOT NULL,
    cost_microusd bigint NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    -- Whether its entries took the place of the context before them.
    replaces      boolean NOT NULL,
    -- Whether its job was rolled back, so that it is no part of the context.
    undone        boolean NOT NULL,
    context_json  json,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (session_id, epoch, ordinal, folded_by)
) PARTITION BY RANGE (folded_by);

-- A producer of an older release empties a session without knowing its history and its context. Only that makes a null
-- context_window be something again.
CREATE FUNCTION harness_sessions_are_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.context_json := NULL;
    DELETE FROM harness_history WHERE session_id = NEW.session_id;
    RETURN NEW;
END $$;
CREATE TRIGGER harness_sessions_are_emptied BEFORE UPDATE ON harness_sessions
    FOR EACH ROW WHEN (OLD.context_window IS NULL AND NEW.context_window IS NOT NULL)
    EXECUTE FUNCTION harness_sessions_are_emptied();
