-- Jobs that services enqueue within their own transactions. They are written here alone: no foreign transaction may hold a
-- row of harness_jobs, or it would hold up claims and cancels for as long as it is open.
CREATE TABLE harness_inbox (
    seq        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text COLLATE "C" NOT NULL,
    job_id     uuid NOT NULL,
    -- As it was given: the fleet's decoder reads it, after the commit.
    job        json NOT NULL,
    bytes      bigint NOT NULL,
    -- The role that enqueued it, and whether it might name a queue for the reply.
    role       text NOT NULL,
    may_reply  boolean NOT NULL,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);
CREATE INDEX harness_inbox_turns ON harness_inbox (tenant, seq);
-- The same id again is the same job.
CREATE UNIQUE INDEX harness_inbox_job ON harness_inbox (job_id, tenant);

-- Which tenant the jobs of a database role belong to.
CREATE TABLE harness_roles (
    role      text COLLATE "C" PRIMARY KEY,
    tenant    text COLLATE "C" NOT NULL REFERENCES harness_tenants (name),
    may_reply boolean NOT NULL DEFAULT false,
    added_at  timestamptz NOT NULL DEFAULT now()
);

-- It runs with the rights of its owner, so every name in it has its schema, and the caller's search_path counts for nothing.
DO $outer$
BEGIN
    EXECUTE format($create$
CREATE FUNCTION %1$I.harness_enqueue(job json) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    role     text := session_user;
    known    record;
    given    text;
    digits   text;
    id       uuid;
    made     bytea;
BEGIN
    SELECT r.tenant, r.may_reply, t.closed_at INTO known
      FROM %1$I.harness_roles r JOIN %1$I.harness_tenants t ON t.name = r.tenant
     WHERE r.role = session_user;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the role "%%" has no tenant, so it cannot enqueue jobs', role
              USING ERRCODE = 'insufficient_privilege', HINT = 'An operator gives it one: producer roles add ROLE --tenant TENANT';
    ELSIF known.closed_at IS NOT NULL THEN
        RAISE EXCEPTION 'the tenant "%%" is closed', known.tenant USING ERRCODE = 'insufficient_privilege';
    ELSIF job IS NULL OR json_typeof(job) <> 'object' THEN
        RAISE EXCEPTION 'job: got %%, expected a JSON object', coalesce(json_typeof(job), 'NULL')
              USING ERRCODE = 'invalid_parameter_value';
    END IF;
    given := job ->> 'job_id';
    IF given IS NULL THEN
        -- A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix time in milliseconds, the version, and random bits.
        made := substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                || substring(uuid_send(gen_random_uuid()) FROM 7);
        id := encode(set_byte(made, 6, (get_byte(made, 6) & 15) | 112), 'hex')::uuid;
    ELSE
        digits := translate(replace(given, 'urn:uuid:', ''), '{}-', '');
        IF digits !~ '^[0-9a-fA-F]{12}7[0-9a-fA-F]{19}$' THEN
            RAISE EXCEPTION 'job_id: got "%%", expected a UUID of version 7', left(given, 100)
                  USING ERRCODE = 'invalid_parameter_value';
        ELSIF ('x0000' || left(digits, 12))::bit(64)::bigint > (extract(epoch FROM clock_timestamp()) + 86400) * 1000 THEN
            RAISE EXCEPTION 'job_id: the time inside "%%" is more than a day ahead', given
                  USING ERRCODE = 'invalid_parameter_value';
        END IF;
        id := digits::uuid;
    END IF;
    INSERT INTO %1$I.harness_inbox (tenant, job_id, job, bytes, role, may_reply)
    VALUES (known.tenant, id, job, octet_length(job::text), role, known.may_reply)
    ON CONFLICT (job_id, tenant) DO NOTHING;
    RETURN id;
END $body$
    $create$, current_schema());
    EXECUTE format('REVOKE ALL ON FUNCTION %I.harness_enqueue(json) FROM PUBLIC', current_schema());
END $outer$;
