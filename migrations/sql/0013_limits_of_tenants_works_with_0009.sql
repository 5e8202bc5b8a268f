-- How many jobs of a tenant wait: looked at by the doors, for tenants with a bound. Jobs of the tenant `default`, which may
-- be all of the fleet's, are not in the index and cost nothing.
CREATE INDEX harness_jobs_waiting_of_tenant ON harness_jobs (tenant) WHERE state <> 'running' AND tenant <> 'default';

-- A tenant's list of jobs looks at its own jobs alone, however many the others have. Most live jobs are the tenant
-- `default`'s, and cost nothing here. Only new partitions of the results get their index by this file: `producer migrate`
-- builds those of the others afterwards, while the fleet works. Until then lists are slower.
CREATE INDEX harness_jobs_tenant ON harness_jobs (tenant, job_id) WHERE tenant <> 'default';
CREATE INDEX harness_results_tenant ON ONLY harness_results (tenant, job_id);

-- The rate limit of a tenant over all doors, as GCRA has it: one row for each tenant with a rate.
CREATE TABLE harness_rates (
    tenant  text COLLATE "C" PRIMARY KEY,
    -- The theoretical arrival time of the next job: Unix time in nanoseconds. If it is in the past, the burst is whole.
    tat_ns  bigint NOT NULL,
    -- How many jobs the last question was granted.
    granted integer NOT NULL
) WITH (fillfactor = 50);
