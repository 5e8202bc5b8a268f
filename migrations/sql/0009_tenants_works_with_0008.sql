-- In the order in which transactions lock them, so that a live fleet waits instead of meeting half of this in a deadlock.
LOCK TABLE harness_workers, harness_sessions, harness_jobs, harness_results IN ACCESS EXCLUSIVE MODE;

-- Whose work it is. A constant default rewrites no table. The key of another tenant's session is ~tenant/name, in
-- session_id here and in the checkpoints, so that equal names never meet. An older binary knows only the tenant
-- `default` and refuses the messages of the others, so no other tenant has jobs before all processes are newer.
ALTER TABLE harness_sessions ADD COLUMN tenant text NOT NULL DEFAULT 'default';
ALTER TABLE harness_jobs ADD COLUMN tenant text NOT NULL DEFAULT 'default';
ALTER TABLE harness_results ADD COLUMN tenant text NOT NULL DEFAULT 'default';

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
