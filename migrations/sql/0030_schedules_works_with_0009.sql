-- Jobs that are made by the clock. The relay that leads moves next_at on and writes the job to the inbox, in one
-- transaction. The job's id follows from the schedule's id and the instant, so an instant is one job however often it fires.
CREATE TABLE harness_schedules (
    id         uuid PRIMARY KEY,
    tenant     text COLLATE "C" NOT NULL,
    name       text COLLATE "C" NOT NULL,
    -- Again and again, or once.
    cron       text,
    at         timestamptz,
    -- In which the expression is read, and times are shown.
    zone       text NOT NULL,
    jitter_ms  bigint NOT NULL CHECK (jitter_ms >= 0),
    catch_up   text NOT NULL CHECK (catch_up IN ('skip', 'last', 'all')),
    within_ms  bigint NOT NULL CHECK (within_ms >= 0),
    overlap    text NOT NULL CHECK (overlap IN ('skip', 'on_busy')),
    -- The object that POST /v1/jobs takes. The fleet's decoder reads it at each firing.
    job        json NOT NULL,
    -- Whether it might name a queue for the reply.
    may_reply  boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    paused_at  timestamptz,
    -- The next instant, and when its firing is due: later by its share of the jitter. Without one nothing is left.
    next_at    timestamptz,
    due_at     timestamptz,
    -- Rises with each change: what was decided on an older row changes nothing.
    version    bigint NOT NULL DEFAULT 1,
    -- The last instant that fired, and its job.
    last_at    timestamptz,
    last_job   uuid,
    fired      bigint NOT NULL DEFAULT 0,
    missed     bigint NOT NULL DEFAULT 0,
    skipped    bigint NOT NULL DEFAULT 0,
    CONSTRAINT harness_schedules_name UNIQUE (tenant, name),
    CONSTRAINT harness_schedules_times CHECK ((cron IS NULL) <> (at IS NULL)),
    CONSTRAINT harness_schedules_next CHECK ((next_at IS NULL) = (due_at IS NULL))
);
CREATE INDEX harness_schedules_due ON harness_schedules (due_at) WHERE paused_at IS NULL AND due_at IS NOT NULL;
