-- Answers of models that other jobs of the same tenant are given again. The reasons are in shared/store/src/spend/cache.rs.
CREATE TABLE harness_cache (
    tenant        text COLLATE "C" NOT NULL,
    -- Equal for equal requests, and for how often their run had sent them before.
    key           bytea NOT NULL CHECK (octet_length(key) = 32),
    model         text NOT NULL,
    content_type  text NOT NULL,
    body          bytea NOT NULL,
    -- What it takes of the bound: its body, and about what its row takes beside.
    bytes         integer NOT NULL GENERATED ALWAYS AS (octet_length(body) + 200) STORED,
    -- What it has cost, which is what each hit saves.
    cost_microusd bigint NOT NULL CHECK (cost_microusd >= 0),
    stored_at     timestamptz NOT NULL DEFAULT now(),
    keep_until    timestamptz NOT NULL,
    PRIMARY KEY (tenant, key)
);
-- The oldest go first. The sizes are read from the index alone.
CREATE INDEX harness_cache_stored ON harness_cache (stored_at, tenant, key) INCLUDE (bytes);
CREATE INDEX harness_cache_until ON harness_cache (keep_until);
