//! What is promised about money: no provider bills more than a limit says, whatever is killed, cancelled or lost.

mod machine;
mod conformance;
mod caller;
mod caching;
mod reservations;
mod settlements;
mod ended_runs;
mod stored_answers;
mod budgets;
mod windows;
mod kept;
mod rates;
mod audit;
mod programs;
mod greedy;
mod rates_of_programs;
mod seen;
mod waiting_programs;
mod killed_agents;
mod desk;
mod agents;
mod agents_servers;
mod agents_example_server;
mod agents_models;
mod agents_answers;
mod named_failures;
