-- What a tenant's calls have cost, without looking at those of the others.
CREATE INDEX harness_calls_tenant ON harness_calls (tenant, call_id);
