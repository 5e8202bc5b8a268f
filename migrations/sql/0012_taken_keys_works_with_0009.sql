-- Keys that callers of the HTTP API gave to jobs: a key finds the first job that took it. A unique index on harness_jobs
-- would make a claim's insert refuse a confirmed message; here only an acceptance looks.
CREATE TABLE harness_taken_keys (
    tenant     text COLLATE "C" NOT NULL,
    -- idempotency: the same request again. unique: another request for the same work.
    kind       text COLLATE "C" NOT NULL CHECK (kind IN ('idempotency', 'unique')),
    key        text COLLATE "C" NOT NULL,
    job_id     uuid NOT NULL,
    -- The SHA-256 of what the caller sent.
    sent       bytea NOT NULL CHECK (octet_length(sent) = 32),
    taken_at   timestamptz NOT NULL DEFAULT now(),
    -- A unique key is held beyond that while its job lives.
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, kind, key)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);
CREATE INDEX harness_taken_keys_expires ON harness_taken_keys (expires_at, job_id);
