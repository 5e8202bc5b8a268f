-- Where the lines are found and read. No job waits in one yet, so it is built without an entry.
CREATE INDEX harness_jobs_line ON harness_jobs (pool, lane, (tenant COLLATE "C"), line, seq) WHERE state = 'waiting';
