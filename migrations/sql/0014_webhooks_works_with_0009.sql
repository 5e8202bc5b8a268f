-- Webhooks: addresses to which the ends of a tenant's jobs are sent. An older worker ends jobs without deliveries, so no
-- webhook is made or enabled while there is one.
CREATE TABLE harness_webhooks (
    id               text COLLATE "C" PRIMARY KEY,
    tenant           text COLLATE "C" NOT NULL,
    url              text NOT NULL,
    -- Which ends are sent.
    states           text[] NOT NULL
        CHECK (cardinality(states) > 0 AND states <@ ARRAY['succeeded', 'failed', 'cancelled']),
    -- Whether inputs and outputs are sent as well.
    content          boolean NOT NULL DEFAULT false,
    label            text NOT NULL DEFAULT '',
    -- What deliveries are signed with. After a rotation the secret before signs as well, for a while.
    secret           text NOT NULL,
    old_secret       text,
    old_secret_until timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    -- Since when ends are written for it without a gap.
    enabled_since    timestamptz NOT NULL DEFAULT now(),
    -- Since when no end is written for it and nothing is sent, and why.
    disabled_at      timestamptz,
    disabled_by      text CHECK (disabled_by IN ('operator', 'failing', 'gone')),
    -- Since when every attempt has failed.
    failing_since    timestamptz,
    CHECK ((disabled_at IS NULL) = (disabled_by IS NULL)),
    CHECK ((old_secret IS NULL) = (old_secret_until IS NULL))
);
CREATE INDEX harness_webhooks_tenant ON harness_webhooks (tenant);
-- Every batch of ends asks whether there is one: a single page, and an empty one in a fleet without webhooks.
CREATE INDEX harness_webhooks_enabled ON harness_webhooks (tenant) WHERE disabled_at IS NULL;

-- One row for each end and webhook, written in the transaction of the end. No foreign key: an end waits for no one who
-- changes a webhook. Rows are removed after a week.
CREATE TABLE harness_deliveries (
    webhook_id text COLLATE "C" NOT NULL,
    job_id     uuid NOT NULL,
    state      text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
    -- Attempts since it was written, or since it was asked for again.
    attempts   integer NOT NULL DEFAULT 0,
    -- When the next attempt is due; while one is under way, when another process may make one.
    due_at     timestamptz NOT NULL DEFAULT now(),
    -- The process whose attempt is under way.
    taken_by   uuid,
    -- What the last attempt was answered with, or why it had no answer.
    status     integer,
    problem    text,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz,
    PRIMARY KEY (webhook_id, job_id),
    CHECK ((state = 'pending') = (ended_at IS NULL))
);
CREATE INDEX harness_deliveries_due ON harness_deliveries (webhook_id, due_at) WHERE state = 'pending';
-- Those that were given up, for a request to send them again.
CREATE INDEX harness_deliveries_failed ON harness_deliveries (webhook_id, job_id) WHERE state = 'failed';
CREATE INDEX harness_deliveries_age ON harness_deliveries (created_at);

-- And no such worker comes where there is one that is enabled, for instance under a new id after its lease was lost.
CREATE FUNCTION harness_workers_know_webhooks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM harness_webhooks WHERE disabled_at IS NULL) THEN
        RAISE EXCEPTION 'a worker of this release ends jobs without deliveries, and this fleet has webhooks: run a newer release';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER harness_workers_know_webhooks BEFORE INSERT ON harness_workers
    FOR EACH ROW WHEN (coalesce(NEW.schema_version, 0) < 14) EXECUTE FUNCTION harness_workers_know_webhooks();
