//! Promise 7: one bad neighbour is one bad neighbour. No message, program, session, caller or pod can stop or slow the
//! others without bound. One file for each kind.

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
