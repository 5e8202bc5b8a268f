-- When the leadership was renewed last. In the future, that was before Postgres's clock went back. Older binaries do not write it,
-- and then it lies in the past.
ALTER TABLE harness_leases ADD COLUMN renewed_at timestamptz;
