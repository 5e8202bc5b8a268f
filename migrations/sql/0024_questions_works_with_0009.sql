-- Apart from the change before, under which heartbeats wait.
CREATE INDEX harness_jobs_awaiting_input ON harness_jobs (state_since) WHERE state = 'awaiting_input';
