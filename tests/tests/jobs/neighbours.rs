//! Promise 7: a bad neighbour harms no other. No message, program, session, caller or pod can stop the others, or slow
//! them without bound. One file for each kind.

mod given_up;
mod frames;
mod names;
mod process;
mod ready;
mod programs;
mod replies;
mod sessions;
mod suspects;
mod sweeps;
mod watch;
