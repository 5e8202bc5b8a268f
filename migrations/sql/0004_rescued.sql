-- Rescue looks at the jobs of dead workers until it has taken the last one, and never again: death is final.
ALTER TABLE harness_workers ADD COLUMN rescued_at timestamptz;
