-- The newest migration that a worker knows. Null: it is of a release from before this column, so it may know no tenants, and
-- would fail the jobs of all but the tenant `default`.
ALTER TABLE harness_workers ADD COLUMN schema_version bigint;

-- Such a worker may run on beside newer ones until there is a tenant; then it is refused, for instance under a new id after
-- its lease was lost.
CREATE FUNCTION harness_workers_know_tenants() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM harness_tenants WHERE name <> 'default') THEN
        RAISE EXCEPTION 'a worker of this release does not know tenants, and this fleet has some: run a newer release';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER harness_workers_know_tenants BEFORE INSERT ON harness_workers
    FOR EACH ROW WHEN (NEW.schema_version IS NULL) EXECUTE FUNCTION harness_workers_know_tenants();
