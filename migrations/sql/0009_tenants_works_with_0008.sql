-- The tenants, and what each may take of the fleet. Null: no limit.
CREATE TABLE harness_tenants (
    name        text COLLATE "C" PRIMARY KEY,
    -- Its share of a pool beside other tenants.
    weight      integer NOT NULL DEFAULT 1 CHECK (weight > 0),
    max_running integer CHECK (max_running >= 0),
    max_waiting integer CHECK (max_waiting >= 0),
    -- Jobs that it may submit per second in the long run, and at once.
    rate_per_s  double precision CHECK (rate_per_s > 0),
    burst       integer CHECK (burst > 0),
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- Since when it submits nothing more.
    closed_at   timestamptz
);
INSERT INTO harness_tenants (name) VALUES ('default');
