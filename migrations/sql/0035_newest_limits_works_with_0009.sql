-- The limit under which the newest call was granted, as of the last fold; the greatest number: without one. Gauges show it, while
-- bound_microusd is the greatest of the window, which the audit needs. NULL: nothing was folded since there is this column.
ALTER TABLE harness_accounts ADD COLUMN newest_bound_microusd bigint;
