-- Reads every row, and neither reader nor writer waits for that.
ALTER TABLE harness_jobs VALIDATE CONSTRAINT harness_jobs_state_check;
