-- What the admitter lets those do who take in new jobs, until when, and since when the oldest message on its way has been. An
-- older admitter leaves all three alone, and the grant runs out.
ALTER TABLE harness_pools
    ADD COLUMN granted       bigint NOT NULL DEFAULT 0,
    ADD COLUMN granted_until timestamptz,
    ADD COLUMN counted_from  timestamptz;
