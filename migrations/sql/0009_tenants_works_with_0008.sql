-- Callers that do not see each other's work. A null limit is none.
CREATE TABLE harness_tenants (
    name        text COLLATE "C" PRIMARY KEY,
    -- Its share of the places, beside those of the others.
    weight      integer NOT NULL DEFAULT 1 CHECK (weight > 0),
    max_running integer,
    max_waiting integer,
    rate_per_s  double precision,
    burst       integer,
    created_at  timestamptz NOT NULL DEFAULT now(),
    closed_at   timestamptz
);
INSERT INTO harness_tenants (name) VALUES ('default');
