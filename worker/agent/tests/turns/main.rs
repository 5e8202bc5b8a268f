//! The loop against a gateway of ours and a provider of these tests: what it sends, what it pays, and what it makes again
//! after a kill at any moment.

mod provider;
mod refused;
mod world;

mod kills;
mod faults;
mod bounds;
mod cut;
mod heads;
mod persons;
mod results;
mod stops;
