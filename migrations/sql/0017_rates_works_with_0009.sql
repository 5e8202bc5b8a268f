-- What the keys of providers may use in a minute. The reasons are in shared/store/src/spend/rates.rs.

-- A key is provider:hash, never its text. A row is there once a provider has refused it.
CREATE TABLE harness_provider_keys (
    key        text COLLATE "C" PRIMARY KEY,
    -- No call is granted until then.
    shut_until timestamptz NOT NULL,
    shut_at    timestamptz NOT NULL DEFAULT now(),
    -- rate_limit: a limit is reached. overloaded: the provider has too much to do. quota: the account has no credit.
    shut_for   text NOT NULL CHECK (shut_for IN ('rate_limit', 'overloaded', 'quota'))
);

-- An account for each limit: provider:hash:limit for one that workers name, with :model for one that answers report.
CREATE TABLE harness_provider_rates (
    account    text COLLATE "C" PRIMARY KEY,
    -- The limit that the last answer reported, for a minute.
    learnt     bigint CHECK (learnt > 0),
    learnt_at  timestamptz,
    -- Moves of transactions before this one are all folded.
    folded_tx  xid8 NOT NULL DEFAULT '0',
    -- Calls that were reserved before took nothing from it.
    opened_at  timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What calls have taken and given back. It counts until its minute is over.
CREATE TABLE harness_provider_moves (
    account      text COLLATE "C" NOT NULL,
    tx           xid8 NOT NULL DEFAULT pg_current_xact_id(),
    counts_until timestamptz NOT NULL,
    amount       bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);
CREATE INDEX harness_provider_moves_account ON harness_provider_moves (account, tx);

-- The accounts from which a call has taken something.
ALTER TABLE harness_calls ADD COLUMN rate_accounts text[];
