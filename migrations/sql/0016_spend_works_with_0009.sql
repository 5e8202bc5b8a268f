-- What model calls cost. The reasons are in shared/store/src/spend.

-- The time zone in which days and months of spend turn. One row.
CREATE TABLE harness_spend_zone (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    zone text NOT NULL
);
INSERT INTO harness_spend_zone (zone) VALUES ('UTC');

-- One row for each HTTP attempt at a model, in partitions by the time inside the id.
CREATE TABLE harness_calls (
    call_id             uuid NOT NULL,
    -- held: it may be under way. free: nothing is billed. unknown: counted in full.
    state               text NOT NULL CHECK (state IN ('held', 'settled', 'free', 'unknown')),
    tenant              text COLLATE "C" NOT NULL,
    session_id          text COLLATE "C" NOT NULL,
    job_id              uuid NOT NULL,
    epoch               bigint NOT NULL,
    worker_id           uuid NOT NULL,
    agent_id            text NOT NULL,
    user_id             text,
    provider            text NOT NULL,
    model               text NOT NULL,
    -- The model that answered, if it reported one.
    answered_by         text,
    reserved_microusd   bigint NOT NULL CHECK (reserved_microusd >= 0),
    -- What counts as spent: zero while it is held.
    cost_microusd       bigint NOT NULL DEFAULT 0 CHECK (cost_microusd >= 0),
    -- What it cost beyond its reservation.
    overrun_microusd    bigint NOT NULL DEFAULT 0 CHECK (overrun_microusd >= 0),
    input_tokens        bigint NOT NULL DEFAULT 0,
    cache_read_tokens   bigint NOT NULL DEFAULT 0,
    cache_write_tokens  bigint NOT NULL DEFAULT 0,
    output_tokens       bigint NOT NULL DEFAULT 0,
    -- The id by which the provider finds it.
    provider_request_id text,
    request_hash        bytea NOT NULL CHECK (octet_length(request_hash) = 32),
    request_nth         integer NOT NULL,
    -- The day of its reservation, which says its windows.
    day                 date NOT NULL,
    -- Whether it counts in an account of its session, and of its job.
    on_session          boolean NOT NULL,
    on_job              boolean NOT NULL,
    reserved_at         timestamptz NOT NULL DEFAULT now(),
    settled_at          timestamptz,
    -- Why its cost is not known.
    reason              text,
    PRIMARY KEY (call_id),
    CHECK ((state = 'held') = (settled_at IS NULL)),
    CHECK (state NOT IN ('held', 'free') OR cost_microusd = 0)
) PARTITION BY RANGE (call_id);

CREATE INDEX harness_calls_job ON harness_calls (session_id, job_id);
CREATE INDEX harness_calls_held ON harness_calls (worker_id) WHERE state = 'held';
CREATE INDEX harness_calls_unknown ON harness_calls (call_id) WHERE state = 'unknown';

-- Answers to the calls of live jobs, to be given to later attempts.
CREATE TABLE harness_call_answers (
    job_id            uuid NOT NULL,
    request_hash      bytea NOT NULL,
    request_nth       integer NOT NULL,
    session_id        text COLLATE "C" NOT NULL,
    epoch             bigint NOT NULL,
    -- How many checkpoints of its run were taken before it.
    after_checkpoints integer NOT NULL,
    call_id           uuid NOT NULL,
    content_type      text NOT NULL,
    body              bytea NOT NULL,
    stored_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, request_hash, request_nth)
);

-- A sum for each scope and window, as of its last fold. The key is scope:period:window:name.
CREATE TABLE harness_accounts (
    key               text COLLATE "C" PRIMARY KEY,
    spent_microusd    bigint NOT NULL DEFAULT 0,
    held_microusd     bigint NOT NULL DEFAULT 0,
    -- Above zero it is shut, until an operator has looked at it.
    overrun_microusd  bigint NOT NULL DEFAULT 0,
    reopened_microusd bigint NOT NULL DEFAULT 0,
    -- The greatest limit under which a call was granted. The greatest number: a call was granted without one.
    bound_microusd    bigint NOT NULL DEFAULT 0,
    -- Moves of transactions before this one are all folded.
    folded_tx         xid8 NOT NULL DEFAULT '0',
    -- Calls since then are in it.
    counts_from       timestamptz NOT NULL DEFAULT now(),
    changed_at        timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What was added to an account since its last fold. An account that every call meets would otherwise be rewritten by
-- every call, and while a snapshot is held each touch would walk over all its dead versions.
CREATE TABLE harness_account_moves (
    key              text COLLATE "C" NOT NULL,
    tx               xid8 NOT NULL DEFAULT pg_current_xact_id(),
    spent_microusd   bigint NOT NULL DEFAULT 0,
    held_microusd    bigint NOT NULL DEFAULT 0,
    overrun_microusd bigint NOT NULL DEFAULT 0,
    bound_microusd   bigint NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);
CREATE INDEX harness_account_moves_key ON harness_account_moves (key, tx);

-- Limits that operators set while the fleet runs.
CREATE TABLE harness_budgets (
    scope          text NOT NULL CHECK (scope IN ('fleet', 'tenant', 'agent', 'user', 'session', 'job')),
    name           text COLLATE "C" NOT NULL,
    period         text NOT NULL,
    limit_microusd bigint NOT NULL CHECK (limit_microusd >= 0),
    set_at         timestamptz NOT NULL DEFAULT now(),
    set_by         text NOT NULL,
    PRIMARY KEY (scope, period, name),
    CHECK ((period = 'life') = (scope IN ('session', 'job')) AND period IN ('day', 'month', 'life')),
    CHECK ((scope = 'fleet') = (name = ''))
);

-- Daily sums of calls that retention has removed.
CREATE TABLE harness_spend (
    day                date NOT NULL,
    tenant             text COLLATE "C" NOT NULL,
    agent_id           text NOT NULL,
    -- Empty: no user.
    user_id            text NOT NULL,
    model              text NOT NULL,
    calls              bigint NOT NULL,
    cost_microusd      bigint NOT NULL,
    unknown_microusd   bigint NOT NULL,
    input_tokens       bigint NOT NULL,
    cache_read_tokens  bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    output_tokens      bigint NOT NULL,
    PRIMARY KEY (day, tenant, agent_id, user_id, model)
);
