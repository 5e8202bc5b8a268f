-- Keys of callers of the HTTP API. A key is 'hfk_' + id + '_' + secret + checksum; of the secret only its SHA-256 is here.
CREATE TABLE harness_api_keys (
    id            text COLLATE "C" PRIMARY KEY,
    tenant        text COLLATE "C" NOT NULL,
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    scopes        text[] NOT NULL
        CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['submit', 'read', 'content', 'operate', 'admin']),
    label         text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    -- The minute of its last use.
    last_used_at  timestamptz
);
CREATE INDEX harness_api_keys_tenant ON harness_api_keys (tenant);

-- The operators' log: who did what, and how often each key was used in a minute. Each row holds the hash of the one before
-- it, so a row that was changed, taken out or put in between shows.
CREATE TABLE harness_audit_log (
    -- Without gaps; the trigger gives it out.
    id        bigint PRIMARY KEY,
    at        timestamptz NOT NULL,
    actor     text NOT NULL,
    act       text NOT NULL,
    tenant    text COLLATE "C",
    detail    jsonb NOT NULL DEFAULT '{}',
    prev_hash bytea NOT NULL,
    hash      bytea NOT NULL
);

-- Appends a row to the chain. The lock is held until the transaction ends, and each statement of this function has a fresh
-- snapshot, so the last row that it reads is the last one there is. The text that is hashed depends on no setting of a
-- session; `producer audit` makes it by an expression of its own.
CREATE FUNCTION harness_audit_log_append() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last_id bigint;
    last_hash bytea;
BEGIN
    PERFORM pg_advisory_xact_lock(7521418671159472897);
    EXECUTE format('SELECT id, hash FROM %s ORDER BY id DESC LIMIT 1', TG_RELID::regclass) INTO last_id, last_hash;
    NEW.id := coalesce(last_id, 0) + 1;
    NEW.at := clock_timestamp();
    NEW.prev_hash := coalesce(last_hash, decode(repeat('00', 32), 'hex'));
    NEW.hash := sha256(NEW.prev_hash || convert_to(jsonb_build_array(NEW.id, (extract(epoch FROM NEW.at) * 1000000)::bigint,
                                                                     NEW.actor, NEW.act, NEW.tenant, NEW.detail)::text, 'UTF8'));
    RETURN NEW;
END $$;

CREATE FUNCTION harness_audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the operators'' log only grows: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER harness_audit_log_append BEFORE INSERT ON harness_audit_log
    FOR EACH ROW EXECUTE FUNCTION harness_audit_log_append();
CREATE TRIGGER harness_audit_log_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON harness_audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION harness_audit_log_refuse();
